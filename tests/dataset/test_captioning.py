"""Captions are written once, whole, beside their clips; what a captioner says is made a caption; nothing is lost."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from caption_server import caption_server, chat, fails
from footage import cut_off, read_counter, write_video
from PIL import Image

from video_lora_studio.loaders.video_file import Crop, probe
from video_lora_studio.training import CaptionConfig, CaptionService, ServiceConfig, caption_clips, scan
from video_lora_studio.training.dataset.caption_text import (
    CAPTION_PRESETS,
    clean_caption,
    instruction_for,
    is_refusal,
)
from video_lora_studio.training.dataset.captioners.captioner import CaptionError
from video_lora_studio.training.dataset.captioning import LONGEST_SIDE, evenly, show
from video_lora_studio.training.dataset.clip_set import Clip


class Writer:
    """A captioner that says what it is told to, and keeps what it was shown."""

    title = "a writer"

    def __init__(self, *answers, hears=False):
        self.answers, self.hears, self.seen, self.closed, self.befores = list(answers), hears, [], 0, []

    def before(self, clips, shown):
        self.befores.append(clips)
        return f"{clips} to write."

    def caption(self, shown):
        self.seen.append(shown)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self):
        self.closed += 1


class Watcher:
    """Keeps reports; asks to stop at the given check."""

    def __init__(self, stop_at=0):
        self.reports, self.checks, self.stop_at = [], 0, stop_at

    def check(self):
        self.checks += 1
        if self.checks == self.stop_at:
            raise InterruptedError("stopped")

    def report(self, progress):
        self.reports.append(progress)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    for name in ("a", "b", "c"):
        write_video(folder / f"{name}.mp4", frames=12, fps=12, size=(80, 48))
    return folder


@pytest.fixture
def folder(tmp_path, footage):
    return Path(shutil.copytree(footage, tmp_path / "clips"))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_captions_are_written_without_the_trigger_and_handed_on_with_it(folder):
    writer = Writer("A cat walks.", "A dog runs.", "A fox sits.")
    watcher = Watcher()
    done = caption_clips(scan(folder, "ohwx"), writer, listener=watcher)
    assert [clip.captions for clip in done.clips.clips] == [
        ("ohwx, A cat walks.",), ("ohwx, A dog runs.",), ("ohwx, A fox sits.",)
    ]
    assert [clip.caption_file for clip in done.clips.clips] == ["a.txt", "b.txt", "c.txt"]
    assert (folder / "b.txt").read_bytes() == b"A dog runs.\n"
    assert (done.written, done.kept, done.failed) == (3, 0, 0)
    assert (writer.befores, writer.closed) == ([3], 1)
    assert done.report.startswith("3 captions written, 0 kept, 0 failed\nCaptioner: a writer\n3 to write.\n")
    assert 'b.mp4: written, "A dog runs."' in done.report
    assert scan(folder, "ohwx").clips == done.clips.clips
    assert [report.done for report in watcher.reports] == [0, 1, 2, 3]
    assert watcher.reports[1].seconds_left > 0 and watcher.reports[1].detail == "b.mp4"


def test_captions_that_are_there_are_kept(folder):
    (folder / "a.txt").write_text("mine, by hand")
    (folder / "b.txt").write_text(" \n")
    writer = Writer("A dog.")
    done = caption_clips(scan(folder), writer)
    assert len(writer.seen) == 2 and (done.written, done.kept) == (2, 1)
    assert (folder / "a.txt").read_text() == "mine, by hand"
    assert not (folder / "a.txt.bak").exists()
    assert 'a.mp4: kept, "mine, by hand"' in done.report
    again = caption_clips(scan(folder), None)
    assert again.report.startswith("0 captions written, 3 kept, 0 failed\n\n")


def test_overwriting_keeps_the_first_original_and_asks_the_same_only_once(folder):
    (folder / "a.txt").write_text("mine, by hand")
    config = CaptionConfig(overwrite=True)
    writer = Writer("One.", "Two.", "Three.", "Four.")
    caption_clips(scan(folder), writer, config)
    assert (folder / "a.txt").read_text() == "One.\n" and (folder / "a.txt.bak").read_text() == "mine, by hand"
    again = caption_clips(scan(folder), writer, config)
    assert len(writer.seen) == 3 and (again.written, again.kept) == (0, 3)
    assert "a.mp4: kept, it answers the same question" in again.report
    (folder / "b.txt").write_text("put right\n---\nby hand")
    edited = caption_clips(scan(folder), writer, config)
    assert edited.clips.clips[1].captions == ("put right", "by hand") and len(writer.seen) == 3
    assert (folder / "b.txt").read_text() == "put right\n---\nby hand"
    (folder / "b.txt").unlink()
    caption_clips(scan(folder), writer, config)
    assert len(writer.seen) == 4 and (folder / "b.txt").read_text() == "Four.\n"
    caption_clips(scan(folder), writer, CaptionConfig(overwrite=True, seed=1))
    assert len(writer.seen) == 7
    assert (folder / "a.txt.bak").read_text() == "mine, by hand"


@pytest.mark.parametrize("trouble", [CaptionError("too dark to see."), "", "<think>hm", "I'm sorry, I can't help."])
def test_one_clip_without_an_answer_does_not_stop_the_others(folder, trouble):
    done = caption_clips(scan(folder), Writer("A cat.", trouble, "A fox."))
    assert (done.written, done.failed) == (2, 1)
    assert [clip.captions[0] for clip in done.clips.clips] == ["A cat.", "", "A fox."]
    assert "b.mp4: no caption, " in done.report and not (folder / "b.txt").exists()


def test_an_answer_that_no_text_file_can_hold_does_not_stop_the_others(folder):
    done = caption_clips(scan(folder), Writer("\ufeffA \ud800cat.", "Again, " * 20_000, "A dog."))
    assert (done.written, done.failed) == (2, 1)
    assert "b.mp4: no caption, the answer is too long for a caption (139,999 characters)" in done.report
    assert [clip.captions for clip in scan(folder).clips] == [clip.captions for clip in done.clips.clips]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system has only names in Unicode")
def test_a_name_that_is_not_unicode_does_not_stop_the_others(folder):
    (folder / "b.mp4").rename(folder / os.fsdecode(b"b\xff.mp4"))
    assert caption_clips(scan(folder), Writer("A dog."), CaptionConfig(also_write="captions.jsonl")).written == 3


def test_a_clip_that_does_not_decode_does_not_stop_the_others(folder):
    clips = scan(folder)
    (folder / "b.mp4").write_bytes(b"gone")
    done = caption_clips(clips, Writer("A cat."))
    assert (done.written, done.failed) == (2, 1) and "b.mp4: no caption, " in done.report


def test_a_clip_that_is_cut_off_is_shown_as_far_as_it_goes(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=60, fps=12, faststart=True)
    clip = probe(cut_off(whole, tmp_path / "cut.mp4", 0.6))
    assert show(clip_of(clip), CaptionConfig()).frames.shape[0] > 1


def clip_of(footage, **more):
    return Clip(path=footage.path, name=footage.path.name, kind=footage.kind, captions=("",), footage=footage, **more)


def test_a_disk_that_cannot_be_written_is_told(folder):
    (folder / "b.txt").mkdir()
    done = caption_clips(scan(folder), Writer("A cat."))
    assert (done.written, done.failed) == (2, 1)
    assert "b.mp4: no caption, " in done.report and "b.txt could not be written" in done.report


def test_where_nothing_is_got_it_says_why(folder):
    writer = Writer(CaptionError("no"))
    with pytest.raises(ValueError, match=r"No clip got a caption from a writer: a\.mp4: no; b\.mp4: no; c\.mp4: no\."):
        caption_clips(scan(folder), writer)
    assert writer.closed == 1 and not (folder / "_captioned.json").exists()


@pytest.mark.parametrize("trouble", [ValueError("no key"), InterruptedError("stopped")])
def test_what_stops_the_run_leaves_what_was_written(folder, trouble):
    writer = Writer("A cat.", trouble)
    with pytest.raises(type(trouble), match=str(trouble)):
        caption_clips(scan(folder), writer)
    assert (folder / "a.txt").read_text() == "A cat.\n" and not (folder / "b.txt").exists() and writer.closed == 1
    more = Writer("A dog.")
    assert caption_clips(scan(folder), more).written == 2


def test_cancel_keeps_what_was_written(folder):
    writer = Writer("A cat.")
    with pytest.raises(InterruptedError):
        caption_clips(scan(folder), writer, listener=Watcher(stop_at=3))
    assert files_of(folder) == ["_captioned.json", "a.mp4", "a.txt", "b.mp4", "b.txt", "c.mp4"]
    assert len(writer.seen) == 2 and writer.closed == 1


def test_clips_that_share_a_text_file_are_asked_once(folder):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "a.png")
    writer = Writer("A cat.", "A dog.", "A fox.")
    done = caption_clips(scan(folder), writer)
    assert len(writer.seen) == 3 and done.written == 3 and done.kept == 1
    assert {clip.name: clip.captions[0] for clip in done.clips.clips} == {
        "a.mp4": "A cat.", "a.png": "A cat.", "b.mp4": "A dog.", "c.mp4": "A fox."
    }


def test_own_files_are_not_reported_as_strange(folder):
    caption_clips(scan(folder), Writer("A cat."))
    assert (folder / "_captioned.json").is_file()
    assert not scan(folder).left_out


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_all_captions_in_one_file_too(folder, name):
    (folder / "a.txt").write_text("one\n---\nohwx walks")
    done = caption_clips(scan(folder, "ohwx"), Writer("A dog, big.", 'A "fox".'), CaptionConfig(also_write=name))
    assert f"All captions in {folder / name}" in done.report
    text = (folder / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    rows = list(map(json.loads, lines)) if name.endswith("l") else list(csv.DictReader(lines))
    assert [(row["media_path"], row["caption"]) for row in rows] == [
        ("a.mp4", "one"), ("a.mp4", "ohwx walks"), ("b.mp4", "A dog, big."), ("c.mp4", 'A "fox".')
    ]
    for text_file in folder.glob("*.txt"):
        text_file.unlink()
    assert [clip.captions[0] for clip in scan(folder, "ohwx").clips] == [
        "ohwx, one", "ohwx, A dog, big.", 'ohwx, A "fox".'
    ]


def test_a_table_that_was_there_is_kept_beside_and_the_same_is_not_written_again(folder):
    table = folder / "captions.jsonl"
    first = '{"media_path": "a.mp4", "caption": "mine"}\n{"media_path": "gone.mp4", "caption": "mine too"}\n'
    table.write_text(first, encoding="utf-8")
    config = CaptionConfig(also_write=table.name)
    caption_clips(scan(folder), Writer("A dog."), config)
    assert (folder / "captions.jsonl.bak").read_text(encoding="utf-8") == first != table.read_text(encoding="utf-8")
    os.utime(table, (1, 1))
    caption_clips(scan(folder), None, config)
    assert table.stat().st_mtime == 1, "who goes by the files of the folder would start over for ever"
    assert not scan(folder).left_out


@pytest.mark.parametrize(("clip", "text"), [("e\u0301", "\u00e9.txt"), ("a", "a.TXT")])
def test_overwriting_goes_to_the_text_that_is_read(tmp_path, footage, clip, text):
    shutil.copy(footage / "a.mp4", tmp_path / f"{clip}.mp4")
    (tmp_path / text).write_text("old", encoding="utf-8")
    done = caption_clips(scan(tmp_path), Writer("A new one."), CaptionConfig(overwrite=True))
    assert scan(tmp_path).clips[0].captions == done.clips.clips[0].captions == ("A new one.",)
    assert (tmp_path / text).read_text(encoding="utf-8") == "A new one.\n"


def test_a_clip_is_shown_evenly_in_true_time_upright_and_whole(tmp_path):
    times = [number * 0.05 for number in range(20)] + [1 + number * 0.2 for number in range(20)]
    footage = probe(write_video(tmp_path / "vfr.mp4", frames=40, times=times, size=(160, 96)))
    shown = show(clip_of(footage), CaptionConfig(frames=8))
    assert shown.frames.shape == (8, 96, 160, 3)
    seen = [read_counter(frame) for frame in shown.frames.numpy()]
    wanted = np.linspace(0, footage.times[-1], 8)
    assert seen[0] == 0 and seen[-1] == 39
    for number, time in zip(seen, wanted, strict=True):
        assert abs(footage.times[number] - time) <= min(abs(other - time) for other in footage.times) + 1e-6
    assert shown.fps == pytest.approx(7 / footage.times[-1])


@pytest.mark.parametrize(("size", "crop", "expected"), [
    ((1280, 720), None, (360, 640)), ((720, 1280), None, (640, 360)), ((320, 240), None, (240, 320)),
    ((1280, 720), Crop(left=0, top=100, width=1280, height=500), (250, 640)), ((32, 32), None, (56, 56)),
])
def test_frames_are_small_and_in_proportion(tmp_path, size, crop, expected):
    footage = probe(write_video(tmp_path / "clip.mp4", frames=3, size=size))
    frames = show(clip_of(footage, crop=crop), CaptionConfig()).frames
    assert tuple(frames.shape) == (3, *expected, 3) and max(expected) <= LONGEST_SIDE


def test_few_frames_and_stills(tmp_path):
    footage = probe(write_video(tmp_path / "clip.mp4", frames=40, fps=10))
    assert evenly(footage, 1)[0] == [20] and evenly(footage, 2)[0] == [0, 39]
    assert evenly(footage, 2)[1] == pytest.approx(1 / 3.9)
    assert evenly(footage, 64) == (list(range(40)), pytest.approx(10))
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "still.png")
    shown = show(clip_of(probe(tmp_path / "still.png")), CaptionConfig())
    assert len(shown.frames) == 1 and shown.fps == 0 and "still picture" in shown.instruction


def test_sound_goes_only_to_who_hears(tmp_path):
    write_video(tmp_path / "loud.mp4", frames=12, fps=12, sound=440.0)
    write_video(tmp_path / "mute.mp4", frames=12, fps=12)
    hearing, deaf = Writer("A cat.", hears=True), Writer("A dog.")
    caption_clips(scan(tmp_path), hearing)
    caption_clips(scan(tmp_path), deaf, CaptionConfig(overwrite=True))
    loud, mute = hearing.seen
    assert loud.sound.shape == (2, 16000) and loud.sound.abs().max() > 0.1 and "what is heard" in loud.instruction
    assert mute.sound is None and "heard" not in mute.instruction
    assert [shown.sound for shown in deaf.seen] == [None, None]


def test_settings_reach_the_captioner(folder):
    writer = Writer("A cat.")
    config = CaptionConfig(instruction="Say  what\n{trigger} does.", max_tokens=99, frames=5, seed=3)
    caption_clips(scan(folder, "ohwx"), writer, config)
    shown = writer.seen[0]
    assert (shown.instruction, shown.max_tokens, len(shown.frames), shown.seed) == ("Say what ohwx does.", 99, 5, 3)


@pytest.mark.parametrize(("preset", "has", "lacks"), [
    ("style", "no style, medium", "{subject}"), ("subject", "called ohwx", "{subject}"),
    ("motion", "in which direction", "style"), ("general", "the style of the pictures", "no style"),
])
def test_presets_ask_for_what_the_lora_is_not_to_learn(preset, has, lacks):
    asked = instruction_for(preset, trigger="ohwx")
    assert has in asked and lacks not in asked and "50 to 100 words" in asked
    assert "No introduction" in asked


def test_a_subject_without_a_trigger_word_is_still_named():
    asked = instruction_for("subject")
    assert "one plain word" in asked and "{" not in asked and "called" not in asked


def test_presets_are_the_settings_choices():
    assert set(CAPTION_PRESETS) == {"style", "subject", "motion", "general"}
    with pytest.raises(ValueError, match="choose one of"):
        CaptionConfig(preset="other")


@pytest.mark.parametrize(("answer", "caption"), [
    ("A cat walks.", "A cat walks."),
    ("  A cat\n\n walks. \n", "A cat walks."),
    ("<think>The user wants...\n\nA plan.</think>\n\nA cat walks.", "A cat walks."),
    ("The user wants a plan.</think>A cat walks.", "A cat walks."),
    ("<think>never ends", ""),
    ("<thinking>a</thinking>A cat walks.<|im_end|>", "A cat walks."),
    ("Here is a caption for the video:\n\nA cat walks.", "A cat walks."),
    ("Here's the description of the clip: A cat walks.", "A cat walks."),
    ("Here’s a caption: A cat walks.", "A cat walks."),
    ("Sure! Here is the caption you asked for:\n\"A cat walks.\"", "A cat walks."),
    ("Certainly, here is a description: A cat walks.", "A cat walks."),
    ("**Caption:** A cat walks.", "A cat walks."),
    ("Video description: a cat walks.", "A cat walks."),
    ("## A cat\n\nA cat **walks** over `grass`.", "A cat walks over grass."),
    ("# A cat walks.", "A cat walks."),
    ("```\nA cat walks.\n```", "A cat walks."),
    ("```text\nA cat walks.\n```", "A cat walks."),
    ("- A cat walks.\n- It sits.", "A cat walks. It sits."),
    ("1. A cat walks.\n2. It sits.", "A cat walks. It sits."),
    ("“A cat walks.”", "A cat walks."),
    ('"Stop," says a man. "Now."', '"Stop," says a man. "Now."'),
    ("The video shows a cat walking.", "A cat walking."),
    ("In this video clip, a cat walks.", "A cat walks."),
    ("This clip depicts a cat. The video ends.", "A cat. The video ends."),
    ("The scene is set in a kitchen.", "The scene is set in a kitchen."),
    ("A cat walks. It then turns to the lef", "A cat walks."),
    ("A cat walks past a 3.5 m wall and", "A cat walks past a 3.5 m wall and"),
    ("一只猫走过。它转", "一只猫走过。"),
    ("A caption\n---\nanother", "A caption another"),
    ("A cat says \"meow!\"", "A cat says \"meow!\""),
    ("a man: tall, in blue", "A man: tall, in blue"),
    ("Okay", "Okay"), ("", ""), ("***", ""),
])
def test_an_answer_is_made_a_caption(answer, caption):
    assert clean_caption(answer) == caption
    assert clean_caption(caption) == caption


@pytest.mark.parametrize(("text", "refusal"), [
    ("I'm sorry, but I can't assist with that.", True), ("I cannot describe this.", True), ("Sorry, no.", True),
    ("As an AI model, I", True), ("I’m unable to view videos.", True), ("Unable to process the video.", True),
    ("A man says he is sorry.", False), ("I-beams stand in a row.", False), ("Sorrel horses run.", False),
])
def test_refusals_are_known(text, refusal):
    assert is_refusal(text) is refusal


def test_a_service_captions_a_folder_and_its_key_is_in_no_file(folder, monkeypatch, caplog):
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("VIDEO_LORA_API_KEY", key)
    monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", "127.0.0.1")
    caplog.set_level("DEBUG")
    answers = chat("<think>hm</think>A cat walks."), fails(400, f"bad {key}"), chat(f'"{key} a fox sits."')
    with caption_server(*answers) as server:
        service = CaptionService(ServiceConfig(model="m", address=f"{server.url}/v1"))
        done = caption_clips(scan(folder, "ohwx"), service, CaptionConfig(also_write="captions.csv"))
    assert [clip.captions[0] for clip in done.clips.clips] == ["ohwx, A cat walks.", "ohwx", "ohwx, [key] a fox sits."]
    assert "3 requests to 127.0.0.1:" in done.report and "b.mp4: no caption, 127.0.0.1:" in done.report
    assert [request["headers"]["authorization"] for request in server.requests] == [f"Bearer {key}"] * 3
    written = b"".join(path.read_bytes() for path in folder.iterdir() if path.suffix != ".mp4").decode()
    assert "A cat walks." in written
    assert key not in written + done.report + caplog.text + repr(done)
