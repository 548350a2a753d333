"""Look through a folder: its clips, their captions, and the reason for every file that is not used."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...loaders.caption_file import BACKUP_ENDING, EXCLUDED, read_captions, read_excluded
from ...loaders.caption_table import BACKUP_ENDINGS as TABLE_BACKUPS
from ...loaders.caption_table import ENDINGS as TABLE_ENDINGS
from ...loaders.caption_table import TableError, plain_name, read_table
from ...loaders.video_file import IMAGE_ENDINGS, VIDEO_ENDINGS, FootageError, probe
from ..listener import Listener, Progress, SilentListener
from .clip_set import Clip, ClipSet, LeftOut, check_some, files, with_trigger

log = logging.getLogger(__name__)

SOUND_ENDINGS = frozenset((".mp3", ".wav", ".flac", ".ogg", ".m4a", ".aac", ".opus", ".wma"))
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
OWN_FILES = frozenset((EXCLUDED, "_shots.json", "_captioned.json"))
MOST_REPEATS = 100
"""A folder's number above this is a year or a count, not repeats."""


@dataclass(kw_only=True)
class _Folder:
    """What lies in the folder and those in it; names are relative to it, with forward slashes."""

    path: Path
    trigger: str
    excluded: frozenset[str] = frozenset()
    media: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """Name without ending, composed and in the texts' own folder, to the text file's name."""
    tables: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hidden: int = 0
    from_tables: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    """Name of a clip to captions and the table that has them."""

    def leave(self, name: str, reason: str) -> None:
        self.left_out.append(LeftOut(name=name, reason=reason))


def scan(
    folder: str | Path, trigger: str = "", listener: Listener | None = None, *, subfolders: bool = True
) -> ClipSet:
    """The videos and images in `folder`, each with its captions, from the `.txt` of the same name or a caption table.

    `subfolders` are read too: one named `3_portraits` shows its clips 3 times an epoch. Clips named in `_excluded.txt`
    are left out. `trigger` is put before every caption that does not contain it yet. Raises ValueError where the folder
    is not there or holds nothing usable.
    """
    listener = listener or SilentListener()
    trigger = " ".join(trigger.encode("utf-8", errors="ignore").decode().split())  # half letters fit no file
    found = _Folder(path=Path(folder), trigger=trigger)
    _check_folder(found.path)
    try:
        _look(found, found.path, subfolders)
    except OSError as error:
        raise ValueError(f"Folder {folder} cannot be read: {error.strerror or error}.") from error
    if not (found.media or found.left_out or found.texts or found.tables):
        raise ValueError(f"Folder {folder} is empty: put your clips and their captions (.txt) in it.")
    _read_excluded(found)
    for name in found.tables:
        _read_table(found, name)
    clips: list[Clip] = []
    captioned: dict[str, str] = {}
    for done, name in enumerate(found.media):
        listener.check()
        listener.report(Progress(phase="Looking at clips", done=done, total=len(found.media), detail=name))
        try:
            clips.append(_clip(found, name))
            captioned[_stem(name)] = ""
        except FootageError as error:
            found.leave(name, error.reason)
            captioned.setdefault(_stem(name), f"the caption of {PurePosixPath(name).name}, which is left out")
    for stem, text in found.texts.items():
        if reason := captioned.get(stem, "no clip has its name"):
            found.leave(text, reason)
    found.left_out.sort(key=lambda item: natural(item.name))
    check_some(clips, found.left_out, found.path)
    listener.report(Progress(phase="Looking at clips", done=len(found.media), total=len(found.media)))
    log.info("%s: %d clips, %s left out", folder, len(clips), files(len(found.left_out)))
    return ClipSet(
        folder=found.path, trigger=trigger, clips=tuple(clips), left_out=tuple(found.left_out), hidden=found.hidden,
        remarks=tuple(found.remarks),
    )


def found_captions(folder: Path) -> dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """Every file that may be a clip, the excluded ones too, in the order of `scan`; none is opened.

    With each: its captions, the file they are in, and what a person should know of them. ValueError where the folder
    cannot be read.
    """
    found = _Folder(path=folder, trigger="")
    _check_folder(folder)
    try:
        _look(found, folder, True)
    except OSError as error:
        raise ValueError(f"Folder {folder} cannot be read: {error.strerror or error}.") from error
    for name in found.tables:
        _read_table(found, name)
    return {name: _captions(found, name) for name in found.media}


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise ValueError(f"Folder {folder} does not exist: choose the folder that your clips are in.")
    if not folder.is_dir():
        raise ValueError(f"Folder {folder} is a file: choose the folder that your clips are in.")


def natural(name: str) -> tuple:
    """A key that sorts as people do: clip2 before clip10, and what lies directly in a folder before its subfolders."""
    folder, _, bare = name.rpartition("/")
    return _natural_parts(folder), _natural_parts(Path(bare).stem), name


def _natural_parts(name: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())]


