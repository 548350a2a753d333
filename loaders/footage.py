"""What is known of a video or image file, a part of its picture, and what is said of a file that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class FootageError(ValueError):
    """A file that cannot be used: `reason` is the sentence without the file's name."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path.name}: {reason}.")
        self.reason = reason


class FootageEnds(FootageError):
    """Fewer frames decode than the file promises; the first `decoded` of them do."""

    def __init__(self, path: Path, decoded: int, promised: int):
        super().__init__(path, f"only {decoded} of {promised} frames decode")
        self.decoded = decoded


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of the upright picture, in square pixels from its left and top."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Footage:
    """One video or image file. Sizes are upright and in square pixels; times in seconds from the first frame."""

    path: Path
    kind: str
    """`video` or `image`."""
    width: int
    height: int
    times: tuple[float, ...]
    """When each frame is shown, rising; an image has the one time 0."""
    fps: float
    """Mean frame rate; 0 for an image."""
    has_audio: bool = False
    notes: tuple[str, ...] = ()
    origin: float | None = 0.0
    """The first frame's time in the file's own clock; None where frames carry no times and only their order counts."""
    orientation: tuple[bool, bool, bool] = (False, False, False)
    """What makes the stored picture upright, in this order: swap x and y, mirror left and right, turn upside down."""
    light: str = ""
    """What its values mean where they are no plain SDR: `PQ`, `HLG` (HDR), or `BT.2020` (wide gamut)."""
    interlaced: bool = False

    @property
    def seconds(self) -> float:
        """How long it lasts, the last frame included; 0 for an image."""
        return self.times[-1] + 1 / self.fps if self.fps else 0.0

    def check(self, crop: Crop) -> None:
        """FootageError unless the crop lies inside the picture."""
        inside = crop.left + crop.width <= self.width and crop.top + crop.height <= self.height
        if not inside or min(crop.left, crop.top) < 0 or min(crop.width, crop.height) < 1:
            part = f"{crop.width}x{crop.height} from {crop.left}, {crop.top}"
            raise FootageError(self.path, f"the crop ({part}) lies outside its {self.width}x{self.height} pixels")
