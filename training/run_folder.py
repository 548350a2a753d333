"""What a run leaves on disk beside the LoRA: its settings, its losses step by step, its report, kept copies.

    run.json          key, settings, what was trained on, how far it came
    progress.jsonl    one line a step
    report.md         the report of the last run
    checkpoints/      copies of the LoRA every so many steps
    replaced/         LoRAs of earlier runs with the same name
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ..loaders.feature_cache import file_digest
from ..loaders.lora_file import written_by_run
from ..loaders.whole_file import write_text

FORMAT = 1


def settings_key(settings: Any) -> str:
    """Hash of plain values: the same settings, the same key."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


class RunFolder:
    """One run's folder. Created on first writing, not on looking."""

    def __init__(self, folder: Path):
        self.folder = folder

    def record(self) -> dict[str, Any]:
        """What run.json says; empty where there is none that can be read."""
        try:
            record = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) and record.get("format") == FORMAT else {}

    def write_record(self, **entries: Any) -> None:
        """Replace run.json, whole or not at all."""
        write_text(self.folder / "run.json", json.dumps({"format": FORMAT, **entries}, indent=1, default=str))

    def write_report(self, report: str) -> None:
        """Replace report.md."""
        write_text(self.folder / "report.md", report + "\n")

    def start_progress(self) -> None:
        """Begin progress.jsonl anew."""
        write_text(self.folder / "progress.jsonl", "")

    def add_losses(self, steps_before: int, losses: list[float]) -> None:
        """Add the losses of the steps after `steps_before` to progress.jsonl."""
        lines = [json.dumps({"step": steps_before + i, "loss": loss}) + "\n" for i, loss in enumerate(losses, 1)]
        with (self.folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def losses(self) -> list[float]:
        """The losses of the last run, step by step."""
        try:
            lines = (self.folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
            return [float(json.loads(line)["loss"]) for line in lines]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def finished(self, key: str, lora_files: list[Path]) -> dict[str, Any] | None:
        """The record of a finished run with this key whose LoRA files are still those it wrote, or None."""
        record = self.record()
        if record.get("key") != key or record.get("status") != "finished":
            return None
        if not all(file.is_file() for file in lora_files):
            return None
        return record if record.get("lora_sha256") == {file.name: file_digest(file) for file in lora_files} else None

    def checkpoint(self, step: int, expert: str) -> Path:
        """Where the copy of this step goes."""
        name = "-".join(filter(None, (expert, f"step-{step:06d}")))
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def keep_replaced(self, lora_file: Path, key: str) -> Path | None:
        """Copy a LoRA of another run that is about to be replaced to replaced/; None where there is none."""
        if not lora_file.is_file() or (owner := written_by_run(lora_file)) == key:
            return None
        kept = self.folder / "replaced" / f"{lora_file.stem}-{(owner or 'unknown')[:8]}.safetensors"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(lora_file, kept)
        return kept
