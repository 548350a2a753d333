"""Looks at every frame of every clip before anything expensive begins, and says what is wrong with which.

What was seen is kept in the feature cache, named by the file's content: a second time costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...loaders.feature_cache import FeatureCache, file_digest
from ...loaders.video_file import Crop, Footage, FootageError, glance, read_frames, read_sound
from ..listener import Listener, Progress, SilentListener
from .check_settings import CROP, LEAVE_OUT, CheckConfig
from .clip_set import Clip, ClipSet, LeftOut, check_some, counted
from .measures import DARK, SIGNATURE_FRAMES, Look, Signature, alike, picture_inside, signature
from .precompute import preview_of
from .scan import natural
from .training_set import PREVIEW

log = logging.getLogger(__name__)

CHECK_VERSION = 1
"""Part of every key: raise it when what is measured changes."""
SHORT, LONG = 0.3, 180.0  # seconds
FROZEN_SHARE, FROZEN_LEAST = 0.9, 0.5
"""A clip is frozen where nothing moves for this share of it; shorter ones, in seconds, are not judged."""
BLACK_SHARE = 0.95
"""A clip is black where this share of its frames is."""
STILL_SAID, BLACK_SAID = 1.0, 0.2  # seconds that are worth saying where the rest of the clip is well
SILENT = 0.001
"""Peak of sound that nobody hears, of 1 (-60 dB)."""
SOUND_RATE, SOUND_PIECE = 8000, 60.0  # samples a second, seconds read at a time
CLOSE_SIDE = 960  # pixels, longest side of the few frames that bars are looked for in
EXACTLY = 0.002  # seconds by which a frame's two times may differ, for rounding
LISTEN_EVERY = 32  # frames
ONE_BY_ONE = 20.0  # seconds; in longer clips each of the few frames is sought, and not all between them decoded


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was measured in one file. Times in seconds from the first frame."""

    brightness: float
    """Of the median frame, 0 to 255."""
    black_share: float
    black: tuple[float, float]
    """Where the longest span of black frames begins and ends."""
    still: tuple[float, float]
    """Where the longest span without movement begins and ends."""
    picture: tuple[int, int, int, int] | None
    """Left, top, width and height of what is between bars."""
    sound: str
    """What is wrong with it: `is silent`, `cannot be decoded`; empty where it is well, or there is none."""


def check_clips(
    clips: ClipSet,
    cache: FeatureCache,
    config: CheckConfig | None = None,
    listener: Listener | None = None,
    *,
    known: Sequence[Clip] = (),
) -> ClipSet:
    """The set with what was found in each clip added to its notes, and without those that are of no use.

    Copies of `known` clips count too. Frames that do not decode are taken off the footage. Raises ValueError where no
    clip is left, OSError where the cache cannot be written.
    """
    config, listener = config or CheckConfig(), listener or SilentListener()
    kept: list[Clip] = []
    left_out = list(clips.left_out)
    signatures = _Signatures(cache, known)
    captioned_first = sorted(clips.clips, key=lambda clip: not clip.caption_file)  # of copies, that one stays
    for clip in _steps(captioned_first, listener):
        try:
            seen, looks = _look_up(clip, cache, listener)
        except FootageError as error:
            left_out.append(LeftOut(name=clip.name, reason=error.reason))
            continue
        clip = _with_whole_frames(clip, looks["times"].numpy())
        useless, look = _useless(clip, seen), Signature(looks["signature"].numpy())
        reason = useless or signatures.copy_of(clip, look)
        if reason and config.unfit == LEAVE_OUT:
            left_out.append(LeftOut(name=clip.name, reason=reason))
            continue
        notes = (*clip.notes, *((reason,) if reason else ()), *_notes(clip, seen, bool(useless)))
        kept.append(_without_bars(dataclasses.replace(clip, notes=notes), seen, config.borders))
        signatures.add(clip, look)
    cache.record(f"checks of {clips.folder}", (check_key(clip.path) for clip in kept))
    order = {clip.name: place for place, clip in enumerate(clips.clips)}
    kept.sort(key=lambda clip: order[clip.name])
    left_out.sort(key=lambda item: natural(item.name))
    check_some(kept, left_out, clips.folder)
    log.info("%s: %s fit, %d left out", clips.folder, counted(kept), len(left_out))
    return dataclasses.replace(clips, clips=tuple(kept), left_out=tuple(left_out))


def check_key(path: Path) -> str:
    """What the cache calls a clip's measurements and its preview (N, P, Q, 3). OSError where it cannot be read."""
    return hashlib.sha256(json.dumps(["check", CHECK_VERSION, file_digest(path)]).encode()).hexdigest()


