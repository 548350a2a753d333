"""Captions beside clips, and the list of clips that are left out."""

import os

import pytest

from video_lora_studio.loaders.caption_file import (
    caption_path,
    read_captions,
    read_excluded,
    split_captions,
    write_captions,
    write_excluded,
)


@pytest.mark.parametrize(
    ("data", "captions", "note"),
    [
        (b"a cat", ("a cat",), ""),
        (b"  a\r\n cat \n", ("a cat",), ""),
        (b"\xef\xbb\xbfa cat", ("a cat",), ""),
        ("un café".encode("utf-16"), ("un café",), ""),
        ("un café".encode(), ("un café",), ""),
        ("un café".encode("latin-1"), ("un café",), "not UTF-8: read as Latin-1"),
        (b"one\n---\ntwo\n  -----  \nthree", ("one", "two", "three"), ""),
        (b"---\n\n---\none", ("one",), ""),
        (b"well-known --- and loved", ("well-known --- and loved",), ""),
        (b"", (), "is empty"),
        (b" \n\t", (), "is empty"),
        (b"---", (), "is empty"),
        (b"a" * 100_001, (), "too long for a caption"),
        (b"\xff\xfea\x00", ("a",), ""),
    ],
)
def test_captions_are_read(tmp_path, data, captions, note):
    (tmp_path / "clip.txt").write_bytes(data)
    found, notes = read_captions(tmp_path / "clip.txt")
    assert found == captions
    assert note in "".join(notes) and bool(notes) == bool(note)


def test_a_caption_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "clip.txt").mkdir()
    for path in (tmp_path / "clip.txt", tmp_path / "gone.txt"):
        captions, notes = read_captions(path)
        assert captions == () and notes[0].startswith(f"{path.name} not read: ")


@pytest.mark.parametrize("captions", [("one",), ("one", "two"), ("  spread \n over lines ",), ("猫 naïve", "---ish")])
def test_what_is_written_is_read(tmp_path, captions):
    write_captions(tmp_path / "clip.txt", captions)
    assert read_captions(tmp_path / "clip.txt") == (tuple(" ".join(caption.split()) for caption in captions), ())
    assert [path.name for path in tmp_path.iterdir()] == ["clip.txt"]


def test_the_first_original_is_kept(tmp_path):
    path = caption_path(tmp_path / "walk.v2.mp4")
    assert path == tmp_path / "walk.v2.txt"
    path.write_bytes("von Hand, schön\r\n".encode("latin-1"))
    for caption in ("one", "two"):
        write_captions(path, (caption,))
    assert (tmp_path / "walk.v2.txt.bak").read_bytes() == "von Hand, schön\r\n".encode("latin-1")
    assert path.read_text(encoding="utf-8") == "two\n"


def test_a_failed_writing_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "clip.txt"
    path.write_text("before", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"clip.txt could not be written: No space left"):
        write_captions(path, ("after",))
    assert path.read_text(encoding="utf-8") == "before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.txt", "clip.txt.bak"]


def test_excluded_clips_are_listed_and_the_list_goes_with_the_last(tmp_path):
    assert read_excluded(tmp_path) == frozenset()
    write_excluded(tmp_path, {"b.mp4", "more/猫.mp4"})
    assert (tmp_path / "_excluded.txt").read_text(encoding="utf-8") == "b.mp4\nmore/猫.mp4\n"
    assert read_excluded(tmp_path) == {"b.mp4", "more/猫.mp4"}
    write_excluded(tmp_path, ())
    assert not list(tmp_path.iterdir())
    write_excluded(tmp_path, ())


def test_a_list_written_by_hand_is_read(tmp_path):
    (tmp_path / "_excluded.txt").write_bytes(b"\xef\xbb\xbf a.mp4 \r\n\r\nmore\\b.mp4\r\n")
    assert read_excluded(tmp_path) == {"a.mp4", "more/b.mp4"}


def test_splitting_is_by_lines_of_dashes():
    assert split_captions("a\n--\nb\n----\nc") == ("a -- b", "c")


def test_nothing_is_written_through_a_link_in_place_of_the_original(tmp_path):
    outside, text = tmp_path / "outside.txt", tmp_path / "clips" / "clip.txt"
    text.parent.mkdir()
    text.write_text("one")
    try:
        text.with_suffix(".txt.bak").symlink_to(outside)
    except OSError:
        pytest.skip("this system allows no links")
    write_captions(text, ("two",))
    assert not outside.exists() and read_captions(text) == (("two",), ())
