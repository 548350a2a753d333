"""The one interface behind which video models differ.

Shape letters: B batch, C latent channels, F latent frames, H W latent height and width,
T P Q clip frames, height and width in pixels, L text tokens, D text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ...loaders.safetensors_file import Header

Streams = dict[str, Tensor]
"""What is noised and predicted, by name: `video` (B, C, F, H, W)."""

Features = dict[str, Tensor]
"""What the transformer is told beside the noisy streams, by name: `text` (B, L, D), and whatever a family adds."""


class ClipEncoder(Protocol):
    """A VAE as the engine sees it. `identity` changes whenever the weights do; it becomes part of the cache key."""

    identity: str

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (T, P, Q, 3), float in 0..1, to the latents (C, F, H, W) as the host gives them."""


class CaptionEncoder(Protocol):
    """A text encoder as the engine sees it. `identity` changes whenever the weights do."""

    identity: str

    def encode(self, caption: str) -> Tensor:
        """One caption to its text features (L, D) as the host gives them."""


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
    """How the weights are stored: `bf16`, `fp16`, `fp32`, `fp8`, `fp8 scaled`."""
    config: Mapping[str, Any]
    """Arguments of the family's transformer class."""
    grid: Grid
    text_tokens: int
    text_width: int
    defaults: Defaults
    identity: str
    """Hash of the header, the size and samples of the body: another file, another identity."""


class ModelFamily(ABC):
    """One kind of video model. Everything that varies is here, and nothing else."""

    name: ClassVar[str]
    """For people: `Wan`."""
    adapter_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Presets of what a LoRA may adapt: preset name to endings of original module names. The first is the default."""

    @abstractmethod
    def recognise(self, header: Header) -> BaseModel | None:
        """The model in this file, or None where it is not of this family.

        Raises ValueError where it is of this family and cannot be trained (says which it is and why).
        """

    @abstractmethod
    def load_transformer(self, base: BaseModel, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The transformer, filled strictly from the file, frozen, in eval mode, weights in `dtype` on `device`.

        Tensors go one by one from the file to the device: host memory beside the model stays at one tensor.
        Raises ValueError naming the keys where the file lacks some, has too many, or has other shapes.
        """

    @abstractmethod
    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks in the order they run: the unit of recompute and of offloading."""

    @abstractmethod
    def original_name(self, module: str) -> str:
        """A module's name in the transformer class to its name in the weights file: what a LoRA file uses."""

    @abstractmethod
    def prepare_clip(self, base: BaseModel, frames: Tensor, encoder: ClipEncoder) -> Features:
        """What is cached of one clip: frames (T, P, Q, 3) in 0..1 to normalised `video` latents (C, F, H, W).

        Raises ValueError, with the shape that came and the one expected, where the encoder is another model's.
        """

    @abstractmethod
    def prepare_caption(self, base: BaseModel, caption: str, encoder: CaptionEncoder) -> Features:
        """What is cached of one caption: `text` (L, D), without padding.

        Raises ValueError, with the shape that came and the one expected, where the encoder is another model's.
        """

    @abstractmethod
    def collate(self, base: BaseModel, samples: Sequence[Features]) -> tuple[Streams, Features]:
        """Cached features of B samples of one shape as a batch: the clean streams, and what conditions them."""

    @abstractmethod
    def predict(self, transformer: nn.Module, noisy: Streams, levels: Streams, features: Features) -> Streams:
        """The model's answer for each stream, shaped like it. `levels`: (B,) noise levels sigma in 0..1 per stream."""

    @abstractmethod
    def twin(self) -> tuple[Mapping[str, Any], nn.Module]:
        """A two-layer twin with random weights, for demonstrations and tests: its config and the real class."""
