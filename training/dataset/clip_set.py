"""The clips found in a folder, their captions, and what was left out and why."""

from __future__ import annotations

import dataclasses
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
    trigger: str = ""
    """The word put before its captions; clips of one set may have come with words of their own."""


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
    """The trigger word; several with commas between them, where sets of different words were joined."""
    clips: tuple[Clip, ...]
    left_out: tuple[LeftOut, ...] = ()
    hidden: int = 0
    """Files of the system's own (.DS_Store, Thumbs.db), which are not listed."""
    remarks: tuple[str, ...] = ()
    """What a person should know of files that are not clips."""
    joined: tuple[Path, ...] = ()
    """Further folders that clips of this set come from."""

    def report(self) -> str:
        """For people: one line for each file of the folder, used or not, below a line that sums up."""
        head = [f"{counted(self.clips)} used, {files(len(self.left_out))} left out"]
        head += [f"Folder: {folder}" for folder in (self.folder, *self.joined)]
        if self.trigger:
            head.append(f"Trigger word: {self.trigger}")
        head.append(self._coverage())
        if self.hidden:
            head.append(f"{files(self.hidden)} of the system not listed")
        head += self.remarks
        used = [clip_line(clip) for clip in self.clips]
        return "\n".join([*head, "", *used, *map(left_out_line, self.left_out)])

    def _coverage(self) -> str:
        """How many clips have a caption of their own, and whether anything calls the rest."""
        captioned = sum(bool(clip.caption_file) for clip in self.clips)
        line = f"Captions: {captioned} of {len(self.clips)}"
        if any(any(clip.captions) for clip in self.clips):
            return line
        return f"{line}, and no trigger word: caption the clips or set one before Prepare"


def join(first: ClipSet, second: ClipSet) -> ClipSet:
    """Both sets as one, each clip with the trigger word and repeats it came with.

    Names of the second get its folder's name before them, with a number where the first has such names already.
    """
    label, number = second.folder.name, 1
    taken = {item.name.partition("/")[0] for item in (*first.clips, *first.left_out)}
    while label in taken:
        number += 1
        label = f"{second.folder.name} ({number})"
    triggers = dict.fromkeys(word for found in (first, second) for word in found.trigger.split(", ") if word)
    return dataclasses.replace(
        first, trigger=", ".join(triggers), hidden=first.hidden + second.hidden,
        remarks=(*first.remarks, *second.remarks), joined=(*first.joined, second.folder, *second.joined),
        clips=(*first.clips, *(dataclasses.replace(clip, name=f"{label}/{clip.name}") for clip in second.clips)),
        left_out=(
            *first.left_out, *(dataclasses.replace(item, name=f"{label}/{item.name}") for item in second.left_out)
        ),
    )


def check_some(clips: Sequence[Clip], left_out: Sequence[LeftOut], folder: Path) -> None:
    """ValueError with the first reasons where no clip is left."""
    if not clips:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left_out[:10])
        more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        raise ValueError(f"No usable clip in {folder}: {reasons}{more}.")


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
    return f"{clip.name}: {', '.join(clip_facts(clip))}; {quoted(clip.captions[0])}"


def clip_facts(clip: Clip) -> list[str]:
    """What there is to say of a clip as it lies in the folder."""
    footage = clip.footage
    facts = [f"{footage.width}x{footage.height}"]
    if clip.kind == "video":
        facts.append(f"{footage.seconds:.1f} s at {rate(footage.fps)} fps")
        facts.append("with sound" if footage.has_audio else "no sound")
    if clip.repeats > 1:
        facts.append(f"shown {clip.repeats} times an epoch")
    if clip.caption_file:
        count = len(clip.captions)
        facts.append(f"{f'{count} captions' if count > 1 else 'caption'} in {clip.caption_file}")
    return [*facts, *clip.notes]


def left_out_line(left_out: LeftOut) -> str:
    return f"{left_out.name}: left out, {left_out.reason}"


def rate(fps: float) -> str:
    """`24`, `23.976`."""
    return f"{fps:.3f}".rstrip("0").rstrip(".")


def quoted(caption: str, longest: int = 80) -> str:
    """A caption in quotation marks, shortened."""
    return f'"{caption if len(caption) <= longest else caption[: longest - 1].rstrip() + "…"}"'
