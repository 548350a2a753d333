"""Wan 2.1 and 2.2: from text, from a first frame, from first and last frame; one file or two experts.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width,
T P Q clip frames, height and width in pixels, L text tokens, D text width.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ...loaders.key_map import KeyMap, count_blocks
from ...loaders.module_weights import AS_STORED, Storage, build_without_storage, fill_at_random, fill_from_file
from ...loaders.quantised_weights import stored_as, weight_names
from ...loaders.safetensors_file import Header, identity, read_header
from .model_family import (
    BaseModel,
    CaptionEncoder,
    ClipEncoder,
    DecodedClip,
    Defaults,
    Encoders,
    Features,
    Grid,
    ModelFamily,
    Streams,
    find_prefix,
    first_frames_given,
)

log = logging.getLogger(__name__)

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
IMAGE_ATTENTION = ("cross_attn.k_img", "cross_attn.v_img")

VARIANTS = (
    ("vace_", "VACE"), ("face_adapter", "Animate"), ("pose_patch_embedding", "Animate"), ("motion_encoder", "Animate"),
    ("casual_audio_encoder", "S2V"), ("audio_injector", "S2V"), ("audio_proj", "HuMo"),
    ("control_adapter", "Fun-Camera"), ("ref_conv", "Fun-Control"), ("patch_embedding_pose", "SCAIL"),
    ("patch_embedding_mask", "SCAIL"), ("patch_embedding_global", "Dancer"),
)
"""Beginnings of keys that only one kind of Wan has."""

SIZES = {(1536, 30): "1.3B", (3072, 30): "5B", (5120, 40): "14B"}
"""(width, layers) to what a model of that size is called."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What one of Wan's two VAEs makes of a clip."""

    vae: str
    grid: Grid
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the VAE's own latents, per channel."""


LATENTS_21 = Latents(
    vae="wan_2.1_vae",
    grid=Grid(fps=16, time_stride=4, space_stride=8, size_multiple=16, channels=16),
    mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)
"""Figures: Wan 2.1, wan/modules/vae.py."""

LATENTS_22 = Latents(
    vae="wan2.2_vae",
    grid=Grid(fps=24, time_stride=4, space_stride=16, size_multiple=32, channels=48),
    mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
)
"""Figures: Wan 2.2, wan/modules/vae2_2.py."""

LATENTS = {latents.grid.channels: latents for latents in (LATENTS_21, LATENTS_22)}