def _look(found: _Folder, folder: Path, subfolders: bool) -> bool:
    """Sort what lies in `folder` and those in it into `found`, in natural order; False where nothing lies there."""
    inner = []
    entries = _entries(folder)
    for entry in entries:
        name = entry.relative_to(found.path).as_posix()
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
            found.hidden += 1
        elif entry.name == EXCLUDED and folder != found.path:
            found.remarks.append(f"{name} is not heeded: only the list in the chosen folder itself is")
        elif entry.name in OWN_FILES or entry.name.endswith((BACKUP_ENDING, *TABLE_BACKUPS)):
            continue
        elif entry.is_dir():
            inner.append(entry)
        elif entry.exists() and not entry.is_file():
            found.leave(name, "not an ordinary file")  # a pipe would be waited on for ever
        elif entry.suffix.lower() == ".txt":
            found.texts[_stem(name)] = name
        elif entry.suffix.lower() in TABLE_ENDINGS:
            found.tables.append(name)
        else:
            found.media.append(name)
    for entry in inner:
        _look_inside(found, entry, subfolders)
    return bool(entries)


def _look_inside(found: _Folder, entry: Path, subfolders: bool) -> None:
    name = entry.relative_to(found.path).as_posix()
    if entry.is_symlink():
        inside = _leads_inside(entry, found.path)
        found.leave(name, "a link to a folder that is read by itself" if inside else "a link out of the folder")
    elif not subfolders:
        found.leave(name, "a folder: subfolders are not read")
    else:
        try:
            if not _look(found, entry, subfolders):
                found.leave(name, "an empty folder")
        except OSError as error:
            found.leave(name, f"a folder that cannot be read: {error.strerror or error}")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda entry: natural(entry.name))


def _leads_inside(entry: Path, folder: Path) -> bool:
    try:
        return entry.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


def _stem(name: str) -> str:
    """What a clip and its text share: the path without ending, composed."""
    return plain_name(str(PurePosixPath(name).with_suffix("")))


def _read_excluded(found: _Folder) -> None:
    """Which clips the list names; names of none are said, as they may be misspelt."""
    found.excluded = frozenset(map(plain_name, read_excluded(found.path)))
    if missing := sorted(found.excluded - set(map(plain_name, found.media))):
        found.remarks.append(f"{EXCLUDED} names what is not there: {_few(missing)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_table(found: _Folder, name: str) -> None:
    """Take the captions of a table; what its rows name that is not there is said."""
    path = found.path / name
    try:
        _check_place(path, found.path)
        table = read_table(path)
    except (FootageError, TableError) as error:
        found.leave(name, error.reason)
        return
    before = f"{PurePosixPath(name).parent.as_posix()}/".removeprefix("./")
    inside = {clip.removeprefix(before): clip for clip in found.media if clip.startswith(before)}
    captions, strange = table.match(inside)
    for clip, texts in captions.items():
        if texts:
            found.from_tables.setdefault(inside[clip], (texts, name))
    if not captions:
        found.leave(name, f"a table of captions for clips that are not here: {_few(strange)}")
    elif strange:
        found.remarks.append(f"{name} names what is not there: {_few(strange)}")


def _clip(found: _Folder, name: str) -> Clip:
    """The clip in this file. FootageError, with the reason, where it is none that is used."""
    entry = found.path / name
    _check_place(entry, found.path)
    ending = entry.suffix.lower()
    if plain_name(name) in found.excluded:
        raise FootageError(entry, f"excluded in {EXCLUDED}")
    if ending in SOUND_ENDINGS:
        raise FootageError(entry, "audio only")
    if ending not in VIDEO_ENDINGS | IMAGE_ENDINGS:
        raise FootageError(entry, "not a video or image")
    footage = probe(entry)
    captions, source, notes = _captions(found, name)
    return Clip(
        path=entry, name=name, kind=footage.kind, footage=footage, caption_file=source,
        captions=tuple(with_trigger(caption, found.trigger) for caption in captions or ("",)),
        notes=(*footage.notes, *notes), repeats=repeats_of(name), trigger=found.trigger,
    )


def repeats_of(name: str) -> int:
    """How often a clip is shown, by the innermost of its folders that is named so: 3 for `3_portraits/walk.mp4`."""
    for part in reversed(PurePosixPath(name).parts[:-1]):
        said = re.match(r"(\d{1,3})_", part)
        if said and 1 <= int(said[1]) <= MOST_REPEATS:
            return int(said[1])
    return 1


def repeated(clips: ClipSet, times: int) -> ClipSet:
    """The set with every clip shown `times` as often."""
    return dataclasses.replace(
        clips, clips=tuple(dataclasses.replace(clip, repeats=clip.repeats * times) for clip in clips.clips)
    )


def _check_place(entry: Path, folder: Path) -> None:
    """FootageError where the entry is a link that leads out of the folder, or nowhere."""
    try:
        real = entry.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise FootageError(entry, "a link that leads nowhere") from error
    if not real.is_relative_to(folder.resolve()):
        raise FootageError(entry, "a link to a file outside the folder")


def _captions(found: _Folder, name: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The captions, the file they are in, and what a person should know of them. A text goes before a table."""
    captions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if text := found.texts.get(_stem(name)):
        try:
            _check_place(found.path / text, found.path)
            captions, notes = read_captions(found.path / text)
        except FootageError as error:
            notes = (f"{PurePosixPath(text).name} not read: {error.reason}",)
        if captions:
            return captions, text, notes
    if name in found.from_tables:
        return *found.from_tables[name], notes
    return (), "", notes or ("no caption",)
