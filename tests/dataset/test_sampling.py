"""The frames that are used are the ones nearest in time, whatever the source's frame rate."""

from fractions import Fraction

import numpy as np
import pytest
from footage import read_counter, write_video

from video_lora_studio.loaders.video_file import probe, read_frames
from video_lora_studio.training.dataset.sampling import choose_frames
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
    choice = choose_frames(footage.times, 16, 33, GRID)
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
    choice = choose_frames([index / fps for index in range(count)], 16, wanted, GRID)
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
        choose_frames([index / fps for index in range(count)], 16, 49, GRID)
    assert str(caught.value) == message