class _Signatures:
    """The clips passed so far, to know copies of them by."""

    def __init__(self, cache: FeatureCache, known: Sequence[Clip]):
        self._by_content: dict[str, str] = {}
        self._looks: list[tuple[str, Signature]] = []
        for clip in known:
            with contextlib.suppress(FootageError):
                self.add(clip, Signature(_look_up(clip, cache, SilentListener())[1]["signature"].numpy()))

    def copy_of(self, clip: Clip, look: Signature) -> str:
        """What a person is told where this clip is a copy; empty where it is none."""
        if same := self._by_content.get(file_digest(clip.path)):
            return f"an exact copy of {same}"
        near = next((name for name, other in self._looks if alike(look, other)), None)
        return f"nearly the same pictures as {near}" if near else ""

    def add(self, clip: Clip, look: Signature) -> None:
        self._by_content.setdefault(file_digest(clip.path), clip.name)
        self._looks.append((clip.name, look))


def _look_up(clip: Clip, cache: FeatureCache, listener: Listener) -> tuple[_Seen, dict[str, Tensor]]:
    """What was measured, from the cache or now. FootageError where the file cannot be read."""
    try:
        key = check_key(clip.path)
    except OSError as error:
        raise FootageError(clip.path, f"cannot be read any more ({error.strerror or error})") from error
    if header := cache.header(key):
        try:
            return _Seen(**json.loads(header.metadata["seen"])), cache.load(key)
        except (KeyError, TypeError, ValueError):
            log.info("%s is looked at again", clip.name)
    seen, looks = _measure(clip.footage, listener)
    cache.store(key, looks, {"kind": "check", "seen": json.dumps(dataclasses.asdict(seen))})
    return seen, looks


def _measure(footage: Footage, listener: Listener) -> tuple[_Seen, dict[str, Tensor]]:
    """Look at every frame small, at a few closely, and listen. FootageError where nothing decodes."""
    look = Look()
    for number, (moment, luma) in enumerate(_glances(footage)):
        if number % LISTEN_EVERY == 0:
            listener.check()
        look.add(moment, luma)
    if not look.times:
        raise FootageError(footage.path, "no frame of it decodes")
    whole = _whole_frames(footage, look.times)
    footage = _shortened(footage, whole)
    frames = _close_frames(footage)
    share, *black = look.black
    seen = _Seen(
        brightness=look.brightness, black_share=share, black=tuple(black), still=look.still,
        picture=_picture(footage, frames.numpy()), sound=_listen(footage, listener),
    )
    spread = frames[1:-1] if footage.kind == "video" else frames
    looks = {
        PREVIEW: preview_of(frames), "times": torch.from_numpy(whole),
        "signature": torch.from_numpy(signature(spread.numpy())),
    }
    return seen, looks


def _glances(footage: Footage) -> Iterator[tuple[float, np.ndarray]]:
    """As `glance`, whatever is wrong with the file being a FootageError."""
    with _reading(footage):
        yield from glance(footage)


@contextlib.contextmanager
def _reading(footage: Footage) -> Iterator[None]:
    """Make what the system or the decoder says of a file a FootageError: it may be gone since it was found."""
    try:
        yield
    except FootageError:
        raise
    except (OSError, ValueError) as error:
        raise FootageError(footage.path, "cannot be read any more") from error


def _whole_frames(footage: Footage, decoded: Sequence[float]) -> np.ndarray:
    """Times of the footage's frames that decode. All, where each has one that does within a frame's time.

    A file's second fields and invisible frames have times of their own, and never decode.
    """
    apart = _apart(footage, decoded)
    near = apart <= (1.01 / footage.fps if footage.fps else 0.0)
    return np.array(footage.times)[near if near.all() else apart <= EXACTLY]


def _apart(footage: Footage, times: Sequence[float]) -> np.ndarray:
    """How far from each frame of the footage the nearest of these times is, in seconds."""
    wanted, found = np.array(footage.times), np.sort(np.array(times))
    after = np.searchsorted(found, wanted).clip(0, len(found) - 1)
    return np.minimum(np.abs(found[after] - wanted), np.abs(found[(after - 1).clip(0)] - wanted))


def _shortened(footage: Footage, whole: np.ndarray) -> Footage:
    """The footage with only the frames of these times."""
    times = tuple(itertools.compress(footage.times, _apart(footage, whole) <= EXACTLY))
    return footage if len(times) == len(footage.times) else dataclasses.replace(footage, times=times)


