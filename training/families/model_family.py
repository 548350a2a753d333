"""The one interface behind which video models differ.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width,
T P Q clip frames, height and width in pixels, L text tokens, D text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ...loaders.key_map import KeyMap
from ...loaders.module_weights import AS_STORED, Storage
from ...loaders.safetensors_file import Header
from ..config import RecipeConfig
from ..objective import FlowMatching, Objective

Streams = dict[str, Tensor]
"""What is noised and predicted, by name: `video` (B, C, F, H, W), `audio` (B, C, T, bins)."""

STREAM_NAMES = ("video", "audio")

Features = dict[str, Tensor]
"""What the transformer is told beside the noisy streams, by name: `text` (B, L, D), and whatever a family adds."""


PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
"""What may stand before a model's own names in a file that ComfyUI users have."""


def find_prefix(header: Header, *names: str) -> str | None:
    """The prefix under which a file has all of these tensors, or None."""
    return next((prefix for prefix in PREFIXES if all(prefix + name in header.tensors for name in names)), None)


class ClipEncoder(Protocol):
    """A VAE as the engine sees it. `identity` changes whenever the weights do; it becomes part of the cache key."""

    identity: str

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (T, P, Q, 3), float in 0..1, to the latents (C, F, H, W) as the host gives them."""


class ClipDecoder(Protocol):
    """The same VAE the other way."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (C, F, H, W) on the CPU, as `ClipEncoder` gives them, to frames (T, P, Q, 3) in 0..1 on the CPU."""

    def decode_sound(self, latents: Tensor) -> tuple[Tensor, int] | None:
        """Sound latents (C, T, bins) to a waveform (2, N) in -1..1 and its samples a second; None where it cannot."""


class CaptionEncoder(Protocol):
    """A text encoder as the engine sees it. `identity` changes whenever the weights do."""

    identity: str

    def encode(self, caption: str) -> Tensor:
        """One caption to its text features (L, D) as the host gives them, without padding where it says what is."""


class ImageEncoder(Protocol):
    """A CLIP vision model as the engine sees it. `identity` changes whenever the weights do."""

    identity: str

    def encode(self, image: Tensor) -> Tensor:
        """One image (P, Q, 3), float in 0..1, to its features before the last layer (L, D)."""


