"""Putting a dataset right without a browser: what scripts call, and what the review page calls."""

import io

import numpy as np
import pytest
from footage import write_video
from PIL import Image

from video_lora_studio.training import (
    clip_file,
    insert_trigger,
    remove_trigger,
    replace_everywhere,
    review,
    scan,
    set_captions,
    set_excluded,
    still,
)

BACKUP = ".txt.bak"


@pytest.fixture
def folder(tmp_path):
    """Captions beside files that need not be videos for this."""
    folder = tmp_path / "cats"
    for name, caption in {
        "clip2.mp4": "a Cat on a category sign, myst1le",
        "clip10.mp4": "myst1le, a cat\n---\na cat sits, myst1le, by day",
        "still.PNG": None,
        "3_portraits/face.webm": "portrait of a cat",
    }.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"\0")
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    (folder / "notes.pdf").touch()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.mp4").touch()
    return folder


def set_caption(folder, name, caption, **more):
    """The change; ValueError with the reason where there is none."""
    done = set_captions(folder, {name: caption}, **more)
    if done.failed:
        assert list(done.failed) == [name] and not done.changes
        raise ValueError(done.failed[name])
    return done.changes[0]


def captions(folder):
    return {clip.name: clip.caption for clip in review(folder)}


def test_every_clip_is_listed_with_its_caption(folder):
    (folder / "_excluded.txt").write_text("clip2.mp4\n", encoding="utf-8")
    listed = review(folder)
    assert [(clip.name, clip.kind, clip.excluded) for clip in listed] == [
        ("clip2.mp4", "video", True), ("clip10.mp4", "video", False), ("still.PNG", "image", False),
        ("3_portraits/face.webm", "video", False),
    ]
    assert [clip.caption for clip in listed] == [
        "a Cat on a category sign, myst1le", "myst1le, a cat\n---\na cat sits, myst1le, by day", "",
        "portrait of a cat",
    ]


def test_a_caption_is_written_and_the_first_one_kept_beside(folder):
    change = set_caption(folder, "clip2.mp4", "  a dog\n\n---\nanother  dog ")
    assert (change.before, change.after) == ("a Cat on a category sign, myst1le", "a dog\n---\nanother dog")
    set_caption(folder, "clip2.mp4", "a third dog")
    assert (folder / "clip2.txt").read_text(encoding="utf-8") == "a third dog\n"
    assert (folder / f"clip2{BACKUP}").read_text(encoding="utf-8") == "a Cat on a category sign, myst1le"
    set_caption(folder, "still.PNG", "fällt auf: 猫")
    assert captions(folder)["still.PNG"] == "fällt auf: 猫" and not (folder / f"still{BACKUP}").exists()
    assert not list(folder.rglob("*.part"))


def test_what_is_the_same_is_not_written(folder):
    before = (folder / "clip2.txt").stat().st_mtime_ns
    set_caption(folder, "clip2.mp4", "a Cat  on a category sign, myst1le\n")
    set_caption(folder, "still.PNG", " \n")
    assert (folder / "clip2.txt").stat().st_mtime_ns == before
    assert not (folder / f"clip2{BACKUP}").exists() and not (folder / "still.txt").exists()


def test_a_caption_that_changed_meanwhile_is_not_overwritten(folder):
    set_caption(folder, "clip2.mp4", "mine", seen={"clip2.mp4": "a Cat on a category sign, myst1le"})
    with pytest.raises(ValueError, match="changed elsewhere: reload"):
        set_caption(folder, "clip2.mp4", "theirs", seen={"clip2.mp4": "a Cat on a category sign, myst1le"})
    assert captions(folder)["clip2.mp4"] == "mine"


def test_clips_are_excluded_and_taken_in_again(folder):
    set_excluded(folder, ["clip2.mp4", "3_portraits/face.webm"], True)
    assert (folder / "_excluded.txt").read_text(encoding="utf-8") == "3_portraits/face.webm\nclip2.mp4\n"
    assert [clip.name for clip in review(folder) if clip.excluded] == ["clip2.mp4", "3_portraits/face.webm"]
    set_excluded(folder, ["clip2.mp4", "3_portraits/face.webm", "clip10.mp4"], False)
    assert not (folder / "_excluded.txt").exists() and (folder / "clip2.mp4").exists()