def _close_frames(footage: Footage) -> Tensor:
    """The first frame, `SIGNATURE_FRAMES` spread evenly and the last, (T, P, Q, 3) uint8; an image's one."""
    scale = min(1.0, CLOSE_SIDE / max(footage.width, footage.height))
    size = max(1, round(footage.width * scale)), max(1, round(footage.height * scale))
    count = len(footage.times)
    spread = (int((number + 0.5) * count / SIGNATURE_FRAMES) for number in range(SIGNATURE_FRAMES))
    indexes = [0, *spread, count - 1] if footage.kind == "video" else [0]
    with _reading(footage):
        if footage.seconds <= ONE_BY_ONE:
            return read_frames(footage, indexes, *size)
        return torch.cat([read_frames(footage, [index], *size) for index in indexes])


def _picture(footage: Footage, frames: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of what is between bars, in pixels of the footage, rounded inwards."""
    inside = picture_inside(frames)
    if inside is None:
        return None
    across, down = footage.width / frames.shape[2], footage.height / frames.shape[1]
    left, top = math.ceil(inside.left * across), math.ceil(inside.top * down)
    right, bottom = int((inside.left + inside.width) * across), int((inside.top + inside.height) * down)
    return left, top, right - left, bottom - top


def _listen(footage: Footage, listener: Listener) -> str:
    """What is wrong with the sound, empty where it is well or there is none."""
    if not footage.has_audio:
        return ""
    start = 0.0
    while start < footage.seconds:
        listener.check()
        seconds = min(SOUND_PIECE, footage.seconds - start)
        try:
            with _reading(footage):
                sound = read_sound(footage, start, seconds, SOUND_RATE)
            if sound.abs().max() > SILENT:
                return ""
        except FootageError:
            return "is silent" if start else "cannot be decoded"
        start += seconds
    return "is silent"


def _with_whole_frames(clip: Clip, whole: np.ndarray) -> Clip:
    """The clip without frames that do not decode, and a note where there are any."""
    footage = _shortened(clip.footage, whole)
    if footage is clip.footage:
        return clip
    note = f"only {len(footage.times)} of {len(clip.footage.times)} frames decode: the rest is not used"
    return dataclasses.replace(clip, footage=footage, notes=(*clip.notes, note))


def _useless(clip: Clip, seen: _Seen) -> str:
    """Why this clip is of no use; empty where it is fit."""
    footage = clip.footage
    if seen.black_share >= BLACK_SHARE:
        return "black all over" if footage.kind == "image" else "black from beginning to end"
    still = seen.still[1] - seen.still[0] + (1 / footage.fps if footage.fps else 0.0)
    if footage.seconds >= FROZEN_LEAST and still >= FROZEN_SHARE * footage.seconds:
        return "frozen: nothing in it moves"
    return ""


def _notes(clip: Clip, seen: _Seen, useless: bool) -> list[str]:
    """What a person should know of a clip that may well be used, or is kept although it is `useless`."""
    footage, notes = clip.footage, []
    if footage.kind == "video":
        if len(footage.times) == 1:
            notes.append("a single frame")
        elif footage.seconds < SHORT:
            notes.append("very short")
        if footage.seconds > LONG:
            notes.append(f"long ({footage.seconds / 60:.0f} min): Split Scenes cuts it into shots")
    if not useless:
        spans = ("black", seen.black, BLACK_SAID), ("nothing moves", seen.still, STILL_SAID)
        notes += [f"{what} from {a:.1f} to {b:.1f} s" for what, (a, b), least in spans if b - a >= least]
        if seen.brightness < DARK:
            notes.append(f"very dark (mean brightness {seen.brightness / 255:.0%})")
    if seen.sound:
        notes.append(f"its sound {seen.sound}")
    return notes


def _without_bars(clip: Clip, seen: _Seen, borders: str) -> Clip:
    """The clip with its bars cut off, or a note of where they are."""
    if seen.picture is None:
        return clip
    left, top, width, height = seen.picture
    size = f"{width}x{height} at {left},{top}"
    if borders == CROP:
        crop = Crop(left=left, top=top, width=width, height=height)
        return dataclasses.replace(clip, crop=crop, notes=(*clip.notes, f"bars cut off: {size} is used"))
    note = f"bars around the picture, which is {size}: set Borders to '{CROP}' to cut them off"
    return dataclasses.replace(clip, notes=(*clip.notes, note))


def _steps(clips: Sequence[Clip], listener: Listener) -> Iterator[Clip]:
    """The clips one by one, with a chance to stop before each and the time left, told by the frames that are left."""
    phase, start, seen = "Checking clips", time.monotonic(), 0
    every = sum(len(clip.footage.times) for clip in clips)
    for done, clip in enumerate(clips):
        left = (time.monotonic() - start) / seen * (every - seen) if seen else None
        listener.check()
        listener.report(Progress(phase=phase, done=done, total=len(clips), seconds_left=left, detail=clip.name))
        yield clip
        seen += len(clip.footage.times)
    listener.report(Progress(phase=phase, done=len(clips), total=len(clips), seconds_left=0.0))
