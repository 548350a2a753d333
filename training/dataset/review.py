"""Look over a dataset and put it right: captions, clips that are left out, words replaced everywhere.

What is changed are the files that `scan` reads, so that the page in the browser, the command line and a text editor do
the same. Clips go by their names within the folder; nothing outside it is read or written.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from ...loaders.caption_file import (
    BACKUP_ENDING,
    ENDING,
    caption_path,
    read_excluded,
    split_captions,
    write_captions,
    write_excluded,
)
from ...loaders.caption_table import plain_name
from ...loaders.video_file import IMAGE_ENDINGS, VIDEO_ENDINGS, probe, read_frames
from .clip_set import with_trigger
from .scan import found_captions

LONGEST = 20_000
"""Characters of a clip's captions together."""
BETWEEN = "\n---\n"
"""What stands between several captions of a clip."""


@dataclass(frozen=True, kw_only=True)
class ReviewClip:
    """A clip as it is shown for review; whether it can be decoded is not asked."""

    name: str
    """Its path within the folder, with forward slashes."""
    kind: str
    """`video` or `image`."""
    caption: str
    """Several captions have a line of `---` between them; empty where there is none."""
    excluded: bool
    stamp: str
    """Another stamp, another content."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaptionChange:
    """A clip's captions before and after."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class CaptionChanges:
    """What became of captions that were to be changed; one that could not be does not stop the others."""

    changes: tuple[CaptionChange, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """By the clip's name, why its captions are as they were: one sentence."""


def review(folder: Path) -> list[ReviewClip]:
    """Every clip in a folder and its subfolders, the excluded ones as well, in the order of `scan`.

    ValueError where the folder cannot be read.
    """
    folder = Path(folder)
    excluded = set(map(plain_name, read_excluded(folder)))
    found = []
    for name, (captions, source, notes) in found_captions(folder).items():
        try:
            path = clip_file(folder, name)
            facts = path.stat()
        except (ValueError, OSError):  # no clip, a link that leads out, or gone in this moment
            continue
        if not _is_unicode(name):
            continue
        if source and not _is_text(source):
            notes = (*notes, f"from {source}")
        found.append(ReviewClip(
            name=name, kind=_kind(path), caption=BETWEEN.join(captions), excluded=plain_name(name) in excluded,
            stamp=f"{facts.st_size:x}-{facts.st_mtime_ns:x}",
            notes=tuple(note for note in notes if note != "no caption"),
        ))
    return found


def clip_file(folder: Path, name: str) -> Path:
    """The file behind a clip's name. ValueError, one sentence, unless it is a video or image within the folder."""
    parts = name.split("/")
    if "\\" in name or min(name, default="\0") < " " or any(part == "" or part.startswith(".") for part in parts):
        raise ValueError(f"{name[:80]!r} is not the name of a clip.")
    path = Path(folder, *parts)
    if ":" in parts[0] or _kind(path) == "":
        raise ValueError(f"{name[:80]!r} is not a video or image.")
    if not os.path.isfile(path) or not _is_within(path, Path(folder)):
        raise ValueError(f"There is no clip {name[:80]!r} in {folder}: reload the list.")
    return path


def still(folder: Path, name: str, longest: int = 480) -> bytes:
    """The middle frame of a clip as JPEG, its longer side at most `longest` pixels. ValueError where there is none."""
    footage = probe(clip_file(folder, name))
    scale = min(1.0, longest / max(footage.width, footage.height))
    width, height = (max(1, round(side * scale)) for side in (footage.width, footage.height))
    (frame,) = read_frames(footage, [len(footage.times) // 2], width, height)
    data = io.BytesIO()
    Image.fromarray(frame.numpy()).save(data, "JPEG", quality=85)
    return data.getvalue()


def set_captions(folder: Path, wanted: Mapping[str, str], seen: Mapping[str, str] | None = None) -> CaptionChanges:
    """Replace the captions of clips, each whole or not at all; what stood there first is kept beside.

    `seen` is what the caller takes captions to be: where they are something else by now, they stay. Captions that come
    from a table get a text file, which goes before it. ValueError where the folder cannot be read.
    """
    folder = Path(folder)
    known = found_captions(folder)
    changes, failed = [], {}
    for name, caption in wanted.items():
        try:
            path = clip_file(folder, name)
            captions, source, _ = known.get(name, ((), "", ()))
            before, after = BETWEEN.join(captions), BETWEEN.join(split_captions(caption))
            if seen is not None and split_captions(seen.get(name, "")) != captions:
                raise ValueError(f"The caption of {name} has been changed elsewhere: reload to see it.")
            if after != before:
                _write(folder, path, source, after)
            changes.append(CaptionChange(name=name, before=before, after=after))
        except (ValueError, OSError) as error:
            failed[name] = str(error)
    return CaptionChanges(changes=tuple(changes), failed=failed)


def set_excluded(folder: Path, names: Iterable[str], excluded: bool) -> None:
    """Leave clips out of the set, or take them in again; the files stay. ValueError where there is no such clip."""
    names = {plain_name(name) for name in names if clip_file(folder, name)}
    before = read_excluded(folder)
    after = before | names if excluded else {name for name in before if plain_name(name) not in names}
    if after != before:
        write_excluded(folder, after)


def replace_everywhere(
    folder: Path, find: str, put: str, *, match_case: bool = False, whole_words: bool = False
) -> CaptionChanges:
    """Replace a text in every caption of the folder. ValueError where `find` is empty."""
    find, put = " ".join(find.split()), " ".join(put.split())
    if not find:
        raise ValueError("Nothing to find: enter the words that are to be replaced.")
    pattern = _pattern(find, match_case=match_case, whole_words=whole_words)
    return _change_all(folder, lambda caption: pattern.sub(lambda _: put, caption))


def insert_trigger(folder: Path, trigger: str) -> CaptionChanges:
    """Put a trigger word before every caption that does not hold it; clips without a caption stay without.

    ValueError where the word is empty.
    """
    trigger = _checked_trigger(trigger)
    return _change_all(folder, lambda caption: with_trigger(caption, trigger))


def remove_trigger(folder: Path, trigger: str) -> CaptionChanges:
    """Take a trigger word, and the comma that sets it off, out of every caption. ValueError where it is empty."""
    word = _pattern(_checked_trigger(trigger), whole_words=True).pattern
    apart = re.compile(rf"^{word}\s*,\s*|\s*,\s*{word}(?=\s*(?:[,.;!?]|$))|{word}\s?", re.IGNORECASE)
    return _change_all(folder, lambda caption: apart.sub("", caption).strip())


def _change_all(folder: Path, change: Callable[[str], str]) -> CaptionChanges:
    """Apply a change to every caption; a caption that it empties is dropped."""
    wanted, texts = {}, set()
    for clip in review(folder):
        before = split_captions(clip.caption)
        after = split_captions(BETWEEN.join(map(change, before)))
        text = plain_name(str(PurePosixPath(clip.name).with_suffix("")))
        if after != before and text not in texts:  # two clips may share a name, and so a text
            wanted[clip.name] = BETWEEN.join(after)
            texts.add(text)
    return set_captions(folder, wanted)


def _pattern(text: str, *, match_case: bool = False, whole_words: bool = False) -> re.Pattern[str]:
    escaped = re.escape(text)
    return re.compile(rf"(?<!\w){escaped}(?!\w)" if whole_words else escaped, 0 if match_case else re.IGNORECASE)


def _checked_trigger(trigger: str) -> str:
    trigger = " ".join(trigger.split())
    if not trigger:
        raise ValueError("The trigger word is empty: enter one.")
    return trigger


def _write(folder: Path, clip: Path, source: str, captions: str) -> None:
    """Write a clip's text file. `source` is where its captions are now. ValueError, OSError: one sentence."""
    if not _is_unicode(captions):
        raise ValueError(f"The caption of {clip.name} holds half a letter, which no file can hold: enter it again.")
    if len(captions) > LONGEST:
        raise ValueError(f"The caption of {clip.name} is longer than {LONGEST:,} characters: shorten it.")
    if not captions and not _is_text(source):
        raise ValueError(f"The caption of {clip.name} comes from {source}: take it out there, or write another.")
    path = folder / source if _is_text(source) else caption_path(clip)
    for place in (path, path.with_suffix(BACKUP_ENDING)):
        if place.is_symlink() and not _is_within(place, folder):
            raise ValueError(f"{place.name} is a link to a file outside the folder: put a file in its place.")
    write_captions(path, split_captions(captions))


def _is_text(source: str) -> bool:
    return source.lower().endswith(ENDING)


def _kind(path: Path) -> str:
    ending = path.suffix.lower()
    return "video" if ending in VIDEO_ENDINGS else "image" if ending in IMAGE_ENDINGS else ""


def _is_unicode(name: str) -> bool:
    """Whether a text can be sent and written: the system hands out other names with parts that stand for bytes."""
    return name.encode("utf-8", errors="ignore").decode() == name


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, lies in the folder."""
    try:
        return path.resolve(strict=False).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False
