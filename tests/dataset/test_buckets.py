"""Clips keep their proportions at about the area asked for; none is enlarged unasked, and every size fits the model."""

import itertools

import pytest

from video_lora_studio.training.config import CutConfig
from video_lora_studio.training.dataset.buckets import Size, all_sizes, bucket
from video_lora_studio.training.families.cogvideox import OneSizeGrid
from video_lora_studio.training.families.model_family import Grid

GRID = Grid(fps=16, time_stride=4, space_stride=8, size_multiple=16, channels=16)
COARSE = Grid(fps=24, time_stride=8, space_stride=32, size_multiple=32, channels=128)
ONE = OneSizeGrid(fps=8, time_stride=4, space_stride=8, size_multiple=16, channels=16, width=720, height=480)
KEEP, CROP = "keep proportions", "crop to this size"


def size(width, height, frames=17):
    return Size(width=width, height=height, frames=frames)


@pytest.mark.parametrize(
    ("picture", "asked", "cut", "found"),
    [
        ((1920, 1080), (832, 480), {}, (832, 480)),
        ((1080, 1920), (832, 480), {}, (480, 832)),
        ((1920, 1080), (480, 832), {}, (832, 480)),
        ((1000, 1000), (832, 480), {}, (624, 624)),
        ((2048, 858), (832, 480), {}, (976, 400)),
        ((640, 360), (832, 480), {}, (624, 352)),
        ((640, 360), (832, 480), {"upscale": True}, (832, 480)),
        ((100, 40), (832, 480), {}, (80, 32)),
        ((40, 100), (832, 480), {}, (32, 80)),
        ((1920, 1080), (512, 512), {"fit": CROP}, (512, 512)),
        ((1080, 1920), (832, 480), {"fit": CROP}, (832, 480)),
        ((400, 300), (512, 512), {"fit": CROP}, (288, 288)),
        ((640, 640), (832, 480), {"fit": CROP}, (640, 368)),
        ((480, 832), (832, 480), {"fit": CROP}, (464, 272)),
        ((16, 16), (832, 480), {"fit": CROP}, (16, 16)),
        ((400, 300), (512, 512), {"fit": CROP, "upscale": True}, (512, 512)),
        ((10, 10), (64, 64), {"upscale": True}, (64, 64)),
    ],
)
def test_sizes(picture, asked, cut, found):
    assert bucket(*picture, size(*asked), CutConfig(**cut), GRID) == found


@pytest.mark.parametrize("grid", [GRID, COARSE], ids=["16", "32"])
@pytest.mark.parametrize("fit", [KEEP, CROP])
@pytest.mark.parametrize("upscale", [False, True])
def test_whatever_the_picture_the_size_suits_the_model_and_the_area(grid, fit, upscale):
    cut = CutConfig(fit=fit, upscale=upscale)
    for width, height in itertools.product((32, 63, 200, 333, 720, 1080, 1920, 4096), repeat=2):
        across, down = bucket(width, height, size(512, 320), cut, grid)
        grid.check(across, down, 17)
        assert across * down <= 512 * 320
        assert upscale or across <= width and down <= height


def test_pictures_of_one_shape_share_a_bucket():
    sizes = {bucket(width, width * 9 // 16, size(832, 480), CutConfig(), GRID) for width in (1280, 1920, 2560, 3840)}
    assert sizes == {(832, 480)}


def test_too_small_a_picture_is_said():
    with pytest.raises(ValueError) as caught:
        bucket(15, 300, size(64, 64), CutConfig(), GRID)
    assert str(caught.value) == "too small: 15x300; at least 16x16 is needed, or Enlarge small clips switched on"


@pytest.mark.parametrize("picture", [(1920, 1080), (500, 1000), (320, 240)])
def test_a_model_of_one_size_gets_that_size(picture):
    assert bucket(*picture, size(720, 480), CutConfig(), ONE) == (720, 480)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["832x480x81"]),
        ("512x512x33, 960x544x17", ["832x480x81", "512x512x33", "960x544x17"]),
        (" 512 X 512 ;256×256×5\n832x480x81,", ["832x480x81", "512x512x81", "256x256x5"]),
    ],
)
def test_more_sizes_are_read(text, found):
    assert [str(one) for one in all_sizes(832, 480, 81, CutConfig(more_sizes=text), GRID)] == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("big", "More sizes has 'big': write width x height x frames"),
        ("512x512x33x2", "More sizes has '512x512x33x2'"),
        ("512", "More sizes has '512'"),
        ("500x512x33", "More sizes has 500x512x33: Width 500 does not fit this model"),
        ("512x512x32", "More sizes has 512x512x32: Frames 32 does not fit this model"),
    ],
)
def test_more_sizes_that_make_no_sense_are_said(text, words):
    with pytest.raises(ValueError, match=words):
        all_sizes(832, 480, 81, CutConfig(more_sizes=text), GRID)
