"""LTX-2 and LTX-2.3: picture and sound in one transformer, from the single files that ComfyUI uses.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width, T sound steps (25 a second),
N tokens, L text tokens, D text width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...loaders.key_map import KeyMap, count_blocks
from ...loaders.module_weights import AS_STORED, Storage, build_without_storage, fill_at_random, fill_from_file
from ...loaders.quantised_weights import stored_as
from ...loaders.safetensors_file import Header, identity, read_header
from ..config import RecipeConfig
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
    SoundEncoder,
    Streams,
    find_prefix,
    first_frames_given,
)

NAMES = KeyMap((
    ("patchify_proj", "proj_in"),
    ("audio_patchify_proj", "audio_proj_in"),
    ("adaln_single", "time_embed"),
    ("audio_adaln_single", "audio_time_embed"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln"),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    ("*.*.scale_shift_table_a2v_ca_video", "*.*.video_a2v_cross_attn_scale_shift_table"),
    ("*.*.scale_shift_table_a2v_ca_audio", "*.*.audio_a2v_cross_attn_scale_shift_table"),
    ("transformer_blocks.*.*.q_norm", "transformer_blocks.*.*.norm_q"),
    ("transformer_blocks.*.*.k_norm", "transformer_blocks.*.*.norm_k"),
    ("*.transformer_1d_blocks.*.*.q_norm", "*.transformer_blocks.*.*.norm_q"),
    ("*.transformer_1d_blocks.*.*.k_norm", "*.transformer_blocks.*.*.norm_k"),
    ("*.transformer_1d_blocks", "*.transformer_blocks"),
))
"""Lightricks' names to those of diffusers' classes, connectors included (its scripts/convert_ltx2_to_diffusers.py)."""

CONNECTORS = ("video_embeddings_connector", "audio_embeddings_connector")
BESIDE = ("vae", "audio_vae", "vocoder", "text_embedding_projection", "text_encoders")
"""What an all-in-one file holds that is no part of the transformer."""

OFFICIAL = {
    "num_attention_heads": 32, "audio_num_attention_heads": 32, "connector_num_attention_heads": 30,
    "rope_type": "split", "frequencies_precision": "float64", "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": (20, 2048, 2048), "audio_positional_embedding_max_pos": (20,),
    "timestep_scale_multiplier": 1000, "av_ca_timestep_scale_multiplier": 1000, "norm_eps": 1e-6,
    "causal_temporal_positioning": True, "use_middle_indices_grid": True,
}
"""What no shape tells, for files whose header was lost: as in Lightricks' own headers."""

SIZES = {("LTX-2", 4096, 48): "19B", ("LTX-2.3", 4096, 48): "22B"}
"""(version, width, layers) to what a model of that size is called."""

WIDTHS = {3840: "LTX-2", 7680: "LTX-2", 6144: "LTX-2.3"}
"""Width of a text encoder's features to the model that it belongs to."""

REGISTERS_FROM = 1024
"""Captions are filled up to this many tokens with the connectors' own registers."""

SOUND_CHANNELS, SOUND_BINS, SOUND_STEPS = 8, 16, 25  # latent channels, mel bins, steps a second

GRID = Grid(fps=24.0, time_stride=8, space_stride=32, size_multiple=32, channels=128)
DEFAULTS = Defaults(
    width=768, height=512, frames=49, shift=1.0, rank=32, learning_rate=1e-4, steps=2000, first_frame=0.5,
    sampler_shift=math.exp(2.37), guidance=4.0,
)

PARTS = ("to_q", "to_k", "to_v", "to_out.0")
SOUND_PARTS = frozenset((
    "audio_attn1", "audio_attn2", "audio_ff", "video_to_audio_attn", "audio_scale_shift_table",
    "audio_prompt_scale_shift_table", "scale_shift_table_a2v_ca_audio", "audio_patchify_proj", "audio_adaln_single",
    "audio_prompt_adaln_single", "av_ca_audio_scale_shift_adaln_single", "av_ca_v2a_gate_adaln_single",
    "audio_caption_projection", "audio_embeddings_connector", "audio_proj_out",
))
"""Parts of names in weights files whose results go into the sound, what it takes from the picture included."""


