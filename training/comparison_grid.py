"""Videos side by side in one picture per frame, with what they are at the edges.

T frames, P Q pixel height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from .dataset.contact_sheet import FAINT, GAP, INK, PAPER, font_for

SMALLEST, LARGEST = 14, 48
"""Letters, pixels: as large as suits the cells, never smaller than can be read."""
CELL_LETTERS = 16
"""A cell's width in letters of the size that suits it."""
LONGEST_LABEL = 16
"""Letters that a row's label has room for; longer ones are shortened."""
FRAMES_AT_ONCE = 8
"""Frames scaled down together, which bounds the memory it takes."""
ELLIPSIS = "…"


class ComparisonGrid:
    """Cells in rows and columns, filled one after the other. Its width and height are even, as video codecs want it."""

    def __init__(
        self, *, title: str, note: str, columns: Sequence[str], rows: Sequence[str], shape: tuple[int, int, int],
        cell_width: int,
    ):
        """`shape`: T, P and Q of every cell as it comes in; wider ones are scaled down to `cell_width`, 0 never.

        One row without a label stands without a margin for labels.
        """
        frames, height, width = shape
        scale = min(1.0, cell_width / width) if cell_width else 1.0
        self._height, self._width = max(1, round(height * scale)), max(1, round(width * scale))
        size = min(max(round(self._width / CELL_LETTERS), SMALLEST), LARGEST)
        self._line = round(size * 1.5)
        self._pitch = max(self._width, *(round(_length(label, size)) for label in columns)) + GAP
        widest = max((_length(line, size) for label in rows for line in label.split("\n")), default=0)
        self._left = min(round(widest), size * LONGEST_LABEL) + 2 * GAP if widest else GAP
        self._top = 3 * self._line + 2 * GAP
        sheet = self._sheet(title, note, columns, rows, size)
        paper = torch.from_numpy(np.array(sheet)).float().div_(255)
        self.images = paper.expand(frames, -1, -1, -1).clone()
        """(T, P, Q, 3) float in 0..1: the whole grid, empty places in the colour of the paper."""

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a cell, pixels."""
        spare = (self._pitch - GAP - self._width) // 2
        left, top = self._left + column * self._pitch + spare, self._top + row * (self._height + GAP)
        return left, top, self._width, self._height

    def put(self, frames: Tensor, places: Sequence[tuple[int, int]]) -> None:
        """Show a video (T, P, Q, 3 or more channels) of 0..1 at each (row, column) of `places`."""
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            part = frames[start : start + FRAMES_AT_ONCE, ..., :3].to("cpu", torch.float32)
            if part.shape[1:3] != (self._height, self._width):
                part = interpolate(part.movedim(-1, 1), (self._height, self._width), mode="bicubic", antialias=True)
                part = part.movedim(1, -1).clamp_(0, 1)
            for row, column in places:
                left, top, width, height = self.box(row, column)
                self.images[start : start + len(part), top : top + height, left : left + width] = part

    def _sheet(self, title: str, note: str, columns: Sequence[str], rows: Sequence[str], size: int) -> Image.Image:
        """What stands around the cells."""
        width = self._left + len(columns) * self._pitch
        height = self._top + len(rows) * (self._height + GAP)
        sheet = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        draw = ImageDraw.Draw(sheet)
        for line, (words, colour) in enumerate(((title, INK), (note, FAINT))):
            text, font = _fitted(words, size, width - 2 * GAP)
            draw.text((GAP, GAP + line * self._line), text, fill=colour, font=font)
        for column, label in enumerate(columns):
            left, _, cell, _ = self.box(0, column)
            text, font = _fitted(label, size, self._pitch - GAP)
            draw.text((left + cell / 2, self._top - GAP / 2), text, fill=INK, font=font, anchor="md")
        for row, label in enumerate(rows):
            lines = label.split("\n")
            first = self.box(row, 0)[1] + self._height / 2 - (len(lines) - 1) * self._line / 2
            for number, line in enumerate(lines):
                text, font = _fitted(line, size, self._left - 2 * GAP)
                at = (self._left - GAP, first + number * self._line)
                draw.text(at, text, fill=FAINT if number else INK, font=font, anchor="rm")
        return sheet


def grid_bytes(rows: int, columns: int, shape: tuple[int, int, int], cell_width: int) -> int:
    """Bytes of the pictures of a grid of cells of this shape (T, P, Q), without their labels."""
    frames, height, width = shape
    scale = min(1.0, cell_width / width) if cell_width else 1.0
    return int(rows * columns * frames * height * width * scale * scale * 3 * 4)


def shortened(words: str, fits: Callable[[str], bool]) -> str:
    """As much of the words as fits, both ends of them: what is left out is in the middle."""
    if fits(words):
        return words
    for kept in range(len(words) - 1, 0, -1):
        head, tail = (kept + 1) // 2, kept // 2
        shorter = words[:head].rstrip() + ELLIPSIS + words[len(words) - tail :].lstrip()
        if fits(shorter):
            return shorter
    return ELLIPSIS


def _fitted(words: str, size: int, room: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """One line that fits, and its font."""
    font = font_for(words).font_variant(size=size)
    return shortened(words, lambda text: font.getlength(text) <= room), font


def _length(words: str, size: int) -> float:
    return font_for(words).font_variant(size=size).getlength(words)
