"""What becomes of each odd or broken file, and what is said of it."""

import numpy as np
import pytest
import torch
from footage import read_counter
from nasty_footage import BROKEN, ODD, VARIABLE_TIMES

from video_lora_studio.loaders.video_file import FootageEnds, FootageError, glance, probe, read_frames


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path, name):
    make, reason = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(FootageError, match=reason) as caught:
        probe(tmp_path / name)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == f"{name}: {caught.value.reason}." and "." not in caught.value.reason


# name: (width, height), frames, seconds, notes, whether the counter can be read in it
EXPECTED = {
    "one frame.mp4": ((160, 96), 1, 1 / 16, (), True),
    "a fifth of a second.mp4": ((160, 96), 5, 0.2, (), True),
    "a minute.mp4": ((80, 48), 960, 60, (), True),
    "variable rate.mp4": ((160, 96), 60, None, ("variable frame rate",), True),
    "120 fps.mp4": ((160, 96), 120, 1, (), True),
    "late start.mkv": ((160, 96), 20, 2, (), True),
    "turned.mov": ((96, 160), 40, 2.5, (), False),
    "odd sizes.mkv": ((161, 97), 40, 2.5, (), True),
    "wide pixels.mkv": ((213, 96), 40, 2.5, (), True),
    "tiny.mkv": ((16, 16), 40, 2.5, (), False),
    "interlaced.mp4": ((160, 96), 40, 1.6, ("interlaced: deinterlaced",), False),
    "ten bits.mp4": ((160, 96), 40, 2.5, (), True),
    "hdr pq.mkv": ((160, 96), 40, 2.5, ("HDR (PQ) brought to SDR BT.709",), True),
    "hdr hlg.mkv": ((160, 96), 40, 2.5, ("HDR (HLG) brought to SDR BT.709",), True),
    "wide gamut.mkv": ((160, 96), 40, 2.5, ("BT.2020 brought to SDR BT.709",), True),
    "grey.mkv": ((160, 96), 40, 2.5, (), True),
    "transparent.mov": ((64, 64), 10, 1, ("transparent parts become white",), False),
    "with sound.mp4": ((160, 96), 40, 2.5, (), True),
    "motion jpeg.avi": ((160, 96), 40, 2.5, (), True),
    "ünïcode 猫 🎬.mp4": ((160, 96), 40, 2.5, (), True),
    "UPPER CASE.MP4": ((160, 96), 40, 2.5, (), True),
    "two.dots.mp4": ((160, 96), 40, 2.5, (), True),
    "animated.webp": ((160, 96), 1, 0, ("animated: only its first picture is used",), True),
}
HURT = {"cut short.mp4", "zeros at the end.mp4", "damaged.mp4"}


def test_every_odd_file_has_its_row():
    assert EXPECTED.keys() | HURT == ODD.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_what_can_be_used_gives_its_frames(tmp_path, name):
    size, count, seconds, notes, counted = EXPECTED[name]
    ODD[name](tmp_path / name)
    footage = probe(tmp_path / name)
    assert (footage.width, footage.height, len(footage.times), footage.notes) == (*size, count, notes)
    assert footage.has_audio == (name == "with sound.mp4")
    assert seconds is None or footage.seconds == pytest.approx(seconds, rel=0.01, abs=1e-3)
    wanted = sorted({0, count // 2, count - 1})
    frames = read_frames(footage, wanted, *size)
    assert frames.shape == (len(wanted), size[1], size[0], 3) and frames.dtype == torch.uint8
    if counted:
        assert [read_counter(frame.numpy()) for frame in frames] == wanted
    seen = list(glance(footage))
    assert [moment for moment, _ in seen] == pytest.approx(footage.times, abs=1e-6)
    assert all(max(grey.shape) == 64 and grey.dtype == np.uint8 for _, grey in seen)


def test_variable_times_are_the_written_ones(tmp_path):
    ODD["variable rate.mp4"](tmp_path / "x.mp4")
    assert probe(tmp_path / "x.mp4").times == pytest.approx(VARIABLE_TIMES - VARIABLE_TIMES[0], abs=1e-4)


@pytest.mark.parametrize("name", sorted(HURT))
def test_a_hurt_file_gives_what_is_left_of_it(tmp_path, name):
    ODD[name](tmp_path / name)
    footage = probe(tmp_path / name)
    told = len(footage.times)
    decoded = sum(1 for _ in glance(footage))
    try:
        frames = read_frames(footage, range(told), 160, 96)
    except FootageEnds as error:
        assert error.reason == f"only {error.decoded} of {told} frames decode"
        frames = read_frames(footage, range(error.decoded), 160, 96)
    assert 20 < len(frames) <= 120 and decoded >= len(frames) - 1
    if name == "cut short.mp4":
        assert footage.notes == (f"only {told} of 120 frames are in the file: it is cut off",)
    if name != "damaged.mp4":
        assert [read_counter(frame.numpy()) for frame in frames] == list(range(len(frames)))


def test_looking_at_each_tenth_frame(tmp_path):
    ODD["a minute.mp4"](tmp_path / "x.mp4")
    seen = [moment for moment, _ in glance(probe(tmp_path / "x.mp4"), every=10)]
    assert seen == pytest.approx(np.arange(96) * 10 / 16, abs=1e-4)
