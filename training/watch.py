"""Whether a run goes well: steps that must not be made, and what clips that are not trained on say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

START = 20
"""Steps whose median loss is the usual one of a run."""

RUNAWAY = ((3, 10.0), (20, 2.0))
"""So many steps in a row whose loss is more than so many times the usual one.

One step proves nothing: at a batch size of 1 the noise level alone changes the loss tenfold, and an odd clip more.
"""

LEAST_USUAL = 1.0
"""Losses below are never too high. It is the least that a model which answers nothing would get: the mean square of the
target, whose noise has variance 1. What runs away ends above that, what learns stays below."""

PATIENCE = 3
"""Judgements without a new best after which a held-out loss counts as risen."""

RISE = 0.02
"""By how much of the lowest one a held-out loss must have risen."""


class LossNotFinite(ValueError):
    """The loss or the gradient became NaN or infinite."""


class LossExploded(ValueError):
    """The loss has become far higher than at the start, and stays so."""

    def __init__(self, message: str, sound_steps: int):
        super().__init__(message)
        self.sound_steps = sound_steps
        """The last step whose LoRA still gave a usual loss; 0 where there is none."""


def check_step(losses: Sequence[float], loss: float, norm: float, clips: Callable[[], Sequence[str]]) -> None:
    """Raise before the optimizer makes a step that would spoil the LoRA.

    `losses` of all steps of this LoRA before; `loss` and gradient length `norm` of the coming one; `clips` names what
    it was shown. LossNotFinite or LossExploded, one sentence or two: which step, which clips, what to do.
    """
    step = len(losses) + 1
    if not math.isfinite(loss) or not math.isfinite(norm):
        what = f"gradient became {norm}" if math.isfinite(loss) else f"loss became {loss}"
        raise LossNotFinite(
            f"The {what} in step {step} (clips: {', '.join(clips())}): lower the learning rate or look at these clips. "
            + (f"The LoRA of step {step - 1} is kept." if step > 1 else "Nothing was learnt yet.")
        )
    limit = usual = max(LEAST_USUAL, median(losses[:START] or [loss]))
    for count, factor in RUNAWAY:
        limit = factor * usual
        if count <= step and loss > limit and all(earlier > limit for earlier in losses[step - count :]):
            sound = max(0, step - count - 1)  # the first loss too high was already that of a spoilt LoRA
            raise LossExploded(
                f"The loss is {loss:.3g} in step {step} (clips: {', '.join(clips())}) and has been above {limit:.3g} "
                f"for {count} steps, where {median(losses[:START]):.3g} was usual at the start: halve the learning "
                "rate. " + (f"The LoRA was sound up to step {sound}." if sound else "Nothing sound was learnt."),
                sound,
            )


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the held-out clips said of the LoRA of a step. Step 0: of the model without it."""

    step: int
    levels: Mapping[str, float]
    """Mean loss at each noise level, by the level in words."""

    @property
    def loss(self) -> float:
        """Mean over the levels."""
        return fmean(self.levels.values())

    def entry(self) -> dict[str, Any]:
        """As plain values, for JSON: `{"step": 250, "held_out": 0.08, "levels": {"0.125": 0.1, ...}}`."""
        return {"step": self.step, "held_out": self.loss, "levels": dict(self.levels)}

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Judgement:
        """What `entry` gave. ValueError where it is something else."""
        try:
            levels = {str(level): float(loss) for level, loss in entry["levels"].items()}
            judgement = cls(step=int(entry["step"]), levels=levels)
            if not levels or judgement.step < 0 or not math.isfinite(judgement.loss):
                raise ValueError("no losses")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError("This is no judgement of held-out clips.") from error
        return judgement


def best(judged: Sequence[Judgement]) -> Judgement | None:
    """The one with the lowest loss, the earliest of several; None where nothing but step 0 was judged."""
    return min((judgement for judgement in judged if judgement.step), key=lambda each: each.loss, default=None)


def overtrained(judged: Sequence[Judgement]) -> bool:
    """Whether the held-out loss has been lowest a while ago and is clearly higher now. `judged` in order of steps."""
    lowest = min(judged, key=lambda each: each.loss, default=None)
    if lowest is None or len(judged) - 1 - judged.index(lowest) < PATIENCE:
        return False
    return judged[-1].loss > (1 + RISE) * lowest.loss


def held_out_words(judged: Sequence[Judgement], best_file: str) -> list[str]:
    """What the report says of held-out clips: a sentence, or nothing where they were not judged.

    `best_file`: the name under which the LoRA with the lowest loss is kept.
    """
    lowest = best(judged)
    if lowest is None:
        return []
    first, last = judged[0], judged[-1]
    before = f"{first.loss:.4f} before training" if first.step == 0 else f"{first.loss:.4f} at step {first.step}"
    kept = f"the LoRA of step {lowest.step} is kept as {best_file}"
    if first.step == 0 and first.loss <= lowest.loss:
        return [
            f"Held-out loss was {before} and never lower since, {last.loss:.4f} at the end: what was learnt does not "
            "carry over to other clips. More clips or a lower rank may help."
        ]
    if overtrained(judged):
        return [f"Held-out loss was lowest at step {lowest.step} ({lowest.loss:.4f}) and has risen to {last.loss:.4f} "
                f"since: {kept}."]
    if lowest is last:
        return [f"Held-out loss was {before} and is lowest at the end, {last.loss:.4f}."]
    return [f"Held-out loss was {before}, lowest at step {lowest.step} ({lowest.loss:.4f}) and {last.loss:.4f} at the "
            f"end: {kept}."]
