"""Every file of a folder is used, or left out with a reason that is told."""

import os
import sys

import numpy as np
import pytest
from footage import cut_off, read_counter, write_sound, write_video
from PIL import Image

from video_lora_studio.loaders.video_file import read_frames
from video_lora_studio.training.dataset.scan import scan


class Watcher:
    """Keeps what it is told; stops the work after so many calls."""

    def __init__(self, stop_after=None):
        self.reports, self.checks, self.stop_after = [], 0, stop_after

    def check(self):
        self.checks += 1
        if self.checks == self.stop_after:
            raise InterruptedError("stopped")

    def report(self, progress):
        self.reports.append(progress)


def nasty_folder(folder):
    """Files as people have them. Name to what must become of it: a caption, or the start of a reason."""
    expected = {}

    def clip(name, caption="ohwx, a cat", text=b"a cat", **how):
        path = write_video(folder / name, **({"frames": 24, "size": (80, 48)} | how))
        if text is not None:
            path.with_suffix(".txt").write_bytes(text)
        expected[name] = caption
        return path

    whole = clip("plain.mp4")
    clip("with_sound.mp4", sound=True)
    clip("ten_bit.mkv", codec="ffv1", pix_fmt="yuv420p10le")
    clip("odd.mkv", codec="ffv1", pix_fmt="yuv444p", size=(81, 47))
    clip("turned.mov", matrix=(0, 1 << 16, -(1 << 16), 0))
    clip("one_frame.mp4", frames=1)
    clip("short.mp4", frames=3)
    clip("猫 naïve.webm", codec="libvpx-vp9")
    clip("old.avi", codec="mpeg4")
    clip("moving.gif", codec="gif", pix_fmt="rgb8")
    clip("LOUD.MP4")
    clip("bom.mp4", "ohwx, a dog", b"\xef\xbb\xbfa dog\r\n")
    clip("latin.mp4", "ohwx, un café noir", "un café\n  noir".encode("latin-1"))
    clip("wide_text.mp4", "ohwx, a fox", "a fox".encode("utf-16"))
    clip("empty_text.mp4", "ohwx", b" \n")
    clip("no_text.mp4", "ohwx", None)
    clip("has_word.mp4", "An OHWX cat", b"An OHWX cat")
    clip("word_within.mp4", "ohwx, the ohwxes", b"the ohwxes")
    clip("long_text.mp4", "ohwx", b"a" * 200_000)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "picture.PNG")
    expected["picture.PNG"] = "ohwx"

    cut_off(whole, folder / "broken.mp4", 0.5)
    (folder / "broken.txt").write_text("no more", encoding="utf-8")
    (folder / "nothing.mp4").touch()
    (folder / "words.mp4").write_text("not a film " * 50, encoding="utf-8")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / "orphan.txt").write_text("of nobody", encoding="utf-8")
    (folder / "more").mkdir()
    (folder / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "noise.mp3").write_bytes(b"ID3")
    write_sound(folder / "only_sound.mp4")
    expected |= {
        "broken.mp4": "not a video, or cut off", "broken.txt": "the caption of broken.mp4, which is left out",
        "nothing.mp4": "the file is empty", "words.mp4": "not a video", "notes.pdf": "not a video or image",
        "orphan.txt": "no clip has its name", "more": "a folder: only files directly", "half.jpg": "not an image",
        "noise.mp3": "audio only", "only_sound.mp4": "audio only",
    }
    for hidden in (".DS_Store", "Thumbs.db", "._plain.mp4"):
        (folder / hidden).touch()
    return expected


def test_nothing_vanishes(tmp_path):
    expected = nasty_folder(tmp_path)
    watcher = Watcher()
    found = scan(tmp_path, " ohwx ", watcher)
    left_out = {item.name: item.reason for item in found.left_out}
    captions = {clip.name: clip.captions[0] for clip in found.clips}
    assert captions.keys() | left_out.keys() == expected.keys() and not captions.keys() & left_out.keys()
    assert captions == {name: expected[name] for name in captions}
    for name, reason in left_out.items():
        assert reason.startswith(expected[name])

    report = found.report().splitlines()
    assert report[0] == "19 clips and 1 image used, 10 files left out"
    assert "Trigger word: ohwx" in report and "3 files of the system not listed" in report
    written = {entry.name for entry in tmp_path.iterdir()} - {".DS_Store", "Thumbs.db", "._plain.mp4"}
    lines = {line.partition(": ")[0]: line for line in report[report.index("") + 1 :]}
    assert all(name in lines or name in "".join(lines.values()) for name in written)
    for name, note in {
        "no_text.mp4": "no caption", "empty_text.mp4": "empty_text.txt is empty", "latin.mp4": "read as Latin-1",
        "long_text.mp4": "long_text.txt not read: too long", "with_sound.mp4": "with sound",
        "plain.mp4": "80x48, 1.5 s at 16 fps", "turned.mov": "48x80", "notes.pdf": "left out, not a video or image",
    }.items():
        assert note in lines[name]
    entries = len(written)
    assert watcher.checks == entries and watcher.reports[-1].done == watcher.reports[-1].total == entries
    assert {report.phase for report in watcher.reports} == {"Looking at clips"}


