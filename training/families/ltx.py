"""LTX-Video 0.9.x: the 2B and 13B models, from the files that ComfyUI uses.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width, N = F * H * W tokens,
T P Q clip frames, height and width in pixels, L text tokens, D text width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...loaders.key_map import KeyMap, count_blocks
from ...loaders.module_weights import AS_STORED, Storage, build_without_storage, fill_at_random, fill_from_file
from ...loaders.quantised_weights import stored_as
from ...loaders.safetensors_file import Header, identity, read_header
from ..config import RecipeConfig, shown
from ..objective import Objective, ShiftedLogitNormal
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
    find_prefix,
    first_frames_given,
)

NAMES = KeyMap((
    ("patchify_proj", "proj_in"),
    ("adaln_single", "time_embed"),
    ("transformer_blocks.*.attn1.q_norm", "transformer_blocks.*.attn1.norm_q"),
    ("transformer_blocks.*.attn1.k_norm", "transformer_blocks.*.attn1.norm_k"),
    ("transformer_blocks.*.attn2.q_norm", "transformer_blocks.*.attn2.norm_q"),
    ("transformer_blocks.*.attn2.k_norm", "transformer_blocks.*.attn2.norm_k"),
))
"""Lightricks' own names to those of diffusers' class (its scripts/convert_ltx_to_diffusers.py)."""

ATTENTION = tuple(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0"))

SIZES = {(2048, 28): "2B", (4096, 48): "13B"}
"""(width, layers) to what a model of that size is called."""

HEADS = 32
"""Attention heads where the header does not say, as in ComfyUI."""

ASSUMED = {
    "positional_embedding_theta": 10000.0, "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000, "rope_type": "interleaved", "use_middle_indices_grid": False,
    "cross_attention_adaln": False, "caption_proj_before_connector": False,
}
"""What a header may say of the model, and what diffusers' class takes for granted."""

GRID = Grid(fps=25, time_stride=8, space_stride=32, size_multiple=32, channels=128)

DEFAULTS = Defaults(
    width=768, height=512, frames=49, shift=1.0, rank=32, learning_rate=1e-4, steps=2000, first_frame=0.5,
    sampler_shift=math.exp(2.37), guidance=3.0,
)
"""Between the recipes of finetrainers, diffusion-pipe and Lightricks' trainer for the models that came after."""

TEXT_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class LTXVideoModel(BaseModel):
    """An LTX-Video file."""

    causal: bool
    """Whether the first latent frame counts as one frame of time, not eight: 0.9.5 and later, as the header says."""


