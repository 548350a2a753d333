"""Videos side by side: each in its place, whole, with labels that can be read."""

import pytest
import torch

from video_lora_studio.training import ComparisonGrid, grid_bytes
from video_lora_studio.training.comparison_grid import SMALLEST, shortened
from video_lora_studio.training.dataset.contact_sheet import PAPER


def grid_of(columns, rows, shape, cell_width=0, title="my_lora"):
    return ComparisonGrid(title=title, note="seed 3", columns=columns, rows=rows, shape=shape, cell_width=cell_width)


def video(shape, seed):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))


def inside(grid, row, column):
    left, top, width, height = grid.box(row, column)
    return grid.images[:, top : top + height, left : left + width]


def test_cells_are_in_their_places_to_the_last_bit():
    grid = grid_of(["without", "strength 1"], ["step 1", "step 2", "step 3\nlast"], (9, 40, 64))
    cells = {(row, column): video((9, 40, 64), 10 * row + column) for row in range(3) for column in range(2)}
    bare = grid.images.clone()
    for place, frames in cells.items():
        grid.put(frames, [place])
    for place, frames in cells.items():
        assert inside(grid, *place).equal(frames)
        left, top, width, height = grid.box(*place)
        bare[:, top : top + height, left : left + width] = frames
    assert grid.images.equal(bare), "what stands around the cells is as it was"
    assert grid.images.dtype == torch.float32 and (grid.images >= 0).all() and (grid.images <= 1).all()


def test_one_video_is_shown_in_several_places():
    grid = grid_of(["without", "strength 1"], ["step 1", "step 2"], (5, 32, 32))
    frames = video((5, 32, 32), 1)
    grid.put(frames, [(0, 0), (1, 0)])
    assert inside(grid, 0, 0).equal(frames) and inside(grid, 1, 0).equal(frames)
    paper = torch.tensor(PAPER) / 255
    assert (inside(grid, 0, 1) == paper).all() and (inside(grid, 1, 1) == paper).all(), "empty places are paper"


@pytest.mark.parametrize(("shape", "cell_width", "cell"), [
    ((3, 480, 832), 512, (512, 295)), ((3, 480, 832), 0, (832, 480)), ((3, 480, 832), 1024, (832, 480)),
    ((3, 33, 65), 0, (65, 33)), ((3, 500, 20), 10, (10, 250)), ((1, 2, 2000), 16, (16, 1)),
])
def test_wide_videos_are_scaled_down_and_none_up(shape, cell_width, cell):
    grid = grid_of(["without"], [""], shape, cell_width)
    assert grid.box(0, 0)[2:] == cell
    assert [side % 2 for side in grid.images.shape[1:3]] == [0, 0], "video codecs want even sizes"
    colour = torch.tensor([0.25, 0.5, 0.75])
    grid.put(colour.expand(*shape, 3), [(0, 0)])
    assert torch.allclose(inside(grid, 0, 0), colour.expand(shape[0], *cell[::-1], 3), atol=1e-5)


def test_scaling_down_keeps_what_is_where():
    frames = torch.zeros(9, 64, 128, 4)
    frames[:, :32, :64] = 1
    frames[4:] = 1 - frames[4:]
    grid = grid_of(["without"], [""], (9, 64, 128), 32)
    grid.put(frames, [(0, 0)])
    small = inside(grid, 0, 0)
    assert small.shape == (9, 16, 32, 3)
    assert (small[:4, 1:6, 1:14] > 0.99).all() and (small[:4, 10:, 20:] < 0.01).all()
    assert (small[4:, 1:6, 1:14] < 0.01).all() and (small[4:, 10:, 20:] > 0.99).all()


@pytest.mark.parametrize("width", [16, 64, 128, 512, 1280])
def test_labels_are_written_beside_the_cells_at_every_size(width):
    shape = (1, width // 2, width)
    grid = grid_of(["without", "strength -0.85"], ["step 250", "step 1000\nlast"], shape)
    paper = torch.tensor(PAPER) / 255
    ink = (grid.images[0] - paper).abs().sum(-1) > 0.5
    for column in range(2):
        left, top, cell, _ = grid.box(0, column)
        middle = left + cell // 2
        written = ink[top - 2 * SMALLEST : top, middle - 50 : middle + 50].nonzero()
        assert len(written) and written[:, 0].max() - written[:, 0].min() >= 6, "letters of at least 11 pixels"
    left, top, _, height = grid.box(1, 0)
    assert ink[top : top + max(height, 3 * SMALLEST), :left].any()
    assert grid.box(0, 1)[0] >= left + width
    for row in range(2):
        for column in range(2):
            assert (inside(grid, row, column)[0] == paper).all(), "no text over a picture"


def test_a_single_row_has_no_margin_for_labels():
    alone, rows = grid_of(["without"], [""], (1, 64, 64)), grid_of(["without"], ["step 1", "step 2"], (1, 64, 64))
    assert alone.box(0, 0)[0] < 20 < rows.box(0, 0)[0]


@pytest.mark.parametrize(("words", "room", "short"), [
    ("my_lora", 7, "my_lora"), ("my_lora", 6, "my_…ra"), ("my_lora", 1, "…"), ("", 0, ""),
    ("a very long name_high_noise", 11, "a ver…noise"), ("one two three", 5, "on…ee"),
])
def test_long_names_are_shortened_in_the_middle(words, room, short):
    assert shortened(words, lambda text: len(text) <= room) == short


def test_a_long_title_stays_within_the_picture():
    name = "a_name_that_goes_on_and_on_" * 20
    grid = grid_of(["without", "strength 1"], [""], (1, 72, 128), title=name)
    short = grid_of(["without", "strength 1"], [""], (1, 72, 128))
    assert grid.images.shape == short.images.shape and not grid.images.equal(short.images)
    assert (grid.images[0, :, -8:] == torch.tensor(PAPER) / 255).all()


def test_bytes_are_those_of_the_cells():
    grid = grid_of(["without", "strength 1"], ["step 1", "step 2"], (5, 300, 600), 200)
    cells = 4 * inside(grid, 0, 0).numel() * 4
    assert grid_bytes(2, 2, (5, 300, 600), 200) == cells
    assert grid_bytes(2, 2, (5, 300, 600), 0) == 9 * cells
