"""Room on the disk: asked for before a run, waited for where it runs out."""

from __future__ import annotations

import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from ..loaders.whole_file import DiskFull
from .listener import Listener, Progress

T = TypeVar("T")
log = logging.getLogger(__name__)

LEFT_TO_OTHERS = 64 * 2**20
"""Bytes that are never taken: a disk without any room stops more than this run."""
PATIENCE = 1800.0
BETWEEN_LOOKS = 2.0
"""Seconds: how long a run waits for room, and how often it looks."""


def check_room(needs: Mapping[Path, int]) -> None:
    """OSError in one sentence unless every disk has room for what its folders need, in bytes."""
    together: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, need in needs.items():
        there = _existing(folder)
        together[there.stat().st_dev].append((there, need))
    for folders in together.values():
        folder, need = folders[0][0], sum(need for _, need in folders)
        if free(folder) < need + LEFT_TO_OTHERS:
            raise OSError(
                f"The run would write {_size(need)} to the disk of {folder}, of which {_size(free(folder))} are free: "
                "make room, raise Save every, or lower Rank."
            )


def free(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or would be."""
    return shutil.disk_usage(_existing(folder)).free


def wait_for_room(write: Callable[[], T], folder: Path, size: int, listener: Listener) -> T:
    """What `write` gives, which needs `size` bytes in `folder`; waits while the disk has no room for it.

    Raises DiskFull after half an hour, and whatever `listener` raises meanwhile.
    """
    waiting_since: float | None = None
    while True:
        try:
            if free(folder) < size + LEFT_TO_OTHERS:
                raise DiskFull(f"{folder} has no room for {_size(size)}.")
            return write()
        except DiskFull as error:
            now = time.monotonic()
            if waiting_since is None:
                waiting_since = now
                log.warning("Waiting for room on the disk: %s", error)
            if now - waiting_since >= PATIENCE:
                raise DiskFull(
                    f"The disk of {folder} has had no room for {_size(size)} for {PATIENCE / 60:.0f} minutes: make "
                    "room and queue again."
                ) from error
            listener.check()
            room, needed = free(folder), size + LEFT_TO_OTHERS
            detail = f"{_size(room)} are free in {folder}, {_size(needed)} are needed" if room < needed else str(error)
            listener.report(Progress(phase="Waiting for room on the disk", done=0, total=1, detail=detail))
            time.sleep(BETWEEN_LOOKS)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
