"""Which frames of a clip are used: true to time, from its start."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ..families.model_family import Grid
from .clip_set import rate


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Indexes into the times of a clip, the seconds they span, and what a person should know."""

    indexes: tuple[int, ...]
    seconds: float
    notes: tuple[str, ...] = ()


def choose_frames(times: Sequence[float], fps_wanted: float, frames_wanted: int, grid: Grid) -> FrameChoice:
    """For each moment i / `fps_wanted` from the clip's start the frame nearest in time.

    `times`: when the source's frames are shown, seconds, rising from 0. Where the clip is too short, the largest count
    that the grid allows; nothing is stretched, slowed down or looped. No chosen frame is further from its moment than
    half the gap between its neighbours in the source.
    Raises ValueError where the clip cannot fill one latent frame after the first.
    """
    if not times:
        raise ValueError("too short: it has no frames")
    gap = times[-1] / (len(times) - 1) if len(times) > 1 else 0.0
    length = times[-1] + gap
    available = int((times[-1] + gap / 2) * fps_wanted + 1e-6) + 1
    frames = min(frames_wanted, grid.frames_within(available))
    least = min(frames_wanted, grid.time_stride + 1)
    if frames < least:
        some = f"{available} frame{'' if available == 1 else 's'}"
        raise ValueError(
            f"too short: {length:.1f} s gives {some} at {rate(fps_wanted)} fps; at least {least} are needed"
        )
    indexes = tuple(nearest(times, frame / fps_wanted) for frame in range(frames))
    used, notes = frames / fps_wanted, []
    if frames < frames_wanted:
        notes.append(f"{frames} of {frames_wanted} frames: the clip is {length:.1f} s long")
    elif available > frames:
        digits = 1 if length - used >= 0.1 else 2
        notes.append(f"first {used:.{digits}f} s of {length:.{digits}f} s")
    if len(set(indexes)) < len(indexes):
        notes.append(f"{rate(1 / gap)} fps source: some frames repeat" if gap else "some frames repeat")
    return FrameChoice(indexes=indexes, seconds=used, notes=tuple(notes))


def nearest(times: Sequence[float], time: float) -> int:
    """Index of the entry of rising `times` nearest to `time`; the earlier of two equally near."""
    after = bisect.bisect_left(times, time)
    if after == 0:
        return 0
    if after == len(times) or time - times[after - 1] <= times[after] - time:
        return after - 1
    return after
