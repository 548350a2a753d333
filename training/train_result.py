"""What a run gives: its LoRAs as they were just trained, or as an earlier start of it left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..loaders.lora_file import read_lora, written_by_run
from .progress_file import ProgressFile
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
    copies = [folder.checkpoint(part.config.last_step, part.base.expert) for part in parts]
    for part, copy in zip(parts, copies, strict=True):
        if part.config.last_step == part.config.steps or not part.lora_file.is_file() or not copy.is_file():
            return None
        if {written_by_run(part.lora_file), written_by_run(copy)} != {key}:
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


def earlier_result(record: Mapping[str, Any], folder: RunFolder, parts: Sequence[Part]) -> TrainResult:
    """What a run with this record has left that has finished, or has paused at this step."""
    files = tuple(part.lora_file for part in parts)
    return TrainResult(
        loras=tuple(read_lora(file)[0] for file in files),
        lora_files=files,
        losses=[loss for _, loss in sorted(ProgressFile(folder.folder).read()[0].items())],
        report=f"Nothing to do: this run has finished before.\n{record.get('report', '')}",
        reused=True,
    )