class LTXVideo(ModelFamily):
    name = "LTX-Video"
    names = NAMES

    def recognise(self, header: Header) -> BaseModel | None:
        prefix = find_prefix(header, "patchify_proj.weight")
        if prefix is None or f"{prefix}audio_patchify_proj.weight" in header.tensors:
            return None
        stated = _stated(header)
        config = infer_config(header, prefix, stated)
        dim, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
        return LTXVideoModel(
            family=self, title=f"LTX-Video {SIZES.get((dim, layers), f'(dim {dim}, {layers} layers)')}",
            path=header.path, key_prefix=prefix, stored_as=stored_as(header, prefix), config=config, grid=GRID,
            text_tokens=TEXT_TOKENS, text_width=config["caption_channels"], defaults=DEFAULTS,
            identity=identity(header), form="LTX-Video", caption_form="LTX-Video T5-XXL",
            causal=bool(stated.get("causal_temporal_positioning", False)),
        )

    def load_transformer(
        self, base: BaseModel, *, dtype: torch.dtype, device: torch.device, storage: Storage = AS_STORED
    ) -> nn.Module:
        from diffusers import LTXVideoTransformer3DModel

        return fill_from_file(
            build_without_storage(lambda: LTXVideoTransformer3DModel(**base.config)), read_header(base.path),
            base.key_prefix, NAMES, dtype=dtype, device=device, blocks=self.blocks, storage=storage,
        )

    def adapter_targets(self, base: BaseModel, streams: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        return {"attention": ATTENTION, "attention and feed-forward": (*ATTENTION, "ff.net.0.proj", "ff.net.2")}

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        return transformer.transformer_blocks

    def prepare_clip(self, base: BaseModel, clip: DecodedClip, encoders: Encoders) -> Features:
        """As `ModelFamily.prepare_clip`. ComfyUI's VAE gives these latents normalised already."""
        latents = encoders.clip.encode(clip.frames)
        frames, height, width, _ = clip.frames.shape
        wanted = base.grid.latent_shape(width, height, frames)
        if tuple(latents.shape) != wanted:
            raise ValueError(
                f"This VAE gives latents of shape {list(latents.shape)} for {frames} frames of {width} x {height}; "
                f"LTX-Video needs {list(wanted)}: choose the VAE of an LTX-Video model."
            )
        return {"video": latents.detach().to("cpu", torch.float32).contiguous()}

    def prepare_captions(
        self, base: BaseModel, captions: Iterable[str], encoder: CaptionEncoder, device: torch.device
    ) -> Iterator[Features]:
        """As `ModelFamily.prepare_captions`. Captions of more than 128 tokens stay whole, as in ComfyUI."""
        for caption in captions:
            text = encoder.encode(caption).detach().to("cpu")
            if text.ndim != 2 or text.shape[1] != base.text_width or not len(text):
                raise ValueError(
                    f"This text encoder gives features of shape {list(text.shape)}; LTX-Video needs (tokens, "
                    f"{base.text_width}): choose t5xxl, with the type ltxv."
                )
            yield {"text": text.contiguous()}

    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        """As `ModelFamily.collate`: `coordinates` (B, 3, N), and `text_mask` (B, L) where some captions are shorter."""
        video = torch.stack([sample["video"] for sample in samples])
        texts = [sample["text"].float() for sample in samples]
        features = {
            "text": nn.utils.rnn.pad_sequence(texts, batch_first=True),
            "coordinates": _coordinates(video.shape, base.grid, base.causal).expand(len(video), -1, -1),
        }
        lengths = torch.tensor([len(text) for text in texts])
        if lengths.min() < lengths.max():
            features["text_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        return {"video": video}, features

    def objective(self, base: BaseModel, recipe: RecipeConfig) -> Objective:
        """The model's own distribution of levels, unless the recipe asks for a shift or for uniform ones."""
        if recipe.shift or recipe.timesteps == "uniform":
            return super().objective(base, recipe)
        return ShiftedLogitNormal(
            tokens=lambda shape: shape[2:].numel(), logit_mean=recipe.logit_mean, logit_std=recipe.logit_std
        )

    def given(self, base: BaseModel, clean: Streams, share: float, generator: torch.Generator) -> Streams:
        """The first latent frame."""
        return first_frames_given(clean["video"], share, generator)

    def predict(
        self, transformer: nn.Module, noisy: Streams, levels: Streams, given: Streams, features: Features
    ) -> Streams:
        """The velocity, noise minus clean. Text is attended to without its padding; given tokens are at timestep 0."""
        video, timestep = noisy["video"], levels["video"] * 1000.0
        if "video" in given:
            tokens = given["video"].expand(-1, 1, *video.shape[2:]).flatten(1)
            timestep = timestep[:, None].expand_as(tokens).masked_fill(tokens, 0.0)
        velocity = transformer(
            hidden_states=video.flatten(2).transpose(1, 2), encoder_hidden_states=features["text"], timestep=timestep,
            encoder_attention_mask=features.get("text_mask"),
            video_coords=features["coordinates"][:1],  # the same for all samples of a batch
            return_dict=False,
        )[0]
        return {"video": velocity.transpose(1, 2).unflatten(2, video.shape[2:])}

    def twin(self) -> tuple[Mapping[str, Any], nn.Module]:
        from diffusers import LTXVideoTransformer3DModel

        config = _config(dim=128, heads=HEADS, layers=2, text_width=4096)
        return config, fill_at_random(build_without_storage(lambda: LTXVideoTransformer3DModel(**config)))


def _config(*, dim: int, heads: int, layers: int, text_width: int) -> dict[str, Any]:
    """Arguments of diffusers' class for an LTX-Video model."""
    return {
        "in_channels": GRID.channels, "out_channels": GRID.channels, "patch_size": 1, "patch_size_t": 1,
        "num_attention_heads": heads, "attention_head_dim": dim // heads, "cross_attention_dim": dim,
        "num_layers": layers, "activation_fn": "gelu-approximate", "qk_norm": "rms_norm_across_heads",
        "norm_elementwise_affine": False, "norm_eps": 1e-6, "caption_channels": text_width, "attention_bias": True,
        "attention_out_bias": True,
    }


def infer_config(header: Header, prefix: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' class for the LTX-Video model in a file; `stated` is what its header says of it.

    Raises ValueError where the tensors that tell are not there or have impossible shapes, or where the header asks
    for what diffusers' class cannot do.
    """
    def shape(name: str) -> tuple[int, ...]:
        info = header.tensors.get(prefix + name)
        return info.shape if info else ()

    for name, value in ASSUMED.items():
        if stated.get(name, value) != value:
            told = shown(stated[name]).strip("'")
            raise ValueError(
                f"{header.path.name} is an LTX model of another kind ({name} is {told}), which cannot "
                "be trained: choose an LTX-Video 2B or 13B model."
            )
    try:
        dim, channels = shape("patchify_proj.weight")
        text_width = shape("caption_projection.linear_1.weight")[1]
        heads = int(stated.get("num_attention_heads", HEADS))
        layers = count_blocks(header.tensors, f"{prefix}transformer_blocks")
        if not layers or not dim or heads < 1 or dim % (2 * heads) or channels != GRID.channels:
            raise ValueError
    except (ValueError, IndexError, TypeError, OverflowError):
        raise ValueError(
            f"{header.path.name} has the names of an LTX-Video model but not its shapes, or is one part of a split "
            "model: choose a model that is one file."
        ) from None
    return _config(dim=dim, heads=heads, layers=layers, text_width=text_width)


def _stated(header: Header) -> Mapping[str, Any]:
    """What the file's header says of the transformer; nothing where it is silent, as in many repackaged files."""
    try:
        stated = json.loads(header.metadata.get("config", "{}")).get("transformer", {})
        return {**stated}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{header.path.name} has a damaged description in its header: download the model again."
        ) from error


def _coordinates(shape: Sequence[int], grid: Grid, causal: bool) -> Tensor:
    """Where the tokens of latents (B, C, F, H, W) lie: seconds, and pixels from the top and the left (1, 3, N)."""
    frame, row, column = (torch.arange(size, dtype=torch.float32) for size in shape[2:])
    frame = frame * grid.time_stride
    if causal:
        frame = (frame + 1 - grid.time_stride).clamp(min=0)
    places = torch.meshgrid(frame / grid.fps, row * grid.space_stride, column * grid.space_stride, indexing="ij")
    return torch.stack(places).flatten(1)[None]
