"""Which width and height a clip is cut to: about the area asked for, in its own proportions, never enlarged unasked."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import CutConfig
from ..families.model_family import Grid


@dataclass(frozen=True, kw_only=True)
class Size:
    """What was asked for: pixels across and down, and frames."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


def all_sizes(width: int, height: int, frames: int, cut: CutConfig, grid: Grid) -> tuple[Size, ...]:
    """The size asked for, then those of `cut.more_sizes`, each once.

    Raises ValueError where one of them cannot be read, or the model cannot take it.
    """
    grid.check(width, height, frames)
    sizes = {Size(width=width, height=height, frames=frames): None}
    for text in filter(None, map(str.strip, re.split(r"[,;\n]", cut.more_sizes))):
        found = re.fullmatch(r"(\d{1,5})\s*[x×*]\s*(\d{1,5})(?:\s*[x×*]\s*(\d{1,5}))?", text, re.IGNORECASE)
        if found is None:
            raise ValueError(
                f"More sizes has {text!r}: write width x height x frames, several with commas between, "
                "for example 512x512x33, 960x544x17."
            )
        size = Size(width=int(found[1]), height=int(found[2]), frames=int(found[3] or frames))
        try:
            grid.check(size.width, size.height, size.frames)
        except ValueError as error:
            raise ValueError(f"More sizes has {text}: {error}") from error
        sizes[size] = None
    return tuple(sizes)


@functools.lru_cache(maxsize=256)
def bucket(width: int, height: int, size: Size, cut: CutConfig, grid: Grid) -> tuple[int, int]:
    """Width and height, multiples of what the model takes, that a picture of `width` x `height` is cut to.

    Never of more pixels than `size`, and nearest to the picture's proportions (or to those of `size`, as `cut.fit`
    says). Without `cut.upscale` no side is longer than the picture's; only for a model that knows one size alone it is
    that size whatever the picture has. Raises ValueError where the picture is too small.
    """
    shape = width / height if cut.fit == "keep proportions" else size.width / size.height
    step, most = grid.size_multiple, (math.inf, math.inf)
    if not cut.upscale:  # what of the picture has that shape; division may lose the last pixel
        most = min(width, max(step, height * shape + 1e-6)), min(height, max(step, width / shape + 1e-6))
    found = sorted(
        _within(size.width * size.height, *most, step, upright=shape < 1),
        key=lambda side: (abs(math.log(side[0] / side[1] / shape)), -side[0] * side[1]),
    )
    if not found:
        raise ValueError(
            f"too small: {width}x{height}; at least {step}x{step} is needed, or Enlarge small clips switched on"
        )
    return next((side for side in found if _takes(grid, *side, size.frames)), (size.width, size.height))


def _within(area: int, width: float, height: float, step: int, *, upright: bool) -> Iterator[tuple[int, int]]:
    """For each long side the largest short side, multiples of `step`, within the area and within width x height."""
    longest, shortest = (height, width) if upright else (width, height)
    for long in range(step, int(min(longest, area // step)) + 1, step):
        short = int(min(area // long, shortest, long)) // step * step
        if short:
            yield (short, long) if upright else (long, short)


def _takes(grid: Grid, width: int, height: int, frames: int) -> bool:
    try:
        grid.check(width, height, frames)
    except ValueError:
        return False
    return True
