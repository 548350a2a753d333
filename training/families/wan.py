"""Wan: text-to-video models of the 2.1 layout, from the single files that ComfyUI uses.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width,
T P Q clip frames, height and width in pixels, L text tokens, D text width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ...loaders.key_map import KeyMap
from ...loaders.module_weights import build_without_storage, fill
from ...loaders.quantised_weights import read_weight, stored_as, weight_names
from ...loaders.safetensors_file import Header, TensorReader, identity, read_header
from .model_family import (
    BaseModel,
    CaptionEncoder,
    DecodedClip,
    Defaults,
    Encoders,
    Features,
    Grid,
    ModelFamily,
    Streams,
)

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")

NAMES = KeyMap((
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("blocks.*.modulation", "blocks.*.scale_shift_table"),
    ("blocks.*.norm3", "blocks.*.norm2"),
    ("blocks.*.norm2", "blocks.*.norm3"),
    ("blocks.*.self_attn.q", "blocks.*.attn1.to_q"),
    ("blocks.*.self_attn.k", "blocks.*.attn1.to_k"),
    ("blocks.*.self_attn.v", "blocks.*.attn1.to_v"),
    ("blocks.*.self_attn.o", "blocks.*.attn1.to_out.0"),
    ("blocks.*.self_attn", "blocks.*.attn1"),
    ("blocks.*.cross_attn.q", "blocks.*.attn2.to_q"),
    ("blocks.*.cross_attn.k", "blocks.*.attn2.to_k"),
    ("blocks.*.cross_attn.v", "blocks.*.attn2.to_v"),
    ("blocks.*.cross_attn.o", "blocks.*.attn2.to_out.0"),
    ("blocks.*.cross_attn.k_img", "blocks.*.attn2.add_k_proj"),
    ("blocks.*.cross_attn.v_img", "blocks.*.attn2.add_v_proj"),
    ("blocks.*.cross_attn.norm_k_img", "blocks.*.attn2.norm_added_k"),
    ("blocks.*.cross_attn", "blocks.*.attn2"),
    ("blocks.*.ffn.0", "blocks.*.ffn.net.0.proj"),
    ("blocks.*.ffn.2", "blocks.*.ffn.net.2"),
))
"""Wan's own names to those of diffusers' class (its scripts/convert_wan_to_diffusers.py)."""

ROOTS = ("patch_embedding", "text_embedding", "time_embedding", "time_projection", "blocks", "head", "img_emb")

ATTENTION = tuple(f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo")

VARIANTS = (
    ("vace_", "VACE"), ("face_adapter", "Animate"), ("pose_patch_embedding", "Animate"), ("motion_encoder", "Animate"),
    ("casual_audio_encoder", "S2V"), ("audio_injector", "S2V"), ("audio_proj", "HuMo"),
    ("control_adapter", "Fun-Camera"), ("ref_conv", "Fun-Control"), ("patch_embedding_pose", "SCAIL"),
    ("patch_embedding_mask", "SCAIL"), ("patch_embedding_global", "Dancer"),
)
"""Beginnings of keys that only one kind of Wan has."""

SIZES = {(1536, 30): "1.3B", (3072, 30): "5B", (5120, 40): "14B"}
"""(width, layers) to what a model of that size is called."""

LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
"""Of the Wan 2.1 VAE's latents, per channel (Wan 2.1, wan/modules/vae.py)."""

GRID = Grid(fps=16, time_stride=4, space_stride=8, size_multiple=16, channels=16)

DEFAULTS = Defaults(width=832, height=480, frames=49, shift=3.0, rank=32, learning_rate=1e-4, steps=2000)
"""Where the recipes of musubi-tuner, diffusion-pipe, ai-toolkit and finetrainers agree most."""

TEXT_TOKENS = 512


