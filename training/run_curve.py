"""The losses of a run as a curve that can be drawn: read from its folder, smoothed, brought down to few points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .progress_file import ProgressFile
from .run_folder import RunFolder

BUCKETS = 500
"""At most so many points of a part of a run, each with a lowest and a highest loss."""

LEAST_SPAN = 20
"""Steps over which a loss is smoothed at least. One step says little: its noise level alone changes it tenfold."""

SPANS = 10
"""A run is smoothed over a tenth of its steps."""


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """What a run has shown so far. Steps are counted through all of its parts."""

    status: str
    """As run.json says: `running`, `stopped`, `paused`, `finished`, `unmatched`; empty where there is no run."""
    total: int
    """Steps that were asked for."""
    last: int
    """The last step that is in the curve; 0 where there is none."""
    made: int
    """How many steps are in it: of two parts the first may pause before its end."""
    experts: tuple[tuple[str, int], ...]
    """The two parts of a run of two experts: name, steps before it."""
    points: tuple[tuple[int, float, float, float], ...]
    """Last step of each bucket, lowest and highest loss in it, smoothed loss at its end."""
    held_out: tuple[tuple[int, str, Mapping[str, float]], ...]
    """Step, expert, and loss of held-out clips at each noise level."""
    smoothing: Mapping[str, float]
    """How the smoothed loss goes on: `keep`, of the `sum` and its `weight` at the last step."""

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def read_curve(folder: Path, first: int = 0, losses: Sequence[float] = ()) -> RunCurve:
    """The curve of the run in `folder`, empty where there is none.

    `losses` of the steps from `first` on are newer than what is on disk and stand in its place. What cannot be read,
    is no finite number or belongs to no step is left out.
    """
    record = RunFolder(folder).record()
    found, held_out = ProgressFile(folder).read()
    if losses:
        found = {step: loss for step, loss in found.items() if step < first}
        found.update((step, loss) for step, loss in enumerate(losses, first) if math.isfinite(loss))
    total, experts = _plan(record)
    steps = sorted(found)
    last = steps[-1] if steps else 0
    keep = 1 - 2 / (max(LEAST_SPAN, (total or last) / SPANS) + 1)
    points: list[tuple[int, float, float, float]] = []
    smoothing = {"sum": 0.0, "weight": 0.0}
    bounds = [before for _, before in experts[1:]]
    for low, high in zip([0, *bounds], [*bounds, last], strict=True):
        part = [step for step in steps if low < step <= high]
        if part:
            drawn, smoothing = _part(part, [found[step] for step in part], keep)
            points += drawn
    return RunCurve(
        status=str(record.get("status", "")), total=total, last=last, made=len(steps), experts=experts,
        points=tuple(points),
        held_out=tuple(each for each in held_out if each[0] <= last), smoothing={"keep": keep, **smoothing},
    )


def _part(
    steps: Sequence[int], losses: Sequence[float], keep: float
) -> tuple[list[tuple[int, float, float, float]], dict[str, float]]:
    """Points of one part, and where its smoothed loss stands.

    The exponential mean without the pull to zero of its beginning (Kingma and Ba 2015, section 3).
    """
    size = math.ceil(len(steps) / BUCKETS)
    total = weight = 0.0
    smooth = []
    for loss in losses:
        total, weight = keep * total + (1 - keep) * loss, keep * weight + 1 - keep
        smooth.append(total / weight)
    points = []
    for start in range(0, len(steps), size):
        bucket = losses[start : start + size]
        end = start + len(bucket) - 1
        points.append((steps[end], _short(min(bucket)), _short(max(bucket)), _short(smooth[end])))
    return points, {"sum": total, "weight": weight}


def _plan(record: Mapping[str, Any]) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Steps that were asked for, and name and steps before of each of two experts, as far as run.json says so."""
    try:
        steps = max(0, int(record["settings"]["steps"]))
        names = [str(expert) for _, expert in record["facts"]["base"]]
        before = round(steps * float(record["settings"]["recipe"]["high_noise_share"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0, ()
    return steps, ((names[0], 0), (names[1], before)) if len(names) == 2 and 0 < before < steps else ()


def _short(value: float) -> float:
    """With as many digits as a picture can show."""
    return float(f"{value:.5g}")
