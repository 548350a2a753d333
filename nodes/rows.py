"""The rows of a LoRA stack, as they stand in the widget: a JSON list."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

STRONGEST = 10.0
MOST_ROWS = 100
LONGEST = 100_000
LONGEST_BLOCKS = 1000
MOST_BLOCKS = 1000
"""Block numbers lie below."""
LONGEST_CURVE = 1000
MOST_POINTS = 32
BLOCKS = re.compile(r"(?:(?P<others>\*)|(?P<first>[0-9]{1,4})(?:\s*-\s*(?P<last>[0-9]{1,4}))?)\s*:\s*(?P<weight>\S+)")
NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]{1,3})?"
POINT = re.compile(rf"(?P<place>{NUMBER})\s*:\s*(?P<factor>{NUMBER})", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """What the strength is multiplied by in each block of the model; layers outside its blocks keep their strength."""

    ranges: tuple[tuple[int, int, float], ...] = ()
    """First block, last block, weight: no two share a block."""
    others: float = 1.0
    """Weight of the blocks in no range."""

    def of(self, block: int) -> float:
        """The weight of one block, counted from 0."""
        return next((weight for first, last, weight in self.ranges if first <= block <= last), self.others)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What the strength is multiplied by over the sampling steps: straight lines between points, level beyond them."""

    points: tuple[tuple[float, float], ...] = ()
    """Place, a share of the sampling steps from 0 to 1, and factor; the places rise. Without a point it is 1."""

    def at(self, share: float) -> float:
        """The factor once this share of the steps is done."""
        if not self.points:
            return 1.0
        for (place, factor), (next_place, next_factor) in pairwise(self.points):
            if place <= share < next_place:
                return factor + (next_factor - factor) * (share - place) / (next_place - place)
        return self.points[0 if share < self.points[0][0] else -1][1]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One LoRA: file name as in ComfyUI's lists, its strengths, where in the model and when in sampling it acts."""

    on: bool
    lora: str
    strength: float
    strength_low: float
    """For the low-noise model."""
    audio: float
    """For the layers of a model that make its sound."""
    blocks: BlockWeights = BlockWeights()
    start: float = 0.0
    end: float = 1.0
    """From and to which share of the sampling steps it acts, 0 to 1."""
    curve: Curve = Curve()

    @property
    def applies(self) -> bool:
        """Whether the row changes anything."""
        return self.on and any((self.strength, self.strength_low, self.audio))

    def times(self, factor: float) -> Row:
        """The same LoRA at all its strengths times a factor."""
        low, audio = self.strength_low * factor, self.audio * factor
        return replace(self, strength=self.strength * factor, strength_low=low, audio=audio)

    @property
    def steady(self) -> bool:
        """Whether it acts alike at all steps."""
        return (self.start, self.end) == (0, 1) and not self.curve.points

    def factor_at(self, share: float) -> float:
        """What its strengths are multiplied by once this share of the sampling steps is done, 0 until before 1."""
        return self.curve.at(share) if self.start <= share < self.end else 0.0


FIELDS = tuple(Row.__dataclass_fields__)


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
        raise ValueError(f"{where}: on must be true or false, not {str(on)[:40]!r}.")
    lora = row.get("lora", "")
    if not isinstance(lora, str):
        raise ValueError(f"{where}: lora must be a file name, not {str(lora)[:40]!r}.")
    lora = lora.strip()
    if on and not lora:
        raise ValueError(f"{where}: no LoRA is chosen; choose one or switch the row off.")
    if name := " ".join(lora[:80].split()).encode("utf-8", errors="ignore").decode():
        where = f"{where} ({name})"
    strength = _number(row.get("strength", 1.0), f"{where}: strength", -STRONGEST, STRONGEST)
    seconds = ("strength_low", "audio")
    low, audio = (_number(row.get(name, strength), f"{where}: {name}", -STRONGEST, STRONGEST) for name in seconds)
    start, end = (_number(row.get(name, at), f"{where}: {name}", 0, 1) for name, at in (("start", 0), ("end", 1)))
    if start >= end:
        raise ValueError(f"{where}: start is {start:g} and end {end:g}; the start must come before the end.")
    blocks = parse_blocks(row.get("blocks", ""), f"{where}: blocks")
    curve = parse_curve(row.get("curve", ""), f"{where}: curve")
    return Row(on=on, lora=lora, strength=strength, strength_low=low, audio=audio, blocks=blocks, start=start, end=end,
               curve=curve)


def parse_blocks(text: Any, where: str) -> BlockWeights:
    """Weights of blocks from text as `0-9:0.5, 31-35:1, *:0`; `*` are the blocks not named, left out where it is not.

    Empty text leaves all blocks as they are. Raises ValueError where it cannot be read.
    """
    if not isinstance(text, str) or len(text) > LONGEST_BLOCKS:
        raise ValueError(f'{where} must be text such as "0-9:0.5, 31-35:1", not {str(text)[:40]!r}.')
    if not text.strip():
        return BlockWeights()
    ranges, others = [], None
    for part in map(str.strip, text.split(",")):
        found = BLOCKS.fullmatch(part)
        if not found:
            raise ValueError(f'{where}: {part[:40]!r} cannot be read; write for example "0-9:0.5, 31-35:1, *:0".')
        weight = _number(_float(found["weight"]), f"{where}: the weight of {part[:40]!r}", -STRONGEST, STRONGEST)
        if found["others"]:
            if others is not None:
                raise ValueError(f"{where}: * is there twice.")
            others = weight
            continue
        first, last = int(found["first"]), int(found["last"] or found["first"])
        if not first <= last < MOST_BLOCKS:
            raise ValueError(f"{where}: {part[:40]!r} must go from a lower to a higher block, below {MOST_BLOCKS}.")
        if any(first <= other_last and other_first <= last for other_first, other_last, _ in ranges):
            raise ValueError(f"{where}: {part[:40]!r} names a block that is named before.")
        ranges.append((first, last, weight))
    return BlockWeights(ranges=tuple(ranges), others=others or 0.0)


def parse_curve(text: Any, where: str) -> Curve:
    """A curve from text as `0:0, 0.3:1, 1:0.4`: at each place, a share of the sampling steps, a factor.

    Empty text leaves the strength as it is. Raises ValueError where it cannot be read.
    """
    if not isinstance(text, str) or len(text) > LONGEST_CURVE:
        raise ValueError(f'{where} must be text such as "0:0, 0.3:1, 1:0.4", not {str(text)[:40]!r}.')
    if not text.strip():
        return Curve()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MOST_POINTS:
        raise ValueError(f"{where} has {len(parts)} points; at most {MOST_POINTS} can be set.")
    points: list[tuple[float, float]] = []
    for part in parts:
        found = POINT.fullmatch(part)
        if not found:
            raise ValueError(f'{where}: {part[:40]!r} cannot be read; write place:factor, such as "0:0, 0.3:1".')
        place = _number(float(found["place"]), f"{where}: the place of {part[:40]!r}", 0, 1)
        factor = _number(float(found["factor"]), f"{where}: the factor of {part[:40]!r}", -STRONGEST, STRONGEST)
        if points and place <= points[-1][0]:
            raise ValueError(f"{where}: {part[:40]!r} must lie after {points[-1][0]:g}; the places must rise.")
        points.append((place, factor))
    return Curve(points=tuple(points))


def _float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _number(value: Any, where: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:  # NaN
        raise ValueError(f"{where} must be a number, not {str(value)[:40]!r}.")
    if not low <= value <= high:
        raise ValueError(f"{where} is {str(value)[:20]}; it must lie between {low:g} and {high:g}.")
    return float(value)
