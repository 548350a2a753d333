"""Captions beside clips: a text file of the clip's name, and the list of clips that are to be left out.

`clip.mp4` has its captions in `clip.txt`: one, or several with a line of `---` between them. What stood there before
the first change is kept in `clip.txt.bak`. `_excluded.txt` in the dataset's folder names clips that are not used, one
a line, relative to the folder, with forward slashes. All of it can be edited by hand.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from .whole_file import write_text

ENDING = ".txt"
BACKUP_ENDING = ".txt.bak"
EXCLUDED = "_excluded.txt"
LONGEST = 100_000  # bytes; more is no caption


def caption_path(clip: Path) -> Path:
    """The text file that belongs to a clip."""
    return clip.with_suffix(ENDING)


def read_captions(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions in a text file, white space made single blanks, and what a person should know of them.

    UTF-8 with or without a byte order mark, UTF-16 with one; what is neither is read as Latin-1, with a note.
    A file that cannot be read, is too long or empty gives no captions and a note that says so.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
    except OSError as error:
        return (), (f"{path.name} not read: {error.strerror or error}",)
    if len(data) > LONGEST:
        return (), (f"{path.name} not read: too long for a caption",)
    notes: tuple[str, ...] = ()
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        notes = ("caption is not UTF-8: read as Latin-1",)
    captions = split_captions(text)
    return captions, notes if captions else (f"{path.name} is empty",)


def split_captions(text: str) -> tuple[str, ...]:
    """The captions of a text with `---` lines between them, white space made single blanks, empty ones dropped.

    Byte order marks within it count as nothing: at its beginning one would be lost when the file is read.
    """
    # Looked for line by line: over thousands of empty lines it would take hours.
    parts = re.split(r"^[^\S\n]*-{3,}[^\S\n]*$", text.replace("\ufeff", ""), flags=re.MULTILINE)
    return tuple(caption for part in parts if (caption := " ".join(part.split())))


def write_captions(path: Path, captions: Sequence[str]) -> None:
    """Replace a clip's captions, whole or not at all; what stood there before the first change is kept beside.

    Raises OSError, one sentence, where the disk cannot be written.
    """
    keep_first(path, path.with_suffix(BACKUP_ENDING))
    write_text(path, "\n---\n".join(" ".join(caption.split()) for caption in captions) + "\n")


def keep_first(path: Path, backup: Path) -> None:
    """Copy a file that is about to be replaced, unless its first original is there. Raises OSError."""
    if path.is_file() and not os.path.lexists(backup):  # nor is anything written through a link that leads nowhere
        shutil.copy2(path, backup)


def read_excluded(folder: Path) -> frozenset[str]:
    """Names, relative to the folder, of the clips that are to be left out; none where there is no list."""
    try:
        text = (folder / EXCLUDED).read_bytes()[:LONGEST * 10].decode("utf-8-sig", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(line.strip().replace("\\", "/") for line in text.splitlines() if line.strip())


def write_excluded(folder: Path, names: Collection[str]) -> None:
    """Replace the list of clips that are to be left out; without any, the list is removed. Raises OSError."""
    if names:
        write_text(folder / EXCLUDED, "\n".join(sorted(names)) + "\n")
    else:
        (folder / EXCLUDED).unlink(missing_ok=True)
