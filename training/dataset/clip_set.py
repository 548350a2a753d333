"""The clips found in a folder, their captions, and what was left out and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...loaders.video_file import Crop, Footage


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video or image with its captions, the trigger word included."""

    path: Path
    name: str
    """Its path within the folder, with forward slashes."""
    kind: str
    """`video` or `image`."""
    captions: tuple[str, ...]
    """At least one; the empty text where there is neither caption nor trigger word."""
    footage: Footage
    caption_file: str = ""
    """Name of the file the captions were read from; empty where there is none, or nothing in it."""
    notes: tuple[str, ...] = ()
    crop: Crop | None = None
    """What of the picture is used; None: all of it."""
    repeats: int = 1
    """How often an epoch shows it."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that is not used."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """What a folder gives to train on, in the order of the files' names."""

    folder: Path
    trigger: str
    clips: tuple[Clip, ...]
    left_out: tuple[LeftOut, ...] = ()
    hidden: int = 0
    """Files of the system's own (.DS_Store, Thumbs.db), which are not listed."""

    def report(self) -> str:
        """For people: one line for each file of the folder, used or not, below a line that sums up."""
        head = [f"{counted(self.clips)} used, {files(len(self.left_out))} left out", f"Folder: {self.folder}"]
        if self.trigger:
            head.append(f"Trigger word: {self.trigger}")
        if self.hidden:
            head.append(f"{files(self.hidden)} of the system not listed")
        used = [clip_line(clip) for clip in self.clips]
        return "\n".join([*head, "", *used, *map(left_out_line, self.left_out)])


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word before it, unless it holds the word already."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def counted(clips: Sequence[Clip]) -> str:
    """`6 clips and 2 images`."""
    images = sum(clip.kind == "image" for clip in clips)
    videos = len(clips) - images
    parts = [_plural(count, word) for count, word in ((videos, "clip"), (images, "image")) if count]
    return " and ".join(parts) or "0 clips"


def files(count: int) -> str:
    """`1 file`, `3 files`."""
    return _plural(count, "file")


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def clip_line(clip: Clip) -> str:
    """One clip as it lies in the folder."""
    footage = clip.footage
    facts = [f"{footage.width}x{footage.height}"]
    if clip.kind == "video":
        facts.append(f"{footage.seconds:.1f} s at {rate(footage.fps)} fps")
        facts.append("with sound" if footage.has_audio else "no sound")
    if clip.caption_file:
        facts.append(f"caption in {clip.caption_file}")
    return f"{clip.name}: {', '.join([*facts, *clip.notes])}; {quoted(clip.captions[0])}"


def left_out_line(left_out: LeftOut) -> str:
    return f"{left_out.name}: left out, {left_out.reason}"


def rate(fps: float) -> str:
    """`24`, `23.976`."""
    return f"{fps:.3f}".rstrip("0").rstrip(".")


def quoted(caption: str, longest: int = 80) -> str:
    """A caption in quotation marks, shortened."""
    return f'"{caption if len(caption) <= longest else caption[: longest - 1].rstrip() + "…"}"'
