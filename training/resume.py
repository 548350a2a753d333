"""Resume points: all that the next step depends on, on disk, so that a run that was broken off goes on unchanged.

A point is one safetensors file, `step-000123.safetensors`: the adapter, the optimizer with its average, the losses so
far; beside them, in the header, the plain numbers as JSON and a checksum over everything. Generators have no part in
it: every draw depends on the seed and its position alone.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..loaders.safetensors_file import checksum, read_tensors, write_tensors
from ..loaders.whole_file import remove_leftovers
from .adapter import Adapter
from .loop import RunState
from .optimizers import Stepper
from .watch import Judgement

log = logging.getLogger(__name__)

ENTRY, CHECKSUM = "video_lora.resume", "crc32"
FORMAT = 1
NAME = re.compile(r"(?:(.+)-)?step-(\d{6,7})\.safetensors")
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """A run after `state.step` steps. All tensors are on the CPU."""

    state: RunState
    adapter: Mapping[str, Tensor] = field(repr=False)
    optimizer: tuple[Mapping[str, Tensor], Mapping[str, float | bool]] = field(repr=False)
    weights: str
    """How the model's own weights are kept (`Level.weights`): other bits would be other numbers."""

    @classmethod
    def of(cls, state: RunState, adapter: Adapter, optimizer: Stepper, weights: str) -> ResumePoint:
        """The run as it is now."""
        return cls(state=state.copy(), adapter=adapter.state(), optimizer=optimizer.state(), weights=weights)

    def put_back(self, state: RunState, adapter: Adapter, optimizer: Stepper) -> None:
        """Make the run what it was. Raises ValueError where it is another adapter's or another recipe's."""
        adapter.restore(self.adapter)
        optimizer.restore(*self.optimizer)
        state.become(self.state)

    @property
    def bytes(self) -> int:
        """What it takes on disk, nearly."""
        tensors = [*self.adapter.values(), *self.optimizer[0].values()]
        return sum(tensor.nbytes for tensor in tensors) + 8 * len(self.state.losses)

    def write(self, path: Path) -> None:
        """Write it whole or not at all. OSError, one sentence, where the disk cannot be written."""
        tensors, numbers = self.optimizer
        losses = torch.tensor(self.state.losses, dtype=torch.float64)
        stored = {
            "losses": losses,
            **{f"adapter/{name}": tensor for name, tensor in self.adapter.items()},
            **{f"optimizer/{name}": tensor for name, tensor in tensors.items()},
        }
        entry = {
            "format": FORMAT, "step": self.state.step, "weights": self.weights, "numbers": dict(numbers),
            "judged": [judgement.entry() for judgement in self.state.judged],
        }
        text = json.dumps(entry, sort_keys=True)
        write_tensors(path, stored, {ENTRY: text, CHECKSUM: checksum(stored, text)})

    @classmethod
    def read(cls, path: Path) -> ResumePoint:
        """Raises ValueError, one sentence, where the file is no whole resume point."""
        stored, metadata = read_tensors(path)
        text = metadata.get(ENTRY, "")
        if metadata.get(CHECKSUM) != checksum(stored, text):
            raise ValueError(f"{path.name} does not match its checksum.")
        try:
            entry = json.loads(text)
            if entry["format"] != FORMAT:
                raise ValueError("format")
            parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "optimizer": {}}
            losses = stored.pop("losses").reshape(-1).tolist()
            for name, tensor in stored.items():
                part, _, rest = name.partition("/")
                parts[part][rest] = tensor
            judged = [Judgement.of(judgement) for judgement in entry["judged"]]
            state = RunState(step=int(entry["step"]), losses=losses, judged=judged)
            return cls(
                state=state, adapter=parts["adapter"], optimizer=(parts["optimizer"], dict(entry["numbers"])),
                weights=str(entry["weights"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path.name} is no resume point of this version.") from error


class ResumeFolder:
    """The resume points of one LoRA of a run; of two experts each has its own, told apart by name."""

    def __init__(self, folder: Path, expert: str = ""):
        self.folder = folder
        self._expert = expert

    def newest(self, most: int) -> tuple[ResumePoint | None, list[str]]:
        """The last whole point of at most so many steps, and what was found broken on the way, in sentences."""
        notes = []
        for step, path in reversed(self._points()):
            if step > most:
                continue
            try:
                return ResumePoint.read(path), notes
            except ValueError as error:
                notes.append(f"The resume point of step {step} is damaged and was left out.")
                log.warning("%s %s", notes[-1], error)
        return None, notes

    def last_step(self) -> int:
        """How many steps the last point has, whole or not; 0 where there is none."""
        return max((step for step, _ in self._points()), default=0)

    def path(self, step: int) -> Path:
        """Where the point of this step goes."""
        return self.folder / f"{'-'.join(filter(None, (self._expert, f'step-{step:06d}')))}.safetensors"

    def add(self, point: ResumePoint) -> None:
        """Write a point; of those before it the last one stays, and none after it. OSError as `ResumePoint.write`."""
        step = point.state.step
        point.write(self.path(step))
        self.forget_after(step)
        for _, path in self._points()[:-KEPT]:
            _remove(path)

    def forget_after(self, step: int) -> None:
        """Delete the points of later steps."""
        for other, path in self._points():
            if other > step:
                _remove(path)

    def _points(self) -> list[tuple[int, Path]]:
        found = ((NAME.fullmatch(path.name), path) for path in self.folder.glob("*.safetensors"))
        return sorted((int(match[2]), path) for match, path in found if match and (match[1] or "") == self._expert)


def keep_last_runs(folder: Path, current: str) -> None:
    """Of the runs that have resume points in a folder keep `current` and the one that was last before it.

    So settings changed by mistake can be changed back. What killed processes left half written goes as well.
    """
    runs = [path for path in folder.glob("*") if path.is_dir() and path.name != current]
    for path in sorted(runs, key=lambda path: path.stat().st_mtime)[:-1]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*"):
        remove_leftovers(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # held open by another program (Windows): it goes the next time
        log.info("%s stays: %s", path.name, error)
