"""Video and image files: what is in them, their frames and sound as tensors.

T frames, P height and Q width in pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import logging
import statistics
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from .footage import Crop, Footage, FootageEnds, FootageError
from .image_file import IMAGE_ENDINGS, is_still, probe_image, read_image
from .video_colour import HDR_TRANSFERS, is_transparent, light_of, to_grey, to_rgb
from .video_stream import (
    FAR_SECONDS,
    UNREADABLE,
    can_deinterlace,
    cut_out,
    decoded,
    deinterlaced,
    open_video,
    orientation_of,
    packets_of,
    pixel_shape,
    video_stream,
    with_times,
)

__all__ = [
    "IMAGE_ENDINGS", "VIDEO_ENDINGS", "Crop", "Footage", "FootageEnds", "FootageError",
    "glance", "probe", "read_frames", "read_sound",
]

log = logging.getLogger(__name__)

VIDEO_ENDINGS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"))

SMALL = 64
"""Longest side of the pictures of `glance`, in pixels."""
SOUND_GAP = 0.05
"""Seconds by which the times of neighbouring pieces of sound may disagree before they count as a gap."""


def probe(path: Path) -> Footage:
    """What is in the file: sizes, the true time of every frame (read without decoding), whether it has sound.

    The first frame is decoded, to prove that it can be. The answer is remembered until the file changes.
    Raises FootageError, a ValueError, for an empty file, sound alone, a cut-off file, anything that does not decode.
    """
    path = Path(path)
    try:
        stat = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise FootageError(path, f"cannot be opened ({error.strerror or error})") from error
    if not stat.st_size:
        raise FootageError(path, "the file is empty")
    return _probe(path, stat.st_size, stat.st_mtime_ns)


def read_frames(
    footage: Footage, indexes: Sequence[int], width: int, height: int, crop: Crop | None = None
) -> Tensor:
    """The frames of `indexes` (into `footage.times`, in any order) as uint8 RGB (T, height, width, 3).

    Each is made upright, `crop` is cut out of it (inwards to whole pixels of the file's chroma), and what is left is
    scaled to cover width x height and cropped to its middle. Colours: `video_colour.to_rgb`. Interlaced footage is
    deinterlaced by FFmpeg's bwdif, one frame for each; where that is missing it is left as it is, which the notes say.
    Memory: the result and two source frames (four where it is interlaced) beside what the decoder holds, however long
    the file is. Far into a file, and over long stretches of which nothing is wanted, it is sought, not decoded.
    Raises FootageEnds where the file ends, or stops decoding, before the last of them, and FootageError where `crop`
    lies outside the picture.
    """
    if crop:
        footage.check(crop)
    if footage.kind == "image":
        pixels = torch.from_numpy(read_image(footage.path, width, height, crop))
        return pixels.expand(len(indexes), -1, -1, -1).contiguous()
    pixels = np.empty((len(indexes), height, width, 3), np.uint8)
    wanted = sorted(zip([footage.times[index] for index in indexes], pixels, strict=True), key=lambda each: each[0])
    for stretch in _stretches(wanted, seekable=footage.origin is not None):
        if footage.origin is None:
            _fill(footage, stretch, crop, quick=False)
            continue
        try:
            _fill(footage, stretch, crop, quick=True)
        except FootageEnds:  # a poor seek table can land behind the frame: from the start it is found or truly missing
            log.info("%s: reading again, all of it, to find %.1f s", footage.path.name, stretch[0][0])
            _fill(footage, stretch, crop, quick=False)
    return torch.from_numpy(pixels)


def glance(footage: Footage, every: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """Time and a small grey picture of every frame that decodes, or of each `every`-th: to look over a whole clip.

    Yields seconds from the first frame and luma uint8 (P, Q), 0 black, 255 white, upright, the longest side `SMALL`
    pixels. Interlaced footage stays so. One frame is held at a time. What does not decode is left out: then fewer
    frames than `footage.times` come.
    """
    scale = SMALL / max(footage.width, footage.height)
    width, height = max(1, round(footage.width * scale)), max(1, round(footage.height * scale))
    if footage.kind == "image":
        yield 0.0, read_frames(footage, [0], width, height)[0].float().mean(-1).round().to(torch.uint8).numpy()
        return
    stored = (height, width) if footage.orientation[0] else (width, height)
    with open_video(footage.path) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        scaler = VideoReformatter()
        frames = with_times(footage, decoded(container, stream, None))
        for time, frame in itertools.islice(frames, 0, None, every):
            yield time, _upright(to_grey(frame, *stored, scaler, footage.light), footage.orientation)


def read_sound(footage: Footage, start: float, seconds: float, rate: int) -> Tensor:
    """The sound from `start` on, in seconds from the first frame, as float32 (2, round(seconds * rate)) in -1..1.

    Brought to `rate` samples a second; one channel is doubled, more than two are mixed down. Silence where the file
    has no sound: before it begins, in gaps, after its end. Raises FootageError where there is none or none decodes.
    """
    wanted = torch.zeros(2, round(seconds * rate))
    found = False
    with open_video(footage.path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise FootageError(footage.path, "there is no sound in it")
        zero = (footage.origin or 0.0) + start
        frames = decoded(container, stream, zero - 1 if start > FAR_SECONDS else None)
        for place, samples in _sound_pieces(frames, stream.channels, zero, rate):
            found = True
            first, last = max(place, 0), min(place + samples.shape[1], wanted.shape[1])
            if first < last:
                wanted[:, first:last] = samples[:, first - place : last - place]
            if place >= wanted.shape[1]:
                break
    if not found:
        raise FootageError(footage.path, "its sound cannot be decoded")
    return wanted


@functools.lru_cache(maxsize=1024)
def _probe(path: Path, size: int, mtime_ns: int) -> Footage:
    """`size` and `mtime_ns` are there to be remembered by: a changed file is looked at again."""
    if is_still(path):
        return probe_image(path)
    try:
        with open_video(path) as container:
            return _probe_video(path, container)
    except av.FFmpegError as error:
        raise FootageError(path, UNREADABLE) from error


def _probe_video(path: Path, container) -> Footage:
    stream = video_stream(container)
    if stream is None:
        raise FootageError(path, "audio only" if container.streams.audio else "there is no picture in it")
    stamps, base, timed = _stamps(container, stream)
    if not stamps:
        raise FootageError(path, "there are no whole frames in it")
    times = tuple(float((stamp - stamps[0]) * base) for stamp in stamps)
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    if times[-1] and abs(fps * times[-1] / (len(times) - 1) - 1) > 0.005:  # what is declared is not what is there
        fps = (len(times) - 1) / times[-1]
    frame = next(decoded(container, stream, seek_to=float(stamps[0] * base) if timed else 0.0), None)
    if frame is None:
        raise FootageError(path, "no frame of it can be decoded")
    orientation = orientation_of(frame)
    square = pixel_shape(stream)
    width, height = round(frame.width * max(square, 1)), round(frame.height / min(square, 1))
    light = light_of(stream.codec_context)
    notes = _remarks(frame, light, times)
    declared = float((stream.duration or 0) * stream.time_base)
    if len(times) < stream.frames and times[-1] + 2.5 / fps < declared:  # fewer alone may be an edit list's doing
        notes = (f"only {len(times)} of {stream.frames} frames are in the file: it is cut off", *notes)
    return Footage(
        path=path, kind="video", width=height if orientation[0] else width, height=width if orientation[0] else height,
        times=times, fps=fps, notes=notes, has_audio=bool(container.streams.audio),
        origin=float(stamps[0] * base) if timed else None, orientation=orientation,
        light=light, interlaced=bool(frame.interlaced_frame),
    )


def _stamps(container, stream) -> tuple[list[int], Fraction, bool]:
    """When the frames are shown, rising, in units of the second value; False where only their order is known."""
    shown, decoded = [], []
    for packet in packets_of(container, stream):
        if packet.size and not packet.is_corrupt and not packet.is_discard:  # discard: cut away by an edit list
            shown.append(packet.pts)
            decoded.append(packet.dts)
    if container.format.name == "avi":  # knows only the order; what FFmpeg gives as times is wrong with B-frames
        shown = decoded
    for stamps, timed in ((shown, shown is not decoded), (decoded, False)):
        if None not in stamps and len(set(stamps)) == len(stamps):
            return sorted(stamps), stream.time_base, timed
    return list(range(len(decoded))), 1 / (stream.average_rate or stream.guessed_rate or Fraction(25)), False


def _stretches(wanted: Sequence[tuple[float, np.ndarray]], seekable: bool) -> list[list[tuple[float, np.ndarray]]]:
    """The wanted frames in order of time, parted where the next is far enough off to be sought."""
    stretches = [[wanted[0]]]
    for before, after in itertools.pairwise(wanted):
        if seekable and after[0] - before[0] > FAR_SECONDS:
            stretches.append([])
        stretches[-1].append(after)
    return stretches


def _fill(footage: Footage, wanted: Sequence[tuple[float, np.ndarray]], crop: Crop | None, quick: bool) -> None:
    """Decode once and draw what is nearest to each of the rising times into its array, uint8 RGB (P, Q, 3).

    Quick: seeks, and skips frames that are not wanted; FootageEnds where that does not lead to the very frames.
    """
    with open_video(footage.path) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        square = pixel_shape(stream)
        weaves = footage.interlaced and can_deinterlace()
        start = needed = None
        if quick and wanted[0][0] > FAR_SECONDS:
            start = footage.origin + wanted[0][0] - (2.5 / footage.fps if weaves else 0)  # the deinterlacer looks back
        if quick and not weaves:
            needed = {round((footage.origin + time) / stream.time_base) for time, _ in wanted}
        frames = decoded(container, stream, start, needed)
        if weaves:
            frames = deinterlaced(frames)
        # One frame: a second field and an invisible frame have times of their own.
        slack = 1e-4 if needed else 1.01 / footage.fps
        nearest = _nearest(footage, with_times(footage, frames), [time for time, _ in wanted], slack)
        if crop:
            nearest = cut_out(nearest, footage, crop)
        scaler = VideoReformatter()  # one for all: setting up its filters takes as long as scaling a frame
        for (_, pixels), frame in zip(wanted, nearest, strict=True):
            pixels[:] = _fit(frame, footage, pixels.shape[1], pixels.shape[0], scaler, square)


def _sound_pieces(frames: Iterator, channels: int, zero: float, rate: int) -> Iterator[tuple[int, Tensor]]:
    """Sound (2, N), or (1, N) of one channel, and the sample at which it begins, counted from `zero` seconds.

    Pieces join without a seam unless their times leave a gap or overlap of over `SOUND_GAP`: many files round times.
    """
    layout = "mono" if channels == 1 else "stereo"  # FFmpeg would double one channel at 0.7 times its loudness
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    place = None
    with contextlib.suppress(ValueError):  # the format changes on the way: what follows stays silent
        for frame in itertools.chain(frames, (None,)):
            for piece in resampler.resample(frame):
                told = place if piece.time is None else round((piece.time - zero) * rate)
                if place is None or abs(told - place) > SOUND_GAP * rate:
                    place = told or 0
                yield place, torch.from_numpy(piece.to_ndarray())
                place += piece.samples


def _nearest(footage: Footage, frames: Iterator, wanted: Sequence[float], slack: float) -> Iterator[av.VideoFrame]:
    """For each of the rising `wanted` times the frame nearest to it. FootageEnds where that is over `slack` s away."""
    before, after = (-1e9, None), next(frames, None)
    for time in wanted:
        while after is not None and after[0] <= time:
            before, after = after, next(frames, None)
        found, frame = before if after is None or time - before[0] <= after[0] - time else after
        if abs(found - time) > slack:
            raise FootageEnds(footage.path, bisect.bisect_right(footage.times, before[0] + 1e-4), len(footage.times))
        yield frame


def _fit(frame, footage: Footage, width: int, height: int, scaler: VideoReformatter, square: float) -> np.ndarray:
    """One frame as RGB (height, width, 3), covering the size and cropped to it. `square`: as `pixel_shape`."""
    across, down = (height, width) if footage.orientation[0] else (width, height)
    stored = frame.width * max(square, 1), frame.height / min(square, 1)
    scale = max(across / stored[0], down / stored[1])
    covering = max(across, round(stored[0] * scale)), max(down, round(stored[1] * scale))
    rgb = to_rgb(frame, *covering, scaler, footage.light)
    left, top = (covering[0] - across) // 2, (covering[1] - down) // 2
    return _upright(rgb[top : top + down, left : left + across], footage.orientation)


def _upright(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """A picture (P, Q) or (P, Q, 3) as stored, the right way up."""
    turned, mirrored, upturned = orientation
    if turned:
        picture = picture.swapaxes(0, 1)
    return picture[:: -1 if upturned else 1, :: -1 if mirrored else 1]


def _remarks(frame, light: str, times: tuple[float, ...]) -> tuple[str, ...]:
    """What a person should know of this footage."""
    notes = []
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    if len(gaps) > 1 and max(gaps) > 1.5 * statistics.median(gaps) + 0.002:
        notes.append("variable frame rate")
    if frame.interlaced_frame:
        notes.append(f"interlaced: {'deinterlaced' if can_deinterlace() else 'both fields are kept'}")
    if light:
        notes.append(f"{f'HDR ({light})' if light in HDR_TRANSFERS.values() else light} brought to SDR BT.709")
    if is_transparent(frame):
        notes.append("transparent parts become white")
    return tuple(notes)
