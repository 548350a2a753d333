"""Captions for clips that have none: frames to a captioner, its answers to text files beside the clips.

T frames, P height and Q width in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...loaders.caption_file import ENDING, LONGEST, caption_path, read_captions, write_captions
from ...loaders.caption_table import write_table
from ...loaders.video_file import Footage, FootageEnds, FootageError, probe, read_frames, read_sound
from ...loaders.whole_file import write_text
from ..listener import Listener, Progress, SilentListener
from .caption_settings import CaptionConfig
from .caption_text import clean_caption, instruction_for, is_refusal
from .captioners.captioner import Captioner, CaptionError, Shown
from .clip_set import Clip, ClipSet, quoted, with_trigger
from .sampling import nearest

log = logging.getLogger(__name__)

LONGEST_SIDE = 640
"""Pixels of the frames that captioners see."""
SHORTEST_SIDE = 56  # Qwen-VL's smallest: two of its patches of 28
MOST_SOUND = 60.0
"""Seconds of sound that captioners hear, from the start."""
RECORD = "_captioned.json"
"""Beside the clips: which question their captions answer, so that overwriting does not ask the same again."""
PHASE = "Writing captions"


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Clips with what was written for them."""

    clips: ClipSet
    report: str
    written: int
    kept: int
    failed: int


def caption_clips(
    clips: ClipSet, captioner: Captioner | None, config: CaptionConfig | None = None, listener: Listener | None = None
) -> Captioned:
    """Have captions written for the clips without one, each to its `.txt` as soon as it is there.

    `captioner` may be None where every clip has a caption and is to keep it.
    The trigger word is not written to the files, only put before the captions that are handed on. A clip that gets none
    is in the report, with the reason, and the others go on. Raises ValueError where not one is got, and whatever the
    captioner raises where none will be; what was written until then stays.
    """
    config, listener = config or CaptionConfig(), listener or SilentListener()
    wanting = [clip for clip in clips.clips if config.overwrite or not clip.caption_file]
    run = _Run(captioner, config, listener, total=len(wanting))
    try:
        outcomes = {clip.name: run.caption(clip) for clip in wanting}
    finally:
        if captioner is not None:
            captioner.close()
    listener.report(Progress(phase=PHASE, done=len(wanting), total=len(wanting)))
    failed = {name: outcome.reason for name, outcome in outcomes.items() if outcome.reason}
    if wanting and len(failed) == len(wanting):
        told = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:5])
        raise ValueError(f"No clip got a caption from {captioner.title}: {told}{'; ...' if len(failed) > 5 else ''}.")
    done = dataclasses.replace(clips, clips=tuple(_with_caption(clip, outcomes.get(clip.name)) for clip in clips.clips))
    written = sum(outcome.written for outcome in outcomes.values())
    kept = len(clips.clips) - written - len(failed)
    written_to = write_tables(done, config.also_write) if config.also_write != "nothing" else ()
    head = [f"{written} captions written, {kept} kept, {len(failed)} failed"]
    if wanting:
        head += [f"Captioner: {captioner.title}", *filter(None, [run.told])]
    head += [f"All captions in {path}" for path in written_to]
    lines = [_line(clip, outcomes.get(clip.name)) for clip in done.clips]
    log.info("%s: %s", clips.folder, head[0])
    return Captioned(
        clips=done, report="\n".join([*head, "", *lines]), written=written, kept=kept, failed=len(failed)
    )


