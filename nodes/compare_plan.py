"""What a comparison shows: its columns of strengths, its rows of checkpoints, and which cells are one and the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from .. import training
from . import places
from .lora_names import plain
from .rows import STRONGEST, Row

MOST_CELLS = 100
LONGEST = 1000
"""Characters of the text of strengths."""
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
WITHOUT = "without"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One row of the grid: what it is called, and the files that stand for those of the LoRAs' names."""

    label: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)

    def file_of(self, name: str) -> Path:
        return self.files.get(name) or places.lora_file(name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is sampled once: LoRAs at their strengths, from some files, and every (row, column) that shows it."""

    label: str
    loras: tuple[Row, ...]
    checkpoint: Checkpoint
    shown_at: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Columns, rows and cells of a comparison, and what is compared."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]


def parse_strengths(text: str) -> tuple[float, ...]:
    """Numbers separated by commas. Raises ValueError naming what is none."""
    parts = [part.strip() for part in str(text)[: LONGEST + 1].split(",")]
    if not any(parts):
        raise ValueError('Strengths is empty: write numbers separated by commas, for example "0, 1".')
    if len(str(text)) > LONGEST:
        raise ValueError(f"Strengths must be text of at most {LONGEST:,} characters.")
    for part in parts:
        if not NUMBER.fullmatch(part):
            raise ValueError(f'Strengths: {part[:40]!r} is not a number; write numbers as in "0, 0.5, 1".')
        if abs(float(part)) > STRONGEST:
            raise ValueError(f"Strengths: {part[:40]} must lie between {-STRONGEST:g} and {STRONGEST:g}.")
    check_cells(1, len(parts))
    return tuple(map(float, parts))


def check_cells(rows: int, columns: int) -> None:
    """ValueError where a grid has more cells than can be looked at."""
    if rows * columns > MOST_CELLS:
        checkpoints = f"{rows} checkpoints at " if rows > 1 else ""
        raise ValueError(
            f"{checkpoints}{columns} strengths are {rows * columns} cells, and at most {MOST_CELLS} can be compared: "
            f"write fewer strengths{', or compare the last checkpoint only' if rows > 1 else ''}."
        )


def plan_of(loras: Sequence[Row], strengths: Sequence[float], checkpoints: Sequence[Checkpoint]) -> Plan:
    """Every cell of the grid; those in which no LoRA acts are one. Raises ValueError where they are too many."""
    check_cells(len(checkpoints), len(strengths))
    acting = [row for row in loras if row.applies]
    columns = tuple(label_of(acting, strength) for strength in strengths)
    places_of: dict[tuple[int, float] | None, list[tuple[int, int]]] = {}
    for number in range(len(checkpoints)):
        for column, strength in enumerate(strengths):
            places_of.setdefault((number, strength) if strength else None, []).append((number, column))
    cells = []
    for shown_at in places_of.values():
        number, column = shown_at[0]
        checkpoint, strength = checkpoints[number], strengths[column]
        words = [checkpoint.label.replace("\n", ", ")] if strength else []
        cells.append(Cell(
            label=", ".join(filter(None, [*words, columns[column]])), checkpoint=checkpoint, shown_at=tuple(shown_at),
            loras=tuple(row.times(strength) for row in loras),
        ))
    return Plan(title=title_of(acting), columns=columns, rows=tuple(each.label for each in checkpoints),
                cells=tuple(cells))


def label_of(acting: Sequence[Row], strength: float) -> str:
    """What a column is called: the strength of the LoRA where one number says it, otherwise a factor of all."""
    if not strength:
        return WITHOUT
    own = {number for row in acting for number in (row.strength, row.strength_low, row.audio)}
    return f"strength {strength * acting[0].strength:g}" if len(acting) == len(own) == 1 else f"strength × {strength:g}"


def title_of(acting: Sequence[Row]) -> str:
    """The names of the LoRAs, with their strengths where there are several."""
    names = [plain(row.lora).rsplit("/", 1)[-1].removesuffix(".safetensors") for row in acting]
    if len(names) == 1:
        return names[0]
    return " + ".join(f"{name} {row.strength:g}" for name, row in zip(names, acting, strict=True))


def all_checkpoints(
    loras: Sequence[Row], trained: str | None, low_of: Callable[[str], str] | None
) -> tuple[Checkpoint, ...]:
    """The kept copies of one LoRA, oldest first, and last the LoRA itself.

    It is the one named `trained`, otherwise the only one that has copies. `low_of` names the low-noise LoRA of a
    high-noise one, where there is a model for it: their copies go together in their order. Raises ValueError where no
    LoRA has copies, or several have.
    """
    names = [trained] if trained else list(dict.fromkeys(row.lora for row in loras if row.applies))
    found = {name: copies for name in names if len(copies := copies_of(name)) > 1}
    if not found:
        which = names[0] if len(names) == 1 else "LoRAs of the stack"
        raise ValueError(
            f"No copies of {which} were kept: compare the last only, or train with Save every in Recipe Settings."
        )
    if len(found) > 1:
        raise ValueError(f"Copies were kept of several LoRAs, {' and '.join(found)}: switch all of them off but one.")
    (name, high), = found.items()
    low_name = low_of(name) if low_of else name
    low = copies_of(low_name) if low_name != name else ()
    if not low:
        return tuple(
            Checkpoint(label=step_label(str(copy.steps), copy is high[-1]), files={name: copy.path}) for copy in high
        )
    pairs = [*zip_longest(high[:-1], low[:-1]), (high[-1], low[-1])]
    return tuple(pair_of(name, one or high[-1], low_name, other or low[-1], last=place == len(pairs) - 1)
                 for place, (one, other) in enumerate(pairs))


def copies_of(name: str) -> tuple[training.KeptCopy, ...]:
    return training.kept_copies(places.lora_file(name), places.run_folder)


def pair_of(
    name: str, high: training.KeptCopy, low_name: str, low: training.KeptCopy, *, last: bool
) -> Checkpoint:
    steps = f"{high.steps}" if high.steps == low.steps else f"{high.steps} / {low.steps}"
    return Checkpoint(label=step_label(steps, last), files={name: high.path, low_name: low.path})


def step_label(steps: str, last: bool) -> str:
    return f"step {steps}\nlast" if last else f"step {steps}"
