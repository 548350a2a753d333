"""Features on disk, named by the content they were made from: a new clip costs one clip, whoever wrote it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .safetensors_file import Header, checksum, read_header, read_tensors, write_tensors
from .whole_file import DiskFull, write_text

log = logging.getLogger(__name__)

BLOCK = 1 << 20
TOKEN = "token"
CHECKSUM = "crc32"
"""In a file's metadata: the checksum of its tensors."""
SETS = "sets"
OWN_FILE = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.safetensors(\..+\.part)?|sets/[0-9a-f]{24}\.json\..+\.part")
"""Nothing else is removed: whoever cleans may have named a folder of models by mistake."""
DAY = 24 * 3600
HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class StoredSet:
    """A training set as the cache knows it: which features it is made of."""

    name: str
    keys: frozenset[str]
    recorded: float
    """When it was last prepared, in seconds since 1970."""


class FeatureCache:
    """A folder of safetensors files, `<two hex digits>/<key>.safetensors`.

    Keys are hex digests of everything a file's content depends on, and files are replaced only when whole, so several
    processes may share the folder.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def token(self) -> str:
        """A word that stays as long as all features do: another word, and some are gone or were found broken."""
        path = self.folder / TOKEN
        try:
            return path.read_text(encoding="ascii")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(8), encoding="ascii")
            return path.read_text(encoding="ascii")

    def path(self, key: str) -> Path:
        """Where the features of this key are, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def header(self, key: str) -> Header | None:
        """The header of stored features, None where there are none; a broken file is removed and counts as none."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            header = read_header(path)
        except ValueError as error:
            log.warning("removed a broken file from the feature cache, it will be made again: %s", error)
            path.unlink(missing_ok=True)
            return None
        _mark_used(path)
        return header

    def has(self, key: str) -> bool:
        """Whether whole features are stored under this key."""
        return self.header(key) is not None

    def store(self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Keep these features. OSError, one sentence, where the disk cannot be written."""
        path = self.path(key)
        try:
            write_tensors(path, tensors, {**metadata, CHECKSUM: checksum(tensors)})
        except OSError as error:
            if not self.has(key):  # Windows lets nobody replace a file that another process reads: then it is there
                full = isinstance(error, DiskFull)
                reason = "its disk is full. Make room and queue Prepare again: it goes on from here." if full else error
                raise OSError(f"The feature cache in {self.folder} cannot be written: {reason}") from error

    def load(self, key: str) -> dict[str, Tensor]:
        """The features of this key. Raises like `read_features`."""
        return read_features(self.path(key))

    def size(self) -> tuple[int, int]:
        """How many files there are, and their bytes together."""
        return total(self._files())

    def record(self, name: str, keys: Iterable[str]) -> None:
        """Note which features a training set is made of; a newer record of the same name takes the older one's place.

        What is in no record is an orphan. Raises OSError, one sentence, where the disk cannot be written.
        """
        text = json.dumps({"name": name, "recorded": time.time(), "keys": sorted(set(keys))}, ensure_ascii=False)
        write_text(self._record_file(name), text + "\n")

    def sets(self) -> list[StoredSet]:
        """The training sets on record, the one prepared last first.

        Raises ValueError, one sentence, where a record cannot be read: nothing could be told from an orphan then.
        """
        found = []
        for path in self.folder.glob(f"{SETS}/*.json"):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                stored = StoredSet(
                    name=str(entry["name"]), keys=frozenset(map(str, entry["keys"])), recorded=float(entry["recorded"])
                )
            except FileNotFoundError:  # another process has just forgotten it
                continue
            except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{path} cannot be read, so it is not known what is in use: delete it and queue Prepare again."
                ) from error
            found.append(stored)
        return sorted(found, key=lambda stored: (-stored.recorded, stored.name))

    def forget(self, name: str) -> None:
        """Strike a training set from the records: features that no other set needs become orphans."""
        self._record_file(name).unlink(missing_ok=True)

    def orphans(self, forgetting: Collection[str] = ()) -> list[Path]:
        """Files that belong to no training set on record and were neither written nor used within a day.

        A set being prepared or trained at this moment is so left in peace. Sets named in `forgetting` count as not on
        record. Raises like `sets`.
        """
        used = {key for stored in self.sets() if stored.name not in forgetting for key in stored.keys}
        youngest = time.time() - DAY
        orphans = []
        for path in sorted(self._files("??/*.part", "??/*.safetensors", f"{SETS}/*.part")):
            with contextlib.suppress(FileNotFoundError):
                if path.stem not in used and path.stat().st_mtime < youngest:
                    orphans.append(path)
        return orphans

    def remove_orphans(self) -> tuple[int, int]:
        """Delete the orphans; how many files went, and their bytes. Raises like `sets`.

        A file that another process holds open stays (Windows).
        """
        count = size = 0
        for path in self.orphans():
            try:
                length = path.stat().st_size
                path.unlink()
            except OSError as error:
                log.warning("%s stays in the feature cache: %s", path.name, error)
                continue
            count, size = count + 1, size + length
        return count, size

    def _files(self, *patterns: str) -> Iterator[Path]:
        found = (path for pattern in patterns or ("??/*.safetensors",) for path in self.folder.glob(pattern))
        return (path for path in found if OWN_FILE.fullmatch(path.relative_to(self.folder).as_posix()))

    def _record_file(self, name: str) -> Path:
        return self.folder / SETS / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"


def total(files: Iterable[Path]) -> tuple[int, int]:
    """How many of these files there are, and their bytes together."""
    sizes = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def read_features(path: Path) -> dict[str, Tensor]:
    """Cached features by name, their checksum verified.

    Raises ValueError where the file has been removed, or is broken (it is removed then).
    """
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get(CHECKSUM, "") not in ("", checksum(tensors)):
            raise ValueError(f"{path.name} does not match its checksum")
    except ValueError as error:
        log.warning("features cannot be read: %s", error)
        what = "is broken" if path.is_file() else "was removed"
        path.unlink(missing_ok=True)
        (path.parent.parent / TOKEN).unlink(missing_ok=True)  # or a host that keeps results would not prepare again
        raise ValueError(f"{path.name} {what} in the cache {path.parent.parent}: queue Prepare again.") from error
    _mark_used(path)
    return tensors


def _mark_used(path: Path) -> None:
    """Renew a file's time, at most once an hour, so that it is no orphan while a run needs it."""
    with contextlib.suppress(OSError):
        if path.stat().st_mtime < time.time() - HOUR:
            os.utime(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered until its size or time changes."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
