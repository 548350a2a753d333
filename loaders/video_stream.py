"""Video streams through PyAV: opened safely, decoded, given their times, deinterlaced, cropped and set upright.

P height and Q width in pixels.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Iterator, Set
from fractions import Fraction
from pathlib import Path

import av
import av.filter

from .footage import Crop, Footage, FootageError

# Only these containers are opened: FFmpeg also knows playlists and scripts, which name other files and addresses.
SAFE = {"format_whitelist": "mov,mp4,matroska,webm,avi,gif,mp3,wav,aac,flac,ogg", "protocol_whitelist": "file"}

UNREADABLE = "not a video, or cut off before its index"
FAR_SECONDS = 5.0
"""How far into a file the first wanted frame must lie before seeking pays."""
CLOCK = Fraction(1, 90000)
DEINTERLACER = "bwdif"


def open_video(path: Path):
    """A container for reading, of the known kinds only. FootageError where it is none, or is gone."""
    try:
        return av.open(str(path), options=SAFE, metadata_errors="replace")
    except av.FFmpegError as error:
        gone = isinstance(error, OSError)
        reason = f"cannot be read any more ({error.strerror})" if gone else UNREADABLE
        raise FootageError(path, reason) from error


def video_stream(container):
    """The first real video: a cover picture in a sound file is none."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def packets_of(container, stream) -> Iterator:
    """The stream's packets, up to where the file cannot be read any more."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.FFmpegError):
            return


def decoded(container, stream, seek_to: float | None, needed: Set[int] | None = None) -> Iterator:
    """Frames in the order they are shown, from the key frame at or before `seek_to` (seconds of the file's clock), else
    from the first.

    What does not decode is left out: the caller sees it by the times. With `needed`, times in the stream's units, a
    frame that is not among them and that no other frame is predicted from need not be decoded.
    """
    if seek_to is not None:
        try:
            container.seek(int(seek_to / stream.time_base), stream=stream, backward=True)
        except av.FFmpegError:  # Matroska finds nothing before a stream's first packet: sound that begins late
            with contextlib.suppress(av.FFmpegError):
                container.seek(0, stream=stream, backward=False)
    if needed is not None:
        stream.codec_context.open(strict=False)  # dav1d (AV1) would go on as it was told when it was opened
    for packet in packets_of(container, stream):
        if packet.is_corrupt:
            continue
        if needed is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        yield from (frame for frame in frames if not frame.is_corrupt)
    try:
        yield from stream.decode(None)  # what the decoder still holds where the packets ended in an error
    except av.FFmpegError:
        return


def with_times(footage: Footage, frames: Iterator) -> Iterator[tuple[float, av.VideoFrame]]:
    """Each frame with its seconds from the footage's first."""
    if footage.origin is None:
        yield from zip(footage.times, frames, strict=False)
    else:
        yield from ((frame.time - footage.origin, frame) for frame in frames if frame.time is not None)


def can_deinterlace() -> bool:
    return DEINTERLACER in av.filter.filters_available


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Frames whose second field's lines are drawn anew from their neighbours in place and time; whole ones as they are.

    One frame for each, with its time, so motion keeps its speed. Looks one frame back and one ahead.
    """
    return _filtered(frames, lambda frame: (DEINTERLACER, "mode=send_frame:deint=interlaced"))


def cut_out(frames: Iterator[av.VideoFrame], footage: Footage, crop: Crop) -> Iterator[av.VideoFrame]:
    """That part of each frame, inwards to whole pixels of its chroma. Nothing is copied."""
    turned, mirrored, upturned = footage.orientation
    left = footage.width - crop.left - crop.width if mirrored else crop.left
    top = footage.height - crop.top - crop.height if upturned else crop.top
    sides = (left, left + crop.width, footage.width), (top, top + crop.height, footage.height)
    across, down = reversed(sides) if turned else sides

    def part(frame) -> tuple[str, str]:
        x, width = _inwards(*across, frame.width, 8 // frame.format.chroma_width(8))
        y, height = _inwards(*down, frame.height, 8 // frame.format.chroma_height(8))
        return "crop", f"{width}:{height}:{x}:{y}"

    return _filtered(frames, part)


def _inwards(start: int, end: int, whole: int, pixels: int, step: int) -> tuple[int, int]:
    """A stretch of a side that is `whole` long as first pixel and count on its `pixels`, in steps, but to its end."""
    first = math.ceil(start * pixels / whole / step - 1e-6) * step
    last = pixels if end == whole else math.floor(end * pixels / whole / step + 1e-6) * step
    first = min(first, pixels - step)
    return first, max(last - first, step)


def _filtered(
    frames: Iterator[av.VideoFrame], filter_for: Callable[[av.VideoFrame], tuple[str, str]]
) -> Iterator[av.VideoFrame]:
    """Frames through a filter, which is set up anew (name, options) where their size or format changes."""
    graph = shape = None
    for frame in frames:
        if shape != (frame.width, frame.height, frame.format.name):
            if graph:
                yield from _pulled(graph, None)
            graph, shape = av.filter.Graph(), (frame.width, frame.height, frame.format.name)
            source = graph.add_buffer(None, *shape, time_base=frame.time_base or CLOCK)
            graph.link_nodes(source, graph.add(*filter_for(frame)), graph.add("buffersink")).configure()
        yield from _pulled(graph, frame)
    if graph:
        yield from _pulled(graph, None)


def _pulled(graph: av.filter.Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """What comes out of a graph when a frame, or the end, goes in."""
    graph.vpush(frame)
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.vpull()


def orientation_of(frame) -> tuple[bool, bool, bool]:
    """As `Footage.orientation`, from the display matrix: x' = a x + c y, y' = b x + d y (FFmpeg, libavutil/display.h).

    Not to be asked of every frame: PyAV then keeps each in memory until Python next collects garbage.
    """
    try:
        matrix = frame.side_data["DISPLAYMATRIX"]
    except KeyError:
        return False, False, False
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def pixel_shape(stream) -> Fraction:
    """How many times as wide as high a stored pixel is shown. In square pixels the side that is too short is longer."""
    return stream.sample_aspect_ratio or Fraction(1)
