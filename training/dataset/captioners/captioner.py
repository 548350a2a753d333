"""The one interface behind which captioners differ.

T frames, P height and Q width in pixels, N samples of sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a captioner sees and hears of one clip, and what it is asked."""

    frames: Tensor
    """(T, P, Q, 3) uint8 RGB, upright; one frame of an image."""
    fps: float
    """Frames a second of these frames, in the clip's true time; 0 for an image."""
    instruction: str
    """What to write, in words."""
    sound: Tensor | None = None
    """(2, N) in -1..1 at `rate`; None where there is none, or the captioner does not hear."""
    rate: int = 16000
    max_tokens: int = 256
    seed: int = 0

    @property
    def timed_instruction(self) -> str:
        """The instruction after a sentence on when the frames are, for what takes them as single images."""
        if len(self.frames) < 2 or self.fps <= 0:
            return self.instruction
        return (
            f"These {len(self.frames)} images are frames of one video, in order, {1 / self.fps:.2f} seconds apart. "
            f"{self.instruction}"
        )


class Captioner(Protocol):
    """A model, or a service, that writes a caption for a clip."""

    title: str
    """For people: `Qwen3-VL-8B, on this machine`."""
    hears: bool
    """Whether it makes use of sound."""

    def before(self, clips: int, shown: Shown) -> str:
        """What `clips` captions like the one for `shown` will take, in one sentence for the report; may be empty.

        Called once, before the first caption. Raises ValueError where the captioner cannot be used at all.
        """

    def caption(self, shown: Shown) -> str:
        """One caption. Raises CaptionError where this clip got none, ValueError where none will."""

    def close(self) -> None:
        """Give memory and connections back. It may be used again afterwards."""


class CaptionError(ValueError):
    """One clip got no caption; the others may."""
