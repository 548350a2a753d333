"""What a run writes while it goes and when it ends: the LoRAs, copies of them, resume points, its record and report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..loaders.feature_cache import file_digest
from ..loaders.lora_file import read_lora, read_lora_header, write_lora, written_by_run
from ..loaders.whole_file import remove_leftovers
from .adapter import Adapter
from .batches import trained_streams
from .config import RunConfig
from .dataset.training_set import TrainingSet
from .disk import wait_for_room
from .families.model_family import BaseModel
from .listener import Listener, Progress
from .loop import RunState
from .lora_header import lora_header
from .optimizers import Stepper
from .progress_file import ProgressFile
from .resume import ResumeFolder, ResumePoint, keep_last_runs
from .run_facts import Facts, changes, run_key
from .run_folder import RunFolder, kept_part
from .watch import LossExploded, best, held_out_words

log = logging.getLogger(__name__)

SAVED_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SECONDS_BETWEEN_WRITES = 5.0


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run writes."""

    lora_folder: Path
    run_folder: Path
    spare: tuple[Path, ...] = ()
    """Where what was learnt is kept if the disk of the others is full when a run ends."""


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
    lora_folder: Path
    before: int = 0
    """Steps that were asked for in the parts before it."""

    @property
    def pauses(self) -> bool:
        """Whether it stops before its last step."""
        return self.config.last_step < self.config.steps

    @property
    def lora_file(self) -> Path:
        """Where the LoRA goes."""
        return self._file()

    @property
    def best_file(self) -> Path:
        """Where the LoRA goes that did best on held-out clips."""
        return self._file("best")

    def _file(self, *which: str) -> Path:
        words = (self.config.name, *which, self.base.expert)
        return self.lora_folder / f"{'_'.join(filter(None, words))}.safetensors"


@dataclass(kw_only=True)
class Training:
    """What is being trained at this moment."""

    part: Part
    adapter: Adapter
    optimizer: Stepper
    state: RunState
    weights: str
    """How the model's own weights are kept (`Level.weights`)."""

    def point(self) -> ResumePoint:
        return ResumePoint.of(self.state, self.adapter, self.optimizer, self.weights)