DEFAULTS = Defaults(
    width=832, height=480, frames=49, shift=3.0, rank=32, learning_rate=1e-4, steps=2000, sampler_shift=8.0,
    guidance=6.0,
)
"""Where the recipes of musubi-tuner, diffusion-pipe, ai-toolkit and finetrainers agree most."""
SHIFT_22 = 5.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What one kind of Wan learns from beside clip and caption, and how its files show it."""

    title: str
    channels: tuple[int, int]
    """In and out, as its patch embedding and its head have them."""
    shown: tuple[int, ...] = ()
    """Frames of the clip that it is shown, encoded by the VAE. With two, its image embedding has positions."""
    sees: bool = False
    """Whether it is also told what CLIP vision sees in these frames."""
    boundary: float = 0.0
    """The noise level between its two experts (Wan 2.2, wan/configs); 0 for one file."""
    defaults: Defaults = DEFAULTS
    one_of_two: bool = False

    @property
    def form(self) -> str:
        frames = {1: ", first frame", 2: ", first and last frame"}.get(len(self.shown), "")
        return f"Wan {'2.2' if self.channels[1] == 48 else '2.1'} video{frames}{', CLIP vision' if self.sees else ''}"


KINDS = {
    "T2V": Kind(title="T2V", channels=(16, 16), boundary=0.875),
    "I2V": Kind(title="2.1 I2V", channels=(36, 16), shown=(0,), sees=True),
    "FLF2V": Kind(title="2.1 FLF2V", channels=(36, 16), shown=(0, -1), sees=True),
    "2.2 I2V": Kind(
        title="2.2 I2V", channels=(36, 16), shown=(0,), boundary=0.9, one_of_two=True,
        defaults=dataclasses.replace(DEFAULTS, shift=SHIFT_22, guidance=3.5),
    ),
    "TI2V": Kind(
        title="2.2 TI2V", channels=(48, 48),
        defaults=dataclasses.replace(
            DEFAULTS, width=1280, height=704, shift=SHIFT_22, first_frame=0.5, guidance=5.0
        ),
    ),
}
TRAINABLE = "T2V, I2V, FLF2V and TI2V"

EXPERTS = ("high_noise", "low_noise")

TEXT_TOKENS = 512
IMAGE_TOKENS, IMAGE_WIDTH = 257, 1280
"""Of CLIP ViT-H/14: patches of one image and the class token."""


class Wan(ModelFamily):
    name = "Wan"
    names = NAMES

    def recognise(self, header: Header) -> BaseModel | None:
        prefix = find_prefix(header, "head.modulation")
        if prefix is None:
            return None
        config = infer_config(header, prefix)
        if title := _untrainable(header, prefix, config):
            raise ValueError(f"{header.path.name} is {title}; of Wan, only {TRAINABLE} models can be trained so far.")
        kind = _kind(config)
        base = BaseModel(
            family=self, title=_title(kind, config), path=header.path, key_prefix=prefix,
            stored_as=stored_as(header, prefix), config=config, grid=LATENTS[config["out_channels"]].grid,
            text_tokens=TEXT_TOKENS, text_width=config["text_dim"], defaults=kind.defaults, identity=identity(header),
            form=kind.form, caption_form="umT5-XXL", one_of_two=kind.one_of_two,
            needs=frozenset({"image"} if kind.sees else ()),
        )
        expert = _named_expert(header.path) if _boundary(config) else ""
        return _as_expert(base, expert) if expert else base

    def load_transformer(
        self, base: BaseModel, *, dtype: torch.dtype, device: torch.device, storage: Storage = AS_STORED
    ) -> nn.Module:
        from diffusers import WanTransformer3DModel

        transformer = fill_from_file(
            build_without_storage(lambda: WanTransformer3DModel(**base.config)), read_header(base.path),
            base.key_prefix, NAMES, dtype=dtype, device=device, blocks=self.blocks, storage=storage,
            keep_fp32=WanTransformer3DModel._keep_in_fp32_modules,
        )
        _embed_time_in_full_precision(transformer)
        return transformer

    def pair(self, high_noise: BaseModel, low_noise: BaseModel) -> BaseModel:
        """As `ModelFamily.pair`. Steps are for both: the default is twice that of one model."""
        if not _boundary(high_noise.config):
            return super().pair(high_noise, low_noise)
        if low_noise.config != high_noise.config:
            raise ValueError(
                f"{high_noise.path.name} is {high_noise.title} and {low_noise.path.name} is {low_noise.title}: they do "
                "not belong together; choose the high-noise and the low-noise file of one model."
            )
        if low_noise.path == high_noise.path:
            raise ValueError(
                f"{high_noise.path.name} is chosen twice: choose the high-noise and the low-noise file of one model."
            )
        high_noise, low_noise = _as_expert(high_noise, "high_noise"), _as_expert(low_noise, "low_noise")
        defaults = dataclasses.replace(high_noise.defaults, steps=2 * high_noise.defaults.steps)
        return dataclasses.replace(high_noise, defaults=defaults, low_noise=low_noise)

    def one_expert(self, base: BaseModel, expert: str) -> BaseModel:
        return _as_expert(base, expert) if _boundary(base.config) else super().one_expert(base, expert)

    def adapter_targets(self, base: BaseModel, streams: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        attention = ATTENTION + (IMAGE_ATTENTION if _kind(base.config).sees else ())
        return {"attention and feed-forward": (*attention, "ffn.0", "ffn.2"), "attention": attention}

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        return transformer.blocks

    def prepare_clip(self, base: BaseModel, clip: DecodedClip, encoders: Encoders) -> Features:
        """As `ModelFamily.prepare_clip`; `condition` (4 + C, F, H, W) and `image` (tokens, width) where it takes them.

        An image is a clip of one frame. A model that starts from a first frame is shown it whole, as at inference.
        """
        kind = _kind(base.config)
        features = {"video": _latents(base, clip.frames, encoders.clip)}
        if kind.shown:
            features["condition"] = _condition(base, clip.frames, kind.shown, encoders.clip)
        if kind.sees:
            seen = [encoders.image.encode(clip.frames[index]).detach().to("cpu") for index in kind.shown]
            for image in seen:
                if tuple(image.shape) != (IMAGE_TOKENS, base.config["image_dim"]):
                    raise ValueError(
                        f"This CLIP vision model gives features of shape {list(image.shape)}; {base.title} needs "
                        f"({IMAGE_TOKENS}, {base.config['image_dim']}): choose clip_vision_h."
                    )
            features["image"] = torch.cat(seen).float().contiguous()
        return features

    def prepare_captions(
        self, base: BaseModel, captions: Iterable[str], encoder: CaptionEncoder, device: torch.device
    ) -> Iterator[Features]:
        """As `ModelFamily.prepare_captions`. Captions of more than 512 tokens are cached whole."""
        for caption in captions:
            text = encoder.encode(caption).detach().to("cpu")
            if text.ndim != 2 or text.shape[1] != base.text_width:
                raise ValueError(
                    f"This text encoder gives features of shape {list(text.shape)}; Wan needs (tokens, "
                    f"{base.text_width}): choose umt5_xxl."
                )
            filled = text.ne(0).any(dim=1).nonzero()
            tokens = int(filled.max()) + 1 if len(filled) else 1
            if tokens > base.text_tokens and _kind(base.config).sees:
                log.warning("a caption has %d tokens, %s reads the first %d: %.60s", tokens, base.title,
                            base.text_tokens, caption)
            yield {"text": text[:tokens].contiguous()}

    def decodable(self, base: BaseModel, video: Tensor) -> Tensor:
        mean, std = _statistics(base)
        return video * std + mean

    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        """As `ModelFamily.collate`. Captions longer than 512 tokens stay whole, as in ComfyUI, unless an image is seen:
        diffusers' class then counts on 512.
        """
        tokens = base.text_tokens
        if not _kind(base.config).sees:
            tokens = max(tokens, *(len(sample["text"]) for sample in samples))
        text = torch.zeros(len(samples), tokens, base.text_width)
        for row, sample in zip(text, samples, strict=True):
            kept = sample["text"][:tokens]
            row[: len(kept)] = kept
        features = {name: torch.stack([sample[name] for sample in samples]) for name in ("condition", "image")
                    if name in samples[0]}
        return {"video": torch.stack([sample["video"] for sample in samples])}, {"text": text, **features}

    def given(self, base: BaseModel, clean: Streams, share: float, generator: torch.Generator) -> Streams:
        """As `ModelFamily.given`, for the kind that starts from a frame by taking it clean."""
        return first_frames_given(clean["video"], share if base.defaults.first_frame else 0.0, generator)

    def predict(
        self, transformer: nn.Module, noisy: Streams, levels: Streams, given: Streams, features: Features
    ) -> Streams:
        """The velocity, noise minus clean. Text is attended to without a mask: padding is part of the input."""
        hidden, timestep, image = noisy["video"], levels["video"] * 1000.0, features.get("image")
        if "video" in given:
            tokens_per_frame = hidden.shape[3] // 2 * (hidden.shape[4] // 2)
            asked = ~given["video"][:, 0, :, 0, 0]
            timestep = (timestep[:, None] * asked).repeat_interleave(tokens_per_frame, dim=1)
        if "condition" in features:
            hidden = torch.cat([hidden, features["condition"]], dim=1)
        if image is not None:
            image = image.reshape(-1, IMAGE_TOKENS, image.shape[-1])
        velocity = transformer(
            hidden_states=hidden, timestep=timestep, encoder_hidden_states=features["text"],
            encoder_hidden_states_image=image, return_dict=False,
        )[0]
        return {"video": velocity}

    def twin(self, kind: str = "T2V") -> tuple[Mapping[str, Any], nn.Module]:
        """As `ModelFamily.twin`; `kind` is one of `KINDS`."""
        from diffusers import WanTransformer3DModel

        config = _twin_config(KINDS[kind])
        twin = fill_at_random(build_without_storage(lambda: WanTransformer3DModel(**config)))
        _embed_time_in_full_precision(twin)
        return config, twin


def _twin_config(kind: Kind) -> dict[str, Any]:
    channels, out_channels = kind.channels
    config = _config(dim=128, layers=2, ffn_dim=256, channels=channels, text_width=4096, out_channels=out_channels)
    if kind.sees:
        config |= {"image_dim": IMAGE_WIDTH, "added_kv_proj_dim": 128}
    if kind.sees and len(kind.shown) > 1:
        config |= {"pos_embed_seq_len": len(kind.shown) * IMAGE_TOKENS}
    return config


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
        config = _config(
            dim=dim, layers=count_blocks(header.tensors, f"{prefix}blocks"),
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


def _size(config: Mapping[str, Any]) -> str:
    dim, layers = 128 * config["num_attention_heads"], config["num_layers"]
    return SIZES.get((dim, layers), f"(dim {dim}, {layers} layers)")


def _kind(config: Mapping[str, Any]) -> Kind | None:
    """Which of `KINDS` a configuration is of; None where of none."""
    channels = config["in_channels"], config["out_channels"]
    sees, positions = "image_dim" in config, "pos_embed_seq_len" in config
    return next(
        (kind for kind in KINDS.values()
         if (kind.channels, kind.sees, kind.sees and len(kind.shown) > 1) == (channels, sees, positions)), None,
    )


def _untrainable(header: Header, prefix: str, config: Mapping[str, Any]) -> str:
    """What a Wan that is of none of `KINDS` is called; nothing where it is of one."""
    own = [name.removeprefix(prefix) for name in weight_names(header, prefix)]
    for beginning, variant in VARIANTS:
        if any(name.startswith(beginning) for name in own):
            return f"Wan {variant} {_size(config)}"
    if unknown := sorted({name.split(".")[0] for name in own} - set(ROOTS)):
        return f"a Wan model with parts of its own ({', '.join(unknown[:3])})"
    channels = config["in_channels"], config["out_channels"]
    if channels == (48, 16):
        return f"Wan Fun-Control {_size(config)}"
    return "" if _kind(config) else f"a Wan model of another kind ({channels[0]} channels in, {channels[1]} out)"


def _title(kind: Kind, config: Mapping[str, Any]) -> str:
    """What a model is called by what its tensors tell: Wan 2.1's 14B text-to-video model and Wan 2.2's experts have the
    same keys and shapes, and so have the two experts of each.
    """
    size = _size(config)
    if kind is KINDS["T2V"]:
        return f"Wan { {'1.3B': '2.1 ', '14B': '2.1 / 2.2 '}.get(size, '')}T2V {size}"
    return f"Wan {kind.title} {size}"


def _boundary(config: Mapping[str, Any]) -> float:
    """The noise level between this model's two experts; 0 where it is surely one file."""
    return 0.0 if _size(config) == "1.3B" else _kind(config).boundary


