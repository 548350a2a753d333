"""Which LoRA of a list a name means: itself, one of the same base name elsewhere, its low-noise partner."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIGH = re.compile(
    r"(?:(?<![A-Za-z])(?i:high)|High)(?=[ _.-]?(?i:noise))"
    r"|(?<![A-Za-z0-9])(?:high|High|HIGH|HN|hn)"
    r"(?=[ _.-]+(?i:lora|model|fp\d|bf\d|rank|r\d|v?\d|e\d|epoch|step|t2v|i2v|safetensors$))"
)
"""How makers mark the high-noise LoRA of a pair. Alone, the word counts only before what follows a mark: a rank, a
version, the end. So `high_contrast` is nobody's partner."""
LOW = {"high": "low", "High": "Low", "HIGH": "LOW", "HN": "LN", "hn": "ln"}


def plain(name: str) -> str:
    """A name with forward slashes: Windows lists LoRAs in subfolders with the others."""
    return name.replace("\\", "/")


def listed(name: str, names: Iterable[str]) -> str | None:
    """The name as it is listed, whichever slashes it has; None where it is not."""
    return next((other for other in names if plain(other) == plain(name)), None)


def elsewhere(name: str, names: Iterable[str]) -> list[str]:
    """Listed files of the same base name in whichever folder, in whichever case."""
    base = plain(name).rsplit("/", 1)[-1].lower()
    return [other for other in names if plain(other).rsplit("/", 1)[-1].lower() == base]


def low_noise_name(name: str, names: Iterable[str]) -> str | None:
    """The listed low-noise LoRA that belongs to a high-noise one by its name: `..._high_noise` to `..._low_noise`."""
    marks = list(HIGH.finditer(name))
    swapped = [_swapped(name, [mark]) for mark in reversed(marks)] + [_swapped(name, marks)]
    return next((found for other in swapped if other != name and (found := listed(other, names))), None)


def _swapped(name: str, marks: Iterable[re.Match]) -> str:
    for mark in sorted(marks, key=re.Match.start, reverse=True):
        word = mark.group()
        name = name[: mark.start()] + LOW.get(word, "low") + name[mark.end() :]
    return name