class SoundEncoder(Protocol):
    """An audio VAE as the engine sees it. `identity` changes whenever the weights do."""

    identity: str
    rate: int
    """Samples a second of the sound that it takes."""

    def encode(self, sound: Tensor) -> Tensor:
        """A waveform (2, N), N samples at `rate`, to the latents (C, T, bins) as the host gives them."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What the host encodes with. `image` and `sound` only where the model has use for them."""

    clip: ClipEncoder
    caption: CaptionEncoder
    image: ImageEncoder | None = None
    sound: SoundEncoder | None = None


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """One clip, decoded and cut: `frames` (T, P, Q, 3) float in 0..1; `sound` (2, N) at its encoder's rate, or None."""

    frames: Tensor
    sound: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a model's latents lie over pixels and time."""

    fps: float
    """Frames a second that the model was made for."""
    time_stride: int
    """Frames per latent frame after the first: clips have `time_stride * n + 1` frames."""
    space_stride: int
    """Pixels per latent pixel."""
    size_multiple: int
    """Width and height must be multiples of this."""
    channels: int
    """Latent channels."""

    def frames_within(self, available: int) -> int:
        """The largest allowed frame count that is at most `available`; 0 where not even one frame is."""
        return (available - 1) // self.time_stride * self.time_stride + 1 if available > 0 else 0

    def check(self, width: int, height: int, frames: int) -> None:
        """ValueError, naming the nearest size that fits, unless a clip may have this size and length."""
        for label, size in (("Width", width), ("Height", height)):
            if size < self.size_multiple or size % self.size_multiple:
                nearest = max(1, round(size / self.size_multiple)) * self.size_multiple
                raise ValueError(
                    f"{label} {size} does not fit this model: it must be a multiple of {self.size_multiple}. "
                    f"Nearest: {nearest}."
                )
        if frames < 1 or self.frames_within(frames) != frames:
            below = self.frames_within(max(frames, 1))
            raise ValueError(
                f"Frames {frames} does not fit this model: it must be {self.time_stride} × n + 1. "
                f"Nearest: {below} or {below + self.time_stride}."
            )

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a clip of this size."""
        stride = self.space_stride
        return self.channels, (frames - 1) // self.time_stride + 1, height // stride, width // stride


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a beginner can keep for one model."""

    width: int
    height: int
    frames: int
    shift: float
    """Timestep shift s of sigma' = s * sigma / (1 + (s - 1) * sigma)."""
    rank: int
    learning_rate: float
    steps: int
    first_frame: float = 0.0
    """Share of the clips whose first frame is given clean, so that the model learns to go on from an image."""
    sampler_shift: float = 1.0
    """Timestep shift of ComfyUI's samplers where no node sets another (0.33, comfy/supported_models.py)."""
    guidance: float = 5.0
    """Classifier-free guidance of ComfyUI's own workflow for the model."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A weights file, recognised from its header alone; nothing of its body has been read but for `identity`."""

    family: ModelFamily
    title: str
    """For people: `Wan 2.1 T2V 14B`."""
    path: Path
    key_prefix: str
    """What stands before the model's own names in the file, `model.diffusion_model.` or nothing."""
    stored_as: str
    """How the weights are stored: `bf16`, `fp16`, `fp32`, `fp8`, `fp8 scaled`, `int8`, `GGUF Q4_K`."""
    config: Mapping[str, Any]
    """Arguments of the family's transformer class."""
    grid: Grid
    text_tokens: int
    text_width: int
    defaults: Defaults
    identity: str
    """Hash of the header, the size and samples of the body: another file, another identity."""
    form: str
    """Names what is cached of a clip for this model, and how: models of one form share cached clips."""
    caption_form: str
    """The same for captions. Where frozen parts of the model are applied to them, it names their weights as well."""
    streams: tuple[str, ...] = ("video",)
    """Which of `STREAM_NAMES` the model can learn."""
    needs: frozenset[str] = frozenset()
    """Names of the optional `Encoders` that this model cannot be prepared without."""
    one_of_two: bool = False
    """Whether the file can only be one of two experts."""
    expert: str = ""
    """`high_noise` or `low_noise` for one of two experts that share the noise levels between them."""
    levels: tuple[float, float] = (0.0, 1.0)
    """The noise levels sigma that this file answers for."""
    low_noise: BaseModel | None = None
    """The low-noise expert beside this high-noise one, where both are trained in one run."""


def first_frames_given(video: Tensor, share: float, generator: torch.Generator) -> Streams:
    """`ModelFamily.given` for models that go on from a clean first latent frame of video (B, C, F, H, W).

    Never that of an image, of which nothing would be left to learn; nothing where no sample drew it, which costs less
    memory than a mask of no effect.
    """
    count, _, frames, _, _ = video.shape
    drawn = torch.rand(count, generator=generator) < share
    if frames == 1 or not drawn.any():
        return {}
    mask = torch.zeros(count, 1, frames, 1, 1, dtype=torch.bool)
    mask[drawn, :, 0] = True
    return {"video": mask}