def _named_expert(path: Path) -> str:
    """Which expert a file's name says it is: `high_noise`, `low_noise`, or nothing.

    `high` and `low` alone count where the name has the version too: they are said of other things as well.
    """
    name = path.stem.lower()
    found = re.findall(r"(?<![a-z])(high|low)[ _.-]?(noise)?(?![a-z])", name)
    versioned = re.search(r"(?<!\d)2[._-]?2(?!\d)", name)
    said = {f"{level}_noise" for level, noise in found if noise or versioned}
    return said.pop() if len(said) == 1 else ""


def _as_expert(base: BaseModel, expert: str) -> BaseModel:
    """A file as one of two experts. ValueError where its name says that it is the other."""
    if expert not in EXPERTS:
        raise ValueError(f"Expert is {expert!r}; choose one of: {', '.join(EXPERTS)}.")
    if base.expert not in ("", expert):
        chosen, named = expert.replace("_", "-"), base.expert.replace("_", "-")
        raise ValueError(
            f"{base.path.name} is chosen as the {chosen} expert, and its name says that it is the {named} one: "
            "exchange the files, or rename it."
        )
    boundary, size = _boundary(base.config), _size(base.config)
    kind = _kind(base.config).title.removeprefix("2.2 ")
    return dataclasses.replace(
        base, title=f"Wan 2.2 {kind} {'A14B' if size == '14B' else size}", expert=expert,
        levels=(boundary, 1.0) if expert == "high_noise" else (0.0, boundary),
        defaults=dataclasses.replace(base.defaults, shift=SHIFT_22),
    )


