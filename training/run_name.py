"""What a run, its folder and its LoRA file may be called."""

from __future__ import annotations

import re
import unicodedata

LONGEST_NAME = 200
"""Bytes of UTF-8: file systems end at 255, and more is put after the name."""
RESERVED_NAMES = frozenset(
    ("con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10)))
)


def check_name(name: str) -> None:
    """ValueError unless `name` can be a file's name on every system, and nothing but a name."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError("Name is empty: give the LoRA a name, for example my_style.")
    if name != name.strip() or len(name) > 100 or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(f"Name {name[:40]!r} must have at most 100 characters and no blanks at its ends.")
    if not re.fullmatch(r"\w[\w .+()-]*", name) or ".." in name or name.endswith("."):
        raise ValueError(
            f"Name {name!r} cannot be a file name: use letters, digits, blanks, '_', '-', '+' and single dots, "
            "and no folder."
        )
    device = unicodedata.normalize("NFKC", name.split(".")[0]).strip().lower()  # COM¹ is one as well
    if device in RESERVED_NAMES or name.startswith("_"):
        raise ValueError(f"Name {name!r} is reserved: choose another.")
