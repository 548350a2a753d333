"""Hostile values from bytes: whoever makes the bytes, a random generator or a fuzzer that watches coverage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

LARGEST = 900_000
"""Bytes of an input: more is not what a stranger sends in a workflow or a header."""
REPEATS = (1, 1, 1, 1, 1, 1, 3, 40, 1100, 30_000)
PIECES = (
    "a",
    "input",
    "clip.mp4",
    "a.safetensors",
    "..",
    ".",
    "/",
    "\\",
    "C:",
    "c:x",
    "\\\\server\\share",
    "//",
    "~",
    "\0",
    "\n",
    "\r",
    "\t",
    " ",
    "---",
    "\n---\n",
    "\ufeff",
    "\u202e",
    "\u0301",
    "\u2024\u2024",
    "\uff0f",
    "\uff0e",
    "\u2215",
    "\ud800",
    "\udcff",
    "\U0001f600",
    "con",
    "NUL",
    "com\u00b9",
    "aux.txt",
    "file:///etc/passwd",
    "http://127.0.0.1",
    "http://evil.example/v1",
    "$HOME",
    "%2e%2e",
    "{",
    "[",
    "]",
    "}",
    '"',
    ",",
    ":",
    "'",
    "<script>",
    "{trigger}",
    "512x512x33",
    "0x0",
    "9" * 30,
    "-",
    "1e999",
    "NaN",
    "blocks.7.",
    "lora_A.weight",
    "\u0660",
    "\u0345\u0316",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    16,
    64,
    255,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**18,
    10**400,
    0.0,
    -0.0,
    0.5,
    1e-9,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
)


class Draw:
    """Values read off bytes; where these have ended everything is the first choice."""

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    def number(self, below: int) -> int:
        """From 0 to `below` - 1."""
        size = 1 if below <= 256 else 2
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "little") % below

    def of(self, choices: Sequence[Any]) -> Any:
        return choices[self.number(len(choices))]

    def rest(self) -> bytes:
        taken, self._place = self._data[self._place :], len(self._data)
        return taken

    def text(self) -> str:
        """Pieces that have broken parsers before, some of them very often."""
        made = ""
        for _ in range(self.number(6)):
            made += self.of(PIECES) * self.of(REPEATS)
        return made[:LARGEST]

    def value(self, depth: int = 3) -> Any:
        """What JSON can hold, and a little more."""
        kind = self.number(8 if depth else 4)
        if kind <= 1:
            return self.text()[: LARGEST if depth == 3 else 500]
        if kind == 2:
            return self.of(NUMBERS)
        if kind == 3:
            return self.of((None, True, False, "", (), b"x"))
        if kind == 4:
            return [self.value(depth - 1)] * self.of(REPEATS[:9] if depth == 1 else REPEATS[:7])
        if kind == 5:
            return [self.value(depth - 1) for _ in range(self.number(5))]
        if kind == 6:
            nested: Any = self.of((1, "x"))
            for _ in range(self.of((2, 60, 900))):
                nested = [nested] if kind else nested
            return nested
        return {self.text()[:200]: self.value(depth - 1) for _ in range(self.number(4))}


def expanded(data: bytes) -> bytes:
    """The data as it is, or a piece of it repeated: what is short in the fuzzer's hands may be long in the reader's."""
    if len(data) < 5 or data[0] < 200:
        return data[1:]
    begin, size, times = data[1], 1 + data[2] % 16, REPEATS[data[3] % len(REPEATS)]
    body = data[4:]
    begin = min(begin, len(body))
    piece = body[begin : begin + size]
    times = min(times, LARGEST // max(1, len(piece)))
    return (body[:begin] + piece * times + body[begin + size :])[:LARGEST]


def as_text(data: bytes) -> str:
    """Text with everything that text can hold in Python, half letters too."""
    return data.decode("utf-8", errors="surrogateescape")


def as_json(value: Any) -> bytes:
    """A value as JSON, whatever is in it."""
    try:
        return json.dumps(value, default=str).encode()
    except (ValueError, RecursionError):  # numbers of more digits than Python writes
        return b"[" * 5000


DRAWN = [bytes((7 * place * step + step) % 256 for place in range(60)) for step in range(1, 41)]
"""Beginnings for inputs that are drawn from bytes."""
