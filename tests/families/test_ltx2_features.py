"""LTX-2: what is cached of clips, sound and captions, and runs that learn picture and sound."""

import dataclasses
import math

import pytest
import torch
from footage import write_video
from ltx2_twin import FAMILY, write_ltx2_twin
from tiny import StandInTextEncoder, StandInVae

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.config import RecipeConfig, RunConfig
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.families.ltx2 import CONNECTORS
from video_lora_studio.training.families.model_family import DecodedClip, Encoders
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import micro_step_loss
from video_lora_studio.training.objective import FlowMatching, ShiftedLogitNormal
from video_lora_studio.training.run import set_up, train
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")


class Encoder:
    """Gives what it is told to give, and keeps what it was asked."""

    identity, rate = "given", 16000

    def __init__(self, output):
        self.output, self.asked = output, []

    def encode(self, what):
        self.asked.append(what)
        return self.output


class StandInAudioVae:
    """Mixes each twenty-fifth of a second into the latents of one step."""

    identity, rate = "stand-in audio VAE 1", 16000

    def encode(self, sound):
        steps = sound.unfold(1, 640, 640).transpose(0, 1).flatten(1)
        mix = torch.randn(1280, 128, generator=torch.Generator().manual_seed(3)) / 36
        return (steps @ mix + 0.1).view(-1, 8, 16).transpose(0, 1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    for kind in ("2.0", "2.3"):
        write_ltx2_twin(folder / f"{kind}.safetensors", kind)
    write_ltx2_twin(folder / "bare.safetensors", without=CONNECTORS)
    return {path.stem: open_base_model(path) for path in folder.iterdir()}


def captions(base, *features):
    encoders = iter(features)

    class Encoder:
        identity = "given"

        def encode(self, caption):
            return next(encoders)

    return list(FAMILY.prepare_captions(base, [""] * len(features), Encoder(), CPU))


def text(width, tokens=7):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("kind, width, video, audio", [("2.0", 120, 120, 120), ("2.3", 192, 128, 64)])
def test_captions_go_through_the_connectors_once(bases, kind, width, video, audio):
    base = bases[kind]
    for tokens, length in ((7, 1024), (1024, 1024), (1025, 1152)):
        (features,) = captions(base, text(width, tokens))
        assert {name: tuple(tensor.shape) for name, tensor in features.items()} == {
            "text": (length, video), "text_audio": (length, audio)}
        assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in features.values())
        assert all(tensor.square().mean(1).sqrt().allclose(torch.ones(length), atol=1e-3)
                   for tensor in features.values())  # the connectors end in an RMS norm
    one, two = captions(base, text(width), text(width, 8))
    assert not torch.equal(one["text"], two["text"])
    assert torch.equal(captions(base, text(width))[0]["text_audio"], one["text_audio"])


def test_connectors_are_loaded_only_where_a_caption_is_wanted_and_freed_at_the_end(bases, monkeypatch):
    import video_lora_studio.training.families.ltx2 as module

    made, load = [], module.load_connectors
    monkeypatch.setattr(module, "load_connectors", lambda *args: made.append(load(*args)) or made[-1])
    encoder = Encoder(text(192))
    prepared = FAMILY.prepare_captions(bases["2.3"], iter(["a", "b"]), encoder, CPU)
    assert not made
    next(prepared)
    assert len(made) == 1 and encoder.asked == ["a"] and not next(made[0].parameters()).is_meta
    prepared.close()
    assert all(parameter.is_meta for parameter in made[0].parameters())


def test_text_encoders_that_hold_the_connectors_themselves_are_taken_as_they_are(bases):
    whole = text(240, 1024)
    for name in ("2.0", "bare"):
        (features,) = captions(bases[name], whole)
        assert torch.equal(features["text"], whole[:, :120]) and torch.equal(features["text_audio"], whole[:, 120:])


@pytest.mark.parametrize("name, width, sentence", [
    ("2.3", 120, r"gives features of shape \[7, 120\], as for another model; 2.3.safetensors is LTX-2.3 and needs "
     r"\(tokens, 192\): choose gemma_3_12B together with the LTX-2.3 text projection.$"),
    ("2.3", 3840, r"gives features of shape \[7, 3840\], as for LTX-2; 2.3.safetensors is LTX-2.3"),
    ("2.0", 6144, r"gives features of shape \[7, 6144\], as for LTX-2.3; 2.0.safetensors is LTX-2 and needs"),
    ("2.0", 4096, r"gives features of shape \[7, 4096\], as for another model"),
])
def test_the_text_encoder_of_another_model_is_refused(bases, name, width, sentence):
    with pytest.raises(ValueError, match=f"^This text encoder {sentence}"):
        captions(bases[name], text(width))


