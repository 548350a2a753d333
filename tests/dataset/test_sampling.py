"""The frames that are used are the ones nearest in time, whatever the source's frame rate."""

from fractions import Fraction

import numpy as np
import pytest
from footage import read_counter, write_video

from video_lora_studio.loaders.video_file import probe, read_frames
from video_lora_studio.training.config import CutConfig
from video_lora_studio.training.dataset.sampling import choose_windows
from video_lora_studio.training.families.model_family import Grid

GRID = Grid(fps=16, time_stride=4, space_stride=8, size_multiple=16, channels=16)
RATES = {
    "12": 12, "23.976": Fraction(24000, 1001), "24": 24, "25": 25, "29.97": Fraction(30000, 1001), "30": 30, "60": 60,
}


def variable_times(count=80):
    gaps = np.random.default_rng(1).choice([1 / 60, 1 / 30, 1 / 24, 1 / 12], count)
    return np.cumsum(gaps) - gaps[0]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", [*RATES, "variable"])
def test_every_frame_is_the_nearest_in_time(tmp_path, rate, ending):
    times = variable_times() if rate == "variable" else np.arange(160) / float(RATES[rate])
    fps = 30 if rate == "variable" else RATES[rate]
    path = tmp_path / f"clip.{ending}"
    given = times if rate == "variable" else None
    footage = probe(write_video(path, frames=len(times), fps=fps, times=given, size=(80, 48)))
    (choice,) = choose_windows(footage.times, 16, 33, GRID)
    assert len(choice.indexes) == 33 and choice.seconds == pytest.approx(33 / 16)
    shown = [read_counter(frame.numpy()) for frame in read_frames(footage, choice.indexes, 80, 48)]
    for moment, number in zip(np.arange(33) / 16, shown, strict=True):
        error = abs(times[number] - moment)
        around = np.diff(times[max(0, number - 1) : number + 2]).max()
        assert error <= np.abs(times - moment).min() + 0.001  # Matroska counts thousandths of a second
        assert error <= around / 2 + 0.001


@pytest.mark.parametrize(
    ("fps", "count", "wanted", "frames", "note"),
    [
        (16, 49, 49, 49, ()),
        (16, 192, 49, 49, ("first 3.1 s of 12.0 s",)),
        (16, 50, 49, 49, ("first 3.06 s of 3.12 s",)),
        (16, 34, 49, 33, ("33 of 49 frames: the clip is 2.1 s long",)),
        (24, 73, 49, 49, ()),
        (12, 40, 49, 49, ("first 3.1 s of 3.3 s", "12 fps source: some frames repeat")),
        (60, 20, 49, 5, ("5 of 49 frames: the clip is 0.3 s long",)),
        (30, 30, 1, 1, ("first 0.1 s of 1.0 s",)),
        (25, 1, 1, 1, ()),
    ],
)
def test_counts_and_notes(fps, count, wanted, frames, note):
    (choice,) = choose_windows([index / fps for index in range(count)], 16, wanted, GRID)
    assert len(choice.indexes) == frames and choice.notes == note
    assert choice.indexes[0] == 0 and list(choice.indexes) == sorted(choice.indexes)


@pytest.mark.parametrize(
    ("fps", "count", "message"),
    [
        (16, 3, "too short: 0.2 s gives 3 frames at 16 fps; at least 5 are needed"),
        (16, 1, "too short: 0.0 s gives 1 frame at 16 fps; at least 5 are needed"),
        (16, 0, "too short: it has no frames"),
    ],
)
def test_too_short(fps, count, message):
    with pytest.raises(ValueError) as caught:
        choose_windows([index / fps for index in range(count)], 16, 49, GRID)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("cut", "count", "starts", "notes"),
    [
        ({"windows": "head"}, 192, [0], ["first 3.1 s of 12.0 s"]),
        ({"windows": "middle"}, 192, [71], ["4.4-7.5 s of 12.0 s"]),
        ({"windows": "middle"}, 49, [0], []),
        ({"windows": "whole clip"}, 192, [0, 48, 95, 143], ["first 3.1 s of 12.0 s", "3.0-6.1 s of 12.0 s"]),
        ({"windows": "whole clip"}, 52, [1], ["0.1-3.1 s of 3.2 s"]),
        ({"windows": "whole clip"}, 60, [0, 11], ["first 3.1 s of 3.8 s", "0.7-3.8 s of 3.8 s"]),
        ({"windows": "whole clip"}, 30, [0], ["29 of 49 frames: the clip is 1.9 s long"]),
        ({"windows": "several windows"}, 192, [0, 72, 143], ["first 3.1 s of 12.0 s", "4.5-7.6 s of 12.0 s"]),
        ({"windows": "several windows", "window_count": 1}, 192, [71], ["4.4-7.5 s of 12.0 s"]),
        ({"windows": "several windows"}, 80, [0, 31],
         ["first 3.1 s of 5.0 s", "2 of 3 windows: the clip is too short for more"]),
        ({"windows": "sliding windows"}, 112, [0, 16, 32, 48], ["first 3.1 s of 7.0 s", "1.0-4.1 s of 7.0 s"]),
        ({"windows": "sliding windows", "window_step": 2.5}, 112, [0, 40], ["first 3.1 s of 7.0 s"]),
    ],
)
def test_windows(cut, count, starts, notes):
    windows = choose_windows([index / 16 for index in range(count)], 16, 49, GRID, CutConfig(**cut))
    found = [window.indexes[0] for window in windows]
    assert [one == other for one, other in zip(found, starts, strict=True)] == [True] * len(starts)
    for window in windows:
        assert list(window.indexes) == list(range(window.indexes[0], window.indexes[0] + len(window.indexes)))
        assert len(window.indexes) == min(49, GRID.frames_within(count)) and window.indexes[-1] < count
        assert window.start == window.indexes[0] / 16
    assert len({window.indexes for window in windows}) == len(windows)
    said = [note for window in windows for note in window.notes]
    assert set(notes) <= set(said)


def test_the_whole_clip_misses_nothing():
    for count in range(53, 400, 7):
        times = [index / 16 for index in range(count)]
        windows = choose_windows(times, 16, 49, GRID, CutConfig(windows="whole clip"))
        used = {index for window in windows for index in window.indexes}
        assert used == set(range(count)) and len(windows) == -(-(count - 3) // 49)
    (one,) = choose_windows([index / 16 for index in range(52)], 16, 49, GRID, CutConfig(windows="whole clip"))
    assert len(one.indexes) == 49


def test_a_clip_whose_first_frames_do_not_decode_begins_with_the_next():
    times = [1 + index / 16 for index in range(60)]
    for windows, first in (("head", 0), ("middle", 5)):
        (window,) = choose_windows(times, 16, 49, GRID, CutConfig(windows=windows))
        assert window.indexes == tuple(range(first, first + 49)) and not any("repeat" in note for note in window.notes)
    (short,) = choose_windows(times[:30], 16, 49, GRID)
    assert short.indexes == tuple(range(29)) and short.notes == ("29 of 49 frames: the clip is 1.9 s long",)


@pytest.mark.parametrize("rate", [12, 25, 60])
def test_windows_are_true_to_time_at_any_rate(rate):
    times = [index / rate for index in range(8 * rate)]
    for window in choose_windows(times, 16, 33, GRID, CutConfig(windows="sliding windows")):
        for frame, index in enumerate(window.indexes):
            assert abs(times[index] - window.start - frame / 16) <= 0.5 / rate + 1e-9
