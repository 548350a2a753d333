"""What a run gives: its LoRAs as they were just trained, or as an earlier start of it left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..loaders.lora_file import read_lora, read_lora_header, written_by_run
from ..loaders.whole_file import copy_whole
from .progress_file import ProgressFile
from .resume import ResumeFolder
from .run_folder import RunFolder
from .run_output import Part


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves: for each file its tensors, the loss of every step, what to tell people."""

    loras: tuple[dict[str, Tensor], ...]
    """One for each of `lora_files`: of two experts the high-noise one comes first."""
    lora_files: tuple[Path, ...]
    losses: list[float]
    report: str
    reused: bool
    """Whether this was an earlier run's result, and nothing was trained."""


def paused_result(folder: RunFolder, key: str, parts: Sequence[Part]) -> TrainResult | None:
    """What a run with this key kept at the step where it pauses, having gone further since; None where it has not."""
    copies = [_copy_of(folder, key, part) for part in parts]
    if None in copies or not any(part.pauses for part in parts):
        return None
    losses, _ = ProgressFile(folder.folder).read()
    until = [(part.before, part.before + part.config.last_step) for part in parts]
    return TrainResult(
        loras=tuple(read_lora(copy)[0] for copy in copies),
        lora_files=tuple(part.lora_file for part in parts),
        losses=[loss for step, loss in sorted(losses.items()) if any(low < step <= high for low, high in until)],
        report=f"Nothing to do: this run has gone further before, and kept {', '.join(copy.name for copy in copies)}.",
        reused=True,
    )


def _copy_of(folder: RunFolder, key: str, part: Part) -> Path | None:
    """The file in which a part is as it was when it paused; None where there is none, or it would be trained anew."""
    step = part.config.last_step
    copy = folder.checkpoint(step, part.base.expert) if part.pauses else part.lora_file
    if not part.lora_file.is_file() or {written_by_run(part.lora_file), written_by_run(copy)} != {key}:
        return None
    if read_lora_header(copy).get("ss_steps") != str(step):
        return None
    if part.config.recipe.schedule != "constant":  # a copy may be of more steps, and of another learning rate with it
        point, _ = ResumeFolder(folder.resume(key), part.base.expert).newest(part.config.steps)
        if point is None or point.state.step < step:
            return None
    return copy


def earlier_result(record: Mapping[str, Any], folder: RunFolder, parts: Sequence[Part]) -> TrainResult:
    """What a run with this record has left that has finished, or has paused at this step."""
    files = tuple(part.lora_file for part in parts)
    paused = [part for part in parts if part.pauses]
    for part in paused:  # a run of fewer steps that ended here has kept none
        copy = folder.checkpoint(part.config.last_step, part.base.expert)
        if not copy.is_file():
            copy_whole(part.lora_file, copy)
    ended = "ended at this step" if paused else "finished"
    return TrainResult(
        loras=tuple(read_lora(file)[0] for file in files),
        lora_files=files,
        losses=[loss for _, loss in sorted(ProgressFile(folder.folder).read()[0].items())],
        report=f"Nothing to do: this run has {ended} before.\n{record.get('report', '')}",
        reused=True,
    )
