"""What a run leaves on disk beside the LoRA: its settings, its losses step by step, its report, kept copies.

    run.json          key, settings, what was trained on, how far it came
    progress.jsonl    one line a step
    report.md         the report of the last run
    checkpoints/      copies of the LoRA every so many steps
    resume/           for this run and the one before it: what it needs to go on
    replaced/         LoRAs of earlier runs with the same name
    lock              held while a run writes here
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..loaders.feature_cache import file_digest
from ..loaders.lora_file import written_by_run
from ..loaders.whole_file import remove_leftovers, whole_file, write_text

FORMAT = 2
RECORD_LIMIT = 64 * 2**20
"""Bytes of run.json: a longer one is not ours."""


def settings_key(settings: Any) -> str:
    """Hash of plain values: the same settings, the same key."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


class RunFolder:
    """One run's folder. Created on first writing, not on looking."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs of this name out meanwhile. Raises ValueError where one is at it."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.folder / "lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"A run named {self.folder.name!r} is being trained at this moment, by another ComfyUI or command: "
                "wait for it, or choose another name."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def record(self) -> dict[str, Any]:
        """What run.json says; empty where there is none that can be read."""
        path = self.folder / "run.json"
        try:
            if path.stat().st_size > RECORD_LIMIT:
                return {}
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and record.get("format") == FORMAT else {}

    def write_record(self, entries: Mapping[str, Any]) -> None:
        """Replace run.json, whole or not at all."""
        write_text(self.folder / "run.json", json.dumps({"format": FORMAT, **entries}, indent=1, default=str))

    def write_report(self, report: str) -> None:
        """Replace report.md."""
        write_text(self.folder / "report.md", report + "\n")

    def start_progress(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        """Begin progress.jsonl anew, with these lines."""
        write_text(self.folder / "progress.jsonl", _lines(entries))

    def add_progress(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to progress.jsonl, all or none."""
        with (self.folder / "progress.jsonl").open("ab") as file:
            size = file.tell()
            try:
                file.write(_lines(entries).encode())
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise

    def losses(self) -> list[float]:
        """The losses of the last run, step by step."""
        losses = []
        try:
            for line in (self.folder / "progress.jsonl").read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                losses += [float(entry["loss"])] if "loss" in entry else []
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            return []
        return losses

    def finished(self, key: str, steps: int, lora_files: list[Path]) -> dict[str, Any] | None:
        """The record of a finished run with this key and so many steps whose LoRA files are still those it wrote."""
        record = self.record()
        if record.get("key") != key or record.get("status") != "finished" or record.get("steps") != steps:
            return None
        return record if all(kept_part(record, file) for file in lora_files) else None

    def checkpoint(self, step: int, expert: str) -> Path:
        """Where the copy of this step goes."""
        name = "-".join(filter(None, (expert, f"step-{step:06d}")))
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def resume(self, key: str) -> Path:
        """Where the resume points of the run with this key go."""
        return self.folder / "resume" / key[:12]

    def replaceable_bytes(self) -> int:
        """Bytes of the copies and resume points that are there."""
        files = [*self.folder.glob("checkpoints/*.safetensors"), *self.folder.glob("resume/*/*.safetensors")]
        return sum(path.stat().st_size for path in files)

    def remove_leftovers(self) -> None:
        """Delete what killed processes left half written."""
        for folder in (self.folder, self.folder / "checkpoints", self.folder / "replaced"):
            remove_leftovers(folder)

    def keep_replaced(self, lora_file: Path) -> None:
        """Copy a LoRA that is about to be replaced by another run's to replaced/. Raises like `whole_file`."""
        owner = written_by_run(lora_file) or "unknown"
        kept = self.folder / "replaced" / f"{lora_file.stem}-{owner[:8]}.safetensors"
        kept.parent.mkdir(parents=True, exist_ok=True)
        with lora_file.open("rb") as source, whole_file(kept) as copy:
            shutil.copyfileobj(source, copy)


def kept_part(record: Mapping[str, Any], lora_file: Path) -> dict[str, Any] | None:
    """`steps` and `report` of a LoRA file that is still as the record says it was written; None where it is not."""
    parts = record.get("parts")
    part = parts.get(lora_file.name) if isinstance(parts, dict) else None
    if not isinstance(part, dict) or not lora_file.is_file() or part.get("sha256") != file_digest(lora_file):
        return None
    steps, report = part.get("steps"), part.get("report")
    if not isinstance(steps, int) or not isinstance(report, list):
        return None
    return {"steps": steps, "report": [str(line) for line in report]}


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