def write_tables(clips: ClipSet, name: str) -> list[Path]:
    """All captions, without the trigger word, in one file of this name in each folder that the clips come from.

    Raises OSError where the disk cannot be written.
    """
    rows: dict[Path, list[tuple[str, str]]] = {}
    for clip in clips.clips:
        folders = (folder for folder in (clips.folder, *clips.joined) if clip.path.is_relative_to(folder))
        folder = next(folders, clip.path.parent)
        for caption in clip.captions:
            if text := "" if caption == clip.trigger else caption.removeprefix(f"{clip.trigger}, "):
                within = clip.path.relative_to(folder).as_posix().encode(errors="replace").decode()
                rows.setdefault(folder, []).append((within, text))
    for folder, found in rows.items():
        write_table(folder / name, found)
    return [folder / name for folder in rows]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one clip: captions, written or there already, or the reason why there are none."""

    captions: tuple[str, ...] = ()
    written: bool = False
    reason: str = ""


class _Run:
    """One pass over the clips."""

    def __init__(self, captioner: Captioner, config: CaptionConfig, listener: Listener, *, total: int):
        self.captioner, self.config, self.listener, self.total = captioner, config, listener, total
        self.told: str | None = None
        """What the captioner said beforehand; None until it was asked."""
        self._done = self._answered = 0
        self._started = time.monotonic()
        self._by_file: dict[Path, Outcome] = {}

    def caption(self, clip: Clip) -> Outcome:
        """A caption for this clip, in its file. Clips that share a text file share its caption."""
        self.listener.check()
        self.listener.report(
            Progress(phase=PHASE, done=self._done, total=self.total, seconds_left=self._left(), detail=clip.name)
        )
        self._done += 1
        file = text_file(clip)
        if file in self._by_file:
            return dataclasses.replace(self._by_file[file], written=False)
        try:
            now = dataclasses.replace(clip, footage=probe(clip.path))  # it may have changed since it was scanned
            outcome = self._caption(now, file)
        except FootageError as error:
            outcome = Outcome(reason=error.reason)
        except CaptionError as error:
            outcome = Outcome(reason=str(error).rstrip("."))
        if outcome.reason:
            log.warning("%s: no caption, %s", clip.name, outcome.reason)
        self._by_file[file] = outcome
        return outcome

    def _left(self) -> float | None:
        if not self._answered:
            return None
        return (time.monotonic() - self._started) / self._answered * (self.total - self._done)

    def _caption(self, clip: Clip, file: Path) -> Outcome:
        question = self._question(clip)
        record = _read_record(file.parent)
        before = read_captions(file)[0]
        if before and record.get(file.name) == question:  # it may have been put right by hand since
            return Outcome(captions=before)
        shown = show(clip, self.config, sound=self.captioner.hears)
        if self.told is None:
            self.told = self.captioner.before(self.total - self._done + 1, shown)
        answer = self.captioner.caption(shown)
        self._answered += 1
        caption = clean_caption(answer)
        if not caption:
            raise CaptionError("the answer is empty")
        if len(caption.encode()) >= LONGEST:
            raise CaptionError(f"the answer is too long for a caption ({len(caption):,} characters)")
        if is_refusal(caption):
            raise CaptionError(f"the model refused: {quoted(caption)}")
        record[file.name] = question
        try:
            write_captions(file, (caption,))
            write_text(file.parent / RECORD, json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise CaptionError(str(error)) from error
        return Outcome(captions=(caption,), written=True)

    def _question(self, clip: Clip) -> str:
        """A digest of all that decides the answer."""
        facts = clip.path.stat()
        text = instruction_for(self.config.preset, self.config.instruction, trigger=clip.trigger)
        settings = self.config.max_tokens, self.config.frames, self.config.seed, self.captioner.hears, clip.crop
        file = f"{clip.path.name}:{facts.st_size}:{facts.st_mtime_ns}"
        return _digest(self.captioner.title, text, repr(settings), file)


def text_file(clip: Clip) -> Path:
    """The text that a clip's captions are in, however its name is written, or will be."""
    if clip.caption_file.lower().endswith(ENDING):
        return clip.path.with_name(PurePosixPath(clip.caption_file).name)
    return caption_path(clip.path)


def show(clip: Clip, config: CaptionConfig, *, sound: bool = False) -> Shown:
    """What a captioner sees, and hears where `sound`, of one clip. Raises FootageError where it cannot be decoded."""
    frames, fps = _frames(clip, config.frames)
    heard = None
    if sound and clip.footage.has_audio:
        heard = read_sound(clip.footage, 0.0, min(clip.footage.seconds, MOST_SOUND), Shown.rate)
    instruction = instruction_for(
        config.preset, config.instruction, trigger=clip.trigger, still=len(frames) == 1, heard=heard is not None
    )
    return Shown(
        frames=frames, fps=fps, instruction=instruction, sound=heard, max_tokens=config.max_tokens, seed=config.seed
    )


def evenly(footage: Footage, count: int) -> tuple[list[int], float]:
    """At most `count` frames from the first to the last, evenly in time, and how many of them make a second."""
    times = footage.times
    if len(times) <= count:
        indexes = list(range(len(times)))
    elif count == 1:
        indexes = [len(times) // 2]
    else:
        wanted = [times[-1] * place / (count - 1) for place in range(count)]
        indexes = sorted({nearest(times, time) for time in wanted})
    span = times[indexes[-1]] - times[indexes[0]]
    return indexes, (len(indexes) - 1) / span if span else footage.fps


def _frames(clip: Clip, count: int):
    """Frames (T, P, Q, 3) and their rate. A file with fewer frames than it promises is shown as far as it goes."""
    size = clip.crop or clip.footage
    scale = min(LONGEST_SIDE / max(size.width, size.height), 1)
    width, height = (max(round(side * scale / 2) * 2, SHORTEST_SIDE) for side in (size.width, size.height))
    footage = clip.footage
    indexes, fps = evenly(footage, count)
    try:
        return read_frames(footage, indexes, width, height, clip.crop), fps
    except FootageEnds as ends:
        if not ends.decoded:
            raise
        footage = dataclasses.replace(footage, times=footage.times[: ends.decoded])
        indexes, fps = evenly(footage, count)
        return read_frames(footage, indexes, width, height, clip.crop), fps


def _with_caption(clip: Clip, outcome: Outcome | None) -> Clip:
    if outcome is None or not outcome.captions:
        return clip
    notes = tuple(note for note in clip.notes if note != "no caption")
    return dataclasses.replace(
        clip, captions=tuple(with_trigger(caption, clip.trigger) for caption in outcome.captions),
        notes=notes, caption_file=text_file(clip).name,
    )


def _line(clip: Clip, outcome: Outcome | None) -> str:
    if outcome is None:
        return f"{clip.name}: kept, {quoted(clip.captions[0])}"
    if outcome.reason:
        return f"{clip.name}: no caption, {outcome.reason}"
    how = "written" if outcome.written else "kept, it answers the same question"
    return f"{clip.name}: {how}, {quoted(outcome.captions[0], 400)}"


def _read_record(folder: Path) -> dict:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:24]