def test_every_clip_of_the_nasty_folder_reads(tmp_path):
    nasty_folder(tmp_path)
    for clip in scan(tmp_path, "ohwx").clips:
        frames = read_frames(clip.footage, range(len(clip.footage.times)), 80, 48)
        if clip.kind == "video" and clip.name != "turned.mov":
            assert [read_counter(frame.numpy()) for frame in frames] == list(range(len(frames))), clip.name


def test_names_are_sorted_as_people_do(tmp_path):
    for name in ("clip10.png", "clip2.png", "Clip1.png", "clip2a3.png", "clip2a.png", "b.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    names = [clip.name for clip in scan(tmp_path, "ohwx").clips]
    assert names == ["2.png", "b.png", "Clip1.png", "clip2.png", "clip2a.png", "clip2a3.png", "clip10.png"]


def test_two_clips_may_share_a_caption(tmp_path):
    for name in ("cat.png", "cat.bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "cat.TXT").write_text("a cat", encoding="utf-8")
    found = scan(tmp_path)
    assert [clip.captions[0] for clip in found.clips] == ["a cat", "a cat"] and not found.left_out


def test_some_captions_are_enough_without_a_trigger(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    assert [(clip.captions[0], clip.notes) for clip in scan(tmp_path).clips] == [("one", ()), ("", ("no caption",))]


def test_links_out_of_the_folder_are_left_out(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "clips"
    outside.mkdir()
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "far.png")
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(folder / "near.png")
    try:
        os.symlink(outside / "far.png", folder / "far.png")
        os.symlink(outside / "secret.txt", folder / "near.txt")
        os.symlink(outside / "gone.png", folder / "gone.png")
        os.symlink(folder / "near.png", folder / "same.png")
        os.symlink(folder / "loop.png", folder / "loop.png")
    except OSError:
        pytest.skip("this system allows no symbolic links")
    found = scan(folder, "ohwx")
    reasons = {item.name: item.reason for item in found.left_out}
    assert reasons["far.png"] == "a link to a file outside the folder"
    assert reasons["gone.png"] == reasons["loop.png"] == "a link that leads nowhere"
    assert [(clip.name, clip.captions[0]) for clip in found.clips] == [("near.png", "ohwx"), ("same.png", "ohwx")]
    assert "near.txt not read: a link to a file outside the folder" in found.clips[0].notes


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_an_unreadable_file_is_left_out(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.png").chmod(0)
    assert scan(tmp_path, "ohwx").left_out[0].reason.startswith("cannot be opened")


@pytest.mark.parametrize(
    ("make", "trigger", "words"),
    [
        (lambda folder: None, "ohwx", ("does not exist", "choose the folder")),
        (lambda folder: folder.write_text("x"), "ohwx", ("is a file", "choose the folder")),
        (lambda folder: folder.mkdir(), "ohwx", ("is empty", "put your clips")),
        (lambda folder: (folder.mkdir(), (folder / ".DS_Store").touch()), "ohwx", ("is empty", "put your clips")),
        (lambda folder: (folder.mkdir(), (folder / "a.mp4").touch()), "ohwx", ("No usable clip", "a.mp4: the file is")),
        (
            lambda folder: (folder.mkdir(), Image.new("RGB", (8, 8)).save(folder / "a.png")), " ",
            ("has a caption", "set a trigger word"),
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_said(tmp_path, make, trigger, words):
    make(tmp_path / "clips")
    with pytest.raises(ValueError) as caught:
        scan(tmp_path / "clips", trigger)
    assert all(word in str(caught.value) for word in (*words, "clips"))


def test_a_stop_is_obeyed(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    watcher = Watcher(stop_after=2)
    with pytest.raises(InterruptedError):
        scan(tmp_path, "ohwx", watcher)
    assert [report.detail for report in watcher.reports] == ["a.png"]
