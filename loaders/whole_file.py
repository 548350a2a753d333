"""Files written whole or not at all: what stood there before stays until the new one is on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PART = re.compile(r"(.+)\.[0-9a-f]{8}\.part")
FULL = frozenset((errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)))
FULL_ON_WINDOWS = frozenset((39, 112))
"""ERROR_HANDLE_DISK_FULL and ERROR_DISK_FULL (winerror.h)."""


class DiskFull(OSError):
    """There was no room left where a file was to be written."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends well, and is gone when it does not.

    Its folder is made where it is missing. Raises OSError, a sentence or two, where the disk cannot be written, and of
    those DiskFull where there is no room; no temporary file is left behind. A process that is killed leaves one, for
    `remove_leftovers`.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _settle(path.parent)
    except OSError as error:
        full = error.errno in FULL or getattr(error, "winerror", None) in FULL_ON_WINDOWS
        kind, reason = DiskFull if full else OSError, error.strerror or error
        what = "Make room on its disk" if full else "Check that files can be written in its folder"
        raise kind(f"{path} could not be written: {reason}. {what}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text in UTF-8. Raises like `whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all. Raises like `whole_file`."""
    with source.open("rb") as old, whole_file(target) as new:
        shutil.copyfileobj(old, new)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete what killed processes left half written in a folder: of the file `name`, or of any."""
    for path in folder.glob("*.part"):
        found = PART.fullmatch(path.name)
        if found and found[1] == (name or found[1]):
            with contextlib.suppress(OSError):
                path.unlink()


def _settle(folder: Path) -> None:
    """Bring a folder's new entry to the disk, where a folder can be opened for that (not on Windows)."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
