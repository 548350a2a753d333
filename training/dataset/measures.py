"""What a clip looks like, in numbers: black, dark, still, its bars, and a signature to know copies by.

T frames, P height and Q width in pixels. Brightness is luma of 8 bits, 0 black and 255 white.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...loaders.video_file import Crop

# All limits are of 255, on pictures whose longest side is 64 pixels: grain is averaged away there.
BLACK = 16
"""A frame is black where no part of it is brighter (6 %). Night scenes have lamps, faces, edges that are."""
DARK = 30
"""A clip is very dark where the mean brightness of its middle frame, sorted by brightness, is less (12 %)."""
STILL = 4
"""Two frames are the same where no part differs by more. Codecs change a repeated frame by up to 3."""
SIGNATURE_FRAMES, SIGNATURE_SIDE = 8, 16
CONTRAST = 50
"""Standard deviation that signatures are brought to, so that two night scenes are not alike for being dark."""
ALIKE_MEAN, ALIKE_MOST, ALIKE_LIGHT = 6.0, 36.0, 20.0
"""Two clips are alike where their signatures differ by less: on average, at the 99th percentile, in brightness. Of
copies at half the size, strongly compressed or at 16 fps it is up to 4 and 32, of pieces next to each other in one
slow shot from 5 and 55 on."""

# Bars, of 255 on frames of up to `BORDER_SIDE` pixels.
EVEN = 8
"""A line belongs to a bar where its pixels differ by no more, across it and over time."""
STEP, STEP_SHARE = 12, 0.5
"""The picture begins with a line of which half the pixels, in some frame, differ from the bar by more."""
LEAST_BAR, MOST_BAR = 0.015, 0.4
"""A bar is at least and at most this share of the picture's height or width, and two pixels or more."""
BLUR, INSET = 8, 2
"""Lines within which a codec blurs a bar into the picture, and how many of the picture's are cut off with it."""


class Look:
    """Sees every frame of one clip pass, keeps a few numbers."""

    def __init__(self):
        self.times: list[float] = []
        self._brightness: list[float] = []
        self._black: list[bool] = []
        self._spans: list[tuple[float, float]] = []
        self._anchor: np.ndarray | None = None

    def add(self, time: float, luma: np.ndarray) -> None:
        """One more frame (P, Q) uint8, shown at `time` seconds."""
        self.times.append(time)
        self._brightness.append(float(luma.mean()))
        self._black.append(bool(luma.max() <= BLACK))
        # Against the first frame of the span and not the one before: slow movement adds up, noise does not.
        if self._anchor is None or np.abs(luma.astype(np.int16) - self._anchor).max() > STILL:
            self._anchor = luma.astype(np.int16)
            self._spans.append((time, time))
        else:
            self._spans[-1] = (self._spans[-1][0], time)

    @property
    def brightness(self) -> float:
        """Mean luma of the median frame, 0 to 255."""
        return float(np.median(self._brightness))

    @property
    def black(self) -> tuple[float, float, float]:
        """Share of black frames; where the longest span of them begins and ends, in seconds."""
        begin, end = longest_span(self.times, self._black)
        return sum(self._black) / len(self._black), begin, end

    @property
    def still(self) -> tuple[float, float]:
        """Where the longest span without movement begins and ends, in seconds."""
        return max(self._spans, key=lambda span: span[1] - span[0])


def longest_span(times: Sequence[float], marked: Sequence[bool]) -> tuple[float, float]:
    """First and last time of the longest unbroken row of marked frames; (0, 0) where none is."""
    best, begin = (0.0, 0.0), None
    for time, mark in zip(times, marked, strict=True):
        begin = (time if begin is None else begin) if mark else None
        if begin is not None and (best == (0.0, 0.0) or time - begin > best[1] - best[0]):
            best = begin, time
    return best


def signature(frames: np.ndarray) -> np.ndarray:
    """Frames (T, P, Q, 3) uint8 as brightness (T, 16, 16) uint8, whatever their size and proportions."""
    luma = frames[..., 1]  # green is most of luma, and a copy's colours are no others
    for axis in (1, 2):
        edges = np.linspace(0, luma.shape[axis], SIGNATURE_SIDE + 1)
        lows = np.minimum(edges[:-1].astype(int), luma.shape[axis] - 1)
        highs = np.maximum(np.ceil(edges[1:]).astype(int), lows + 1)
        pieces = [luma.take(range(low, high), axis).mean(axis) for low, high in zip(lows, highs, strict=True)]
        luma = np.stack(pieces, axis)
    return luma.round().astype(np.uint8)


class Signature:
    """A signature (T, 16, 16) made ready to be compared with many: its brightness, and itself at an even contrast."""

    def __init__(self, picture: np.ndarray):
        self.light = float(picture.mean())
        self.even = (picture.astype(np.float32) - self.light) * (CONTRAST / max(1.0, picture.std()))


def alike(one: Signature, other: Signature) -> bool:
    """Whether two signatures are of the same pictures; never where their numbers of frames differ."""
    if one.even.shape != other.even.shape or abs(one.light - other.light) >= ALIKE_LIGHT:
        return False
    apart = np.abs(one.even - other.even)
    return bool(apart.mean() < ALIKE_MEAN and np.percentile(apart, 99) < ALIKE_MOST)


def picture_inside(frames: np.ndarray) -> Crop | None:
    """What is between bars of one even colour that stay all through (T, P, Q, 3); None where there are none.

    Black bars may be on one side alone; others, which a sky or a backdrop may look like, only on both sides.
    """
    height, width = frames.shape[1:3]
    columns = frames.transpose(0, 2, 1, 3)
    across = _even_lines(columns), _even_lines(columns[:, ::-1])
    down = _even_lines(frames), _even_lines(frames[:, ::-1])
    if sum(across) >= width or sum(down) >= height:
        return None  # one even colour all over
    (top, bottom), (left, right) = _bars(frames, *down), _bars(columns, *across)
    if not any((top, bottom, left, right)) or top + bottom >= height or left + right >= width:
        return None
    return Crop(left=left, top=top, width=width - left - right, height=height - top - bottom)


def _even_lines(lines: np.ndarray) -> int:
    """How many of the first lines (T, line, across, 3) are of one even colour that stays."""
    low, high = np.full(3, 255), np.zeros(3, int)
    for count in range(lines.shape[1]):
        line = lines[:, count]
        low, high = np.minimum(low, line.min((0, 1))), np.maximum(high, line.max((0, 1)))
        if (high - low).max() > EVEN:
            return count
    return lines.shape[1]


def _bars(lines: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """Widths of the bars in the first and last even lines; (0, 0) where they are of the picture."""
    both = (_bar(lines, first), _bar(lines[:, ::-1], last))
    (before, colour), (after, other) = both
    if before and after and np.abs(colour - other).max() <= EVEN:
        return before, after
    return (before if colour.max() <= DARK else 0), (after if other.max() <= DARK else 0)


def _bar(lines: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """A bar's width, with what it blurs into, and its colour; 0 where it fades into the picture as a sky does."""
    side = lines.shape[1]
    if not max(2, LEAST_BAR * side) <= count <= MOST_BAR * side:
        return 0, np.zeros(3)
    colour = np.median(lines[:, :count], (0, 1, 2))
    beyond = np.abs(lines[:, count : count + BLUR].astype(np.int16) - colour).max(-1) > STEP
    picture = beyond.mean(2).max(0) >= STEP_SHARE
    return (count + int(picture.argmax()) + INSET if picture.any() else 0), colour
