"""Video and image files: what is in them, their frames and sound as tensors. The one door to PyAV; Pillow for images.

T frames, P height and Q width in pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import logging
import statistics
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

log = logging.getLogger(__name__)

VIDEO_ENDINGS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"))
IMAGE_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))

# Only these containers are opened: FFmpeg also knows playlists and scripts, which name other files and addresses.
SAFE = {"format_whitelist": "mov,mp4,matroska,webm,avi,gif,mp3,wav,aac,flac,ogg", "protocol_whitelist": "file"}

# Numbers of FFmpeg's own, since older PyAV names only some of them.
# libswscale/swscale.h: Lanczos, accurate rounding, full chroma in and out. Measured on a zone plate brought from
# 1920x1080 to 854x480, against Pillow's Lanczos: off by 0.5 of 255, area by 14; without accurate rounding
# all are two levels too dark.
SCALING = 0x200 | 0x40000 | 0x4000 | 0x2000
# Matrix coefficients in a stream (ISO/IEC 23001-8) to libswscale's: BT.709, FCC, BT.601 in two guises, SMPTE 240M and
# BT.2020 in two.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT_709, BT_601 = 1, 5
LIMITED, FULL = 1, 2  # libavutil/pixfmt.h, AVColorRange
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ISO/IEC 23001-8 transfer characteristics
FAR_SECONDS = 5.0
"""How far into a file the first wanted frame must lie before seeking pays."""
SOUND_GAP = 0.05
"""Seconds by which the times of neighbouring pieces of sound may disagree before they count as a gap."""


class FootageError(ValueError):
    """A file that cannot be used: `reason` is the sentence without the file's name."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path.name}: {reason}.")
        self.reason = reason


class FootageEnds(FootageError):
    """Fewer frames decode than the file promises; the first `decoded` of them do."""

    def __init__(self, path: Path, decoded: int, promised: int):
        super().__init__(path, f"only {decoded} of {promised} frames decode")
        self.decoded = decoded


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of the upright picture, in square pixels from its left and top."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Footage:
    """One video or image file. Sizes are upright and in square pixels; times in seconds from the first frame."""

    path: Path
    kind: str
    """`video` or `image`."""
    width: int
    height: int
    times: tuple[float, ...]
    """When each frame is shown, rising; an image has the one time 0."""
    fps: float
    """Mean frame rate; 0 for an image."""
    has_audio: bool = False
    notes: tuple[str, ...] = ()
    origin: float | None = 0.0
    """The first frame's time in the file's own clock; None where frames carry no times and only their order counts."""
    orientation: tuple[bool, bool, bool] = (False, False, False)
    """What makes the stored picture upright, in this order: swap x and y, mirror left and right, turn upside down."""

    @property
    def seconds(self) -> float:
        """How long it lasts, the last frame included; 0 for an image."""
        return self.times[-1] + 1 / self.fps if self.fps else 0.0


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


def read_frames(footage: Footage, indexes: Sequence[int], width: int, height: int) -> Tensor:
    """The frames of `indexes` (into `footage.times`, in any order) as uint8 RGB (T, height, width, 3).

    Each is made upright, scaled to cover width x height and cropped to its middle. YUV becomes RGB by the stream's own
    matrix and range; where it names none, by BT.709 from 720 lines up and BT.601 below. Transparent parts become white.
    Memory: the result and two source frames beside what the decoder holds.
    Raises FootageEnds where the file ends, or stops decoding, before the last of them.
    """
    if footage.kind == "image":
        with _open_image(footage.path) as image:
            fitted = ImageOps.fit(_upright_rgb(image), (width, height), method=Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).expand(len(indexes), -1, -1, -1).contiguous()
    first = footage.times[min(indexes)]
    if first > FAR_SECONDS and footage.origin is not None:
        try:
            return _collect(footage, indexes, width, height, seek_to=first)
        except FootageEnds:  # a poor seek table can land behind the frame: from the start it is found or truly missing
            log.info("%s: seeking to %.1f s failed, reading from the start", footage.path.name, first)
    return _collect(footage, indexes, width, height, seek_to=None)


