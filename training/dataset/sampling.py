"""Which frames of a clip are used: true to time, in one window or several."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import CutConfig
from ..families.model_family import Grid
from .clip_set import rate


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Indexes into the times of a clip, the seconds they span, and what a person should know."""

    indexes: tuple[int, ...]
    seconds: float
    start: float = 0.0
    """Seconds from the clip's first frame that decodes."""
    notes: tuple[str, ...] = ()


def choose_windows(
    times: Sequence[float], fps_wanted: float, frames_wanted: int, grid: Grid, cut: CutConfig | None = None
) -> tuple[FrameChoice, ...]:
    """The windows of a clip: for each moment i / `fps_wanted` of a window the frame nearest in time.

    `times`: when the source's frames are shown, seconds, rising; not from 0 where the first do not decode. Where the
    clip is too short for a whole window, one window of the largest count that the grid allows; nothing is stretched,
    slowed down or looped. No chosen frame is further from its moment than half the gap between its neighbours in the
    source, the last one than half the mean gap.
    Raises ValueError where the clip cannot fill one latent frame after the first.
    """
    if not times:
        raise ValueError("too short: it has no frames")
    cut = cut or CutConfig()
    span = times[-1] - times[0]
    gap = span / (len(times) - 1) if len(times) > 1 else 0.0
    length = span + gap
    available = int((span + gap / 2) * fps_wanted + 1e-6) + 1
    frames = min(frames_wanted, grid.frames_within(available))
    least = min(frames_wanted, grid.time_stride + 1)
    if frames < least:
        some = f"{available} frame{'' if available == 1 else 's'}"
        raise ValueError(
            f"too short: {length:.1f} s gives {some} at {rate(fps_wanted)} fps; at least {least} are needed"
        )
    windows = []
    starts = _starts(available, frames, cut, fps_wanted, grid.time_stride)
    for start in starts:
        indexes = tuple(nearest(times, times[0] + (start + frame) / fps_wanted) for frame in range(frames))
        notes = []
        if frames < frames_wanted:
            notes.append(f"{frames} of {frames_wanted} frames: the clip is {length:.1f} s long")
        elif available > frames:
            notes.append(_span(start / fps_wanted, frames / fps_wanted, length))
        if cut.windows == "several windows" and len(starts) < cut.window_count:
            notes.append(f"{len(starts)} of {cut.window_count} windows: the clip is too short for more")
        if len(set(indexes)) < len(indexes):
            notes.append(f"{rate(1 / gap)} fps source: some frames repeat" if gap else "some frames repeat")
        windows.append(
            FrameChoice(
                indexes=indexes, seconds=frames / fps_wanted, start=start / fps_wanted, notes=tuple(notes)
            )
        )
    return tuple(windows)


def _starts(available: int, frames: int, cut: CutConfig, fps: float, stride: int) -> list[int]:
    """Where windows of so many frames begin, in frames from the start, rising."""
    room = available - frames
    if cut.windows == "head":
        return [0]
    if cut.windows == "middle":
        return [room // 2]
    if cut.windows == "sliding windows":
        return list(range(0, room + 1, max(1, round(cut.window_step * fps))))
    if cut.windows == "whole clip":
        # As few as cover it; what the frame rule alone would leave over is not worth a window that repeats the rest.
        count = -(-(available - stride + 1) // frames) if room else 1
    else:  # no two share more than half of their frames
        count = min(cut.window_count, 1 + room // max(1, frames - frames // 2))
    if count <= 1:
        return [room // 2]
    return [round(place * room / (count - 1)) for place in range(count)]


def _span(start: float, seconds: float, length: float) -> str:
    """`first 3.1 s of 12.0 s`, `2.0-5.1 s of 12.0 s`, with as many digits as tell it from the whole."""
    digits = 1 if length - seconds >= 0.1 else 2
    if not start:
        return f"first {seconds:.{digits}f} s of {length:.{digits}f} s"
    return f"{start:.{digits}f}-{start + seconds:.{digits}f} s of {length:.{digits}f} s"


def nearest(times: Sequence[float], time: float) -> int:
    """Index of the entry of rising `times` nearest to `time`; the earlier of two equally near."""
    after = bisect.bisect_left(times, time)
    if after == 0:
        return 0
    if after == len(times) or time - times[after - 1] <= times[after] - time:
        return after - 1
    return after
