"""ComfyUI's CLIP as a captioner, over stand-ins that take pictures in the ways its tokenizers do."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

FRAMES = torch.arange(3 * 4 * 6 * 3, dtype=torch.uint8).reshape(3, 4, 6, 3)


class Writer(nn.Module):
    def generate(self):
        raise AssertionError("the wrapper's generate is called, not this one")


class Wrapper(nn.Module):
    """As ComfyUI's: it has `generate` and encodes, whatever is within."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def encode_token_weights(self, tokens):
        raise AssertionError("nothing is encoded")

    def generate(self, tokens):
        raise AssertionError("CLIP.generate is called, not this one")


def picture(data):
    return ({"type": "image", "data": data}, 1.0)


def one_each(text, **given):
    """As Qwen3-VL's tokenizer: an entry for each image; a video is not looked at."""
    return {"qwen": [[(5, 1.0), *(picture(each[None]) for each in given.get("image", ()))]]}


def all_in_one(text, **given):
    """As Gemma 3's: all images in one entry."""
    return {"gemma3": [[(0, 1.0), *([picture(given["image"])] if "image" in given else [])]]}


def by_the_second(text, **given):
    """As Gemma 4's: of a video one frame for each second, taken to come at 24 a second."""
    frames = given["video"][:: max(1, round(given.get("fps", 24)))] if "video" in given else given.get("image", ())
    return {"gemma4": [[(2, 1.0), *(picture(each[None]) for each in frames)]]}


def blind(text, **given):
    return {"qwen3": [[(5, 1.0)]]}


def clip_of(tokenize=one_each, inside=None, answer=" a bear walks \n"):
    """A CLIP, and the list of what it was asked."""
    calls = []

    def generate(tokens, **sampling):
        calls.append((tokens, sampling))
        return [1, 2, 3]

    def asked(text, **given):
        calls.append((text, given))
        return tokenize(text, **given)

    clip = SimpleNamespace(
        cond_stage_model=Wrapper(Writer() if inside is None else inside), tokenizer=SimpleNamespace(clip_name="tiny"),
        tokenize=asked, generate=generate, decode=lambda ids: answer,
    )
    return clip, calls


@pytest.fixture
def captioner(load):
    return load("host_captioner").HostCaptioner


def shown(**changes):
    from video_lora_studio.training.dataset.captioners.captioner import Shown

    question = {"frames": FRAMES, "fps": 2.0, "instruction": "What happens?", "max_tokens": 40, "seed": 7}
    return Shown(**question | changes)


@pytest.mark.parametrize("tokenize", [one_each, all_in_one, by_the_second])
def test_every_frame_is_seen_whichever_way_the_clip_takes_them(captioner, tokenize):
    clip, calls = clip_of(tokenize)
    assert captioner(clip).caption(shown()) == "a bear walks"
    tokens, sampling = calls[-1]
    (batches,) = tokens.values()
    pictures = torch.cat([entry[0]["data"] for entry in batches[0] if isinstance(entry[0], dict)])
    assert torch.equal(pictures, FRAMES.float() / 255)
    assert sampling["seed"] == 7 and sampling["max_length"] == 40 and sampling["do_sample"]
    text, given = calls[-2]
    assert "3 images" in text and "0.50 seconds apart" in text and text.endswith("What happens?")
    assert given["skip_template"] is False and given["thinking"] is False


@pytest.mark.parametrize("tokenize", [one_each, all_in_one, by_the_second])
def test_an_image_is_shown_as_an_image(captioner, tokenize):
    clip, calls = clip_of(tokenize)
    captioner(clip).caption(shown(frames=FRAMES[:1], fps=0.0))
    assert calls[0][0] == "What happens?" and calls[0][1]["image"].shape == (1, 4, 6, 3) and "video" not in calls[0][1]


def test_a_clip_that_cannot_write_is_refused_before_anything_else(captioner):
    clip, calls = clip_of(inside=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"\(tiny\) only reads text"):
        captioner(clip)
    assert not calls


def test_a_clip_that_is_blind_is_refused_before_it_writes(captioner):
    clip, calls = clip_of(blind)
    with pytest.raises(ValueError, match="takes no pictures"):
        captioner(clip).before(6, shown())
    assert all(isinstance(text, str) for text, _ in calls), "it was only asked for tokens"


@pytest.mark.parametrize("hears", [True, False])
def test_sound_goes_to_a_clip_that_hears(captioner, hears):
    writer = Writer()
    if hears:
        writer.audio_projector = nn.Linear(2, 2)
    clip, calls = clip_of(inside=writer)
    sound = torch.rand(2, 800)
    asked = captioner(clip)
    asked.caption(shown(sound=sound))
    assert asked.hears is hears and ("audio" in calls[0][1]) is hears
    if hears:
        assert torch.equal(calls[0][1]["audio"]["waveform"][0], sound)
        assert calls[0][1]["audio"]["sample_rate"] == 16000


def test_an_empty_answer_is_one_clips_trouble(captioner):
    from video_lora_studio.training.dataset.captioners.captioner import CaptionError

    clip, _ = clip_of(answer=" \n")
    with pytest.raises(CaptionError, match="wrote nothing"):
        captioner(clip).caption(shown())
