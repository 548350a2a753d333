"""CogVideoX 2b, 5b and 1.5, from text and from a first frame, in ComfyUI's names or those of diffusers.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width,
T P Q clip frames, height and width in pixels, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...loaders.key_map import KeyMap, count_blocks
from ...loaders.module_weights import AS_STORED, Storage, build_without_storage, fill_at_random, fill_from_file
from ...loaders.quantised_weights import stored_as, weight_names
from ...loaders.safetensors_file import Header, identity, read_header
from ..config import RecipeConfig
from ..objective import Objective, VPrediction, timestep_of
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
)

NAMES = KeyMap((
    *((f"blocks.*.{part}", f"transformer_blocks.*.attn1.to_{part}") for part in "qkv"),
    ("blocks.*.attn_out", "transformer_blocks.*.attn1.to_out.0"),
    ("blocks.*.norm_q", "transformer_blocks.*.attn1.norm_q"),
    ("blocks.*.norm_k", "transformer_blocks.*.attn1.norm_k"),
    ("blocks.*.ff_proj", "transformer_blocks.*.ff.net.0.proj"),
    ("blocks.*.ff_out", "transformer_blocks.*.ff.net.2"),
    ("blocks", "transformer_blocks"),
    *((f"{kind}_embedding_linear_{n}", f"{kind}_embedding.linear_{n}") for kind in ("time", "ofs") for n in (1, 2)),
))
"""ComfyUI's names (0.33, comfy/ldm/cogvideo/model.py) to those of diffusers' class."""

LAYOUTS = (("blocks", "time_embedding_linear_1.weight", NAMES),
           ("transformer_blocks", "time_embedding.linear_1.weight", KeyMap(())))
"""The two sets of names that files have: where the blocks are, a key that tells it apart, the way to the class."""

ATTENTION = ("q", "k", "v", "attn_out")

SIZES = {(30, 30): "2b", (48, 42): "5b"}
"""(heads, layers) to what a model of that size is called."""

TEXT_TOKENS = 226
"""Of T5, padding included: padding goes through T5 without a mask, and is attended to."""

OFS = 2.0
"""What CogVideoX 1.5 I2V is told beside the timestep (diffusers, CogVideoXImageToVideoPipeline)."""


@dataclass(frozen=True, kw_only=True)
class OneSizeGrid(Grid):
    """The grid of a model that learnt a vector for every place of one picture size."""

    width: int
    height: int

    def check(self, width: int, height: int, frames: int) -> None:
        """As `Grid.check`, and ValueError for any other picture size."""
        super().check(width, height, frames)
        if (width, height) != (self.width, self.height):
            raise ValueError(
                f"Size {width} x {height} does not fit this model: it knows {self.width} x {self.height} only."
            )


class CogVideoX(ModelFamily):
    name = "CogVideoX"
    names = NAMES

    def recognise(self, header: Header) -> BaseModel | None:
        found = _layout(header)
        if found is None:
            return None
        prefix, _ = found
        config = infer_config(header)
        scale, image_scale = latent_scales(config)
        takes_image = config["in_channels"] > config["out_channels"]
        newer = config["patch_size_t"] is not None
        return BaseModel(
            family=self, title=_title(config), path=header.path, key_prefix=prefix,
            stored_as=stored_as(header, prefix), config=config, grid=_grid(config), text_tokens=TEXT_TOKENS,
            text_width=config["text_embed_dim"],
            # 45 frames of 1.5 make 12 latent frames: an even number, so that none is added (see `collate`).
            defaults=Defaults(width=720, height=480, frames=45 if newer else 49, shift=1.0, rank=64,
                              learning_rate=1e-4, steps=2000, guidance=6.0),
            identity=identity(header), caption_form="CogVideoX T5-XXL",
            form=f"CogVideoX video x {scale:.8g}" + f", first frame x {image_scale:.8g}" * takes_image,
        )

    def load_transformer(
        self, base: BaseModel, *, dtype: torch.dtype, device: torch.device, storage: Storage = AS_STORED
    ) -> nn.Module:
        from diffusers import CogVideoXTransformer3DModel

        header = read_header(base.path)
        prefix, (_, _, names) = _layout(header)
        return fill_from_file(
            build_without_storage(lambda: CogVideoXTransformer3DModel(**base.config)), header, prefix, names,
            dtype=dtype, device=device, blocks=self.blocks, storage=storage,
        )

    def adapter_targets(self, base: BaseModel, streams: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        return {"attention": ATTENTION, "attention and feed-forward": (*ATTENTION, "ff_proj", "ff_out")}

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        return transformer.transformer_blocks

    def objective(self, base: BaseModel, recipe: RecipeConfig) -> Objective:
        """V-prediction over evenly drawn timesteps, as the model was made; the recipe's timesteps have no say.

        The shift of the signal-to-noise ratio is 3 for 2b and 1 for the others (CogVideoX, sat/configs).
        """
        return VPrediction(snr_shift=1.0 if base.config["use_rotary_positional_embeddings"] else 3.0)

    def prepare_clip(self, base: BaseModel, clip: DecodedClip, encoders: Encoders) -> Features:
        """As `ModelFamily.prepare_clip`. I2V models get `image` (C, 1, H, W) too: the first frame, encoded alone."""
        scale, image_scale = latent_scales(base.config)
        features = {"video": scale * _encoded(base, clip.frames, encoders)}
        if base.config["in_channels"] > base.config["out_channels"]:
            features["image"] = image_scale * _encoded(base, clip.frames[:1], encoders)
        return features

    def prepare_captions(
        self, base: BaseModel, captions: Iterable[str], encoder: CaptionEncoder, device: torch.device
    ) -> Iterator[Features]:
        """As `ModelFamily.prepare_captions`, but with padding, which T5 has encoded; cut to 226 tokens."""
        for caption in captions:
            text = encoder.encode(caption).detach().to("cpu")
            if text.ndim != 2 or text.shape[1] != base.text_width or len(text) < TEXT_TOKENS:
                raise ValueError(
                    f"This text encoder gives features of shape {list(text.shape)}; CogVideoX needs ({TEXT_TOKENS} "
                    f"tokens, {base.text_width}): load t5xxl with type cogvideox."
                )
            yield {"text": text[:TEXT_TOKENS].contiguous()}

    def decodable(self, base: BaseModel, video: Tensor) -> Tensor:
        return video / latent_scales(base.config)[0]

    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        """As `ModelFamily.collate`. CogVideoX 1.5 takes latent frames in twos: an odd clip's first one is doubled.

        That is how the model was fine-tuned by its makers, and diffusers' pipeline drops the frame that comes first.
        The first frame's latents stand at the first latent frame, before zeros.
        """
        video = torch.stack([sample["video"] for sample in samples])
        if video.shape[2] % (base.config["patch_size_t"] or 1):
            video = torch.cat([video[:, :, :1], video], dim=2)
        features = {"text": torch.stack([sample["text"].float() for sample in samples])}
        if "image" in samples[0]:
            features["image"] = torch.zeros_like(video)
            features["image"][:, :, :1] = torch.stack([sample["image"] for sample in samples])
        return {"video": video}, features

    def predict(
        self, transformer: nn.Module, noisy: Streams, levels: Streams, given: Streams, features: Features
    ) -> Streams:
        """v, see `VPrediction`. Text is attended to without a mask."""
        config, video = transformer.config, noisy["video"]
        frames, height, width = video.shape[2:]
        if "image" in features:
            video = torch.cat([video, features["image"]], dim=1)
        answer = transformer(
            hidden_states=video.transpose(1, 2),
            encoder_hidden_states=features["text"],
            timestep=timestep_of(levels["video"]),
            ofs=video.new_full((1,), OFS) if config.ofs_embed_dim else None,
            image_rotary_emb=_rotary(config, frames, height, width, video.device),
            return_dict=False,
        )[0]
        return {"video": answer.transpose(1, 2)}

    def twin(self, kind: str = "1.5") -> tuple[Mapping[str, Any], nn.Module]:
        """As `ModelFamily.twin`. `kind`: `2b`, `5b`, `5b I2V`, `1.5` or `1.5 I2V`."""
        from diffusers import CogVideoXTransformer3DModel

        image, newer = kind.endswith("I2V"), kind.startswith("1.5")
        # 48 heads are what tells 5b from 2b; a width of 3 x 64 is one that ComfyUI's tables can have.
        heads = {"heads": 48, "head_dim": 16} if kind == "5b" else {"heads": 3, "head_dim": 64}
        config = _config(
            **heads, layers=2, in_channels=32 if image else 16, time_dim=64, text_width=4096, newer=newer,
            ofs_dim=64 if newer and image else None, picture=(6, 4) if kind == "5b I2V" else None,
        )
        return config, fill_at_random(build_without_storage(lambda: CogVideoXTransformer3DModel(**config)))


def latent_scales(config: Mapping[str, Any]) -> tuple[float, float]:
    """What a VAE's latents are multiplied by: those of the clip, and those of the first frame.

    CogVideoX 1.5 was trained with the inverse for the first frame (diffusers: `invert_scale_latents` of its VAE).
    """
    scale = 0.7 if config["use_rotary_positional_embeddings"] else 1.15258426
    return scale, scale if config["patch_size_t"] is None else 1 / scale


def _config(
    *, heads: int, head_dim: int, layers: int, in_channels: int, time_dim: int, text_width: int, newer: bool,
    ofs_dim: int | None, picture: tuple[int, int] | None,
) -> dict[str, Any]:
    """Arguments of diffusers' class (its scripts/convert_cogvideox_to_diffusers.py).

    `newer`: CogVideoX 1.5. `picture`: latent width and height of a learnt table of places.
    """
    width, height, frames = (300, 300, 81) if newer else (*(picture or (90, 60)), 49)
    return {
        "num_attention_heads": heads, "attention_head_dim": head_dim, "in_channels": in_channels, "out_channels": 16,
        "time_embed_dim": time_dim, "ofs_embed_dim": ofs_dim, "text_embed_dim": text_width, "num_layers": layers,
        "sample_width": width, "sample_height": height, "sample_frames": frames, "patch_size": 2,
        "patch_size_t": 2 if newer else None, "patch_bias": not newer, "max_text_seq_length": TEXT_TOKENS,
        "use_rotary_positional_embeddings": newer or picture is not None or heads >= 48,
        "use_learned_positional_embeddings": picture is not None,
    }


def _layout(header: Header) -> tuple[str, tuple[str, str, KeyMap]] | None:
    """The prefix of a CogVideoX file and the names it uses, or None where it is something else."""
    for layout in LAYOUTS:
        blocks, time, _ = layout
        prefix = find_prefix(header, time, "patch_embed.text_proj.weight", f"{blocks}.0.norm1.linear.weight")
        if prefix is not None:
            return prefix, layout
    return None


def infer_config(header: Header) -> dict[str, Any]:
    """Arguments of diffusers' class for the CogVideoX in a file.

    Raises ValueError where it is a kind that cannot be trained, or has impossible shapes.
    """
    prefix, (blocks, _, names) = _layout(header)
    shapes = {names.forward(name.removeprefix(prefix)): header.tensors[name].shape
              for name in weight_names(header, prefix)}
    try:
        (dim, *patch), table = shapes["patch_embed.proj.weight"], shapes.get("patch_embed.pos_embedding")
        newer = len(patch) == 1
        in_channels = patch[0] // 8 if newer else patch[0]
        head_dim, = shapes["transformer_blocks.0.attn1.norm_q.weight"]
        ofs = shapes.get("ofs_embedding.linear_1.weight")
        config = _config(
            heads=dim // head_dim, head_dim=head_dim, in_channels=in_channels,
            layers=count_blocks(shapes, "transformer_blocks"),
            time_dim=shapes["time_embedding.linear_1.weight"][0],
            text_width=shapes["patch_embed.text_proj.weight"][1], newer=newer, ofs_dim=ofs[0] if ofs else None,
            picture=_picture(table[1] - TEXT_TOKENS) if table else None,
        )
        if dim % head_dim or (not newer and patch[1:] != [2, 2]) or (newer and patch[0] % 8):
            raise ValueError
    except (ValueError, IndexError, KeyError):
        raise ValueError(
            f"{header.path.name} has the names of a CogVideoX model but not its shapes, or is one part of a split "
            "model: choose a model that is one file."
        ) from None
    # Only 1.5 tells a model with a first frame from one with a control video by its channels; 1.0 I2V has a table.
    known = in_channels in (16, 32) if newer else in_channels == (32 if table else 16)
    if not known:
        raise ValueError(
            f"{header.path.name} is a CogVideoX model of another kind ({in_channels} channels in); only text-to-video "
            "and image-to-video CogVideoX models can be trained."
        )
    return config


def _picture(places: int) -> tuple[int, int]:
    """Latent width and height of a learnt table of places: 3 to 2, in 13 latent frames. ValueError if it is not."""
    width = 3 * round((places / 13 / 6) ** 0.5)
    if 13 * width * width * 2 // 3 != places:
        raise ValueError
    return 2 * width, width * 4 // 3


def _grid(config: Mapping[str, Any]) -> Grid:
    newer = config["patch_size_t"] is not None
    values = {"fps": 16 if newer else 8, "time_stride": 4, "space_stride": 8, "size_multiple": 16, "channels": 16}
    if config["use_learned_positional_embeddings"]:
        return OneSizeGrid(**values, width=8 * config["sample_width"], height=8 * config["sample_height"])
    return Grid(**values)


def _title(config: Mapping[str, Any]) -> str:
    """`CogVideoX 1.5 5b I2V`."""
    heads, layers = config["num_attention_heads"], config["num_layers"]
    size = SIZES.get((heads, layers), f"(dim {heads * config['attention_head_dim']}, {layers} layers)")
    version = "1.5 " if config["patch_size_t"] else ""
    return f"CogVideoX {version}{size} {'I2V' if config['in_channels'] == 32 else 'T2V'}"


def _encoded(base: BaseModel, frames: Tensor, encoders: Encoders) -> Tensor:
    """Frames (T, P, Q, 3) to latents (C, F, H, W) as the VAE gives them. ValueError where they miss the grid."""
    latents = encoders.clip.encode(frames).detach().to("cpu", torch.float32)
    count, height, width, _ = frames.shape
    wanted = base.grid.latent_shape(width, height, count)
    if tuple(latents.shape) != wanted:
        raise ValueError(
            f"This VAE gives latents of shape {list(latents.shape)} for {count} frames of {width} x {height}; "
            f"CogVideoX needs {list(wanted)}: choose the CogVideoX VAE."
        )
    return latents


def _rotary(config: Any, frames: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines for every place, as `CogVideoXPipeline` computes them; None for 2b, which adds a table."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    if not config.use_rotary_positional_embeddings:
        return None
    grid, full = (height // 2, width // 2), (config.sample_height // 2, config.sample_width // 2)
    if config.patch_size_t:
        return get_3d_rotary_pos_embed(
            config.attention_head_dim, None, grid, frames // config.patch_size_t, grid_type="slice", max_size=full,
            device=device,
        )
    return get_3d_rotary_pos_embed(config.attention_head_dim, _crop(grid, full), grid, frames, device=device)


def _crop(grid: tuple[int, int], full: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a picture lies in the one the model was made for, scaled into it whole and centred: (top, left) to
    (bottom, right), in patches. Rounded as CogVideoX's own code does, to an even number at a half.
    """
    (height, width), (full_height, full_width) = grid, full
    if height / width > full_height / full_width:
        size = full_height, round(full_height / height * width)
    else:
        size = round(full_width / width * height), full_width
    start = round((full_height - size[0]) / 2), round((full_width - size[1]) / 2)
    return start, (start[0] + size[0], start[1] + size[1])
