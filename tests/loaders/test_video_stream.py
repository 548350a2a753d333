"""Crops and interlaced footage: what is cut away never shows, and two moments never share a frame."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from footage import counter_frame, fields, quadrants, write_video
from PIL import Image

from video_lora_studio.loaders import video_stream
from video_lora_studio.loaders.video_file import Crop, FootageError, probe, read_frames

ONE = 1 << 16  # fixed point of display matrices


def letterboxed(number, width, height):
    """The counter between white bars, 16 pixels above and below and 32 left and right."""
    frame = np.full((height, width, 3), 255, np.uint8)
    frame[16 : height - 16, 32 : width - 32] = counter_frame(number, width - 64, height - 32)
    return frame


BARS = Crop(left=32, top=16, width=160, height=96)


@pytest.mark.parametrize("size", [(160, 96), (80, 48), (320, 192), (96, 96)])
def test_nothing_of_what_is_cropped_away_shows(tmp_path, size):
    path = write_video(tmp_path / "x.mkv", size=(224, 128), draw=letterboxed, codec="ffv1")
    bare = write_video(tmp_path / "bare.mkv", codec="ffv1")
    wanted = [3, 3, 30]
    assert torch.equal(read_frames(probe(path), wanted, *size, crop=BARS), read_frames(probe(bare), wanted, *size))


@pytest.mark.parametrize("crop", [
    Crop(left=0, top=0, width=64, height=32), Crop(left=64, top=32, width=64, height=32),
    Crop(left=11, top=5, width=70, height=41), Crop(left=0, top=0, width=1, height=1),
    Crop(left=127, top=63, width=1, height=1), Crop(left=0, top=0, width=128, height=64),
])
@pytest.mark.parametrize("matrix", [
    (ONE, 0, 0, ONE), (0, ONE, -ONE, 0), (0, -ONE, ONE, 0), (-ONE, 0, 0, -ONE), (-ONE, 0, 0, ONE), (ONE, 0, 0, -ONE),
    (0, ONE, ONE, 0),
])
def test_a_crop_counts_in_the_upright_picture(tmp_path, matrix, crop):
    """Against the whole upright picture, cut by Pillow."""
    path = write_video(tmp_path / "x.mov", frames=1, size=(128, 64), draw=quadrants, matrix=matrix)
    footage = probe(path)
    if footage.width == 64:
        crop = Crop(left=crop.top, top=crop.left, width=crop.height, height=crop.width)
    whole = read_frames(footage, [0], footage.width, footage.height)[0].numpy()
    part = read_frames(footage, [0], crop.width, crop.height, crop=crop)[0].numpy()
    box = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
    assert np.abs(part.astype(int) - np.asarray(Image.fromarray(whole).crop(box))).mean() < 8


def test_a_crop_of_wide_pixels_keeps_its_proportions(tmp_path):
    def disc(number, width, height):
        y, x = np.mgrid[:height, :width]
        inside = (x + 0.5 - width / 2) ** 2 * 16 / 9 + (y + 0.5 - height / 2) ** 2 < 30**2
        return np.where(inside[..., None], 240, 10).astype(np.uint8).repeat(3, 2)

    footage = probe(write_video(tmp_path / "x.mkv", frames=1, draw=disc, aspect=Fraction(4, 3)))
    assert (footage.width, footage.height) == (213, 96)
    crop = Crop(left=66, top=8, width=80, height=80)
    frame = read_frames(footage, [0], 80, 80, crop=crop)[0].float().mean(-1) > 125
    across, down = int(frame[40].sum()), int(frame[:, 40].sum())
    assert abs(across - down) <= 2 and 60 <= across <= 63  # inwards to whole pixels: a little larger


@pytest.mark.parametrize("name", ["x.mp4", "x.png"])
@pytest.mark.parametrize("crop", [
    Crop(left=100, top=0, width=61, height=10), Crop(left=0, top=90, width=10, height=7),
    Crop(left=-1, top=0, width=10, height=10), Crop(left=0, top=0, width=0, height=10),
])
def test_a_crop_outside_the_picture_is_refused(tmp_path, name, crop):
    path = tmp_path / name
    if name == "x.png":
        Image.new("RGB", (160, 96)).save(path)
    else:
        write_video(path, frames=2)
    with pytest.raises(FootageError, match=f"^{name}: the crop .* lies outside its 160x96 pixels.$"):
        read_frames(probe(path), [0], 16, 16, crop=crop)


def test_images_are_cropped(tmp_path):
    Image.fromarray(letterboxed(5, 224, 128)).save(tmp_path / "x.png")
    (frame,) = read_frames(probe(tmp_path / "x.png"), [0], 160, 96, crop=BARS)
    assert np.array_equal(frame.numpy(), counter_frame(5))


def sliding(number, width, height):
    """A bright bar that moves two pixels from picture to picture, over fine level stripes that stand still."""
    frame = np.full((height, width, 3), 60, np.uint8)
    frame[::8] = frame[1::8] = 100
    left = 10 + 2 * number
    frame[:, left : left + 12] = 220
    return frame


def write_interlaced(path, frames=20, draw=sliding):
    def woven(number, width, height):
        return fields(number, width, height, draw)

    return write_video(path, frames=frames, fps=25, draw=woven, options={"crf": "1", "x264-params": "bff=1"})


def test_interlaced_footage_shows_one_moment_a_frame(tmp_path, monkeypatch):
    footage = probe(write_interlaced(tmp_path / "x.mp4"))
    assert footage.interlaced and footage.notes == ("interlaced: deinterlaced",)
    assert len(footage.times) == 20 and footage.fps == 25
    frames = read_frames(footage, range(20), 160, 96)
    truth = torch.stack([torch.from_numpy(sliding(2 * number, 160, 96)) for number in range(20)])
    error = (frames[1:].float() - truth[1:]).abs().mean()
    assert error < 1.5
    monkeypatch.setattr(video_stream, "DEINTERLACER", "no such filter")
    probe.__globals__["_probe"].cache_clear()
    footage = probe(tmp_path / "x.mp4")
    kept = read_frames(footage, range(20), 160, 96)
    assert footage.notes == ("interlaced: both fields are kept",)
    assert (kept[1:].float() - truth[1:]).abs().mean() > 2 * error


def test_deinterlaced_frames_do_not_depend_on_where_reading_begins(tmp_path):
    footage = probe(write_interlaced(tmp_path / "x.mp4", frames=180, draw=lambda n, w, h: sliding(n % 60, w, h)))
    assert footage.times[150] > video_stream.FAR_SECONDS
    wanted = [144, 150, 151, 172]
    assert torch.equal(read_frames(footage, wanted, 160, 96), read_frames(footage, range(180), 160, 96)[wanted])


def test_frames_that_change_size_on_the_way_are_cropped_each(tmp_path):
    frames = [av.VideoFrame.from_ndarray(counter_frame(1, *size), "rgb24") for size in ((64, 48), (64, 48), (128, 96))]
    path = write_video(tmp_path / "x.mkv", frames=1, size=(64, 48))
    cut = list(video_stream.cut_out(iter(frames), probe(path), Crop(left=16, top=12, width=32, height=24)))
    assert [(frame.width, frame.height) for frame in cut] == [(32, 24), (32, 24), (64, 48)]
    assert np.array_equal(cut[0].to_ndarray(), counter_frame(1, 64, 48)[12:36, 16:48])