@pytest.mark.parametrize(
    ("find", "put", "choices", "expected"),
    [
        ("cat", "dog", {}, {"clip2.mp4": "a dog on a dogegory sign, myst1le",
                            "clip10.mp4": "myst1le, a dog\n---\na dog sits, myst1le, by day",
                            "3_portraits/face.webm": "portrait of a dog"}),
        ("cat", "dog", {"whole_words": True, "match_case": True},
         {"clip10.mp4": "myst1le, a dog\n---\na dog sits, myst1le, by day",
          "3_portraits/face.webm": "portrait of a dog"}),
        ("Cat on a", r"\1 $1", {"match_case": True}, {"clip2.mp4": r"a \1 $1 category sign, myst1le"}),
        ("portrait of a cat", "", {}, {"3_portraits/face.webm": ""}),
        ("(", "x", {}, {}),
        ("myst1le, a cat", "", {}, {"clip10.mp4": "a cat sits, myst1le, by day"}),
    ],
    ids=["any case", "whole words", "not a pattern", "a caption emptied", "a bracket", "one of two emptied"],
)
def test_find_and_replace_everywhere(folder, find, put, choices, expected):
    before = captions(folder)
    changes = replace_everywhere(folder, find, put, **choices).changes
    assert {change.name: change.after for change in changes} == expected
    assert {change.name: change.before for change in changes} == {name: before[name] for name in expected}
    assert captions(folder) == before | expected


def test_the_trigger_word_is_put_where_it_is_not_and_taken_away_again(folder):
    assert [change.name for change in insert_trigger(folder, " myst1le ").changes] == ["3_portraits/face.webm"]
    assert captions(folder) == {
        "clip2.mp4": "a Cat on a category sign, myst1le",
        "clip10.mp4": "myst1le, a cat\n---\na cat sits, myst1le, by day",
        "still.PNG": "",
        "3_portraits/face.webm": "myst1le, portrait of a cat",
    }
    assert insert_trigger(folder, "myst1le").changes == ()
    assert len(remove_trigger(folder, "MYST1LE").changes) == 3
    assert captions(folder) == {
        "clip2.mp4": "a Cat on a category sign",
        "clip10.mp4": "a cat\n---\na cat sits, by day",
        "still.PNG": "",
        "3_portraits/face.webm": "portrait of a cat",
    }


@pytest.mark.parametrize(
    ("caption", "expected"),
    [("zoe, zoe walks", "walks"), ("a zoe walks", "a walks"), ("zoe", ""), ("zoes walk", "zoes walk"),
     ("a walk, zoe.", "a walk."), ("a walk , zoe", "a walk"), ("zoe , at dawn", "at dawn"), ("by zoe", "by")],
)
def test_a_trigger_word_goes_with_its_comma(folder, caption, expected):
    set_caption(folder, "clip2.mp4", caption)
    remove_trigger(folder, "zoe")
    assert captions(folder)["clip2.mp4"] == expected


def test_clips_of_one_name_share_a_caption(folder):
    (folder / "clip2.mov").touch()
    assert len(replace_everywhere(folder, "a Cat", "a cat cat", match_case=True).changes) == 1
    assert captions(folder)["clip2.mov"] == captions(folder)["clip2.mp4"] == "a cat cat on a category sign, myst1le"


@pytest.mark.parametrize("call", [
    lambda folder: replace_everywhere(folder, "  ", "x"),
    lambda folder: insert_trigger(folder, " "),
    lambda folder: remove_trigger(folder, ""),
])
def test_empty_words_are_refused(folder, call):
    before = captions(folder)
    with pytest.raises(ValueError, match="enter"):
        call(folder)
    assert captions(folder) == before


@pytest.mark.parametrize("name", [
    "", "/", "..", "../secret.mp4", "3_portraits/../../secret.mp4", "/etc/passwd", "3_portraits//face.webm",
    "./clip2.mp4", "3_portraits\\face.webm", "C:/clip.mp4", "c:clip.mp4", ".hidden/a.mp4", "clip2.txt", "notes.pdf",
    "_excluded.txt", "clip2.mp4\0.txt", "clip2.mp4\n", "gone.mp4", "3_portraits", "clip2.mp4/", "x" * 5000 + ".mp4",
    "linked.mp4", "outer/secret.mp4",
])
def test_only_clips_of_the_folder_are_reached(folder, tmp_path, name):
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "linked.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "outer").symlink_to(tmp_path, target_is_directory=True)
    for call in (lambda: clip_file(folder, name), lambda: set_caption(folder, name, "overwritten"),
                 lambda: set_excluded(folder, [name], True), lambda: still(folder, name)):
        with pytest.raises(ValueError, match="clip|video"):
            call()
    assert (tmp_path / "secret.txt").read_text(encoding="utf-8") == "secret"
    assert not (folder / "_excluded.txt").exists() and len(review(folder)) == 4