class ModelFamily(ABC):
    """One kind of video model. Everything that varies is here, and nothing else."""

    name: ClassVar[str]
    """For people: `Wan`."""
    names: ClassVar[KeyMap]
    """From names in weights files to names in the transformer class."""

    @abstractmethod
    def recognise(self, header: Header) -> BaseModel | None:
        """The model in this file, or None where it is not of this family.

        Raises ValueError where it is of this family and cannot be trained (says which it is and why).
        """

    @abstractmethod
    def load_transformer(
        self, base: BaseModel, *, dtype: torch.dtype, device: torch.device, storage: Storage = AS_STORED
    ) -> nn.Module:
        """The transformer, filled strictly from the file, frozen, in eval mode, weights in `dtype` on `device`.

        `storage` says which weights of its blocks are kept in few bits, and which blocks in host memory.
        Tensors go one by one from the file to the device: host memory beside the model stays at one tensor.
        Raises ValueError naming the keys where the file lacks some, has too many, or has other shapes.
        """

    def pair(self, high_noise: BaseModel, low_noise: BaseModel) -> BaseModel:
        """Two experts as one model: the high-noise one, with the other in `low_noise`.

        Raises ValueError where this family has no experts, or these two do not belong together.
        """
        raise ValueError(
            f"{high_noise.path.name} is {high_noise.title}, which is one file: choose no low-noise file beside it."
        )

    def one_expert(self, base: BaseModel, expert: str) -> BaseModel:
        """A file as the `high_noise` or `low_noise` expert alone. Raises ValueError where this family has none."""
        raise ValueError(f"{base.path.name} is {base.title}, which has no high-noise and low-noise experts.")

    @abstractmethod
    def adapter_targets(self, base: BaseModel, streams: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Presets of what a LoRA may adapt: preset name to endings of original module names. The first is the default.

        `streams` are those that are trained: what serves only others is not adapted.
        """

    @abstractmethod
    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks in the order they run: the unit of recompute and of offloading."""

    def original_name(self, module: str) -> str:
        """A module's name in the transformer class to its name in the weights file: what a LoRA file uses."""
        return self.names.back(module)

    def stream_of(self, module: str) -> str:
        """Which of `STREAM_NAMES` a module or parameter, by its name in weights files, makes."""
        return "video"

    @abstractmethod
    def prepare_clip(self, base: BaseModel, clip: DecodedClip, encoders: Encoders) -> Features:
        """What is cached of one clip: normalised `video` latents (C, F, H, W), and what conditions on the clip.

        Raises ValueError, with the shape that came and the one expected, where an encoder is another model's.
        """

    @abstractmethod
    def prepare_captions(
        self, base: BaseModel, captions: Iterable[str], encoder: CaptionEncoder, device: torch.device
    ) -> Iterator[Features]:
        """What is cached of each caption: `text` (L, D), without padding. Frozen parts of the model run on `device`.

        Raises ValueError, with the shape that came and the one expected, where the encoder is another model's.
        """

    def decodable(self, base: BaseModel, video: Tensor) -> Tensor:
        """`video` latents (C, F, H, W) of `prepare_clip` as the encoder gave them, which is how it decodes them."""
        return video

    @abstractmethod
    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        """Cached features of B samples of one shape as a batch: the clean streams, and what conditions them."""

    def objective(self, base: BaseModel, recipe: RecipeConfig) -> Objective:
        """How levels are drawn, noise is added and answers are judged. Flow matching, unless a family differs."""
        return FlowMatching(
            timesteps=recipe.timesteps,
            logit_mean=recipe.logit_mean,
            logit_std=recipe.logit_std,
            shift=recipe.shift or base.defaults.shift,
            levels=base.levels,
        )

    def given(self, base: BaseModel, clean: Streams, share: float, generator: torch.Generator) -> Streams:
        """What the model is given clean instead of noisy: masks by stream, True where it is, each of its stream's rank.

        Drawn for each sample with probability `share`. What is given is at level 0 and out of the loss.
        """
        return {}

    @abstractmethod
    def predict(
        self, transformer: nn.Module, noisy: Streams, levels: Streams, given: Streams, features: Features
    ) -> Streams:
        """The model's answer for each stream, shaped like it.

        `levels`: (B,) noise levels sigma in 0..1 per stream; `given` as `given` returned it.
        """

    @abstractmethod
    def twin(self) -> tuple[Mapping[str, Any], nn.Module]:
        """A two-layer twin with random weights, for demonstrations and tests: its config and the real class."""
