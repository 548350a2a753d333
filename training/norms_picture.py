"""A picture of how much a LoRA changes each block of its model."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .dataset.contact_sheet import FAINT, INK, PAPER, font_for
from .norms import LoraNorms

WIDTH, HEIGHT = 1024, 480  # pixels
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 104, 64  # around the bars
TITLE, TEXT, SMALL = 22, 16, 14  # letters, pixels
BAR, OUTSIDE, GRID = (96, 165, 250), (148, 163, 184), (63, 63, 70)
LINES = 4
"""Lines across the bars, at round numbers."""


def lora_picture(norms: LoraNorms, *, title: str, subtitle: str) -> Tensor:
    """(1, P, Q, 3) float in 0..1: one bar a block, its height the norm of the change; last what is outside blocks."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (LEFT, 20), title, TITLE, INK)
    _write(draw, (LEFT, 52), subtitle, TEXT, FAINT)
    bars = [(str(block), norm, BAR) for block, norm in norms.blocks.items()]
    bars += [("", norms.outside, OUTSIDE)] if norms.outside else []
    if not any(norm > 0 for _, norm, _ in bars):
        _write(draw, (LEFT, HEIGHT // 2), "It changes nothing that can be measured without the model.", TEXT, INK)
        return _tensor(sheet)
    top = _draw_lines(draw, max(norm for _, norm, _ in bars))
    _draw_bars(draw, bars, top)
    foot = "block; the height is the Frobenius norm of what the LoRA adds at strength 1"
    _write(draw, (LEFT, HEIGHT - 28), foot, SMALL, FAINT)
    return _tensor(sheet)


def _draw_lines(draw: ImageDraw.ImageDraw, highest: float) -> float:
    """Lines at round numbers, and the number at the top of the bars' space."""
    step = _round_up(highest / LINES)
    count = math.ceil(highest / step - 1e-9)
    for line in range(count + 1):
        y = _height(line * step, count * step)
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        _write(draw, (LEFT - 10, y), f"{line * step:.3g}", SMALL, FAINT, anchor="rm")
    return count * step


def _draw_bars(draw: ImageDraw.ImageDraw, bars: list[tuple[str, float, tuple[int, int, int]]], top: float) -> None:
    """Every bar; the label of each, or of every second, fifth and so on where there is no room for more."""
    pitch = (WIDTH - LEFT - RIGHT) / len(bars)
    width = min(pitch * 0.8, 48.0)
    widest = 9 * max(len(label) for label, _, _ in bars) + 4
    every = next(count for count in (1, 2, 5, 10, 20, 50, 100, len(bars)) if count * pitch >= widest)
    for number, (label, norm, colour) in enumerate(bars):
        middle = LEFT + (number + 0.5) * pitch
        y = min(_height(norm, top), HEIGHT - BOTTOM - 1)
        draw.rectangle((middle - width / 2, y, middle + width / 2, HEIGHT - BOTTOM), fill=colour)
        if colour == OUTSIDE:
            _write(draw, (WIDTH - RIGHT, HEIGHT - 28), "grey: outside the blocks", SMALL, FAINT, anchor="ra")
        elif number % every == 0:
            _write(draw, (middle, HEIGHT - BOTTOM + 6), label, SMALL, INK, anchor="mt")


def _height(norm: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * norm / top


def _round_up(number: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(number))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= number * (1 - 1e-9))


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    words: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    """One line, cut where it would leave the picture."""
    font = font_for(words).font_variant(size=size)
    room = WIDTH - RIGHT - LEFT
    if font.getlength(words) > room:
        while words and font.getlength(words + " …") > room:
            words = words[:-1]
        words += " …"
    draw.text(at, words, fill=colour, font=font, anchor=anchor)


def _tensor(sheet: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(sheet)).float().div_(255).unsqueeze(0)
