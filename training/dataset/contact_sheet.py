"""A picture of a set of clips: one row a clip, as it lies in the folder or as training sees it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...loaders.feature_cache import FeatureCache, read_features
from ...loaders.video_file import read_frames
from .checks import check_key
from .clip_set import Clip, ClipSet, clip_facts, left_out_line
from .precompute import PREVIEW_SIDE, Prepared
from .training_set import PREVIEW, Sample

log = logging.getLogger(__name__)

MOST_ROWS, MOST_LINES = 60, 6
GAP = 8
TEXT_WIDTH, LETTERS, LINE = 560, 15, 20  # pixels: the text's width, its letters and its lines
PAPER, INK, FAINT = (24, 24, 27), (240, 240, 240), (165, 165, 172)
FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf",
    "msyh.ttc", "meiryo.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
    "segoeui.ttf", "NotoSans-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "DejaVuSans.ttf", "Arial.ttf", "LiberationSans-Regular.ttf",
)
"""Fonts of Linux, Windows and macOS for what Pillow's own cannot write, which is all but Latin letters."""
NOWHERE = "\U0010fffd"
"""A letter that no font has: it shows what a font draws instead of those it lacks."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of the sheet: frames (N, P, Q, 3) uint8, and what stands beside them."""

    name: str
    caption: str
    notes: Sequence[str]
    frames: np.ndarray


def contact_sheet(shown: Prepared | ClipSet, cache: FeatureCache | None = None) -> Tensor:
    """(1, P, Q, 3) float in 0..1: first, middle and last frame of each clip beside its name, caption and notes.

    A set of clips is shown as it lies in the folder, with frames from `cache` where clips were checked with it; a
    prepared one as training sees it. At most 60 rows are drawn; a last line says how many more there are. Then come
    the files that were left out.
    """
    if isinstance(shown, ClipSet):
        items, row_of = shown.clips, functools.partial(_clip_row, cache=cache)
    else:
        items, row_of = shown.training_set.samples, _sample_row
    rows = [_drawn(row_of(item)) for item in items[:MOST_ROWS]]
    if len(items) > MOST_ROWS:
        rows.append(_text([(f"and {len(items) - MOST_ROWS} more", INK)]))
    if shown.left_out:
        rows.append(_text([(left_out_line(item), FAINT) for item in shown.left_out[:MOST_ROWS]]))
    if len(shown.left_out) > MOST_ROWS:
        rows.append(_text([(f"and {len(shown.left_out) - MOST_ROWS} more left out", FAINT)]))
    width = max(row.width for row in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(row.height + GAP for row in rows) + GAP), PAPER)
    top = GAP
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    return torch.from_numpy(np.array(sheet)).float().div_(255).unsqueeze(0)


def _sample_row(sample: Sample) -> _Row:
    texts = [caption.text for caption in sample.captions]
    repeats = [f"{sample.repeats} times an epoch"] if sample.repeats > 1 else []
    frames = read_features(sample.clip_features)[PREVIEW].numpy()
    return _Row(name=sample.name, caption=_caption(texts), notes=[*sample.notes, *repeats], frames=frames)


def _clip_row(clip: Clip, cache: FeatureCache | None) -> _Row:
    return _Row(name=clip.name, caption=_caption(clip.captions), notes=clip_facts(clip), frames=_frames(clip, cache))


def _caption(texts: Sequence[str]) -> str:
    return "  ·  ".join(texts) if any(texts) else "no caption"


def _frames(clip: Clip, cache: FeatureCache | None) -> np.ndarray:
    """First, middle and last frame of a clip, small, whole; none where they cannot be read."""
    try:
        key = check_key(clip.path)
        if cache and cache.has(key):
            return cache.load(key)[PREVIEW].numpy()
        footage = clip.footage
        scale = min(1.0, PREVIEW_SIDE / max(footage.width, footage.height))
        size = [max(2, round(side * scale)) for side in (footage.width, footage.height)]
        count = len(footage.times)
        # One by one, because each is sought: together all that lies between them would be decoded.
        return np.concatenate(
            [read_frames(footage, [index], *size).numpy() for index in sorted({0, count // 2, count - 1})]
        )
    except (ValueError, OSError) as error:
        log.info("%s is shown without its frames: %s", clip.name, error)
        return np.empty((0, 1, 1, 3), np.uint8)


def _drawn(row: _Row) -> Image.Image:
    text = _text([(row.name, INK), (row.caption, INK), (", ".join(row.notes), FAINT)])
    frames = [Image.fromarray(frame) for frame in row.frames]
    left = 3 * (PREVIEW_SIDE + GAP)
    image = Image.new("RGB", (left + text.width, max([text.height, *(frame.height for frame in frames)])), PAPER)
    for place, frame in enumerate(frames):
        image.paste(frame, (place * (PREVIEW_SIDE + GAP), 0))
    image.paste(text, (left, 0))
    return image


def _text(paragraphs: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Paragraphs of their colours, wrapped; long ones are cut after six lines."""
    lines = [(line, font, colour) for words, colour in paragraphs for font in [font_for(words)]
             for line in _wrapped(words, font)]
    image = Image.new("RGB", (TEXT_WIDTH, LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (line, font, colour) in enumerate(lines):
        draw.text((0, number * LINE), line, fill=colour, font=font)
    return image


def _wrapped(words: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines that fit the text's width: broken at blanks, and within what is too long for a line, as scripts without
    blanks are."""
    lines = [""]
    for word in words.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(joined) <= TEXT_WIDTH:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > TEXT_WIDTH:
                lines.append("")
            lines[-1] += letter
        if len(lines) > MOST_LINES:
            break
    if len(lines) <= MOST_LINES:
        return lines
    last = lines[MOST_LINES - 1]
    while font.getlength(last + " …") > TEXT_WIDTH:
        last = last[:-1]
    return [*lines[: MOST_LINES - 1], last + " …"]


def font_for(words: str) -> ImageFont.FreeTypeFont:
    """The font that can write most of the letters: Pillow's own where it has them all, else the system's."""
    letters = {letter for letter in words if not letter.isspace()}
    best = _font("")
    lacking = _lacking(best, letters)
    for name in FONTS if lacking else ():
        font = _font(name)
        if font and (lacks := _lacking(font, letters)) < lacking:
            best, lacking = font, lacks
        if not lacking:
            break
    return best


@functools.lru_cache(maxsize=64)
def _font(name: str) -> ImageFont.FreeTypeFont | None:
    """A font of the system, or Pillow's own for no name; None where it is not there."""
    try:
        return ImageFont.truetype(name, LETTERS) if name else ImageFont.load_default(size=LETTERS)
    except OSError:
        return None


def _lacking(font: ImageFont.FreeTypeFont, letters: set[str]) -> int:
    return sum(_lacks(font, letter) for letter in letters)


@functools.lru_cache(maxsize=8192)
def _lacks(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font draws for this letter what it draws for any that it does not have."""
    drawn, nothing = font.getmask(letter), font.getmask(NOWHERE)
    return drawn.size == nothing.size and bytes(drawn) == bytes(nothing)
