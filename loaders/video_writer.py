"""Shots of a film: its frames seen small, and stretches of it written as files of their own, visually lossless.

What is written is H.264 at crf 8 in an mp4, with the times, chroma, bit depth (8 or 10), colour tags, pixel shape,
field order and rotation of the source, and its sound as stereo AAC.
"""

from __future__ import annotations

import itertools
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from torch import Tensor

from .footage import Footage, FootageError
from .video_colour import AREA, LANCZOS, is_transparent
from .video_file import read_sound
from .video_stream import FAR_SECONDS, decoded, open_video, video_stream, with_times
from .whole_file import whole_file

ENCODER = "libx264"
OPTIONS = {"crf": "8", "preset": "veryfast", "g": "48", "mbtree": "0"}
"""Close key frames, since training jumps into clips. Without macroblock trees the same film gives the same bytes, which
the feature cache goes by. Measured on real footage: PSNR of every frame 45 dB or more."""
NATIVE = frozenset(f"yuv{chroma}p{depth}" for chroma in ("420", "422", "444") for depth in ("", "10le")) | frozenset(
    f"yuvj{chroma}p" for chroma in ("420", "422", "444")
)
"""Pixel formats that the encoder takes as they are."""
SOUND_RATE = 48000
SOUND_BITS = 320_000  # a second
SOUND_OPTIONS = {"aac_coder": "fast"}  # the other takes several times as long and is no nearer to the source
EARLY = 1e-4
"""Seconds by which a frame's time may come before the time noted for it."""
BT_709, LIMITED, FULL = 1, 1, 2  # libavutil/pixfmt.h
BOTTOM_FIRST = (3, 4)  # libavcodec/defs.h, AVFieldOrder: both orders in which the lower field is shown first


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came out of one stretch: its frames, and what a person should know of it."""

    frames: int
    notes: tuple[str, ...] = ()


def check_encoder() -> None:
    """ValueError where this build of PyAV cannot write H.264."""
    try:
        av.codec.Codec(ENCODER, "w")
    except ValueError as error:  # av.codec.codec.UnknownCodecError
        raise ValueError(
            f"This build of PyAV has no H.264 encoder ({ENCODER}), so shots cannot be written: "
            "run `pip install --force-reinstall --no-deps av` to get the usual one."
        ) from error


def small_frames(footage: Footage, side: int) -> Iterator[tuple[int, np.ndarray]]:
    """Number (into `footage.times`) and blue-green-red picture, uint8 (P, Q, 3), of every frame that decodes.

    As stored, not turned upright, the longer side at most `side` pixels. One frame is held at a time.
    """
    with _Film(footage) as film:
        scaler = VideoReformatter()
        for number, frame in film.frames():
            scale = min(1.0, side / max(frame.width, frame.height))
            size = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
            yield number, scaler.reformat(frame, *size, "bgr24", interpolation=AREA).to_ndarray()


def write_stretches(
    footage: Footage, stretches: Sequence[tuple[int, int, Path]]
) -> Iterator[tuple[int, Path, Written | None]]:
    """Write each stretch (first frame, last frame excluded, file), in rising order, decoding the film once.

    Yields (1, file, None) after each frame, and (0, file, what came out) when the file is whole; whoever stops in
    between and closes this leaves no part of a file. The source is only read.
    Raises FootageError where nothing of a stretch decodes or the encoder refuses it, OSError where the disk cannot be
    written.
    """
    with _Film(footage) as film:
        for first, last, path in stretches:
            try:
                yield from _write(film, first, last, path)
            except av.FFmpegError as error:
                reason = f"the shot from {footage.times[first]:.2f} s on cannot be encoded ({error})"
                raise FootageError(footage.path, reason) from error


class _Film:
    """A film that is being read from front to back, jumping over what is far ahead."""

    def __init__(self, footage: Footage):
        self.footage = footage
        self._times = [time - EARLY for time in footage.times]
        self._open()

    def _open(self) -> None:
        self._container = open_video(self.footage.path)
        self.stream = video_stream(self._container)
        self.stream.thread_type = "AUTO"
        self._frames = self._numbered(None)
        self._at = 0

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, *error) -> None:
        self._container.close()

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames that are left, each with its number."""
        for number, frame in self._frames:
            self._at = number + 1
            yield number, frame

    def between(self, first: int, last: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of a stretch that decode; it must not begin before the last one ended."""
        self._jump(first)
        for number, frame in self.frames():
            if number >= last:
                self._frames = itertools.chain([(number, frame)], self._frames)
                return
            if number >= first:
                yield number, frame

    def _jump(self, first: int) -> None:
        times, origin = self.footage.times, self.footage.origin
        if origin is None or times[first] - times[min(self._at, first)] <= FAR_SECONDS:
            return
        self._frames = self._numbered(origin + times[first])
        found = next(self._frames, None)
        if found is None or found[0] > first:  # a poor seek table can land behind the frame
            self._container.close()
            self._open()
        else:
            self._frames = itertools.chain([found], self._frames)

    def _numbered(self, seek_to: float | None) -> Iterator[tuple[int, av.VideoFrame]]:
        for time, frame in with_times(self.footage, decoded(self._container, self.stream, seek_to)):
            number = bisect_right(self._times, time) - 1
            if number >= 0:  # what is before the first is cut away by an edit list
                yield number, frame


def _write(film: _Film, first: int, last: int, path: Path) -> Iterator[tuple[int, Path, Written | None]]:
    footage, count, notes = film.footage, 0, []
    frames = film.between(first, last)
    head = next(frames, None)
    if head is None:
        raise FootageError(footage.path, f"nothing decodes from {footage.times[first]:.2f} s on")
    with whole_file(path) as file:
        with av.open(file.name, "w", format="mp4", options={"movflags": "faststart"}) as target:
            picture = _Picture(film, head[1], target)
            if footage.has_audio:  # first, so that the writer can lay it between the pictures
                sound = sound_stream(target)
                notes += _write_sound(target, sound, footage, head[0], last)
            for number, frame in itertools.chain([head], frames):
                target.mux(picture.encode(number - head[0], frame))
                count += 1
                yield 1, path, None
            target.mux(picture.encode(None, None))
        if any(footage.orientation):
            _write_orientation(Path(file.name), footage.orientation, head[1].width, head[1].height)
    missing = last - first - count
    notes += [f"{missing} frame{'s do' if missing > 1 else ' does'} not decode"] if missing else []
    yield 0, path, Written(frames=count, notes=(*picture.notes, *notes))


class _Picture:
    """The picture of one file, set up like the frames of the source."""

    def __init__(self, film: _Film, frame: av.VideoFrame, target):
        footage, source = film.footage, film.stream.codec_context
        rate = film.stream.average_rate or film.stream.guessed_rate or Fraction(25)
        self._stream = target.add_stream(ENCODER, rate=rate)
        context = self._stream.codec_context
        context.width, context.height = frame.width, frame.height
        self._form = context.pix_fmt = _form(frame)
        self._timed = footage.origin is not None
        self._base = context.time_base = frame.time_base if self._timed else 1 / rate
        self._zero = frame.pts
        self._scaler = VideoReformatter()
        self._rgb = frame.format.is_rgb or frame.format.has_palette
        self.notes = self._remarks(frame)
        if film.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = film.stream.sample_aspect_ratio
        context.colorspace = BT_709 if self._rgb else frame.colorspace
        context.color_range = LIMITED if self._rgb else frame.color_range
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
        self._stream.options = dict(OPTIONS)
        if frame.interlaced_frame:
            below = getattr(source, "field_order", 0) in BOTTOM_FIRST  # PyAV tells it since 15
            self._stream.options["x264-params"] = "bff=1" if below else "tff=1"

    def encode(self, place: int | None, frame: av.VideoFrame | None) -> list:
        """Packets of one frame, `place` frames into the file; of what the encoder still holds, where it is None."""
        if frame is None:
            return self._stream.encode(None)
        shown = frame.pts - self._zero if self._timed else place
        if frame.format.name != self._form:
            frame = self._reformat(frame)
        frame.pts, frame.time_base = shown, self._base
        frame.pict_type = 0  # else the encoder repeats the source's kinds of frames
        return self._stream.encode(frame)

    def _reformat(self, frame: av.VideoFrame) -> av.VideoFrame:
        levels = frame.color_range or LIMITED
        before, after = (FULL, LIMITED) if self._rgb else (levels, levels)
        return self._scaler.reformat(
            frame, format=self._form, dst_colorspace=BT_709 if self._rgb else None,
            src_color_range=before, dst_color_range=after, interpolation=LANCZOS,
        )

    def _remarks(self, frame: av.VideoFrame) -> tuple[str, ...]:
        notes = ("transparency is lost",) if is_transparent(frame) else ()
        deepest = max(part.bits for part in frame.format.components)
        return (*notes, f"{deepest} bits become 10") if deepest > 10 else notes


def _form(frame: av.VideoFrame) -> str:
    """The encoder's pixel format that holds all of the frame's."""
    form = frame.format
    odd = frame.width % 2, frame.height % 2
    if form.name in NATIVE and not (any(odd) and "444" not in form.name):
        return form.name
    deep = "10le" if max(part.bits for part in form.components) > 8 else ""
    grey = len(form.components) == 1 and not form.has_palette
    halved = not any(odd) and (grey or form.chroma_width(8) < 8 and not form.is_rgb)
    if not halved:
        return f"yuv444p{deep}"
    return f"yuv420p{deep}" if grey or form.chroma_height(8) < 8 else f"yuv422p{deep}"


def _write_sound(target, stream, footage: Footage, first: int, last: int) -> tuple[str, ...]:
    """Mux the sound of a stretch; a note where it cannot be read and is silent."""
    start = footage.times[first]
    seconds = (footage.times[last] if last < len(footage.times) else footage.seconds) - start
    try:
        sound = read_sound(footage, start, seconds, SOUND_RATE)
    except FootageError as error:
        return (error.reason,)
    mux_sound(target, stream, sound)
    return ()


def sound_stream(target: av.container.OutputContainer, rate: int = SOUND_RATE) -> av.AudioStream:
    """A stereo stream of so many samples a second in a file that is being written."""
    stream = target.add_stream("aac", rate=rate, layout="stereo")
    stream.bit_rate, stream.options = SOUND_BITS, dict(SOUND_OPTIONS)
    return stream


def mux_sound(target: av.container.OutputContainer, stream: av.AudioStream, sound: Tensor) -> None:
    """Write all of a stream's sound (2, N), -1..1."""
    rate = stream.rate
    for place in range(0, sound.shape[1], rate):
        target.mux(stream.encode(_sound_frame(sound[:, place : place + rate], place, rate)))
    target.mux(stream.encode(None))


def _sound_frame(samples: Tensor, place: int, rate: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.numpy()), "fltp", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
    return frame


def _write_orientation(path: Path, orientation: tuple[bool, bool, bool], width: int, height: int) -> None:
    """Put what makes the picture upright into the header of its track (ISO/IEC 14496-12, 8.3.2).

    By hand, since PyAV can do it only from 18 on. The picture is the first track.
    """
    turned, mirrored, upturned = orientation
    across, down = (height, width) if turned else (width, height)
    left, top = -1 if mirrored else 1, -1 if upturned else 1
    a, b, c, d = (0, top, left, 0) if turned else (left, 0, 0, top)
    moved = across * mirrored, down * upturned  # back to where x and y are positive
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, moved[0] << 16, moved[1] << 16, 1 << 30]
    with path.open("r+b") as file:
        start, end = 0, path.stat().st_size
        for name in (b"moov", b"trak", b"tkhd"):
            start, end = _box(file, name, start, end)
        file.seek(start)
        long = file.read(1) == b"\1"  # version 1 has times of 8 bytes
        file.seek(start + (52 if long else 40))
        file.write(struct.pack(">9i", *matrix))


def _box(file, name: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of the first box of this name lies, between `start` and `end`."""
    while start < end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        if kind == name:
            return start + head, start + size
        start += size
    raise OSError(f"there is no {name.decode()} in {file.name}")