class Wan(ModelFamily):
    name = "Wan"

    def recognise(self, header: Header) -> BaseModel | None:
        prefix = next((prefix for prefix in PREFIXES if f"{prefix}head.modulation" in header.tensors), None)
        if prefix is None:
            return None
        config = infer_config(header, prefix)
        title, trainable = _title(header, prefix, config)
        if not trainable:
            raise ValueError(f"{header.path.name} is {title}; only text-to-video Wan models can be trained so far.")
        return BaseModel(
            family=self, title=title, path=header.path, key_prefix=prefix, stored_as=stored_as(header, prefix),
            config=config, grid=GRID, text_tokens=TEXT_TOKENS, text_width=config["text_dim"], defaults=DEFAULTS,
            identity=identity(header), form="Wan 2.1 video", caption_form="umT5-XXL",
        )

    def load_transformer(self, base: BaseModel, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        from diffusers import WanTransformer3DModel

        transformer = build_without_storage(lambda: WanTransformer3DModel(**base.config))
        header, prefix = read_header(base.path), base.key_prefix
        with TensorReader(header) as reader:
            fill(
                transformer,
                {name.removeprefix(prefix): header.tensors[name].shape for name in weight_names(header, prefix)},
                lambda name: read_weight(reader, prefix + name),
                NAMES,
                dtype=dtype, keep_fp32=WanTransformer3DModel._keep_in_fp32_modules, device=device,
                source=base.path.name,
            )
        _embed_time_in_full_precision(transformer)
        return transformer.train(False)

    def adapter_targets(self, base: BaseModel, streams: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        return {"attention and feed-forward": (*ATTENTION, "ffn.0", "ffn.2"), "attention": ATTENTION}

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        return transformer.blocks

    def original_name(self, module: str) -> str:
        return NAMES.back(module)

    def prepare_clip(self, base: BaseModel, clip: DecodedClip, encoders: Encoders) -> Features:
        latents = encoders.clip.encode(clip.frames)
        count, height, width, _ = clip.frames.shape
        _check_latents(base.grid, tuple(latents.shape), width, height, count)
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
        return {"video": ((latents.detach().to("cpu", torch.float32) - mean) / std).contiguous()}

    def prepare_captions(
        self, base: BaseModel, captions: Iterable[str], encoder: CaptionEncoder, device: torch.device
    ) -> Iterator[Features]:
        """As `ModelFamily.prepare_captions`. Captions of more than 512 tokens stay whole, as in ComfyUI."""
        for caption in captions:
            text = encoder.encode(caption).detach().to("cpu")
            if text.ndim != 2 or text.shape[1] != base.text_width:
                raise ValueError(
                    f"This text encoder gives features of shape {list(text.shape)}; Wan needs (tokens, "
                    f"{base.text_width}): choose umt5_xxl."
                )
            filled = text.ne(0).any(dim=1).nonzero()
            yield {"text": text[: int(filled.max()) + 1 if len(filled) else 1].contiguous()}

    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        tokens = max(base.text_tokens, *(len(sample["text"]) for sample in samples))
        text = torch.zeros(len(samples), tokens, base.text_width)
        for row, sample in zip(text, samples, strict=True):
            row[: len(sample["text"])] = sample["text"]
        return {"video": torch.stack([sample["video"] for sample in samples])}, {"text": text}

    def predict(
        self, transformer: nn.Module, noisy: Streams, levels: Streams, given: Streams, features: Features
    ) -> Streams:
        """The velocity, noise minus clean. Text is attended to without a mask: padding is part of the input."""
        velocity = transformer(
            hidden_states=noisy["video"], timestep=levels["video"] * 1000.0, encoder_hidden_states=features["text"],
            return_dict=False,
        )[0]
        return {"video": velocity}

    def twin(self) -> tuple[Mapping[str, Any], nn.Module]:
        from diffusers import WanTransformer3DModel

        config = _config(dim=128, layers=2, ffn_dim=256, channels=16, text_width=4096)
        twin = build_without_storage(lambda: WanTransformer3DModel(**config))
        generator = torch.Generator().manual_seed(0)

        def draw(name: str) -> Tensor:
            shape = shapes[name]
            noise = torch.randn(shape, generator=generator)
            if "norm" in name:
                return 0.1 * noise + name.endswith("weight")
            return noise * (shape[1:].numel() ** -0.5 if name.endswith("weight") else 0.1)

        shapes = {name: tensor.shape for name, tensor in twin.state_dict().items()}
        fill(twin, shapes, draw, KeyMap(()), dtype=torch.float32)
        _embed_time_in_full_precision(twin)
        return config, twin.train(False)


def _config(
    *, dim: int, layers: int, ffn_dim: int, channels: int, text_width: int, out_channels: int = 16, freq_dim: int = 256
) -> dict[str, Any]:
    """Arguments of diffusers' class for a plain text-to-video Wan."""
    return {
        "patch_size": (1, 2, 2), "num_attention_heads": dim // 128, "attention_head_dim": 128,
        "in_channels": channels, "out_channels": out_channels, "text_dim": text_width, "freq_dim": freq_dim,
        "ffn_dim": ffn_dim, "num_layers": layers, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6, "added_kv_proj_dim": None,
    }


def infer_config(header: Header, prefix: str) -> dict[str, Any]:
    """Arguments of diffusers' class for the Wan in a file, of any kind but those with parts of their own.

    Raises ValueError where the tensors that tell are not there or have impossible shapes.
    """
    def shape(name: str) -> tuple[int, ...]:
        info = header.tensors.get(prefix + name)
        return info.shape if info else ()

    try:
        dim, channels, *patch = shape("patch_embedding.weight")
        head, head_dim = shape("head.head.weight")
        text_width, freq_dim = shape("text_embedding.0.weight")[1], shape("time_embedding.0.weight")[1]
        block = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
        config = _config(
            dim=dim, layers=1 + max(int(found[1]) for name in header.tensors if (found := block.match(name))),
            ffn_dim=shape("blocks.0.ffn.0.weight")[0], channels=channels, text_width=text_width,
            out_channels=head // 4, freq_dim=freq_dim,
        )
        if dim % 128 or not dim or head_dim != dim or head % 4 or patch != [1, 2, 2]:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(
            f"{header.path.name} has the names of a Wan model but not its shapes, or is one part of a split model: "
            "choose a model that is one file."
        ) from None
    if image := shape("img_emb.proj.0.weight"):
        config |= {"image_dim": image[0], "added_kv_proj_dim": dim}
    if positions := shape("img_emb.emb_pos"):
        config |= {"pos_embed_seq_len": positions[1]}
    return config


def _title(header: Header, prefix: str, config: Mapping[str, Any]) -> tuple[str, bool]:
    """What the Wan in a file is called, and whether it can be trained.

    Wan 2.1's 14B text-to-video model and Wan 2.2's two experts have the same keys and shapes.
    """
    dim, layers = 128 * config["num_attention_heads"], config["num_layers"]
    size = SIZES.get((dim, layers), f"(dim {dim}, {layers} layers)")
    own = [name.removeprefix(prefix) for name in weight_names(header, prefix)]
    for beginning, variant in VARIANTS:
        if any(name.startswith(beginning) for name in own):
            return f"Wan {variant} {size}", False
    if unknown := sorted({name.split(".")[0] for name in own} - set(ROOTS)):
        return f"a Wan model with parts of its own ({', '.join(unknown[:3])})", False
    channels = config["in_channels"], config["out_channels"]
    if channels == (36, 16):
        kind = "2.1 FLF2V" if "pos_embed_seq_len" in config else "2.1 I2V" if "image_dim" in config else "2.2 I2V"
        return f"Wan {kind} {size}", False
    if channels in ((48, 48), (48, 16)):
        return f"Wan {'2.2 TI2V' if channels == (48, 48) else 'Fun-Control'} {size}", False
    if channels != (16, 16) or "image_dim" in config:
        return f"a Wan model of another kind ({channels[0]} channels in, {channels[1]} out)", False
    version = {"1.3B": "2.1 ", "14B": "2.1 / 2.2 "}.get(size, "")
    return f"Wan {version}T2V {size}", True


def _check_latents(grid: Grid, came: tuple[int, ...], width: int, height: int, frames: int) -> None:
    """ValueError unless a VAE's latents of a clip lie on the model's grid."""
    wanted = grid.latent_shape(width, height, frames)
    if came == wanted:
        return
    if len(came) != 4:
        fault = f"gives latents of shape {list(came)}"
    elif came[0] != wanted[0] or came[2:] != wanted[2:]:
        fault = f"gives {came[0]} channels at 1/{round(height / max(came[2], 1))} size"
    else:
        fault = f"gives {came[1]} latent frames for {frames} frames"
    raise ValueError(
        f"This VAE {fault}; Wan 2.1 needs {wanted[0]} channels at 1/{grid.space_stride} size and {wanted[1]} latent "
        f"frames for {frames} frames: choose wan_2.1_vae."
    )


def _embed_time_in_full_precision(transformer: nn.Module) -> None:
    """Let the time embedder ignore autocast, as Wan's own code does: 1000 noise levels need more than bf16's digits.

    A bound method, not a closure: it follows the module through `copy.deepcopy`.
    """
    def forward(self: nn.Module, sample: Tensor, *args: Any) -> Tensor:
        with torch.autocast(sample.device.type, enabled=False):
            return type(self).forward(self, sample, *args)

    embedder = transformer.condition_embedder.time_embedder
    embedder.forward = MethodType(forward, embedder)