def test_a_missing_connector_is_said(bases):
    with pytest.raises(ValueError, match="^Neither bare.safetensors nor this text encoder holds the connectors"):
        captions(bases["bare"], text(120))
    assert bases["bare"].identity not in bases["bare"].caption_form
    assert bases["2.0"].identity in bases["2.0"].caption_form


@pytest.mark.parametrize("frames, samples, steps", [(9, 5000, 9), (17, 40000, 18), (49, 40000, 51), (121, 100000, 126)])
def test_sound_is_as_long_as_the_frames(bases, frames, samples, steps):
    """25 steps a second, as the pipeline makes them."""
    clip = DecodedClip(frames=torch.rand(frames, 64, 96, 3), sound=torch.rand(2, samples))
    given = torch.randn(8, steps + 3, 16)
    sound = Encoder(given)
    features = FAMILY.prepare_clip(bases["2.0"], clip, Encoders(clip=StandInVae(bases["2.0"].grid), caption=None,
                                                                sound=sound))
    assert torch.equal(features["audio"], given[:, :steps])
    assert features["video"].shape == (128, (frames - 1) // 8 + 1, 2, 3)
    (heard,) = sound.asked
    assert heard.shape == (2, math.ceil(max(frames / 24, steps / 25) * 16000)) and not heard[:, samples:].any()
    kept = min(samples, heard.shape[1])
    assert torch.equal(heard[:, :kept], clip.sound[:, :kept])


@pytest.mark.parametrize("frames, sound, encoder", [
    (9, None, Encoder(torch.ones(8, 9, 16))), (9, torch.rand(2, 6000), None),
    (1, torch.rand(2, 6000), Encoder(torch.ones(8, 9, 16))),
])
def test_without_sound_there_is_the_picture_alone(bases, frames, sound, encoder):
    clip = DecodedClip(frames=torch.rand(frames, 64, 96, 3), sound=sound)
    encoders = Encoders(clip=StandInVae(bases["2.0"].grid), caption=None, sound=encoder)
    assert list(FAMILY.prepare_clip(bases["2.0"], clip, encoders)) == ["video"]


@pytest.mark.parametrize("video, audio, sentence", [
    ((48, 2, 4, 6), (8, 9, 16), r"VAE gives latents of shape \[48, 2, 4, 6\] for 9 frames of 96x64; LTX-2 needs "
     r"\[128, 2, 2, 3\]: choose the video VAE of LTX-2 \(dim 128, 2 layers\).$"),
    ((128, 2, 2, 3), (8, 9, 64), r"audio VAE gives latents of shape \[8, 9, 64\] for 0.38 s; LTX-2 needs "
     r"\[8, 9, 16\]: choose the audio VAE of LTX-2.$"),
    ((128, 2, 2, 3), (8, 8, 16), r"audio VAE gives latents of shape \[8, 8, 16\]"),
])
def test_the_vae_of_another_model_is_refused(bases, video, audio, sentence):
    clip = DecodedClip(frames=torch.rand(9, 64, 96, 3), sound=torch.rand(2, 6000))
    encoders = Encoders(clip=Encoder(torch.ones(video)), caption=None, sound=Encoder(torch.ones(audio)))
    with pytest.raises(ValueError, match=f"^This {sentence}"):
        FAMILY.prepare_clip(bases["2.0"], clip, encoders)


def test_each_stream_draws_its_own_level_by_its_own_tokens(bases):
    objective = FAMILY.objective(bases["2.0"], RecipeConfig())
    assert isinstance(objective, ShiftedLogitNormal)
    assert objective.tokens(torch.Size((3, 128, 7, 16, 24))) == 2688
    assert objective.tokens(torch.Size((3, 8, 51, 16))) == 51
    for recipe in (RecipeConfig(shift=3.0), RecipeConfig(timesteps="uniform")):
        assert isinstance(FAMILY.objective(bases["2.0"], recipe), FlowMatching)


def test_the_first_frame_is_given_to_the_share_of_the_clips(bases):
    video = torch.zeros(4000, 1, 3, 1, 1)
    mask = FAMILY.given(bases["2.0"], {"video": video}, 0.25, torch.Generator().manual_seed(0))["video"]
    assert mask.shape == (4000, 1, 3, 1, 1) and not mask[:, :, 1:].any()
    assert mask[:, :, 0].float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert FAMILY.given(bases["2.0"], {"video": video}, 0.0, torch.Generator()) == {}
    assert FAMILY.given(bases["2.0"], {"video": video[:, :, :1]}, 1.0, torch.Generator()) == {}
    assert FAMILY.given(bases["2.0"], {"audio": torch.zeros(2, 8, 9, 16)}, 1.0, torch.Generator()) == {}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number, sound in enumerate((True, False, True)):
        write_video(folder / f"{number}.mp4", frames=30 + number, fps=24, size=(96, 64), sound=sound)
        (folder / f"{number}.txt").write_text(f"clip {number}", encoding="utf-8")
    return scan(folder)


def prepared_set(clips, base, cache, sound=None):
    encoders = Encoders(clip=StandInVae(base.grid), caption=StandInTextEncoder(base.text_width), sound=sound)
    return prepare(clips, base, encoders, width=96, height=64, frames=17, cache=FeatureCache(cache))


def test_clips_with_and_without_sound_are_prepared_side_by_side(bases, clips, tmp_path):
    prepared = prepared_set(clips, bases["2.0"], tmp_path, StandInAudioVae())
    streams = [sample.streams for sample in prepared.training_set.samples]
    assert streams == [{"video", "audio"}, {"video"}, {"video", "audio"}]
    assert dict(prepared.training_set.samples[0].shapes) == {"video": (128, 3, 2, 3), "audio": (8, 18, 16)}
    silent = ["no sound: learns from the picture only" in sample.notes for sample in prepared.training_set.samples]
    assert silent == [False, True, False]
    again = prepared_set(clips, bases["2.0"], tmp_path, StandInAudioVae())
    assert (again.encoded_clips, again.encoded_captions) == (0, 0)
    other = StandInAudioVae()
    other.identity = "another"
    assert prepared_set(clips, bases["2.0"], tmp_path, other).encoded_clips == 2  # the silent one stays as it is
    without = prepared_set(clips, bases["2.0"], tmp_path)
    assert without.encoded_clips == 2 and without.training_set.streams == {"video"}
    assert not any("no sound" in note for sample in without.training_set.samples for note in sample.notes)


@pytest.mark.parametrize("learn, audio_modules, video_modules", [
    ("everything", True, True), ("picture", False, True), ("sound", True, False)])
@pytest.mark.parametrize("kind", ["2.0", "2.3"])
def test_a_run_adapts_and_learns_what_it_is_asked_to(bases, clips, tmp_path, kind, learn, audio_modules, video_modules):
    base = bases[kind]
    training_set = prepared_set(clips, base, tmp_path / "features", StandInAudioVae()).training_set
    config = RunConfig(name="x", steps=6, rank=4, learning_rate=1e-2, recipe=RecipeConfig(learn=learn, warmup_steps=0))
    result = train(training_set, base, config, places=Places(lora_folder=tmp_path, run_folder=tmp_path / "run"),
                   device=CPU)
    modules = {name.split(".")[3] for name in result.loras[0]}
    assert ("audio_attn1" in modules, "attn1" in modules) == (audio_modules, video_modules)
    assert ("audio_to_video_attn" in modules) == ("video_to_audio_attn" in modules) == (audio_modules and video_modules)
    assert all(math.isfinite(loss) for loss in result.losses)
    assert any(tensor.abs().max() > 0 for name, tensor in result.loras[0].items() if "lora_B" in name)


def test_a_silent_clip_in_a_run_with_sound_leaves_what_serves_sound_alone(bases, clips, tmp_path):
    base = bases["2.0"]
    training_set = prepared_set(clips, base, tmp_path, StandInAudioVae()).training_set
    silent = dataclasses.replace(training_set, samples=training_set.samples[1:2])
    config = RunConfig(recipe=RecipeConfig(first_frame=0.0))
    context = set_up(silent, base, config, CPU, torch.float32, SilentListener())
    for name, parameter in context.transformer.named_parameters():
        parameter.requires_grad_("attn" in name and name.endswith("to_q.weight"))
    micro_step_loss(context, 0).backward()
    touched = {name.split(".")[2] for name, parameter in context.transformer.named_parameters()
               if parameter.grad is not None and parameter.grad.abs().max() > 0}
    assert touched == {"attn1", "attn2"}
