"""The contact sheet shows every clip with what was done to it, before and after encoding, in any script."""

import dataclasses

import numpy as np
import pytest
import torch
from footage import write_video
from PIL import Image
from tiny import StandInTextEncoder, StandInVae, write_twin

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.dataset.checks import check_key
from video_lora_studio.training.dataset.contact_sheet import TEXT_WIDTH, _lacking, _wrapped, contact_sheet, font_for
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.dataset.training_set import PREVIEW
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.families.model_family import Encoders

COLOURS = {"a.png": (250, 10, 10), "b.png": (10, 250, 10)}


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (80, 48), colour).save(folder / name)
    write_video(folder / "c.mp4", frames=24, size=(80, 48))
    (folder / "c.txt").write_text("a very long caption " * 60, encoding="utf-8")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return scan(folder, "ohwx")


def prepared(clips, folder):
    write_twin(folder / "wan.safetensors")
    base = open_base_model(folder / "wan.safetensors")
    encoders = Encoders(clip=StandInVae(base.grid), caption=StandInTextEncoder(base.text_width))
    return prepare(clips, base, encoders, width=80, height=48, frames=17, cache=FeatureCache(folder / "cache"))


def pixels_of(sheet, colour):
    return ((sheet[0] * 255).round() - torch.tensor(colour)).abs().max(-1).values.le(2).sum().item()


@pytest.mark.parametrize("encoded", [False, True])
def test_every_clip_is_shown(clips, tmp_path, encoded):
    sheet = contact_sheet(prepared(clips, tmp_path) if encoded else clips)
    assert sheet.ndim == 4 and sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert sheet.dtype == torch.float32 and sheet.min() >= 0 and sheet.max() <= 1
    assert all(pixels_of(sheet, colour) == 80 * 48 for colour in COLOURS.values())
    assert (sheet > 0.9).all(-1).sum() > 500  # text
    bare = contact_sheet(dataclasses.replace(clips, left_out=()))
    assert bare.shape[1] < contact_sheet(clips).shape[1]


def test_frames_come_from_the_checks_where_they_were_made(clips, tmp_path):
    cache, blue = FeatureCache(tmp_path / "cache"), (20, 30, 240)
    small = torch.tensor(blue, dtype=torch.uint8).expand(1, 30, 40, 3).contiguous()
    cache.store(check_key(clips.clips[0].path), {PREVIEW: small}, {})
    sheet = contact_sheet(clips, cache)
    assert pixels_of(sheet, blue) == 30 * 40 and pixels_of(sheet, COLOURS["a.png"]) == 0
    assert pixels_of(sheet, COLOURS["b.png"]) == 80 * 48


def test_a_clip_that_is_gone_leaves_its_text(clips):
    for clip in clips.clips:
        clip.path.unlink()
    sheet = contact_sheet(clips)
    assert not any(pixels_of(sheet, colour) for colour in COLOURS.values()) and (sheet > 0.9).all(-1).sum() > 500


@pytest.mark.parametrize("encoded", [False, True])
def test_a_long_sheet_is_capped(clips, tmp_path, encoded):
    shown = prepared(clips, tmp_path) if encoded else clips
    heights = []
    for count in (20, 30, 70):
        if encoded:
            more = dataclasses.replace(shown.training_set, samples=shown.training_set.samples * count)
            heights.append(contact_sheet(dataclasses.replace(shown, training_set=more)).shape[1])
        else:
            heights.append(contact_sheet(dataclasses.replace(shown, clips=shown.clips * count)).shape[1])
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.parametrize("words", ["one two three " * 20, "x" * 500, "猫が走る" * 60, "a " + "y" * 90 + " b"])
def test_lines_fit_and_long_texts_are_cut(words):
    font = font_for(words)
    lines = _wrapped(words, font)
    assert 1 <= len(lines) <= 6 and all(font.getlength(line) <= TEXT_WIDTH for line in lines)
    whole = "".join(words.split())
    shown = "".join("".join(lines).split())
    assert shown == whole or lines[-1].endswith(" …") and whole.startswith(shown.removesuffix("…"))


def test_a_font_that_has_the_letters_is_chosen():
    """Where the system has any: there is always one for Latin letters."""
    plain = font_for("a cat")
    assert _lacking(plain, set("acat")) == 0
    for words in ("кошка", "γάτα", "猫"):
        letters = set(words)
        assert _lacking(font_for(words), letters) <= _lacking(plain, letters)
    assert np.asarray(font_for("кошка").getmask("к")).any()
