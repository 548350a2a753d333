"""What a run writes while it goes and when it ends: the LoRAs, copies of them, its record and its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..loaders.feature_cache import file_digest
from ..loaders.lora_file import write_lora
from .adapter import Adapter
from .batches import trained_streams
from .config import RunConfig
from .dataset.training_set import TrainingSet
from .families.model_family import BaseModel
from .loop import RunState
from .lora_header import lora_header
from .optimizers import Stepper
from .run_folder import RunFolder

log = logging.getLogger(__name__)

SAVED_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SECONDS_BETWEEN_WRITES = 5.0


@dataclass(frozen=True, kw_only=True)
class KeyMatch:
    """How many of a LoRA file's keys a host would load."""

    matched: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """One LoRA of a run: what it is trained on, with how many steps, and where it goes."""

    base: BaseModel
    config: RunConfig
    lora_file: Path


class RunOutput:
    """The files of one run, part after part."""

    def __init__(self, training_set: TrainingSet, base: BaseModel, config: RunConfig, key: str, folder: RunFolder):
        self.losses: list[float] = []
        self._training_set = training_set
        self._base = base
        self._config = config
        self._key = key
        self._folder = folder
        self._started = self._written_at = time.monotonic()
        self._losses_written = 0
        self._lines: list[str] = []
        self._digests: dict[str, str] = {}
        self._part: Part | None = None
        self._adapter: Adapter | None = None
        self._optimizer: Stepper | None = None

    def begin(self) -> None:
        """Start the record anew."""
        self._folder.start_progress()
        self._record("running")

    def begin_part(self, part: Part, adapter: Adapter, optimizer: Stepper) -> None:
        """From here on steps belong to this LoRA."""
        self._part, self._adapter, self._optimizer = part, adapter, optimizer

    def end_part(self) -> None:
        """Let go of the adapter and its optimizer, which hold memory of the device."""
        self._adapter = self._optimizer = None

    def note(self, lines: Sequence[str]) -> None:
        """Add to the report, and say the first line now."""
        self._lines += lines
        if lines:
            log.info("%s", lines[0])

    def after_step(self, state: RunState) -> None:
        """Losses to disk now and then; a copy of the LoRA every `save_every` steps."""
        self.losses.append(state.losses[-1])
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self._write_losses()
        every = self._config.recipe.save_every
        if every and state.step % every == 0 and state.step < self._part.config.steps:
            self._write(self._folder.checkpoint(state.step, self._part.base.expert), state)

    def save(self, state: RunState) -> dict[str, Tensor]:
        """Write the LoRA in its place, keeping an earlier run's of the same name in the run folder; its tensors."""
        part = self._part
        self._write_losses()
        self._folder.keep_replaced(part.lora_file, self._key)
        tensors = self._write(part.lora_file, state)
        self._digests[part.lora_file.name] = file_digest(part.lora_file)
        self._lines += self._report_part(part, state)
        return tensors

    def stopped(self, state: RunState, reason: BaseException) -> None:
        """Keep what was learnt before the run was stopped; never raises, the reason matters more."""
        name, by = self._part.lora_file.name, type(reason).__name__
        if not state.step:
            log.info("%s: stopped by %s before the first step; nothing to keep", name, by)
            return
        try:
            self.save(state)
            self._record("stopped")
            log.info("%s: stopped by %s after step %d; kept", name, by, state.step)
        except (OSError, ValueError) as error:
            log.error("%s: stopped by %s after step %d and not kept: %s", name, by, state.step, error)

    def check(self, part: Part, match: KeyMatch | None) -> None:
        """Report how many keys a host loads. Raises ValueError where it would not load every one."""
        if match is None:
            return
        if match.matched < match.total:
            self._record("unmatched")
            raise ValueError(
                f"Only {match.matched} of {match.total} keys of {part.lora_file.name} match ComfyUI's own model: the "
                "file is kept, but it would not work fully. Please report this with the base model's file name."
            )
        self._lines.append(
            f"{part.lora_file.name} loaded back through ComfyUI: {match.matched} of {match.total} keys match"
        )

    def finish(self) -> str:
        """Record the end and return the report."""
        seconds, steps = time.monotonic() - self._started, max(1, len(self.losses))
        report = "\n".join(
            [
                f"{self._config.name}: {len(self.losses)} steps on {self._base.title}, "
                f"{len(self._training_set.samples)} clips, {seconds / 60:.1f} minutes, {seconds / steps:.2f} s a step "
                "with loading and saving",
                *self._left_out(),
                *self._lines,
            ]
        )
        self._record("finished", lora_sha256=self._digests, report=report)
        self._folder.write_report(report)
        return report

    def _left_out(self) -> list[str]:
        """Samples that lack everything the recipe trains."""
        streams = trained_streams(self._training_set, self._base, self._config.recipe)
        silent = [sample.name for sample in self._training_set.samples if not streams & sample.streams]
        return [f"Not used, they have no sound: {', '.join(silent)}"] if silent else []

    def _write(self, path: Path, state: RunState) -> dict[str, Tensor]:
        part = self._part
        with self._optimizer.kept_weights():
            tensors = self._adapter.tensors(SAVED_DTYPES[part.config.adapter.save_as])
        header = lora_header(self._training_set, part.base, part.config, key=self._key, steps_done=state.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lora(path, tensors, header)
        return tensors

    def _write_losses(self) -> None:
        self._folder.add_losses(self._losses_written, self.losses[self._losses_written :])
        self._losses_written, self._written_at = len(self.losses), time.monotonic()

    def _record(self, status: str, **more: object) -> None:
        self._folder.write_record(
            key=self._key,
            status=status,
            steps=len(self.losses),
            base=self._base.title,
            settings=self._config.as_dict(),
            data=self._training_set.data_hash,
            **more,
        )

    def _report_part(self, part: Part, state: RunState) -> list[str]:
        adapter, config, losses = self._adapter, part.config, state.losses
        tenth = max(1, len(losses) // 10)
        numbers = sum(parameter.numel() for parameter in adapter.parameters())
        return [
            f"{part.lora_file.name}, {part.lora_file.stat().st_size / 2**20:.1f} MB: {state.step} steps, rank "
            f"{config.rank}, alpha {adapter.scale * config.rank:g}, learning rate {config.learning_rate:g}, seed "
            f"{config.seed}; {len(adapter)} layers, {numbers / 1e6:.2f} million numbers; {_optimizer_words(config)}",
            f"Training loss {fmean(losses[:tenth]):.4f} in the first tenth, {fmean(losses[-tenth:]):.4f} in the last",
        ]


def _optimizer_words(config: RunConfig) -> str:
    recipe = config.recipe
    words = [recipe.optimizer, *([f"LoRA+ {recipe.lora_plus:g}"] if recipe.lora_plus != 1 else [])]
    return ", ".join([*words, *([f"averaged (EMA {recipe.ema:g})"] if recipe.ema else [])])