def read_sound(footage: Footage, start: float, seconds: float, rate: int) -> Tensor:
    """The sound from `start` on, in seconds from the first frame, as float32 (2, round(seconds * rate)) in -1..1.

    Brought to `rate` samples a second; one channel is doubled, more than two are mixed down. Silence where the file
    has no sound: before it begins, in gaps, after its end. Raises FootageError where there is none or none decodes.
    """
    wanted = torch.zeros(2, round(seconds * rate))
    found = False
    with _open_video(footage.path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise FootageError(footage.path, "there is no sound in it")
        zero = (footage.origin or 0.0) + start
        frames = _decoded(container, stream, zero - 1 if start > FAR_SECONDS else None)
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
    if path.suffix.lower() in IMAGE_ENDINGS or _is_still_gif(path):
        return _probe_image(path)
    try:
        with _open_video(path) as container:
            return _probe_video(path, container)
    except av.FFmpegError as error:
        raise FootageError(path, "not a video, or cut off before its index") from error


def _open_video(path: Path):
    return av.open(str(path), options=SAFE, metadata_errors="replace")


def _video_stream(container):
    """The first real video: a cover picture in a sound file is none."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def _probe_video(path: Path, container) -> Footage:
    stream = _video_stream(container)
    if stream is None:
        raise FootageError(path, "audio only" if container.streams.audio else "there is no picture in it")
    stamps, base, timed = _stamps(container, stream)
    if not stamps:
        raise FootageError(path, "there are no whole frames in it")
    times = tuple(float((stamp - stamps[0]) * base) for stamp in stamps)
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    if times[-1] and abs(fps * times[-1] / (len(times) - 1) - 1) > 0.005:  # what is declared is not what is there
        fps = (len(times) - 1) / times[-1]
    frame = next(_decoded(container, stream, seek_to=float(stamps[0] * base) if timed else 0.0), None)
    if frame is None:
        raise FootageError(path, "no frame of it can be decoded")
    orientation = _orientation(frame)
    width, height = _square_size(frame, stream)
    notes = _remarks(frame, stream, times)
    declared = float((stream.duration or 0) * stream.time_base)
    if len(times) < stream.frames and times[-1] + 2.5 / fps < declared:  # fewer alone may be an edit list's doing
        notes = (f"only {len(times)} of {stream.frames} frames are in the file: it is cut off", *notes)
    return Footage(
        path=path, kind="video", width=height if orientation[0] else width, height=width if orientation[0] else height,
        times=times, fps=fps, notes=notes, has_audio=bool(container.streams.audio),
        origin=float(stamps[0] * base) if timed else None, orientation=orientation,
    )


def _stamps(container, stream) -> tuple[list[int], Fraction, bool]:
    """When the frames are shown, rising, in units of the second value; False where only their order is known."""
    shown, decoded = [], []
    for packet in _packets(container, stream):
        if packet.size and not packet.is_corrupt and not packet.is_discard:  # discard: cut away by an edit list
            shown.append(packet.pts)
            decoded.append(packet.dts)
    if container.format.name == "avi":  # knows only the order; what FFmpeg gives as times is wrong with B-frames
        shown = decoded
    for stamps, timed in ((shown, shown is not decoded), (decoded, False)):
        if None not in stamps and len(set(stamps)) == len(stamps):
            return sorted(stamps), stream.time_base, timed
    return list(range(len(decoded))), 1 / (stream.average_rate or stream.guessed_rate or Fraction(25)), False


def _packets(container, stream) -> Iterator:
    """The stream's packets, up to where the file cannot be read any more."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.FFmpegError):
            return


def _decoded(container, stream, seek_to: float | None) -> Iterator:
    """Frames in the order they are shown, from the key frame at or before `seek_to` (seconds of the file's clock).

    What does not decode is left out: the caller sees it by the times.
    """
    if seek_to is not None:
        container.seek(int(seek_to / stream.time_base), stream=stream, backward=True)
    for packet in _packets(container, stream):
        if packet.is_corrupt:
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        yield from (frame for frame in frames if not frame.is_corrupt)
    try:
        yield from stream.decode(None)  # what the decoder still holds where the packets ended in an error
    except av.FFmpegError:
        return


def _collect(footage: Footage, indexes: Sequence[int], width: int, height: int, seek_to: float | None) -> Tensor:
    """Decode once and keep what is nearest to each wanted time."""
    pixels = np.empty((len(indexes), height, width, 3), np.uint8)
    order = sorted(range(len(indexes)), key=indexes.__getitem__)
    with _open_video(footage.path) as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        start = None if seek_to is None else footage.origin + seek_to
        frames = _with_times(footage, _decoded(container, stream, start))
        nearest = _nearest(footage, frames, [footage.times[indexes[position]] for position in order])
        scaler = VideoReformatter()  # one for all: setting up its filters takes as long as scaling a frame
        for position, frame in zip(order, nearest, strict=True):
            pixels[position] = _fit(frame, footage, width, height, scaler)
    return torch.from_numpy(pixels)


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


def _with_times(footage: Footage, frames: Iterator) -> Iterator[tuple[float, av.VideoFrame]]:
    if footage.origin is None:
        yield from zip(footage.times, frames, strict=False)
    else:
        yield from ((frame.time - footage.origin, frame) for frame in frames if frame.time is not None)


def _nearest(footage: Footage, frames: Iterator, wanted: Sequence[float]) -> Iterator[av.VideoFrame]:
    """For each of the rising `wanted` times the frame nearest to it. FootageEnds where it is over a frame away."""
    slack = 1.01 / footage.fps  # one frame: a second field and an invisible frame have times of their own
    before, after = (-1e9, None), next(frames, None)
    for time in wanted:
        while after is not None and after[0] <= time:
            before, after = after, next(frames, None)
        found, frame = before if after is None or time - before[0] <= after[0] - time else after
        if abs(found - time) > slack:
            raise FootageEnds(footage.path, bisect.bisect_right(footage.times, before[0] + 1e-4), len(footage.times))
        yield frame


def _fit(frame, footage: Footage, width: int, height: int, scaler: VideoReformatter) -> np.ndarray:
    """One frame as RGB (height, width, 3), covering the size and cropped to it."""
    turned, mirrored, upturned = footage.orientation
    across, down = (height, width) if turned else (width, height)
    stored = (footage.height, footage.width) if turned else (footage.width, footage.height)
    scale = max(across / stored[0], down / stored[1])
    covering = max(across, round(stored[0] * scale)), max(down, round(stored[1] * scale))
    rgb = _to_rgb(_on_white(frame) if _has_alpha(frame) else frame, *covering, scaler=scaler)
    left, top = (covering[0] - across) // 2, (covering[1] - down) // 2
    rgb = rgb[top : top + down, left : left + across]
    if turned:
        rgb = rgb.transpose(1, 0, 2)
    if mirrored:
        rgb = rgb[:, ::-1]
    if upturned:
        rgb = rgb[::-1]
    return rgb


def _to_rgb(frame, width: int, height: int, form: str = "rgb24", scaler: VideoReformatter | None = None) -> np.ndarray:
    high_definition = frame.width >= 1280 or frame.height >= 720
    matrix = MATRICES.get(frame.colorspace, BT_709 if high_definition else BT_601)
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
    other = BT_601 if matrix == BT_709 else BT_709  # RGB has no matrix, but before 17 PyAV heeds only a change of it
    return (scaler or VideoReformatter()).reformat(
        frame, width=width, height=height, format=form, src_colorspace=matrix, dst_colorspace=other,
        src_color_range=FULL if full else LIMITED, dst_color_range=FULL, interpolation=SCALING,
    ).to_ndarray()


def _has_alpha(frame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _on_white(frame) -> av.VideoFrame:
    """The frame without transparency, at its own size, RGB."""
    rgba = _to_rgb(frame, frame.width, frame.height, "rgba").astype(np.uint16)
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    return av.VideoFrame.from_ndarray(((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8), "rgb24")


def _orientation(frame) -> tuple[bool, bool, bool]:
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


def _square_size(frame, stream) -> tuple[int, int]:
    """Width and height in square pixels, as stored; the side that is too short is lengthened."""
    aspect = stream.sample_aspect_ratio or 1
    return round(frame.width * max(aspect, 1)), round(frame.height / min(aspect, 1))


def _remarks(frame, stream, times: tuple[float, ...]) -> tuple[str, ...]:
    """What a person should know of this footage."""
    notes = []
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    if len(gaps) > 1 and max(gaps) > 1.5 * statistics.median(gaps) + 0.002:
        notes.append("variable frame rate")
    if frame.interlaced_frame:
        notes.append("interlaced: both fields are kept")
    if hdr := HDR_TRANSFERS.get(stream.codec_context.color_trc):
        notes.append(f"HDR ({hdr}) is not tone-mapped: colours look flat")
    if _has_alpha(frame) and _to_rgb(frame, frame.width, frame.height, "rgba")[..., 3].min() < 255:
        notes.append("transparent parts become white")
    return tuple(notes)


def _is_still_gif(path: Path) -> bool:
    if path.suffix.lower() != ".gif":
        return False
    try:
        with Image.open(path, formats=("GIF",)) as image:
            return not image.is_animated
    except (OSError, SyntaxError, ValueError):
        return False  # FFmpeg has the say


def _probe_image(path: Path) -> Footage:
    with _open_image(path) as image:
        moving = getattr(image, "is_animated", False) and image.format in ("WEBP", "PNG", "GIF")
        transparent = image.has_transparency_data
        width, height = _upright_rgb(image).size
    notes = ("animated: only its first picture is used",) if moving else ()
    notes += ("transparent parts become white",) if transparent else ()
    return Footage(path=path, kind="image", width=width, height=height, times=(0.0,), fps=0.0, notes=notes)


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """The image, decoded whole. FootageError where it cannot be."""
    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except UnidentifiedImageError as error:
        raise FootageError(path, "not an image") from error
    except Image.DecompressionBombError as error:
        raise FootageError(path, "the image is too large") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise FootageError(path, "the image is cut off or broken") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, 8 bits a channel, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
