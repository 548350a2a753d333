"""Every file of a folder is used, or left out with a reason that is told."""

import os
import sys

import numpy as np
import pytest
from footage import cut_off, read_counter, write_sound, write_video
from nasty_files import bound_by_permissions
from PIL import Image

from video_lora_studio.loaders.caption_file import write_excluded
from video_lora_studio.loaders.caption_table import write_table
from video_lora_studio.loaders.video_file import read_frames
from video_lora_studio.training.dataset.clip_set import join
from video_lora_studio.training.dataset.scan import repeated, scan


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
        "orphan.txt": "no clip has its name", "more": "an empty folder", "half.jpg": "not an image",
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
    media = len([name for name in written if not name.endswith(".txt") and name != "more"])
    assert watcher.checks == media and watcher.reports[-1].done == watcher.reports[-1].total == media
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


def pictures(folder, *names):
    """Small pictures of these names, in folders of their own where the name says so."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def captions(found):
    return {clip.name: clip.captions for clip in found.clips}


def test_subfolders_are_read_with_their_own_captions(tmp_path):
    pictures(tmp_path, "b.png", "a.png", "z/a.png", "c/deep/a.png")
    (tmp_path / "a.txt").write_text("top", encoding="utf-8")
    (tmp_path / "z" / "a.txt").write_text("inner", encoding="utf-8")
    found = scan(tmp_path)
    assert captions(found) == {
        "a.png": ("top",), "b.png": ("",), "c/deep/a.png": ("",), "z/a.png": ("inner",)
    }
    assert list(captions(found)) == ["a.png", "b.png", "c/deep/a.png", "z/a.png"]
    assert [clip.caption_file for clip in found.clips] == ["a.txt", "", "", "z/a.txt"]
    flat = scan(tmp_path, subfolders=False)
    assert list(captions(flat)) == ["a.png", "b.png"]
    assert [(item.name, item.reason) for item in flat.left_out] == [
        ("c", "a folder: subfolders are not read"), ("z", "a folder: subfolders are not read"),
    ]


@pytest.mark.parametrize(
    ("folder", "repeats"),
    [("3_portraits", 3), ("100_a", 100), ("2024_summer", 1), ("0_none", 1), ("3portraits", 1), ("portraits_3", 1),
     ("5_all/2_few", 2), ("5_all/more", 5)],
)
def test_a_folders_name_says_how_often_its_clips_are_shown(tmp_path, folder, repeats):
    pictures(tmp_path, f"{folder}/a.png", "b.png")
    found = scan(tmp_path, "ohwx")
    assert {clip.name: clip.repeats for clip in found.clips} == {f"{folder}/a.png": repeats, "b.png": 1}
    assert [clip.repeats for clip in repeated(found, 4).clips] == [4, 4 * repeats]
    assert (f"shown {repeats} times an epoch" in found.report()) == (repeats > 1)


def test_the_chosen_folders_own_name_is_no_number_of_repeats(tmp_path):
    pictures(tmp_path, "3_cats/a.png")
    assert scan(tmp_path / "3_cats").clips[0].repeats == 1


def test_excluded_clips_are_left_out_and_misspelt_ones_are_said(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "more/c.png", "more/d.png", "cafe\u0301.png")
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    write_excluded(tmp_path, {"b.png", "more/c.png", "caf\u00e9.png", "e.png"})
    (tmp_path / "more" / "_excluded.txt").write_text("d.png", encoding="utf-8")
    found = scan(tmp_path, "ohwx")
    assert list(captions(found)) == ["a.png", "more/d.png"]
    reasons = {item.name: item.reason for item in found.left_out}
    assert [reasons[name] for name in ("b.png", "more/c.png", "cafe\u0301.png")] == ["excluded in _excluded.txt"] * 3
    assert reasons["b.txt"] == "the caption of b.png, which is left out"
    assert "_excluded.txt names what is not there: e.png" in found.report()
    assert "more/_excluded.txt is not heeded" in found.report()


def test_our_own_files_are_not_strange_ones(tmp_path):
    pictures(tmp_path, "a.png")
    for name in ("_excluded.txt", "a.txt.bak", "_shots.json", "_captioned.json"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert not scan(tmp_path, "ohwx").left_out


def test_tables_serve_clips_that_have_no_text(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png", "more/d.png", "more/e.png")
    (tmp_path / "a.txt").write_text("from the text", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" ", encoding="utf-8")
    write_table(tmp_path / "captions.jsonl", [(f"{name}.png", f"table {name}") for name in ("a", "b", "more/d", "x")])
    write_table(tmp_path / "more" / "captions.csv", [("d.png", "inner d"), ("e.png", "one"), ("e.png", "two")])
    write_table(tmp_path / "strange.json", [("y.png", "y")])
    (tmp_path / "workflow.json").write_text('{"nodes": []}', encoding="utf-8")
    found = scan(tmp_path, "ohwx")
    assert captions(found) == {
        "a.png": ("ohwx, from the text",), "b.png": ("ohwx, table b",), "c.png": ("ohwx",),
        "more/d.png": ("ohwx, table more/d",), "more/e.png": ("ohwx, one", "ohwx, two"),
    }
    assert [clip.caption_file for clip in found.clips] == [
        "a.txt", "captions.jsonl", "", "captions.jsonl", "more/captions.csv"
    ]
    reasons = {item.name: item.reason for item in found.left_out}
    assert reasons["strange.json"] == "a table of captions for clips that are not here: y.png"
    assert reasons["workflow.json"] == "a table without captions" and len(reasons) == 2
    report = found.report()
    assert "captions.jsonl names what is not there: x.png" in report and "Captions: 4 of 5" in report
    assert '2 captions in more/captions.csv; "ohwx, one"' in report


@pytest.mark.parametrize(
    ("text", "trigger", "line"),
    [
        ("one", "", "Captions: 1 of 2"), ("", "ohwx", "Captions: 0 of 2"),
        ("", "", "Captions: 0 of 2, and no trigger word"),
    ],
)
def test_the_head_says_how_many_clips_have_captions(tmp_path, text, trigger, line):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    head = scan(tmp_path, trigger).report().partition("\n\n")[0].splitlines()
    assert any(said.startswith(line) and (said == line or "caption the clips" in said) for said in head)


def test_joined_sets_keep_their_words_and_repeats(tmp_path):
    pictures(tmp_path, "cats/a.png", "cats/dogs/a.png", "dogs/a.png", "dogs/b.txt.png")
    (tmp_path / "dogs" / "x.pdf").touch()
    cats, dogs = scan(tmp_path / "cats", "ohwx"), repeated(scan(tmp_path / "dogs", "sks"), 2)
    both = join(cats, dogs)
    assert [(clip.name, clip.captions, clip.trigger, clip.repeats) for clip in both.clips] == [
        ("a.png", ("ohwx",), "ohwx", 1), ("dogs/a.png", ("ohwx",), "ohwx", 1),
        ("dogs (2)/a.png", ("sks",), "sks", 2),
        ("dogs (2)/b.txt.png", ("sks",), "sks", 2),
    ]
    assert both.folder == tmp_path / "cats" and both.joined == (tmp_path / "dogs",) and both.trigger == "ohwx, sks"
    assert [item.name for item in both.left_out] == ["dogs (2)/x.pdf"]
    report = both.report()
    assert f"Folder: {tmp_path / 'cats'}" in report and f"Folder: {tmp_path / 'dogs'}" in report
    assert join(cats, cats).trigger == "ohwx"


def test_a_linked_folder_is_not_read(tmp_path):
    pictures(tmp_path / "outside", "far.png")
    pictures(tmp_path / "clips", "a.png", "inner/b.png")
    try:
        os.symlink(tmp_path / "outside", tmp_path / "clips" / "out", target_is_directory=True)
        os.symlink(tmp_path / "clips", tmp_path / "clips" / "round", target_is_directory=True)
    except OSError:
        pytest.skip("this system allows no symbolic links")
    found = scan(tmp_path / "clips", "ohwx")
    assert list(captions(found)) == ["a.png", "inner/b.png"]
    assert {item.name: item.reason for item in found.left_out} == {
        "out": "a link out of the folder", "round": "a link to a folder that is read by itself",
    }


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such permissions")
def test_an_unreadable_file_is_left_out(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.png").chmod(0)
    with bound_by_permissions():
        found = scan(tmp_path, "ohwx")
    assert found.left_out[0].reason.startswith("cannot be opened") and [clip.name for clip in found.clips] == ["b.png"]


@pytest.mark.parametrize(
    ("make", "trigger", "words"),
    [
        (lambda folder: None, "ohwx", ("does not exist", "choose the folder")),
        (lambda folder: folder.write_text("x"), "ohwx", ("is a file", "choose the folder")),
        (lambda folder: folder.mkdir(), "ohwx", ("is empty", "put your clips")),
        (lambda folder: (folder.mkdir(), (folder / ".DS_Store").touch()), "ohwx", ("is empty", "put your clips")),
        (lambda folder: (folder.mkdir(), (folder / "a.mp4").touch()), "ohwx", ("No usable clip", "a.mp4: the file is")),
        (
            lambda folder: (folder.mkdir(), (folder / "a.txt").touch()), "ohwx",
            ("No usable clip", "a.txt: no clip has its name"),
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