class LTX2(ModelFamily):
    name = "LTX-2"
    names = NAMES

    def recognise(self, header: Header) -> BaseModel | None:
        prefix = find_prefix(header, "audio_patchify_proj.weight")
        if prefix is None:
            return None
        config = infer_config(header, prefix)
        version = "LTX-2.3" if config["cross_attn_mod"] else "LTX-2"
        connected = _connected(header, prefix, version)
        dim, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
        size = SIZES.get((version, dim, layers), f"(dim {dim}, {layers} layers)")
        widths = [header.tensors[f"{prefix}{part}.learnable_registers"].shape[1] for part in CONNECTORS if connected]
        key = identity(header)
        return BaseModel(
            family=self, title=f"{version} {size}", path=header.path, key_prefix=prefix,
            stored_as=stored_as(header, prefix), config=config, grid=GRID, text_tokens=REGISTERS_FROM,
            text_width=sum(widths) if version == "LTX-2.3" else config["caption_channels"],
            defaults=DEFAULTS, identity=key, form=f"{version} video and sound",
            caption_form=f"{version} connectors of {key}" if connected else f"{version} connectors of the text encoder",
            streams=("video", "audio"),
        )

    def load_transformer(
        self, base: BaseModel, *, dtype: torch.dtype, device: torch.device, storage: Storage = AS_STORED
    ) -> nn.Module:
        from diffusers import LTX2VideoTransformer3DModel

        transformer = fill_from_file(
            build_without_storage(lambda: LTX2VideoTransformer3DModel(**base.config)), read_header(base.path),
            base.key_prefix, NAMES, dtype=dtype, device=device, blocks=self.blocks, storage=storage,
            wanted=lambda name: name.split(".")[0] not in (*CONNECTORS, *BESIDE),
        )
        OwnTimesteps.install(transformer)
        return transformer

    def adapter_targets(self, base: BaseModel, streams: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """As `ModelFamily.adapter_targets`; what joins picture and sound is adapted only where both are trained."""
        attention, feed_forward = [], []
        if "video" in streams:
            attention += ["attn1", "attn2"]
            feed_forward += ["ff"]
        if "audio" in streams:
            attention += ["audio_attn1", "audio_attn2"]
            feed_forward += ["audio_ff"]
        if {"video", "audio"} <= set(streams):
            attention += ["audio_to_video_attn", "video_to_audio_attn"]
        some = tuple(f"{module}.{part}" for module in attention for part in PARTS)
        all_ = (*some, *(f"{module}.net.{part}" for module in feed_forward for part in ("0.proj", "2")))
        presets = {"attention": some, "attention and feed-forward": all_}
        return presets if "video" in streams else dict(reversed(presets.items()))

    def stream_of(self, module: str) -> str:
        return "video" if SOUND_PARTS.isdisjoint(module.split(".")) else "audio"

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        return transformer.transformer_blocks

    def prepare_clip(self, base: BaseModel, clip: DecodedClip, encoders: Encoders) -> Features:
        """As `ModelFamily.prepare_clip`, with `audio` (C, T, bins) where the clip has sound and there is an encoder."""
        frames, height, width, _ = clip.frames.shape
        video = encoders.clip.encode(clip.frames)
        if tuple(video.shape) != (wanted := base.grid.latent_shape(width, height, frames)):
            raise ValueError(
                f"This VAE gives latents of shape {list(video.shape)} for {frames} frames of {width}x{height}; LTX-2 "
                f"needs {list(wanted)}: choose the video VAE of {base.title}."
            )
        features = {"video": _kept(video)}
        if clip.sound is not None and encoders.sound is not None and frames > 1:
            features["audio"] = _sound_latents(clip.sound, frames / base.grid.fps, encoders.sound)
        return features

    def prepare_captions(
        self, base: BaseModel, captions: Iterable[str], encoder: CaptionEncoder, device: torch.device
    ) -> Iterator[Features]:
        """`text` for the picture and `text_audio` for the sound (L, D), L a multiple of 128, both after the connectors.

        The connectors come from the model's file once, before the first caption is encoded, so that the text encoder
        is given what memory they leave. Text encoders of LTX-2 that hold connectors themselves need none.
        """
        connectors = None
        if not base.caption_form.endswith("text encoder"):
            connectors = load_connectors(base, torch.float32 if device.type == "cpu" else torch.bfloat16, device)
        try:
            for caption in captions:
                text = encoder.encode(caption).detach()
                _check_text(base, text, connectors is not None)
                if text.shape[1] == 2 * base.text_width:
                    video, audio = text.chunk(2, dim=1)
                else:
                    video, audio = connect(connectors, text)
                yield {"text": _kept(video), "text_audio": _kept(audio)}
        finally:
            if connectors is not None:
                connectors.to("meta")

    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        """As `ModelFamily.collate`. `text_mask` (B, L) only where captions differ in length."""
        clean = {
            name: torch.stack([sample[name] for sample in samples]) for name in base.streams if name in samples[0]
        }
        longest = max(len(sample["text"]) for sample in samples)
        features = {
            name: torch.stack([
                functional.pad(sample[name].float(), (0, 0, 0, longest - len(sample[name]))) for sample in samples
            ])
            for name in ("text", "text_audio")
        }
        if any(len(sample["text"]) < longest for sample in samples):
            filled = torch.tensor([len(sample["text"]) for sample in samples])
            features["text_mask"] = (torch.arange(longest) < filled[:, None]).float()
        return clean, features

    def objective(self, base: BaseModel, recipe: RecipeConfig) -> Objective:
        """Lightricks' own way to draw levels, for each stream by its own tokens; plain where a shift is asked for."""
        if recipe.shift or recipe.timesteps != "logit-normal":
            return super().objective(base, recipe)
        return ShiftedLogitNormal(tokens=_tokens, logit_mean=recipe.logit_mean, logit_std=recipe.logit_std)

    def given(self, base: BaseModel, clean: Streams, share: float, generator: torch.Generator) -> Streams:
        """The first latent frame of the picture."""
        return first_frames_given(clean["video"], share, generator) if "video" in clean else {}

    def predict(
        self, transformer: nn.Module, noisy: Streams, levels: Streams, given: Streams, features: Features
    ) -> Streams:
        """The velocity, noise minus clean, of the streams that are there. What is given is at timestep 0.

        Where one stream is missing, one token stands in for it and the two do not see each other.
        """
        there = next(iter(noisy.values()))
        alone = len(noisy) == 1
        tokens, sigma, text = {}, {}, {}
        for name, key in (("video", "text"), ("audio", "text_audio")):
            if name in noisy:
                tokens[name], sigma[name], text[name] = _pack(noisy[name]), levels[name] * 1000.0, features[key]
            else:
                tokens[name] = there.new_zeros(len(there), 1, transformer.config[STREAM_WIDTHS[name]])
                sigma[name], text[name] = there.new_zeros(len(there)), features[key][:, :1]
        frames, height, width = noisy["video"].shape[2:] if "video" in noisy else (1, 1, 1)
        mask = features.get("text_mask")
        video, audio = transformer(
            hidden_states=tokens["video"], audio_hidden_states=tokens["audio"],
            encoder_hidden_states=text["video"], audio_encoder_hidden_states=text["audio"],
            encoder_attention_mask=mask if "video" in noisy else None,
            audio_encoder_attention_mask=mask if "audio" in noisy else None,
            timestep=_timesteps(noisy, sigma, given, "video"), audio_timestep=_timesteps(noisy, sigma, given, "audio"),
            sigma=sigma["video"], audio_sigma=sigma["audio"], num_frames=frames, height=height, width=width,
            audio_num_frames=tokens["audio"].shape[1], fps=GRID.fps, isolate_modalities=alone, use_cross_timestep=True,
            return_dict=False,
        )
        answers = {"video": video, "audio": audio}
        return {name: _unpack(answers[name], stream.shape) for name, stream in noisy.items()}

    def twin(self, kind: str = "2.0") -> tuple[Mapping[str, Any], nn.Module]:
        """As `ModelFamily.twin`, with connectors as parts of the module. `kind`: `2.0` or `2.3`."""
        from diffusers import LTX2VideoTransformer3DModel

        newer = kind == "2.3"
        caption = 120  # 30 heads of 4: what is assumed of a 2.0 connector whose header is lost
        config = _config(dims=(128, 64), heads=(32, 32), layers=2, caption=None if newer else caption, gated=newer)
        twin = build_without_storage(lambda: LTX2VideoTransformer3DModel(**config))
        for part, dim in zip(CONNECTORS, (128, 64) if newer else (caption, caption), strict=True):
            twin.add_module(part, _connector(dim=dim, heads=32 if newer else 30, layers=1, gated=newer))
        fill_at_random(twin)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if "a2v_" in name or "v2a_" in name:  # picture and sound heed each other faintly
                    parameter.mul_(0.1)
        OwnTimesteps.install(twin)
        return config, twin


STREAM_WIDTHS = {"video": "in_channels", "audio": "audio_in_channels"}


class OwnTimesteps:
    """Makes what joins picture and sound go by the official model's timesteps.

    There scale and shift of a stream's side follow its own timesteps, token by token, and its gate the other stream's
    sigma (ltx-core, transformer_args.py); diffusers with `use_cross_timestep` gives both the other stream's sigma.
    What each stream's time embedder is called with is therefore handed to its scale and shift as well.
    """

    timesteps: Tensor | None = None

    @classmethod
    def install(cls, transformer: nn.Module) -> None:
        for embedder, scale_shift in (
            (transformer.time_embed, transformer.av_cross_attn_video_scale_shift),
            (transformer.audio_time_embed, transformer.av_cross_attn_audio_scale_shift),
        ):
            own = cls()  # bound methods, not closures: they follow the module through `copy.deepcopy`
            embedder.register_forward_pre_hook(own.remember)
            scale_shift.register_forward_pre_hook(own.replace)

    def remember(self, module: nn.Module, args: tuple) -> None:
        self.timesteps = args[0]

    def replace(self, module: nn.Module, args: tuple) -> tuple:
        return (self.timesteps, *args[1:])


def infer_config(header: Header, prefix: str) -> dict[str, Any]:
    """Arguments of diffusers' class for the LTX-2 in a file, from its shapes and its header's `config`.

    Raises ValueError where the tensors that tell are not there, have impossible shapes, or belong to a later model.
    """
    def shape(name: str) -> tuple[int, ...]:
        info = header.tensors.get(prefix + name)
        return info.shape if info else ()

    stated = OFFICIAL | _stated(header)
    try:
        dim, channels = shape("patchify_proj.weight")
        audio_dim, audio_channels = shape("audio_patchify_proj.weight")
        gate = shape("transformer_blocks.0.attn1.to_gate_logits.weight")
        heads = tuple(
            (gates or (stated[f"{part}num_attention_heads"],))[0]
            for part, gates in (("", gate), ("audio_", shape("transformer_blocks.0.audio_attn1.to_gate_logits.weight")))
        )
        rows = shape("transformer_blocks.0.scale_shift_table")[0]
        layers = count_blocks(header.tensors, f"{prefix}transformer_blocks")
        if not layers or dim % heads[0] or audio_dim % heads[1] or rows not in (6, 9):
            raise ValueError
        if (channels, audio_channels) != (128, 128):
            raise ValueError
    except (ValueError, IndexError, TypeError):
        raise ValueError(
            f"{header.path.name} has the names of an LTX-2 model but not its shapes, or is one part of a split model: "
            "choose a model that is one file."
        ) from None
    if shape("keyframes_abs_pos_embedding") or not shape("transformer_blocks.0.ff.net.0.proj.bias"):
        raise ValueError(
            f"{header.path.name} is LTX-2.5, which cannot be trained so far: choose LTX-2 or LTX-2.3."
        )
    if not stated["causal_temporal_positioning"] or not stated["use_middle_indices_grid"]:
        raise ValueError(
            f"{header.path.name} is an LTX-2 model that counts time in another way, which cannot be trained: choose "
            "LTX-2 or LTX-2.3 as Lightricks gives them."
        )
    caption = shape("caption_projection.linear_1.weight")
    config = _config(
        dims=(dim, audio_dim), heads=heads, layers=layers, caption=caption[1] if caption else None, gated=bool(gate),
        modulated=rows == 9,
    )
    positions = stated["positional_embedding_max_pos"]
    return config | {
        "pos_embed_max_pos": positions[0], "base_height": positions[1], "base_width": positions[2],
        "audio_pos_embed_max_pos": stated["audio_positional_embedding_max_pos"][0],
        "norm_eps": stated["norm_eps"], "rope_theta": stated["positional_embedding_theta"],
        "rope_double_precision": stated["frequencies_precision"] == "float64", "rope_type": stated["rope_type"],
        "timestep_scale_multiplier": stated["timestep_scale_multiplier"],
        "cross_attn_timestep_scale_multiplier": stated["av_ca_timestep_scale_multiplier"],
    }


def load_connectors(base: BaseModel, dtype: torch.dtype, device: torch.device) -> nn.ModuleDict:
    """The two small transformers between text encoder and model, from the model's file, frozen."""
    header, prefix = read_header(base.path), base.key_prefix
    stated = OFFICIAL | _stated(header)
    connectors = nn.ModuleDict()
    for part in CONNECTORS:
        registers = header.tensors[f"{prefix}{part}.learnable_registers"].shape
        gates = header.tensors.get(f"{prefix}{part}.transformer_1d_blocks.0.attn1.to_gate_logits.weight")
        heads = stated["connector_num_attention_heads"]
        if part == CONNECTORS[1]:
            heads = stated.get("audio_connector_num_attention_heads", heads)
        connectors[part] = _connector(
            dim=registers[1], heads=gates.shape[0] if gates else heads, gated=gates is not None,
            layers=count_blocks(header.tensors, f"{prefix}{part}.transformer_1d_blocks"),
            registers=registers[0],
        )
    return fill_from_file(
        connectors, header, prefix, NAMES, dtype=dtype, device=device,
        wanted=lambda name: name.split(".")[0] in CONNECTORS,
    )


@torch.no_grad()
def connect(connectors: nn.ModuleDict, text: Tensor) -> list[Tensor]:
    """Text features (L, D) of one caption to what picture and sound attend to, (L', D) each.

    L' is a multiple of the registers, at least `REGISTERS_FROM`; all but the first L tokens begin as registers.
    """
    first = next(connectors.parameters())
    widths = [connectors[part].inner_dim for part in CONNECTORS]
    halves = text.split(widths, dim=1) if text.shape[1] == sum(widths) else (text, text)
    out = []
    for part, half in zip(CONNECTORS, halves, strict=True):
        count = connectors[part].num_learnable_registers
        length = math.ceil(max(REGISTERS_FROM, len(half)) / count) * count
        padded = functional.pad(half.to(first), (0, 0, 0, length - len(half)))[None]
        mask = torch.zeros(1, 1, 1, length, device=first.device, dtype=first.dtype)
        mask[..., len(half):] = -10000.0
        out.append(connectors[part](padded, mask)[0][0])
    return out


def _config(
    *, dims: tuple[int, int], heads: tuple[int, int], layers: int, caption: int | None, gated: bool,
    modulated: bool | None = None,
) -> dict[str, Any]:
    """Arguments of diffusers' class. Pairs are picture and sound; `caption`: width of captions that it projects."""
    modulated = gated if modulated is None else modulated
    return {
        "in_channels": 128, "out_channels": 128, "num_attention_heads": heads[0],
        "attention_head_dim": dims[0] // heads[0], "cross_attention_dim": dims[0], "gated_attn": gated,
        "cross_attn_mod": modulated, "audio_in_channels": 128, "audio_out_channels": 128,
        "audio_num_attention_heads": heads[1], "audio_attention_head_dim": dims[1] // heads[1],
        "audio_cross_attention_dim": dims[1], "audio_gated_attn": gated, "audio_cross_attn_mod": modulated,
        "num_layers": layers, "caption_channels": caption or 3840, "use_prompt_embeddings": caption is not None,
        "rope_type": "split", "rope_double_precision": True, "perturbed_attn": modulated,
    }


def _connector(*, dim: int, heads: int, layers: int, gated: bool, registers: int = 128) -> nn.Module:
    """Without storage. Positions as ComfyUI counts them in every version: 4096, in double precision."""
    from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d

    return build_without_storage(lambda: LTX2ConnectorTransformer1d(
        num_attention_heads=heads, attention_head_dim=dim // heads, num_layers=layers,
        num_learnable_registers=registers, rope_type="split", gated_attention=gated,
    ))


def _stated(header: Header) -> dict[str, Any]:
    """What the header says of the transformer, where it says anything. ValueError where it says what cannot be."""
    try:
        stated = dict(json.loads(header.metadata["config"])["transformer"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not all(_alike(stated.get(name, usual), usual) for name, usual in OFFICIAL.items()):
        raise ValueError(f"{header.path.name} has a damaged description in its header: download the model again.")
    return stated


def _alike(value: Any, usual: Any) -> bool:
    """Whether a value is of the kind of the usual one; numbers are above 0."""
    if isinstance(usual, tuple):
        return isinstance(value, (list, tuple)) and len(value) == len(usual) and all(map(_alike, value, usual))
    if isinstance(usual, (bool, str)):
        return isinstance(value, type(usual))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


def _connected(header: Header, prefix: str, version: str) -> bool:
    """Whether both connectors are in the file. ValueError where captions could not be prepared without."""
    there = [part for part in CONNECTORS if f"{prefix}{part}.learnable_registers" in header.tensors]
    if len(there) == 1 or not there and version == "LTX-2.3":
        lacks = " and ".join(part for part in CONNECTORS if part not in there)
        raise ValueError(
            f"{header.path.name} is {version} without {lacks}, which captions go through: choose a file of the model "
            "that holds its connectors."
        )
    if any(len(header.tensors[f"{prefix}{part}.learnable_registers"].shape) != 2 for part in there):
        raise ValueError(f"{header.path.name} has connectors of impossible shapes: it is damaged, download it again.")
    return bool(there)


def _check_text(base: BaseModel, text: Tensor, connected: bool) -> None:
    """ValueError unless these are a caption's features as the text encoder of this model gives them."""
    version = base.title.split()[0]
    width, widths = base.text_width, [base.text_width]
    if version == "LTX-2":
        widths.append(2 * width)  # from a text encoder with connectors of its own
    if text.ndim != 2 or text.shape[1] not in widths:
        belongs = WIDTHS.get(text.shape[-1], "another model")
        raise ValueError(
            f"This text encoder gives features of shape {list(text.shape)}, as for {belongs}; {base.path.name} is "
            f"{version} and needs (tokens, {width}): choose gemma_3_12B together with the {version} text projection."
        )
    if not connected and text.shape[1] == width:
        raise ValueError(
            f"Neither {base.path.name} nor this text encoder holds the connectors that captions go through: choose a "
            "file of the model that holds them, or load them together with the text encoder."
        )


def _sound_latents(sound: Tensor, seconds: float, encoder: SoundEncoder) -> Tensor:
    """Latents (C, T, bins) of exactly the clip's time: sound is cut, or goes on in silence."""
    steps = round(seconds * SOUND_STEPS)
    samples = math.ceil(max(seconds, steps / SOUND_STEPS) * encoder.rate)
    latents = encoder.encode(functional.pad(sound, (0, samples - sound.shape[1])))
    wanted = (SOUND_CHANNELS, steps, SOUND_BINS)
    if latents.ndim != 3 or (latents.shape[0], latents.shape[2]) != wanted[::2] or latents.shape[1] < steps:
        raise ValueError(
            f"This audio VAE gives latents of shape {list(latents.shape)} for {seconds:.2f} s; LTX-2 needs "
            f"{list(wanted)}: choose the audio VAE of LTX-2."
        )
    return _kept(latents[:, :steps])


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _tokens(shape: torch.Size) -> int:
    """Tokens of a sample: every latent point of video (B, C, F, H, W), every step of sound (B, C, T, bins)."""
    return shape[2:].numel() if len(shape) == 5 else shape[2]


def _pack(stream: Tensor) -> Tensor:
    """Video (B, C, F, H, W) or sound (B, C, T, bins) to tokens (B, N, D)."""
    return stream.flatten(2).transpose(1, 2) if stream.ndim == 5 else stream.transpose(1, 2).flatten(2)


def _unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Tokens (B, N, D) to a stream of this shape."""
    if len(shape) == 5:
        return tokens.transpose(1, 2).reshape(shape)
    return tokens.unflatten(2, (shape[1], shape[3])).transpose(1, 2)


def _timesteps(noisy: Streams, sigma: Streams, given: Streams, name: str) -> Tensor:
    """(B,) for all tokens alike; (B, N), 0 where something is given."""
    if name not in given or name not in noisy:
        return sigma[name]
    stream = noisy[name]
    mask = given[name].expand(len(stream), 1, *stream.shape[2:]).flatten(1)
    return torch.where(mask, 0.0, sigma[name][:, None])
