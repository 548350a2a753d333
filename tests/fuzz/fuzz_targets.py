"""What strangers' bytes reach, target by target: files, values in workflows, answers of services."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import fuzz_files
import fuzz_values
from fuzz_draw import DRAWN
from fuzz_models import base_models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One border: `make` lays out an input in a folder and gives what is to be attempted with it."""

    name: str
    make: Callable[[bytes, Path], Callable[[], object]]
    seeds: Callable[[], list[bytes]]
    share: float = 1.0
    """How many inputs it gets where others get one: it takes longer than they do."""


TARGETS = {
    target.name: target
    for target in (
        Target(name="safetensors headers", make=fuzz_files.safetensors, seeds=fuzz_files.safetensors_seeds),
        Target(name="GGUF headers", make=fuzz_files.gguf, seeds=fuzz_files.gguf_seeds),
        Target(name="LoRA files", make=fuzz_files.lora, seeds=lambda: DRAWN),
        Target(name="stack rows", make=fuzz_values.rows, seeds=fuzz_values.rows_seeds),
        Target(name="strengths", make=fuzz_values.strengths, seeds=fuzz_values.strengths_seeds),
        Target(name="caption files", make=fuzz_files.captions, seeds=fuzz_files.captions_seeds),
        Target(name="caption tables", make=fuzz_files.tables, seeds=fuzz_files.tables_seeds),
        Target(name="run folder and records", make=fuzz_files.records, seeds=fuzz_files.records_seeds),
        Target(name="resume points", make=fuzz_files.resumes, seeds=lambda: DRAWN),
        Target(name="settings", make=fuzz_values.values, seeds=lambda: DRAWN),
        Target(name="paths and names", make=fuzz_values.paths, seeds=fuzz_values.paths_seeds),
        Target(name="service answers", make=fuzz_values.answers, seeds=fuzz_values.answers_seeds),
        Target(name="base models", make=base_models, seeds=lambda: DRAWN, share=0.2),
    )
}
