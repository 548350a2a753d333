"""Files as they turn up in people's folders, broken, odd and merely unusual: each name with what writes it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from footage import counter_frame, cut_off, fields, write_sound, write_video, zeroed
from PIL import Image

QUARTER_TURN = (0, 1 << 16, -(1 << 16), 0)  # a phone held upright
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
QUICK = {"preset": "ultrafast"}
VARIABLE_TIMES = np.cumsum(np.random.default_rng(3).choice([1 / 60, 1 / 30, 1 / 24, 1 / 12], 60))


def without_index(path: Path) -> None:
    """A download that was broken off: an mp4 whose index, at its end, never came."""
    whole = write_video(path.with_name("whole.tmp.mp4"))
    cut_off(whole, path, 0.5)
    whole.unlink()


def cut_short(path: Path) -> None:
    """An mp4 with its index in front, and 60 % of the rest."""
    cut_off(write_video(path, frames=120, faststart=True), path, 0.6)


def zeros_at_the_end(path: Path) -> None:
    """Of full length, with zeros for the last 40 %."""
    zeroed(write_video(path, frames=120, faststart=True), path, 0.6)


def without_pictures(path: Path) -> Path:
    """An intact index, and zeros for every frame."""
    data = write_video(path, faststart=True).read_bytes()
    return zeroed(path, path, (data.index(b"mdat") + 4) / len(data))


def damaged(path: Path) -> None:
    """One frame in the middle overwritten with noise."""
    write_video(path, frames=120, options={"preset": "ultrafast", "g": "10"}, faststart=True)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(bytes(data))


def with_cover(path: Path) -> Path:
    """A sound file (mp3) with a cover picture in it."""
    Image.new("RGB", (32, 32), "red").save(path.with_suffix(".tmp.png"))
    write_sound(path.with_suffix(".tmp.mka"), codec="libmp3lame")
    with (
        av.open(str(path.with_suffix(".tmp.mka"))) as sound,
        av.open(str(path.with_suffix(".tmp.png"))) as picture,
        av.open(str(path), "w", format="mp3") as container,
    ):
        audio = container.add_stream_from_template(sound.streams.audio[0])
        cover = container.add_stream_from_template(picture.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic.value
        for source, stream in ((picture, cover), (sound, audio)):
            for packet in source.demux():
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    path.with_suffix(".tmp.png").unlink()
    path.with_suffix(".tmp.mka").unlink()
    return path


def transparent(path: Path) -> Path:
    """A mov of 10 frames, 64x64, whose left half is transparent and whose right half is red."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "argb"
        picture = np.zeros((64, 64, 4), np.uint8)
        picture[:, 32:] = (200, 0, 0, 255)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="argb")))
        container.mux(stream.encode(None))
    return path


def interlaced(path: Path) -> None:
    def draw(number, width, height):
        return fields(number, width, height, counter_frame)

    write_video(path, draw=draw, fps=25, options={"crf": "12", "x264-params": "bff=1"})


def animated(path: Path) -> None:
    frames = [Image.fromarray(counter_frame(number)) for number in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)


def half_an_image(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    cut_off(path, path, 0.5)


def huge_image(path: Path) -> None:
    """A PNG of a few bytes that says it is 60000 x 60000."""
    Image.new("L", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(bytes(data))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.mp4": (without_index, "not a video, or cut off before its index"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.mp4": (lambda path: path.write_bytes(b"This is a text. " * 99), "not a video, or cut off before its index"),
    "page.mp4": (
        lambda path: path.write_bytes(b"<!DOCTYPE html><html><title>404</title></html>"),
        "not a video, or cut off before its index",
    ),
    "playlist.mp4": (lambda path: path.write_bytes(PLAYLIST), "not a video, or cut off before its index"),
    "noise.mkv": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(50000)), "not a video, or cut off before its index"
    ),
    "sound only.mp4": (write_sound, "audio only"),
    "sound with a cover.mp4": (with_cover, "audio only"),
    "no pictures.mp4": (without_pictures, "no frame of it can be decoded"),
    "a folder.mp4": (lambda path: path.mkdir(), "cannot be opened"),
    "empty.png": (lambda path: path.write_bytes(b""), "the file is empty"),
    "not there.mp4": (lambda path: None, "cannot be opened"),
    "half.png": (half_an_image, "the image is cut off or broken"),
    "huge.png": (huge_image, "the image is too large"),
    "text.jpg": (lambda path: path.write_bytes(b"text"), "not an image"),
}
"""Files that cannot be used: what writes each, and how the reason begins."""

ODD: dict[str, Callable[[Path], object]] = {
    "cut short.mp4": cut_short,
    "zeros at the end.mp4": zeros_at_the_end,
    "damaged.mp4": damaged,
    "one frame.mp4": lambda path: write_video(path, frames=1),
    "a fifth of a second.mp4": lambda path: write_video(path, frames=5, fps=25),
    "a minute.mp4": lambda path: write_video(path, frames=960, size=(80, 48), options=QUICK),
    "variable rate.mp4": lambda path: write_video(path, frames=60, times=VARIABLE_TIMES - VARIABLE_TIMES[0]),
    "120 fps.mp4": lambda path: write_video(path, frames=120, fps=120, options=QUICK),
    "late start.mkv": lambda path: write_video(path, frames=20, times=3 + np.arange(20) / 10),
    "turned.mov": lambda path: write_video(path, matrix=QUARTER_TURN),
    "odd sizes.mkv": lambda path: write_video(path, size=(161, 97), codec="ffv1"),
    "wide pixels.mkv": lambda path: write_video(path, aspect=Fraction(4, 3)),
    "tiny.mkv": lambda path: write_video(path, size=(16, 16), codec="ffv1"),
    "interlaced.mp4": interlaced,
    "ten bits.mp4": lambda path: write_video(
        path, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"}
    ),
    "hdr pq.mkv": lambda path: write_video(path, codec="ffv1", pix_fmt="yuv420p10le", colour=(9, 1, 16, 9)),
    "hdr hlg.mkv": lambda path: write_video(path, codec="ffv1", pix_fmt="yuv420p10le", colour=(9, 1, 18, 9)),
    "wide gamut.mkv": lambda path: write_video(path, codec="ffv1", pix_fmt="yuv420p10le", colour=(9, 1, 14, 9)),
    "grey.mkv": lambda path: write_video(path, codec="ffv1", pix_fmt="gray"),
    "transparent.mov": transparent,
    "with sound.mp4": lambda path: write_video(path, sound=440.0),
    "motion jpeg.avi": lambda path: write_video(path, codec="mjpeg", pix_fmt="yuvj420p", options={"qmin": "2"}),
    "ünïcode 猫 🎬.mp4": write_video,
    "UPPER CASE.MP4": write_video,
    "two.dots.mp4": write_video,
    "animated.webp": animated,
}
"""Files that can be used, each with something to it."""
