"""Look through a folder: its clips, their captions, and the reason for every file that is not used."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ...loaders.caption_file import read_captions
from ...loaders.video_file import IMAGE_ENDINGS, VIDEO_ENDINGS, FootageError, probe
from ..listener import Listener, Progress, SilentListener
from .clip_set import Clip, ClipSet, LeftOut, files, with_trigger

log = logging.getLogger(__name__)

SOUND_ENDINGS = frozenset((".mp3", ".wav", ".flac", ".ogg", ".m4a", ".aac", ".opus", ".wma"))
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))


def scan(folder: str | Path, trigger: str = "", listener: Listener | None = None) -> ClipSet:
    """The videos and images directly in `folder`, each with the caption in the `.txt` of the same name.

    `trigger` is put before every caption that does not contain it yet. Raises ValueError where the folder is not there,
    holds nothing usable, or has neither captions nor a trigger word.
    """
    folder, trigger, listener = Path(folder), " ".join(trigger.split()), listener or SilentListener()
    entries, hidden = _entries(folder)
    texts = {entry.stem: entry for entry in entries if _is_text(entry)}
    clips: list[Clip] = []
    left_out: list[LeftOut] = []
    captioned: dict[str, str] = {}
    for done, entry in enumerate(entries):
        listener.check()
        listener.report(Progress(phase="Looking at clips", done=done, total=len(entries), detail=entry.name))
        if _is_text(entry):
            continue
        try:
            clip = _clip(entry, folder, texts.get(entry.stem), trigger)
        except FootageError as error:
            left_out.append(LeftOut(name=entry.name, reason=error.reason))
            captioned.setdefault(entry.stem, f"the caption of {entry.name}, which is left out")
        else:
            clips.append(clip)
            captioned[entry.stem] = ""
    for stem, text in texts.items():
        if reason := captioned.get(stem, "no clip has its name"):
            left_out.append(LeftOut(name=text.name, reason=reason))
    left_out.sort(key=lambda item: natural(item.name))
    _check(folder, clips, left_out, trigger)
    listener.report(Progress(phase="Looking at clips", done=len(entries), total=len(entries)))
    log.info("%s: %d clips, %s left out", folder, len(clips), files(len(left_out)))
    return ClipSet(folder=folder, trigger=trigger, clips=tuple(clips), left_out=tuple(left_out), hidden=hidden)


def natural(name: str) -> tuple[list, str]:
    """A key that sorts as people do: clip2 before clip10."""
    stem = Path(name).stem.casefold()
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem)], name


def _entries(folder: Path) -> tuple[list[Path], int]:
    """What lies in the folder, in natural order, and how many of the system's own files were passed over."""
    if not folder.exists():
        raise ValueError(f"Folder {folder} does not exist: choose the folder that your clips are in.")
    if not folder.is_dir():
        raise ValueError(f"Folder {folder} is a file: choose the folder that your clips are in.")
    try:
        every = sorted(folder.iterdir(), key=lambda entry: natural(entry.name))
    except OSError as error:
        raise ValueError(f"Folder {folder} cannot be read: {error.strerror or error}.") from error
    entries = [entry for entry in every if not _of_the_system(entry.name)]
    if not entries:
        raise ValueError(f"Folder {folder} is empty: put your clips and their captions (.txt) in it.")
    return entries, len(every) - len(entries)


def _of_the_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _is_text(entry: Path) -> bool:
    return entry.suffix.lower() == ".txt" and not entry.is_dir()


def _clip(entry: Path, folder: Path, text: Path | None, trigger: str) -> Clip:
    """The clip in this file. FootageError, with the reason, where it is none that can be used."""
    _check_place(entry, folder)
    ending = entry.suffix.lower()
    if entry.is_dir():
        raise FootageError(entry, "a folder: only files directly in the chosen folder are read")
    if ending in SOUND_ENDINGS:
        raise FootageError(entry, "audio only")
    if ending not in VIDEO_ENDINGS | IMAGE_ENDINGS:
        raise FootageError(entry, "not a video or image")
    footage = probe(entry)
    captions, notes = _captions(text, folder)
    return Clip(
        path=entry, name=entry.name, kind=footage.kind, footage=footage,
        captions=tuple(with_trigger(caption, trigger) for caption in captions or ("",)),
        caption_file=text.name if captions else "", notes=(*footage.notes, *notes),
    )


def _check_place(entry: Path, folder: Path) -> None:
    """FootageError where the entry is a link that leads out of the folder, or nowhere."""
    try:
        real = entry.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise FootageError(entry, "a link that leads nowhere") from error
    if not real.is_relative_to(folder.resolve()):
        raise FootageError(entry, "a link to a file outside the folder")


def _captions(text: Path | None, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions, and what a person should know of them."""
    if text is None:
        return (), ("no caption",)
    try:
        _check_place(text, folder)
    except FootageError as error:
        return (), (f"{text.name} not read: {error.reason}",)
    return read_captions(text)


def _check(folder: Path, clips: list[Clip], left_out: list[LeftOut], trigger: str) -> None:
    """ValueError unless there is something to train on, and a word to call it by."""
    if not clips:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left_out[:10])
        more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        raise ValueError(f"No usable clip in {folder}: {reasons}{more}.")
    if not trigger and not any(any(clip.captions) for clip in clips):
        raise ValueError(
            f"No clip in {folder} has a caption: set a trigger word, or put a .txt with the same name beside each clip."
        )
