"""What a run leaves on disk beside the LoRA: its settings, its report, kept copies, and places for the rest.

    run.json          key, settings, what was trained on, how far it came
    progress.jsonl    one line a step (`progress_file`)
    previews/         clips made while it trained
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
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..loaders.feature_cache import file_digest
from ..loaders.lora_file import written_by_run
from ..loaders.whole_file import copy_whole, remove_leftovers, write_text

log = logging.getLogger(__name__)

FORMAT = 2
PREVIEW_NAME = re.compile(r"(?:(?P<expert>\w+)-)?step-(?P<step>\d{1,9})-(?P<number>\d{1,3})\.mp4")
ENDED = ("finished", "paused")
"""What a record says of a run that came to its end, or to a pause that was asked for."""
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

    def finished(self, key: str, steps: int, lora_files: list[Path]) -> dict[str, Any] | None:
        """The record of a run with this key that ended after so many steps, its LoRA files being still its own."""
        record = self.record()
        if record.get("key") != key or record.get("status") not in ENDED or record.get("steps") != steps:
            return None
        return record if all(kept_part(record, file) for file in lora_files) else None

    def checkpoint(self, step: int, expert: str) -> Path:
        """Where the copy of this step goes."""
        name = "-".join(filter(None, (expert, f"step-{step:06d}")))
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def preview(self, step: int, expert: str, number: int) -> Path:
        """Where the clip goes that shows prompt `number` after this step."""
        name = "-".join(filter(None, (expert, f"step-{step:06d}", str(number))))
        return self.folder / "previews" / f"{name}.mp4"

    def resume(self, key: str) -> Path:
        """Where the resume points of the run with this key go."""
        return self.folder / "resume" / key[:12]

    def replaceable_bytes(self) -> int:
        """Bytes of the copies and resume points that are there."""
        files = [*self.folder.glob("checkpoints/*.safetensors"), *self.folder.glob("resume/*/*.safetensors")]
        return sum(path.stat().st_size for path in files)

    def remove_leftovers(self) -> None:
        """Delete what killed processes left half written."""
        for folder in (self.folder, *(self.folder / name for name in ("checkpoints", "previews", "replaced"))):
            remove_leftovers(folder)

    def exchange_previews(self, before: str, now: str) -> None:
        """Move the previews of the run with the key `before` to replaced/, and those of `now`, that lie there, back."""
        shown, aside = self.folder / "previews", self.folder / "replaced"
        try:
            aside.mkdir(parents=True, exist_ok=True)
            if shown.is_dir():
                shutil.rmtree(aside / f"previews-{_owner(before)}", ignore_errors=True)
                shown.rename(aside / f"previews-{_owner(before)}")
            if (aside / f"previews-{_owner(now)}").is_dir():
                (aside / f"previews-{_owner(now)}").rename(shown)
        except OSError as error:  # one of them is being played (Windows): what is only shown must not stop a run
            log.warning("The previews of the run before stay beside the new ones: %s", error)

    def keep_replaced(self, lora_file: Path) -> None:
        """Copy a LoRA that is about to be replaced by another run's to replaced/. Raises like `whole_file`."""
        name = f"{lora_file.stem}-{_owner(written_by_run(lora_file))}.safetensors"
        copy_whole(lora_file, self.folder / "replaced" / name)


def _owner(key: str | None) -> str:
    """The part of file names that says whose a file was; keys come from files, which may hold anything."""
    return key[:8] if key and re.fullmatch(r"[0-9a-f]+", key) else "unknown"


def list_previews(run_folder: Path) -> list[dict[str, Any]]:
    """`step`, `expert`, `number` and `path` of every preview of a run, in order of experts, steps and numbers."""
    found = ((PREVIEW_NAME.fullmatch(path.name), path) for path in run_folder.glob("previews/*.mp4"))
    previews = [
        {"step": int(name["step"]), "expert": name["expert"] or "", "number": int(name["number"]), "path": path}
        for name, path in found if name and path.is_file()
    ]
    return sorted(previews, key=lambda each: (each["expert"], each["step"], each["number"]))


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
