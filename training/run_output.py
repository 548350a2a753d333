"""What a run writes while it goes and when it ends: the LoRA, copies of it, its record and its report."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..loaders.feature_cache import file_digest
from ..loaders.lora_file import write_lora
from .adapter import Adapter
from .config import RunConfig
from .dataset.training_set import TrainingSet
from .families.model_family import BaseModel
from .loop import RunState
from .lora_header import lora_header
from .run_folder import RunFolder

log = logging.getLogger(__name__)

SAVED_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SECONDS_BETWEEN_WRITES = 5.0


@dataclass(frozen=True, kw_only=True)
class KeyMatch:
    """How many of a LoRA file's keys a host would load."""

    matched: int
    total: int


class RunOutput:
    """The files of one run."""

    def __init__(
        self,
        training_set: TrainingSet,
        base: BaseModel,
        config: RunConfig,
        key: str,
        lora_file: Path,
        folder: RunFolder,
    ):
        self.training_set = training_set
        self.base = base
        self.config = config
        self.key = key
        self.lora_file = lora_file
        self.folder = folder
        self._written_steps = 0
        self._written_at = time.monotonic()

    def begin(self) -> None:
        """Start the record anew."""
        self.folder.start_progress()
        self._record("running", 0)

    def after_step(self, state: RunState, adapter: Adapter) -> None:
        """Losses to disk now and then; a copy of the LoRA every `save_every` steps."""
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self._write_losses(state)
        every = self.config.recipe.save_every
        if every and state.step % every == 0 and state.step < self.config.steps:
            self._write(self.folder.checkpoint(state.step), state, adapter)

    def save(self, state: RunState, adapter: Adapter) -> dict[str, Tensor]:
        """Write the LoRA in its place, keeping an earlier run's of the same name in the run folder; its tensors."""
        self._write_losses(state)
        self.folder.keep_replaced(self.lora_file, self.key)
        return self._write(self.lora_file, state, adapter)

    def stopped(self, state: RunState, adapter: Adapter, reason: BaseException) -> None:
        """Keep what was learnt before the run was stopped; never raises, the reason matters more."""
        name = type(reason).__name__
        if not state.step:
            log.info("%s: stopped by %s before the first step; nothing to keep", self.config.name, name)
            return
        try:
            self.save(state, adapter)
            self._record("stopped", state.step)
            log.info("%s: stopped by %s after step %d; kept in %s", self.config.name, name, state.step, self.lora_file)
        except (OSError, ValueError) as error:
            log.error("%s: stopped by %s after step %d and not kept: %s", self.config.name, name, state.step, error)

    def finished(self, state: RunState, adapter: Adapter, match: KeyMatch | None, seconds: float) -> str:
        """Record the end and return the report. Raises ValueError where a host would not load every key."""
        if match and match.matched < match.total:
            self._record("unmatched", state.step)
            raise ValueError(
                f"Only {match.matched} of {match.total} keys of {self.lora_file.name} match ComfyUI's own model: the "
                "file is kept, but it would not work fully. Please report this with the base model's file name."
            )
        report = self._report(state, adapter, match, seconds)
        self._record("finished", state.step, lora_sha256=file_digest(self.lora_file), report=report)
        self.folder.write_report(report)
        return report

    def _write(self, path: Path, state: RunState, adapter: Adapter) -> dict[str, Tensor]:
        tensors = adapter.tensors(SAVED_DTYPES[self.config.adapter.save_as])
        header = lora_header(self.training_set, self.base, self.config, key=self.key, steps_done=state.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lora(path, tensors, header)
        return tensors

    def _write_losses(self, state: RunState) -> None:
        self.folder.add_losses(self._written_steps, state.losses[self._written_steps :])
        self._written_steps, self._written_at = len(state.losses), time.monotonic()

    def _record(self, status: str, steps: int, **more: str) -> None:
        self.folder.write_record(
            key=self.key,
            status=status,
            steps=steps,
            base=self.base.title,
            lora=self.lora_file.name,
            settings=self.config.as_dict(),
            data=self.training_set.data_hash,
            **more,
        )

    def _report(self, state: RunState, adapter: Adapter, match: KeyMatch | None, seconds: float) -> str:
        config, losses = self.config, state.losses
        part = max(1, len(losses) // 10)
        numbers = sum(parameter.numel() for parameter in adapter.parameters())
        lines = [
            f"{config.name}: {state.step} steps on {self.base.title}, {len(self.training_set.samples)} clips",
            f"Rank {config.rank}, alpha {adapter.scale * config.rank:g}, learning rate {config.learning_rate:g}, "
            f"seed {config.seed}; {len(adapter)} layers, {numbers / 1e6:.1f} million numbers",
            f"Training loss {fmean(losses[:part]):.4f} in the first tenth, {fmean(losses[-part:]):.4f} in the last",
            f"{seconds / max(1, state.step):.2f} s a step with everything, {seconds / 60:.1f} minutes in all",
            f"Written: {self.lora_file.name}, {self.lora_file.stat().st_size / 2**20:.1f} MB",
        ]
        if match:
            lines.append(f"Loaded back through ComfyUI: {match.matched} of {match.total} keys match")
        return "\n".join(lines)
