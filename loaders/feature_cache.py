"""Features on disk, named by the content they were made from: a new clip costs one clip, whoever wrote it."""

from __future__ import annotations

import functools
import hashlib
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .safetensors_file import Header, read_header, read_tensors, write_tensors

log = logging.getLogger(__name__)

BLOCK = 1 << 20


class FeatureCache:
    """A folder of safetensors files, `<two hex digits>/<key>.safetensors`.

    Keys are hex digests of everything a file's content depends on, and files are replaced only when whole, so several
    processes may share the folder.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def token(self) -> str:
        """A word that stays as long as the folder does: another word, and the features are gone."""
        path = self.folder / "token"
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
            return read_header(path)
        except ValueError as error:
            log.warning("removed a broken file from the feature cache, it will be made again: %s", error)
            path.unlink(missing_ok=True)
            return None

    def has(self, key: str) -> bool:
        """Whether whole features are stored under this key."""
        return self.header(key) is not None

    def store(self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Keep these features. OSError, one sentence, where the disk cannot be written."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, metadata)
        except OSError as error:
            if not self.has(key):  # Windows lets nobody replace a file that another process reads: then it is there
                raise OSError(f"The feature cache in {self.folder} cannot be written: {error}") from error

    def load(self, key: str) -> dict[str, Tensor]:
        """The features of this key. Raises like `read_features`."""
        return read_features(self.path(key))

    def size(self) -> tuple[int, int]:
        """How many files there are, and their bytes together."""
        sizes = [path.stat().st_size for path in self.folder.glob("??/*.safetensors")]
        return len(sizes), sum(sizes)


def read_features(path: Path) -> dict[str, Tensor]:
    """Cached features by name. ValueError where the file has been removed, or is broken (it is removed then)."""
    try:
        return read_tensors(path)[0]
    except ValueError as error:
        log.warning("features cannot be read: %s", error)
        what = "is broken" if path.is_file() else "was removed"
        path.unlink(missing_ok=True)
        raise ValueError(f"{path.name} {what} in the cache {path.parent.parent}: queue Prepare again.") from error


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