def _latents(base: BaseModel, frames: Tensor, vae: ClipEncoder) -> Tensor:
    """Frames (T, P, Q, 3) in 0..1 to normalised latents (C, F, H, W). ValueError where the VAE is another model's."""
    latents = vae.encode(frames)
    count, height, width, _ = frames.shape
    _check_latents(base, tuple(latents.shape), width, height, count)
    mean, std = _statistics(base)
    return ((latents.detach().to("cpu", torch.float32) - mean) / std).contiguous()


def _statistics(base: BaseModel) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's latents, each (C, 1, 1, 1)."""
    known = LATENTS[base.grid.channels]
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (known.mean, known.std))
    return mean, std


def _condition(base: BaseModel, frames: Tensor, shown: tuple[int, ...], vae: ClipEncoder) -> Tensor:
    """What a model that starts from frames is told of them, (4 + C, F, H, W): which they are, and their latents.

    The frames stand in a grey clip of the full length. The mask has a channel for each frame of a latent frame; the
    first latent frame has one, which stands for all four (Wan 2.1, wan/image2video.py).
    """
    grey, known = torch.full_like(frames, 0.5), torch.zeros(len(frames))
    grey[list(shown)], known[list(shown)] = frames[list(shown)], 1.0
    latents, stride = _latents(base, grey, vae), base.grid.time_stride
    mask = torch.cat([known[:1].expand(stride), known[1:]]).view(-1, stride).T
    return torch.cat([mask[:, :, None, None].expand(-1, -1, *latents.shape[2:]), latents]).contiguous()


def _check_latents(base: BaseModel, came: tuple[int, ...], width: int, height: int, frames: int) -> None:
    """ValueError unless a VAE's latents of a clip lie on the model's grid."""
    grid = base.grid
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
        f"This VAE {fault}; {base.title} needs {wanted[0]} channels at 1/{grid.space_stride} size and {wanted[1]} "
        f"latent frames for {frames} frames: choose {LATENTS[grid.channels].vae}."
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
