"""progress.jsonl: the loss of every step of a run and what held-out clips said, one line each, oldest first.

    {"step": 120, "loss": 0.081}
    {"step": 250, "held_out": 0.083, "levels": {"0.125": 0.11, ...}, "expert": "high_noise"}

Steps are counted through all parts of a run, as many before a part as the parts before it were asked for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..loaders.whole_file import write_text
from .loop import RunState

log = logging.getLogger(__name__)

HeldOut = tuple[int, str, dict[str, float]]
"""Step, expert, and loss of held-out clips at each noise level."""


class ProgressFile:
    """The file of one run, part after part."""

    def __init__(self, folder: Path):
        self._path = folder / "progress.jsonl"
        self._done: list[dict[str, Any]] = []
        """Lines of the parts that are done."""
        self._losses = self._judgements = 0
        """How many of the part that goes on were written."""

    def done(self, state: RunState, before: int, expert: str) -> None:
        """The steps of a part that is done, with `before` steps in the parts before it."""
        self._done += _entries(state, before, expert)
        self._losses = self._judgements = 0

    def begin(self, state: RunState, before: int, expert: str) -> None:
        """Begin the file anew: with the parts that are done, and what is there of the one that goes on."""
        write_text(self._path, _lines([*self._done, *_entries(state, before, expert)]))
        self._count(state)

    def keep(self, state: RunState, before: int, expert: str) -> None:
        """Begin the file anew with one more part that is done, and was before this start of the run."""
        self.done(state, before, expert)
        write_text(self._path, _lines(self._done))

    def add(self, state: RunState, before: int, expert: str) -> None:
        """Add what is new of the part that goes on; what cannot be written now, on a full disk, is the next time."""
        new = _entries(state, before, expert, losses=self._losses, judgements=self._judgements)
        try:
            with self._path.open("ab", buffering=0) as file:  # a buffer would try the rest once more on truncating
                size, lines = file.tell(), _lines(new).encode()
                try:
                    if file.write(lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(size)
                    raise
            self._count(state)
        except OSError as error:
            log.warning("progress.jsonl could not be written: %s", error)

    def read(self) -> tuple[dict[int, float], list[HeldOut]]:
        """Loss by step, and judgements of held-out clips by step.

        Lines that cannot be read, are no finite number or belong to no step are left out.
        """
        losses: dict[int, float] = {}
        held_out: list[HeldOut] = []
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return losses, held_out
        for line in lines:
            try:
                entry = json.loads(line)
                step = int(entry["step"])
                if "levels" in entry:
                    levels = {str(level): float(loss) for level, loss in entry["levels"].items()}
                    if step >= 0 and all(map(math.isfinite, levels.values())):
                        held_out.append((step, str(entry.get("expert", "")), levels))
                elif step > 0 and math.isfinite(loss := float(entry["loss"])):
                    losses[step] = loss
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
                continue  # the end of a line that is being written, or a hand in the file
        return losses, sorted(held_out, key=lambda each: each[0])

    def _count(self, state: RunState) -> None:
        self._losses, self._judgements = len(state.losses), len(state.judged)


def _entries(
    state: RunState, before: int, expert: str, *, losses: int = 0, judgements: int = 0
) -> list[dict[str, Any]]:
    """Lines for the losses and judgements after the first so many."""
    of_expert = {"expert": expert} if expert else {}
    lines = [{"step": before + step, "loss": loss} for step, loss in enumerate(state.losses[losses:], losses + 1)]
    lines += [{**each.entry(), "step": before + each.step, **of_expert} for each in state.judged[judgements:]]
    return sorted(lines, key=lambda line: (line["step"], "held_out" in line))


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
