"""What has been found in films and written of them, noted in `_shots.json` beside the shots."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...loaders.whole_file import write_text

log = logging.getLogger(__name__)

RECORD = "_shots.json"
SAMPLES, SAMPLE = 64, 1 << 16
"""Pieces of a film by which it is known, and the bytes of each: films are too large to be read for that."""
LONGEST_STEM = 120  # bytes of UTF-8 that the film's name gives to a shot's: file systems end at 255


@dataclass(kw_only=True)
class FilmRecord:
    """One film: `bounds` are frame numbers, where its scenes begin and the last one ends, by how they were looked for.

    `shots`: first frame, last frame (excluded) and bytes of each file that was written whole.
    """

    film: str
    stem: str
    bounds: dict[str, list[int]] = field(default_factory=dict)
    shots: dict[str, tuple[int, int, int]] = field(default_factory=dict)


def read_record(folder: Path) -> dict[str, FilmRecord]:
    """What the folder says of films, by their identity; nothing where there is no record, or none that makes sense."""
    try:
        films = json.loads((folder / RECORD).read_text(encoding="utf-8"))["films"]
        return {identity: _film(facts) for identity, facts in films.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        log.warning("%s is not used, it cannot be read: %s", folder / RECORD, error)
        return {}


def write_record(folder: Path, films: Mapping[str, FilmRecord]) -> None:
    """Replace the record where it changed, whole or not at all. Raises OSError, one sentence, where that fails."""
    facts = {identity: dataclasses.asdict(film) for identity, film in films.items()}
    text = json.dumps({"films": facts}, ensure_ascii=False, indent=1) + "\n"
    path = folder / RECORD
    if not path.exists() or path.read_bytes() != text.encode("utf-8"):  # nodes go by its time of change
        write_text(path, text)


def identity(path: Path) -> str:
    """A hex digest of the file's size and of samples of its bytes, wherever it lies and whatever its name."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def stem_for(film: Path, taken: Collection[str]) -> str:
    """How names of the film's shots begin: as its own, shortened, with a number where another film has it already."""
    stem = film.stem.encode("utf-8", errors="replace")[:LONGEST_STEM].decode("utf-8", errors="ignore").strip()
    lowered = {name.casefold() for name in taken}
    number, free = 2, stem
    while free.casefold() in lowered:
        number, free = number + 1, f"{stem}_{number}"
    return free


def _film(facts: Mapping) -> FilmRecord:
    """Raises ValueError, TypeError or KeyError where the facts are not what `write_record` writes."""
    bounds = {how: [int(number) for number in numbers] for how, numbers in facts["bounds"].items()}
    if any(min(numbers) < 0 or sorted(set(numbers)) != numbers for numbers in bounds.values()):
        raise ValueError("its frame numbers do not rise")
    shots = {name: (int(first), int(last), int(size)) for name, (first, last, size) in facts["shots"].items()}
    for name in (facts["stem"], *shots):
        if not name or name.startswith(".") or any(letter in name for letter in '/\\:\0'):
            raise ValueError(f"{name!r} is no plain file name")
    return FilmRecord(film=str(facts["film"]), stem=facts["stem"], bounds=bounds, shots=shots)


def has_shots(folder: Path) -> bool:
    """Whether shots were written into this folder."""
    return (folder / RECORD).exists()
