"""Time truth from file to tensor: every frame is the one nearest in time to its moment, upright and in proportion."""

import gc
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from footage import read_counter, write_video
from nasty_footage import QUARTER_TURN

from video_lora_studio.loaders.video_file import glance, probe, read_frames
from video_lora_studio.training.dataset.sampling import choose_windows
from video_lora_studio.training.families.model_family import Grid

RATES = {
    "12": 12, "23.976": Fraction(24000, 1001), "24": 24, "25": 25, "29.97": Fraction(30000, 1001), "30": 30,
    "50": 50, "60": 60, "120": 120, "variable": None,
}
QUICK = {"preset": "ultrafast", "g": "30"}
SHAPES = {
    "plain": ({}, (160, 96)),
    "turned": ({"matrix": QUARTER_TURN}, (96, 160)),
    "wide pixels": ({"aspect": Fraction(4, 3)}, (213, 96)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wanted_fps", [16, 24, 25])
@pytest.mark.parametrize("rate", RATES)
def test_every_frame_is_the_nearest_in_time(tmp_path, rate, wanted_fps, shape):
    fps = RATES[rate]
    if fps:
        times, given = np.arange(int(2.2 * fps)) / float(fps), None
    else:
        gaps = np.random.default_rng(1).choice([1 / 60, 1 / 30, 1 / 24, 1 / 12], 70)
        times = given = np.cumsum(gaps) - gaps[0]
    extra, size = SHAPES[shape]
    path = write_video(tmp_path / "clip.mp4", frames=len(times), fps=fps or 30, times=given, options=QUICK, **extra)
    footage = probe(path)
    assert (footage.width, footage.height) == size
    assert np.abs(np.array(footage.times) - times).max() < 1e-4
    grid = Grid(fps=wanted_fps, time_stride=4, space_stride=8, size_multiple=16, channels=16)
    (choice,) = choose_windows(footage.times, wanted_fps, 33, grid)
    moments = np.arange(len(choice.indexes)) / wanted_fps
    assert len(moments) >= 29
    for moment, frame in zip(moments, read_frames(footage, choice.indexes, *size), strict=True):
        number = read_counter(np.rot90(frame.numpy()) if shape == "turned" else frame.numpy())
        error = abs(times[number] - moment)
        assert error <= np.abs(times - moment).min() + 1e-4
        assert error <= np.diff(times[max(0, number - 1) : number + 2]).max() / 2 + 1e-4


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), 60])
def test_frames_spread_over_a_long_file_are_sought(tmp_path, fps):
    footage = probe(write_video(tmp_path / "x.mp4", frames=1000, fps=fps, size=(80, 48), options=QUICK))
    wanted = [980, 3, 500, 4, 981, 3]
    assert [read_counter(frame.numpy()) for frame in read_frames(footage, wanted, 80, 48)] == wanted


@pytest.mark.parametrize("bitstream", ["bframes=3:b-pyramid=none", "bframes=8:open-gop=1", "bframes=0"])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_skipping_frames_that_are_not_wanted_changes_no_pixel(tmp_path, ending, bitstream):
    path = tmp_path / f"x.{ending}"
    footage = probe(write_video(path, frames=90, fps=60, options={"x264-params": f"keyint=40:{bitstream}"}))
    every = read_frames(footage, range(90), 80, 48)
    for wanted in (list(range(0, 90, 4)), [1, 2, 37, 41, 89], [88]):
        assert torch.equal(read_frames(footage, wanted, 80, 48), every[wanted])


def peak_above(work) -> int:
    """Bytes by which the process grows at most while this works."""
    status = Path("/proc/self/statm")

    def resident():
        return int(status.read_text().split()[1]) * 4096

    gc.collect()
    start, peak, done = resident(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of resident memory")
def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path):
    """One window from the middle, and a look over all of it, of 4 s and of 60 s in 640x360."""
    def still(number, width, height):
        return np.full((height, width, 3), number % 200, np.uint8)

    peaks = {}
    for seconds in (4, 60):
        path = tmp_path / f"{seconds}.mp4"
        footage = probe(write_video(path, frames=10 * seconds, fps=10, size=(640, 360), draw=still, options=QUICK))
        middle = range(5 * seconds - 8, 5 * seconds + 8)
        read_frames(footage, middle, 416, 240)  # what the first reading leaves behind is not counted
        peaks[seconds] = peak_above(lambda: (read_frames(footage, middle, 416, 240), list(glance(footage))))  # noqa: B023
    assert peaks[60] < peaks[4] + 30_000_000  # all of it decoded would be 207 MB
