"""Rename rules as immutable values, read both ways: names in a weights file and names in a class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class KeyMap:
    """Pairs of (file name, class name). The first rule that matches a name's beginning renames that beginning.

    Names are matched part by part between dots; `*` stands for one part, the same on both sides. What follows the
    match (`.weight`, `.lora_A.weight`) stays, so modules and their tensors go by the same rules. A name that no rule
    matches stays as it is.
    """

    rules: tuple[tuple[str, str], ...]

    def forward(self, name: str) -> str:
        """A name in the file to the name in the class."""
        return _rename(name, self.rules)

    def back(self, name: str) -> str:
        """A name in the class to the name in the file."""
        return _rename(name, _reversed(self.rules))


def count_blocks(names: Iterable[str], blocks: str) -> int:
    """How many blocks names like `<blocks>.7.ffn.0.weight` tell of; 0 where none does."""
    pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
    return 1 + max((int(found[1]) for name in names if (found := pattern.match(name))), default=-1)


@lru_cache
def _reversed(rules: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((new, old) for old, new in rules)


@lru_cache(maxsize=1024)
def _parts(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split("."))


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    parts = name.split(".")
    for old, new in rules:
        pattern = _parts(old)
        if len(parts) < len(pattern) or any(
            wanted not in ("*", part) for wanted, part in zip(pattern, parts, strict=False)
        ):
            continue
        stars = iter([part for wanted, part in zip(pattern, parts, strict=False) if wanted == "*"])
        renamed = [next(stars) if part == "*" else part for part in _parts(new)]
        return ".".join(renamed + parts[len(pattern):])
    return name