class RunOutput:
    """The files of one run, part after part."""

    def __init__(
        self, training_set: TrainingSet, held_out: TrainingSet, base: BaseModel, config: RunConfig, facts: Facts,
        places: Places, listener: Listener,
    ):
        self._training_set, self._held_out = training_set, held_out
        self._base, self._config, self._facts = base, config, facts
        self._key = run_key(facts)
        self._places, self._folder = places, RunFolder(places.run_folder)
        self._listener = listener
        self._started = self._written_at = self._point_at = time.monotonic()
        self._before: list[float] = []
        """Losses of the parts that are done."""
        self._progress = ProgressFile(places.run_folder)
        self._went_on = self._begun = 0
        self._point_step: int | None = None
        """Step of the last resume point."""
        self._lines: list[str] = []
        self._parts: dict[str, Any] = {}
        self._now: Training | None = None

    @property
    def losses(self) -> list[float]:
        """Of every step of every part so far."""
        return [*self._before, *(self._now.state.losses if self._now else ())]

    def begin(self, parts: Sequence[Part]) -> None:
        """Tidy up after runs that were killed; say what is different from the run before."""
        self._folder.remove_leftovers()
        keep_last_runs(self._folder.folder / "resume", self._folder.resume(self._key).name)
        for file in (file for part in parts for file in (part.lora_file, part.best_file)):
            remove_leftovers(file.parent, file.name)
        record = self._folder.record()
        if record.get("key") == self._key:
            self._parts = record["parts"] if isinstance(record.get("parts"), dict) else {}
        elif record:
            different = changes(record.get("facts") if isinstance(record.get("facts"), dict) else {}, self._facts)
            self.note([f"A new run, other than the last one of this name: {'; '.join(different)}"])
            self._folder.exchange_previews(str(record.get("key")), self._key)
        self._record("running")

    def kept(self, part: Part) -> dict[str, Tensor] | None:
        """The LoRA of a part that an earlier start of this run has finished, None where none has."""
        kept = kept_part({"parts": self._parts}, part.lora_file)
        if kept is None or kept["steps"] != part.config.last_step:
            return None
        point, _ = self.points(part).newest(kept["steps"])
        if point is None or point.state.step != kept["steps"]:
            return None
        self._progress.keep(point.state, part.before, part.base.expert)
        self._before += point.state.losses
        self._went_on += point.state.step
        self.note([f"{part.lora_file.name} was finished already", *kept["report"]])
        return read_lora(part.lora_file)[0]

    def points(self, part: Part) -> ResumeFolder:
        """The resume points of a part."""
        return ResumeFolder(self._folder.resume(self._key), part.base.expert)

    def preview(self, part: Part, step: int, number: int) -> Path:
        """Where a preview of a part goes."""
        return self._folder.preview(step, part.base.expert, number)

    def begin_part(self, now: Training) -> None:
        """From here on steps belong to this LoRA. Makes a resume point: what cannot be saved is known at once."""
        self._now, self._begun = now, now.state.step
        self._went_on += self._begun
        self._point_step = self._begun or None  # a run that goes on has read the point that it goes on from
        self._progress.begin(now.state, now.part.before, now.part.base.expert)
        self._save_point()

    def end_part(self) -> None:
        """Let go of the adapter and its optimizer, which hold memory of the device."""
        if self._now:
            part, state = self._now.part, self._now.state
            self._progress.done(state, part.before, part.base.expert)
            self._before += state.losses
        self._now = None

    def note(self, lines: Sequence[str]) -> None:
        """Add to the report, and say the first line now."""
        self._lines += lines
        if lines:
            log.info("%s", lines[0])

    def after_step(self, state: RunState) -> None:
        """Losses and resume points to disk now and then; a copy of the LoRA every `save_every` steps."""
        recipe, part = self._config.recipe, self._now.part
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self._write_progress()
        self.keep_best()
        if recipe.save_every and state.step % recipe.save_every == 0 and state.step < part.config.steps:
            self._write_lora(self._folder.checkpoint(state.step, part.base.expert), self._patiently)
        if time.monotonic() - self._point_at >= 60 * recipe.resume_every:
            self._save_point()

    def keep_best(self) -> None:
        """Write the LoRA beside the last one where it has just done better on held-out clips than any before."""
        state, file = self._now.state, self._now.part.best_file
        found = best(state.judged)
        if found is None or found.step != state.step:
            return
        self._keep_replaced(file, self._patiently)
        self._write_lora(file, self._patiently)

    def save(self) -> dict[str, Tensor]:
        """Write the LoRA in its place and a resume point, waiting for room where there is none; the LoRA's tensors.

        Where the run pauses, a copy of the LoRA of this step as well.
        """
        self._save_point()
        part, step = self._now.part, self._now.state.step
        if part.pauses and step == part.config.last_step:
            self._write_lora(self._folder.checkpoint(step, part.base.expert), self._patiently)
        return self._save_lora(self._patiently)

    def stopped(self, reason: BaseException, rewind: Callable[[], None]) -> None:
        """Keep what was learnt before the run was stopped; never raises, the reason matters more.

        `rewind` goes back to the last resume point, for a step that was broken off halfway and a LoRA that is spoilt.
        """
        part, by = self._now.part, type(reason).__name__
        name, spoilt = part.lora_file.name, isinstance(reason, LossExploded)
        try:
            if spoilt:
                self.points(part).forget_after(reason.sound_steps)
            if spoilt or self._now.state.torn:
                rewind()
            step = self._now.state.step
            if not step or not spoilt and step <= self._begun and part.lora_file.is_file():
                log.info("%s: stopped by %s before a further step; nothing new to keep", name, by)
                return
            self._keep_all()
            self._record("stopped")
            log.info("%s: stopped by %s; the LoRA of step %d is kept", name, by, step)
            if spoilt:
                reason.args = (f"{reason} That of step {step} is kept.",)
        except (OSError, ValueError, RuntimeError) as error:
            log.error("%s: stopped by %s; of the end of the run not all could be kept: %s", name, by, error)

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
        seconds, steps = time.monotonic() - self._started, len(self.losses)
        made = steps - self._went_on
        paused = f" of {self._config.steps}, paused" if steps < self._config.steps else ""
        went_on = f", {made} of them now after going on from step {self._went_on}" if self._went_on else ""
        report = "\n".join(
            [
                f"{self._config.name}: {steps} steps{paused}{went_on} on {self._base.title}, "
                f"{len(self._training_set.samples)} clips, {seconds / 60:.1f} minutes, {seconds / max(1, made):.2f} s "
                "a step with loading and saving",
                *self._left_out(),
                *self._lines,
            ]
        )
        status = "finished" if steps >= self._config.steps else "paused"
        self._patiently(lambda: self._record(status, report=report), self._folder.folder, len(report))
        self._folder.write_report(report)
        return report

    def _left_out(self) -> list[str]:
        """Samples that lack everything the recipe trains."""
        streams = trained_streams(self._training_set, self._base, self._config.recipe)
        silent = [sample.name for sample in self._training_set.samples if not streams & sample.streams]
        held_out = dict.fromkeys(sample.name for sample in self._held_out.samples)
        lines = [f"Not used, they have no sound: {', '.join(silent)}"] if silent else []
        return [*lines, f"Held out, not trained on: {', '.join(held_out)}"] if held_out else lines

    def _save_point(self) -> None:
        """A resume point, unless the last one is of this very step."""
        self._point_at = time.monotonic()
        if self._now.state.step == self._point_step:
            return
        points, point = self.points(self._now.part), self._now.point()
        self._patiently(lambda: points.add(point), points.folder, point.bytes)
        self._point_at, self._point_step = time.monotonic(), self._now.state.step

    def _save_lora(self, saving: Saving) -> dict[str, Tensor]:
        """Write the LoRA in its place, keeping an earlier run's of the same name in the run folder; its tensors."""
        file, state = self._now.part.lora_file, self._now.state
        self._write_progress()
        self._keep_replaced(file, saving)
        tensors = self._write_lora(file, saving)
        report = self._report_part()
        self._parts[file.name] = {"sha256": file_digest(file), "steps": state.step, "report": report}
        self._lines += report
        self._record("running")
        return tensors

    def _keep_replaced(self, file: Path, saving: Saving) -> None:
        """Copy a LoRA that is about to be replaced, unless it is this run's own, of no more steps than now."""
        if not file.is_file():
            return
        steps = read_lora_header(file).get("ss_steps", "") if written_by_run(file) == self._key else ""
        if not (steps.isdecimal() and int(steps) <= self._now.state.step):
            saving(lambda: self._folder.keep_replaced(file), self._folder.folder, file.stat().st_size)

    def _keep_all(self) -> None:
        """The resume point and the LoRA in their places, without waiting; each in a spare one where that fails."""
        points, point, lora = self.points(self._now.part), self._now.point(), self._now.part.lora_file
        path = points.path(point.state.step)
        failed = [
            self._keep(
                lambda: points.add(point), point.write, f"{self._config.name}-{path.name}",
                f" To go on from there, move it to {path}.",
            ),
            self._keep(lambda: self._save_lora(_at_once), lambda spare: self._write_lora(spare, _at_once), lora.name),
        ]
        for error in filter(None, failed):
            raise error

    def _keep(
        self, save: Callable[[], Any], write: Callable[[Path], Any], name: str, more: str = ""
    ) -> OSError | None:
        """Save something; what fails is written under `name` to a spare place, and said, with `more`."""
        try:
            save()
        except OSError as error:
            where = self._written_elsewhere(write, name)
            told = f"{error} It is in {where} instead.{more}" if where else str(error)
            log.error("%s", told)
            self._listener.report(Progress(phase=told, done=0, total=1))
            return error
        return None

    def _written_elsewhere(self, write: Callable[[Path], Any], name: str) -> Path | None:
        """Write a file, where its name is free, into the first spare folder that takes it; where it is then."""
        for path in (folder / name for folder in self._places.spare):
            try:
                if not path.exists():
                    write(path)
                    return path
            except OSError as error:
                log.warning("%s", error)
        return None

    def _write_lora(self, path: Path, saving: Saving) -> dict[str, Tensor]:
        part, now = self._now.part, self._now
        with now.optimizer.kept_weights():
            tensors = now.adapter.tensors(SAVED_DTYPES[part.config.adapter.save_as])
        header = lora_header(self._training_set, part.base, part.config, key=self._key, steps_done=now.state.step)

        def write() -> None:
            write_lora(path, tensors, header)

        saving(write, path.parent, sum(tensor.nbytes for tensor in tensors.values()))
        return tensors

    def _patiently(self, write: Callable[[], None], folder: Path, size: int) -> None:
        wait_for_room(write, folder, size, self._listener)

    def _write_progress(self) -> None:
        self._written_at = time.monotonic()
        self._progress.add(self._now.state, self._now.part.before, self._now.part.base.expert)

    def _record(self, status: str, **more: object) -> None:
        self._folder.write_record(
            {
                "key": self._key,
                "status": status,
                "steps": len(self.losses),
                "base": self._base.title,
                "settings": self._config.as_dict(),
                "facts": self._facts,
                "parts": self._parts,
                **more,
            }
        )

    def _report_part(self) -> list[str]:
        now = self._now
        file, config, losses = now.part.lora_file, now.part.config, now.state.losses
        tenth = max(1, len(losses) // 10)
        numbers = sum(parameter.numel() for parameter in now.adapter.parameters())
        return [
            f"{file.name}, {file.stat().st_size / 2**20:.1f} MB: {now.state.step} steps, rank "
            f"{config.rank}, alpha {now.adapter.scale * config.rank:g}, learning rate {config.learning_rate:g}, seed "
            f"{config.seed}; {len(now.adapter)} layers, {numbers / 1e6:.2f} million numbers; "
            f"{_optimizer_words(config)}",
            f"Training loss {fmean(losses[:tenth]):.4f} in the first tenth, {fmean(losses[-tenth:]):.4f} in the last",
            *held_out_words(now.state.judged, now.part.best_file.name),
        ]


Saving = Callable[[Callable[[], None], Path, int], None]
"""How something is written that takes so many bytes in a folder."""


def _at_once(write: Callable[[], None], folder: Path, size: int) -> None:
    write()


def _optimizer_words(config: RunConfig) -> str:
    recipe = config.recipe
    words = [recipe.optimizer, *([f"LoRA+ {recipe.lora_plus:g}"] if recipe.lora_plus != 1 else [])]
    return ", ".join([*words, *([f"averaged (EMA {recipe.ema:g})"] if recipe.ema else [])])
