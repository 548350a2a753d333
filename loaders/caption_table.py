"""Captions of many clips in one file, JSON lines, JSON or CSV, as other trainers read and write them.

A row has the path of a clip (`media_path`, `video`, `video_path`, `image_path` or `file_name`) and its `caption`; a
clip with several captions has several rows. JSON may also map paths to captions. Paths are relative to the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .caption_file import keep_first, split_captions
from .video_file import IMAGE_ENDINGS
from .whole_file import write_text

ENDINGS = frozenset((".jsonl", ".json", ".csv"))
PATH_COLUMNS = ("media_path", "video", "video_path", "image_path", "file_name")
CAPTION_COLUMNS = ("caption", "text")
BACKUP_ENDINGS = tuple(f"{ending}.bak" for ending in sorted(ENDINGS))
LONGEST = 50_000_000  # bytes
LONGEST_NAME = 1024
"""Characters of a path that is looked at closely."""


class TableError(ValueError):
    """A file that holds no captions of clips: `reason` is the sentence without the file's name."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path.name}: {reason}.")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """What a file says of clips, in its order."""

    path: Path
    rows: tuple[tuple[str, str], ...]
    """Path of a clip as it is written there, with forward slashes, and one caption of it; the caption may be empty."""

    def match(self, names: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        """The captions of each of these clips, and the paths in the file that are none of them.

        `names` are paths relative to the file's folder. A row that was written elsewhere (`/data/cats/a.mp4`) is of
        the clip `a.mp4` here, provided that only one path in the file ends like it.
        """
        known = {plain_name(name): name for name in names}
        by_ending: dict[str, list[str]] = {}
        for name in known:
            by_ending.setdefault(PurePosixPath(name).name, []).append(name)
        found: dict[str, dict[str, list[str]]] = {}
        strange: list[str] = []
        whole = plain_name(self.path.parent.as_posix()).rstrip("/")
        for written, caption in self.rows:
            path = plain_name(written)
            name = path if path in known else _elsewhere(path, whole, by_ending.get(path.rpartition("/")[2], ()))
            if name is None:
                strange.append(written)
            else:
                found.setdefault(name, {}).setdefault(path, []).extend(split_captions(caption))
        captions = {}
        for name, paths in found.items():
            meant = name if name in paths else next(iter(paths)) if len(paths) == 1 else None
            strange += [path for path in paths if path != meant]
            if meant is not None:
                captions[known[name]] = tuple(dict.fromkeys(paths[meant]))
        return captions, tuple(dict.fromkeys(strange))


def _elsewhere(path: str, whole: str, names: Sequence[str]) -> str | None:
    """Which of the names a path from another place means: the longest that it ends with, or that ends with it.

    `whole`: the folder that the names are relative to.
    """
    fitting = [name for name in names if f"/{path}".endswith(f"/{name}") or f"{whole}/{name}".endswith(f"/{path}")]
    return max(fitting, key=len, default=None)


def plain_name(name: str) -> str:
    """A path to compare by: accents composed as most systems have them, no `./` before it."""
    name = name.strip().replace("\\", "/")
    if len(name) > LONGEST_NAME:  # composing takes hours where thousands of accents follow each other
        return name
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"^(\./)+", "", name)


def read_table(path: Path) -> CaptionTable:
    """The captions in a file, by its ending. Raises TableError, a ValueError, where it holds none."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
    except OSError as error:
        raise TableError(path, f"not read: {error.strerror or error}") from error
    if len(data) > LONGEST:
        raise TableError(path, "not read: too long for a table of captions")
    try:
        text = data.decode("utf-8-sig")
        rows = {".jsonl": _from_lines, ".json": _from_json, ".csv": _from_csv}[path.suffix.lower()](text)
    except UnicodeDecodeError as error:
        raise TableError(path, "not read: a table of captions must be UTF-8") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise TableError(path, f"not a table of captions: {error}") from error
    if not rows:
        raise TableError(path, "a table without captions")
    return CaptionTable(path=path, rows=tuple(rows))


def write_table(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write names of clips, relative to the file's folder, and a caption of each, as the ending says.

    JSON lines name the clip twice, as `media_path` and as `video_path` or `image_path`: trainers ask for one or the
    other. Written whole or not at all, and not where it says the same already; what stood there before the first change
    is kept beside, with `.bak` after its name. Raises OSError, one sentence, where the disk cannot be written.
    """
    text = _table_text(path, rows)
    if not path.is_file() or path.read_bytes() != text.encode("utf-8"):  # nodes go by its time of change
        keep_first(path, path.with_name(f"{path.name}.bak"))
        write_text(path, text)


def _table_text(path: Path, rows: Iterable[tuple[str, str]]) -> str:
    kind = path.suffix.lower()
    if kind == ".csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("caption", "media_path"), *((caption, name) for name, caption in rows)])
        return text.getvalue()
    entries = [{"caption": caption, "media_path": name, f"{_kind(name)}_path": name} for name, caption in rows]
    if kind == ".jsonl":
        return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    if kind == ".json":
        return json.dumps(entries, ensure_ascii=False, indent=2) + "\n"
    raise ValueError(f"{path.name}: a table of captions ends in .jsonl, .json or .csv.")


def _kind(name: str) -> str:
    return "image" if PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS else "video"


def _from_lines(text: str) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows += _rows(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {_short(error)}") from error
    return rows


def _from_json(text: str) -> list[tuple[str, str]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(_short(error)) from error
    if isinstance(data, list):
        return [row for entry in data for row in _rows(entry)]
    if isinstance(data, dict) and all(isinstance(value, str | list) for value in data.values()):
        return [row for name, value in data.items() for row in _rows({"media_path": name, "caption": value})]
    raise ValueError("neither a list of rows nor captions by path")


def _from_csv(text: str) -> list[tuple[str, str]]:
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    return [row for entry in reader for row in _rows({(key or "").strip(): value for key, value in entry.items()})]


def _rows(entry: object) -> list[tuple[str, str]]:
    """The captions of one row. ValueError where it has none."""
    if not isinstance(entry, dict):
        raise ValueError("a row is not a set of named values")
    path = next((entry[column] for column in PATH_COLUMNS if isinstance(entry.get(column), str)), "")
    caption = next((entry[column] for column in CAPTION_COLUMNS if entry.get(column) is not None), None)
    if not path.strip():
        raise ValueError(f"a row has no path of a clip ({', '.join(PATH_COLUMNS)})")
    captions = caption if isinstance(caption, list) else [caption]
    where = f"the row of {_plain(' '.join(path[:60].split()))}"
    if not all(isinstance(item, str) for item in captions):
        raise ValueError(f"{where} has no caption")
    if any(_plain(text) != text for text in (path, *captions)):
        raise ValueError(f"{where} holds half a letter, which no file can hold")
    return [(path.replace("\\", "/"), item) for item in captions]


def _plain(text: str) -> str:
    """Without the half letters that JSON may hold and no file can."""
    return text.encode("utf-8", errors="ignore").decode()


def _short(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON ({error.msg})"
    return "a number of too many digits" if "digits" in str(error) else str(error)