@pytest.mark.parametrize("linked", ["clip2.txt", f"clip2{BACKUP}"])
def test_captions_are_not_read_or_written_through_links_out_of_the_folder(folder, tmp_path, linked):
    secret = tmp_path / "secret.txt"
    (folder / linked).unlink(missing_ok=True)
    (folder / linked).symlink_to(secret)
    with pytest.raises(ValueError, match="a link to a file outside the folder"):
        set_caption(folder, "clip2.mp4", "overwritten")
    assert not secret.exists()
    secret.write_text("secret", encoding="utf-8")
    if linked == "clip2.txt":
        (clip,) = (clip for clip in review(folder) if clip.name == "clip2.mp4")
        assert clip.caption == "" and "outside the folder" in clip.notes[0]


def test_captions_of_a_table_become_texts_when_they_are_changed(folder):
    table = folder / "captions.jsonl"
    table.write_text('{"media_path": "still.PNG", "caption": "a cat in a table"}\n', encoding="utf-8")
    (clip,) = (clip for clip in review(folder) if clip.name == "still.PNG")
    assert (clip.caption, clip.notes) == ("a cat in a table", ("from captions.jsonl",))
    with pytest.raises(ValueError, match="comes from captions.jsonl: take it out there"):
        set_caption(folder, "still.PNG", "")
    replace_everywhere(folder, "table", "chair")
    assert (folder / "still.txt").read_text(encoding="utf-8") == "a cat in a chair\n"
    assert captions(folder)["still.PNG"] == "a cat in a chair" and "table" in table.read_text(encoding="utf-8")


def test_a_text_with_a_capital_ending_is_changed_itself(folder):
    (folder / "still.TXT").write_text("loud", encoding="utf-8")
    set_caption(folder, "still.PNG", "quiet")
    assert (folder / "still.TXT").read_text(encoding="utf-8") == "quiet\n"
    assert {path.name for path in folder.glob("still*")} == {"still.PNG", "still.TXT", f"still{BACKUP}"}


def test_one_clip_that_cannot_be_changed_does_not_stop_the_others(folder):
    done = set_captions(folder, {"clip2.mp4": "one", "gone.mp4": "two", "still.PNG": "three"})
    assert [change.name for change in done.changes] == ["clip2.mp4", "still.PNG"]
    assert list(done.failed) == ["gone.mp4"] and "There is no clip 'gone.mp4'" in done.failed["gone.mp4"]


def test_a_caption_has_a_greatest_length(folder):
    with pytest.raises(ValueError, match="longer than 20,000 characters"):
        set_caption(folder, "clip2.mp4", "x" * 20_001)
    with pytest.raises(ValueError, match="holds half a letter"):
        set_caption(folder, "clip2.mp4", "a \ud83d cat")


def test_scan_sees_what_was_put_right(tmp_path):
    for name in ("one", "two"):
        write_video(tmp_path / f"{name}.mp4", frames=8)
    set_caption(tmp_path, "one.mp4", "a walk")
    insert_trigger(tmp_path, "zoe")
    (clip,) = [clip for clip in scan(tmp_path, "zoe").clips if clip.name == "one.mp4"]
    assert clip.captions == ("zoe, a walk",)


def test_a_still_is_small_and_upright(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=9, size=(640, 320), draw=lambda number, width, height: np.full(
        (height, width, 3), 200 if number == 4 else 0, np.uint8))
    picture = Image.open(io.BytesIO(still(tmp_path, "clip.mp4", 320)))
    assert picture.size == (320, 160) and picture.format == "JPEG"
    assert abs(np.asarray(picture).mean() - 200) < 8
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(ValueError, match="not a video"):
        still(tmp_path, "text.mp4")
