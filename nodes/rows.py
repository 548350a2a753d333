"""The rows of a LoRA stack, as they stand in the widget: a JSON list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

FIELDS = ("on", "lora", "strength", "strength_low")
STRONGEST = 10.0
MOST_ROWS = 100
LONGEST = 100_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One LoRA: file name as in ComfyUI's lists, strength for the model and for the low-noise model."""

    on: bool
    lora: str
    strength: float
    strength_low: float

    @property
    def applies(self) -> bool:
        """Whether the row changes anything."""
        return self.on and (self.strength != 0 or self.strength_low != 0)


def parse_rows(text: str) -> tuple[Row, ...]:
    """The rows, in order.

    Raises ValueError, naming the row, where one cannot be read.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"LoRAs: the list of rows must be text of at most {LONGEST:,} characters.")
    try:
        listed = json.loads(text.strip() or "[]")
    except RecursionError:
        raise ValueError("LoRAs: the list of rows is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"LoRAs: the list of rows is not valid JSON, {error.msg} in line {error.lineno}.") from None
    except ValueError:  # Python refuses whole numbers of more than 4,300 digits
        raise ValueError("LoRAs: a number in the list of rows is too long.") from None
    if not isinstance(listed, list):
        raise ValueError('LoRAs: write a list of rows, [{"on": true, "lora": "name.safetensors", "strength": 1.0}].')
    if len(listed) > MOST_ROWS:
        raise ValueError(f"LoRAs: {len(listed)} rows are too many; at most {MOST_ROWS} can be stacked.")
    return tuple(_parse_row(row, f"LoRAs, row {number}") for number, row in enumerate(listed, 1))


def _parse_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a row looks like {{"on": true, "lora": "name.safetensors", "strength": 1.0}}.')
    unknown = [str(key) for key in row if key not in FIELDS]
    if unknown:
        raise ValueError(f"{where}: {unknown[0][:40]!r} is not known; a row has {', '.join(FIELDS)}.")
    on = row.get("on", True)
    if not isinstance(on, bool):
        raise ValueError(f"{where}: on must be true or false, not {on!r}.")
    lora = row.get("lora", "")
    if not isinstance(lora, str):
        raise ValueError(f"{where}: lora must be a file name, not {lora!r}.")
    if on and not lora.strip():
        raise ValueError(f"{where}: no LoRA is chosen; choose one or switch the row off.")
    where = f"{where} ({lora.strip()[:80]})" if lora.strip() else where
    strength = _strength(row.get("strength", 1.0), f"{where}: strength")
    low = _strength(row.get("strength_low", strength), f"{where}: strength_low")
    return Row(on=on, lora=lora.strip(), strength=strength, strength_low=low)


def _strength(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:  # NaN
        raise ValueError(f"{where} must be a number, not {str(value)[:40]!r}.")
    if abs(value) > STRONGEST:
        raise ValueError(f"{where} is {str(value)[:20]}; it must lie between -{STRONGEST:g} and {STRONGEST:g}.")
    return float(value)
