"""A folder of files as people have them: what becomes of each, and what its owner is told, as a Markdown table.

    python tests/nasty_files.py
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from footage import cut_off, write_sound, write_video, zeroed
from PIL import Image

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.dataset.checks import check_clips
from video_lora_studio.training.dataset.clip_set import ClipSet, clip_line, left_out_line
from video_lora_studio.training.dataset.scan import scan

SIZE = (96, 64)


@dataclass(frozen=True)
class Nasty:
    """One file: what it is, whether it must be used, and words that its line of the report must hold."""

    name: str
    what: str
    used: bool
    told: tuple[str, ...] = ()


def scene(seed: int, light: float = 1.0, bars: int = 0) -> Callable[[int, int, int], np.ndarray]:
    """Draws coloured patches, others for each seed, that move to the right by a pixel a frame."""
    patches = np.random.default_rng(seed).integers(30, 226, (4, 6, 3))

    def draw(number: int, width: int, height: int) -> np.ndarray:
        rows, columns = np.arange(height) * 4 // height, (np.arange(width) + number) % width * 6 // width
        picture = (patches[rows][:, columns] * light).astype(np.uint8)
        if bars:
            picture[:bars] = picture[height - bars :] = 0
        return picture

    return draw


def still(number: int, width: int, height: int) -> np.ndarray:
    return scene(77)(0, width, height)


def black(number: int, width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


class Maker:
    """Writes files into a folder, and keeps what is expected of each."""

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, []

    def expect(self, name: str, what: str, used: bool, *told: str) -> Path:
        self.rows.append(Nasty(name, what, used, told))
        return self.folder / name

    def clip(self, name: str, what: str, *told: str, used: bool = True, text: bytes | None = b"words", **how) -> Path:
        """A clip of its own pictures with a caption beside it; `how` goes to `write_video`."""
        path = self.expect(name, what, used, *told)
        path.parent.mkdir(exist_ok=True)
        write_video(path, **({"frames": 24, "size": SIZE, "draw": scene(len(self.rows))} | how))
        if text is not None:
            path.with_suffix(".txt").write_bytes(text)
        return path


def write_nasty_files(folder: Path) -> list[Nasty]:
    """Fill the folder; what is expected of each file that needs a line of its own."""
    make = Maker(folder)
    long = {"frames": 96, "faststart": True}
    whole = make.clip("whole.mp4", "nothing wrong with it", "96x64, 6.0 s at 16 fps", "words", **long)
    _broken(make, whole, long)
    _footage(make)
    _captions(make)
    _contents(make, whole)
    _places(make)
    return make.rows


def _broken(make: Maker, whole: Path, long: dict) -> None:
    cut_off(whole, make.expect("cut off.mp4", "truncated, its index in front", True, "it is cut off"), 0.6)
    late = make.clip("index last.mp4", "nothing wrong with it")
    cut_off(late, make.expect("no index.mp4", "truncated, its index was at the end", False, "cut off before its"), 0.6)
    zeros = make.clip("zeros.mp4", "more frames declared than decode", "frames decode: the rest", **long)
    zeroed(zeros, zeros, 0.6)
    make.expect("empty.mp4", "empty", False, "the file is empty").touch()
    make.expect("words.mp4", "a text named .mp4", False, "not a video").write_text("not a film " * 50, "utf-8")
    write_sound(make.expect("song.mp4", "sound without a picture", False, "audio only"))
    make.expect("song.mp3", "a sound file", False, "audio only").write_bytes(b"ID3")
    make.expect("half.jpg", "half a picture", False, "not an image").write_bytes(b"\xff\xd8\xff\xe0")
    make.expect("notes.pdf", "not footage at all", False, "not a video or image").write_bytes(b"%PDF")


def _footage(make: Maker) -> None:
    make.clip("one frame.mp4", "one frame", "a single frame", frames=1)
    make.clip("blink.mp4", "0.2 s", "0.2 s", "very short", frames=5, fps=25)
    make.clip("minute.mp4", "60 s", "60.0 s", frames=480, fps=8)
    make.clip("reel.mp4", "200 s", "long (3 min)", "Split Scenes", frames=400, fps=2)
    times = np.cumsum([0.03, 0.08, 0.04, 0.15] * 6)
    make.clip("phone.mp4", "variable frame rate", "variable frame rate", times=times)
    make.clip("upright.mov", "rotated by its header", "64x96", matrix=(0, 1 << 16, -(1 << 16), 0))
    make.clip("odd.mkv", "odd width and height", "81x47", size=(81, 47), codec="ffv1", pix_fmt="yuv444p")
    make.clip("ten bit.mkv", "10 bits a channel", "words", codec="ffv1", pix_fmt="yuv420p10le")
    make.clip("hdr.mp4", "HDR (PQ, BT.2020)", "HDR (PQ)", pix_fmt="yuv420p10le", colour=(9, 1, 16))
    make.clip("猫 naïve (1) #2.webm", "non-ASCII name", "words", codec="libvpx-vp9")
    make.clip("old.avi", "MPEG-4 in AVI", "words", codec="mpeg4")
    make.clip("silent.mp4", "a silent sound track", "its sound is silent", sound=True)
    make.clip("loud.mp4", "with sound", "with sound", sound=440.0)
    _write_transparent(make.expect("see through.mov", "alpha", True, "transparent parts become white"))
    Image.new("RGBA", (40, 60), (200, 10, 90, 100)).save(
        make.expect("see through.png", "a picture with alpha", True, "transparent parts become white")
    )


def _captions(make: Maker) -> None:
    make.clip("no caption.mp4", "no caption", "no caption", '"ohwx"', text=None)
    make.clip("empty caption.mp4", "an empty caption", "empty caption.txt is empty", '"ohwx"', text=b" \n")
    make.clip("bom.mp4", "a caption with a byte order mark", '"ohwx, a dog"', text=b"\xef\xbb\xbfa dog\r\n")
    make.clip("latin.mp4", "a caption in Latin-1", "read as Latin-1", "un café", text="un café".encode("latin-1"))
    make.clip("novel.mp4", "a caption of 200 kB", "too long for a caption", text=b"a" * 200_000)
    make.clip("two.mp4", "two captions", "2 captions in two.txt", text=b"one\n---\ntwo")
    make.clip("tabled.mp4", "a caption in a table", "caption in captions.jsonl", '"ohwx, told"', text=None)
    make.expect("captions.jsonl", "a table that also names a clip that is not there", True, "gone.mp4").write_text(
        '{"caption": "told", "media_path": "tabled.mp4"}\n{"caption": "x", "media_path": "gone.mp4"}\n', "utf-8"
    )
    make.expect("sums.csv", "a table of something else", False, "not a table of captions").write_text("a,b\n1,2\n")
    make.expect("orphan.txt", "a caption of nobody", False, "no clip has its name").write_text("of nobody", "utf-8")


def _contents(make: Maker, whole: Path) -> None:
    make.clip("black.mp4", "black all through", "black from beginning to end", used=False, draw=black)
    make.clip("frozen.mp4", "frozen", "frozen: nothing in it moves", used=False, draw=still)
    make.clip("night.mp4", "too dark, but not black", "very dark (mean brightness 6%)", draw=scene(901, light=0.12))
    make.clip(
        "fade.mp4", "black for its first half", "black from 0.0 to 0.7 s",
        draw=lambda number, width, height: (black if number < 12 else scene(902))(number, width, height),
    )
    make.clip(
        "stops.mp4", "frozen from the middle on", "nothing moves from 1.0 to 2.9 s", frames=48,
        draw=lambda number, width, height: scene(903)(min(number, 16), width, height),
    )
    make.clip("film.mp4", "letterbox", "bars around the picture, which is 96x36 at 0,14", draw=scene(904, bars=12))
    shutil.copy(whole, make.expect("whole copy.mp4", "an exact copy", False, "an exact copy of whole.mp4"))
    write_video(
        make.expect("whole small.mp4", "the same pictures, smaller and squeezed", False, "nearly the same pictures as"),
        frames=96, size=(48, 32), draw=lambda number, *_: scene(1)(number, *SIZE)[::2, ::2], options={"crf": "33"},
    )


def _places(make: Maker) -> None:
    make.clip("3_portraits/close.mp4", "in a folder that says three times", "shown 3 times an epoch")
    make.clip("unwanted.mp4", "named in _excluded.txt", "excluded", used=False)
    (make.folder / "_excluded.txt").write_text("unwanted.mp4\n", encoding="utf-8")
    outside = make.folder.parent / "outside"
    outside.mkdir()
    write_video(outside / "far.mp4", frames=8, size=SIZE)
    with contextlib.suppress(OSError):  # Windows lets only some people make links
        (make.folder / "far.mp4").symlink_to(outside / "far.mp4")
        make.expect("far.mp4", "a symbolic link out of the folder", False, "a link to a file outside the folder")
        (make.folder / "far").symlink_to(outside, target_is_directory=True)
        make.expect("far", "a symbolic link to another folder", False, "a link out of the folder")
        (make.folder / "gone.mov").symlink_to(outside / "gone.mov")
        make.expect("gone.mov", "a symbolic link to nothing", False, "a link that leads nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(make.expect("pipe.txt", "a named pipe", False, "not an ordinary file"))
    if hasattr(os, "geteuid"):
        make.clip("locked.mp4", "unreadable", "cannot be opened", used=False, text=None).chmod(0)
        make.clip("locked words.mp4", "an unreadable caption", "locked words.txt not read")
        (make.folder / "locked words.txt").chmod(0)


def _write_transparent(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=16)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "rgba"
        for number in range(24):
            rgb = scene(905)(number, *SIZE)
            rgba = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 120, np.uint8)], -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, "rgba")))
        container.mux(stream.encode(None))


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Let files that may not be read be unreadable for root too (Linux, capabilities of this thread)."""
    if not hasattr(os, "geteuid") or os.geteuid() or sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: version 3, this thread
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(head, data) == 0
    before = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, data) == 0
    try:
        yield
    finally:
        data[0] = before
        libc.capset(head, data)


def look_through(folder: Path, cache: Path) -> ClipSet:
    """What Load Clips makes of the folder."""
    with bound_by_permissions():
        return check_clips(scan(folder, "ohwx"), FeatureCache(cache))


def outcomes(found: ClipSet) -> dict[str, tuple[str, str]]:
    """Each file's name, what became of it, and the line its owner reads."""
    used = {clip.name: ("used", clip_line(clip)) for clip in found.clips}
    left = {item.name: ("left out", left_out_line(item)) for item in found.left_out}
    said = {remark.partition(" names ")[0]: ("used", remark) for remark in found.remarks}
    return used | left | said


def table(rows: list[Nasty], found: ClipSet) -> str:
    """Markdown: one line a file."""
    told = outcomes(found)
    lines = ["| file | what it is | became | what the user is told |", "|---|---|---|---|"]
    for row in rows:
        became, line = told[row.name]
        words = line.removeprefix(f"{row.name}: ").removeprefix("left out, ").replace("|", "\\|")
        lines.append(f"| {row.name} | {row.what} | {became} | {words} |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "clips")
        folder.mkdir()
        rows = write_nasty_files(folder)
        print(table(rows, look_through(folder, Path(place, "cache"))))


if __name__ == "__main__":
    main()
