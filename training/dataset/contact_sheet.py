"""A picture of a training set: one row a clip, as training sees it."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...loaders.feature_cache import read_features
from .clip_set import left_out_line
from .precompute import PREVIEW_SIDE, Prepared
from .training_set import PREVIEW, Sample

MOST_ROWS = 60
GAP = 8
TEXT_WIDTH, LETTERS, LINE = 560, 70, 20  # pixels, letters and pixels a line of text
PAPER, INK, FAINT = (24, 24, 27), (240, 240, 240), (165, 165, 172)


def contact_sheet(prepared: Prepared) -> Tensor:
    """(1, P, Q, 3) float in 0..1: first, middle and last frame of each clip beside its name, caption and notes.

    At most 60 clips are drawn; a last line says how many more there are. Then come the files that were left out.
    """
    samples = prepared.training_set.samples
    font = ImageFont.load_default(size=15)
    rows = [_row(sample, font) for sample in samples[:MOST_ROWS]]
    if len(samples) > MOST_ROWS:
        rows.append(_text([(f"and {len(samples) - MOST_ROWS} more", INK)], font))
    if prepared.left_out:
        rows.append(_text([(left_out_line(item), FAINT) for item in prepared.left_out[:MOST_ROWS]], font))
    width = max(row.width for row in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(row.height + GAP for row in rows) + GAP), PAPER)
    top = GAP
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    return torch.from_numpy(np.array(sheet)).float().div_(255).unsqueeze(0)


def _row(sample: Sample, font) -> Image.Image:
    """One clip: its frames, and what there is to say of it."""
    frames = [Image.fromarray(frame) for frame in read_features(sample.clip_features)[PREVIEW].numpy()]
    text = _text([(sample.name, INK), (sample.caption or "no caption", INK), (", ".join(sample.notes), FAINT)], font)
    left = 3 * (PREVIEW_SIDE + GAP)
    row = Image.new("RGB", (left + text.width, max(frames[0].height, text.height)), PAPER)
    for place, frame in enumerate(frames):
        row.paste(frame, (place * (PREVIEW_SIDE + GAP), 0))
    row.paste(text, (left, 0))
    return row


def _text(paragraphs: list[tuple[str, tuple[int, int, int]]], font) -> Image.Image:
    """Paragraphs of their colours, wrapped; long ones are cut after six lines."""
    lines = []
    for words, colour in paragraphs:
        wrapped = textwrap.wrap(words, LETTERS, max_lines=6, placeholder=" …") or [""]
        lines += [(line, colour) for line in wrapped]
    image = Image.new("RGB", (TEXT_WIDTH, LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (line, colour) in enumerate(lines):
        draw.text((0, number * LINE), line, fill=colour, font=font)
    return image
