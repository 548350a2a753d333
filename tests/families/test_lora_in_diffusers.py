"""A LoRA file read by diffusers' own pipelines has the effect that it had in training."""

import dataclasses

import diffusers
import pytest
import torch
from ltx2_twin import write_ltx2_twin
from tiny import StandInImageEncoder, write_twin

from video_lora_studio.loaders.lora_file import write_lora
from video_lora_studio.training.adapter import Adapter
from video_lora_studio.training.config import AdapterConfig
from video_lora_studio.training.demo import stand_ins
from video_lora_studio.training.families import FAMILIES, open_base_model
from video_lora_studio.training.families.model_family import DecodedClip

CPU = torch.device("cpu")
BY_NAME = {family.name: family for family in FAMILIES}
PIPELINES = {"Wan": diffusers.WanPipeline, "LTX-Video": diffusers.LTXPipeline, "LTX-2": diffusers.LTX2Pipeline}
TWINS = [
    ("Wan", "T2V"), ("Wan", "I2V"), ("Wan", "FLF2V"), ("Wan", "2.2 I2V"), ("Wan", "TI2V"), ("LTX-Video", None),
    ("LTX-2", "2.0"), ("LTX-2", "2.3"),
]


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.fixture(params=TWINS, ids=[" ".join(filter(None, twin)) for twin in TWINS])
def base(request, tmp_path):
    name, kind = request.param
    file = tmp_path / "twin.safetensors"
    if name == "LTX-2":
        write_ltx2_twin(file, kind)
    else:
        write_twin(file, family=BY_NAME[name], kind=kind)
    return open_base_model(file, expert="high_noise" if kind == "2.2 I2V" else "")


def question(base):
    """What the model is asked: arguments of `predict` after the transformer."""
    generator = torch.Generator().manual_seed(3)
    encoders = dataclasses.replace(stand_ins(base), image=StandInImageEncoder())
    frames = torch.rand(base.grid.frames_within(17), 64, 96, 3, generator=generator)
    [caption] = base.family.prepare_captions(base, ["a bear walks"], encoders.caption, CPU)
    sample = base.family.prepare_clip(base, DecodedClip(frames=frames), encoders) | caption
    if "audio" in base.streams:
        sample["audio"] = torch.randn(8, 18, 16, generator=generator)
    clean, features = base.family.collate(base, [sample])
    noisy = {name: torch.randn(stream.shape, generator=generator) for name, stream in clean.items()}
    return noisy, {name: torch.tensor([0.6]) for name in noisy}, {}, features


@pytest.mark.parametrize("targets", ["attention", "attention and feed-forward"])
def test_effect_in_diffusers_is_the_effect_in_training(base, targets, tmp_path):
    family, asked = base.family, question(base)
    transformer = family.load_transformer(base, dtype=torch.float32, device=CPU)
    with torch.no_grad():
        bare = family.predict(transformer, *asked)
    adapter = Adapter(
        transformer, base, AdapterConfig(targets=targets, alpha=6.0), rank=4, seed="1", streams=set(base.streams)
    )
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter += 0.15 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        ours = family.predict(transformer, *asked)
    file = tmp_path / "lora.safetensors"
    write_lora(file, adapter.tensors(torch.float32), {})

    pipeline = PIPELINES[family.name]
    fresh = family.load_transformer(base, dtype=torch.float32, device=CPU)
    pipeline.load_lora_into_transformer(pipeline.lora_state_dict(str(file)), transformer=fresh)
    assert sum(".lora_A." in name for name, _ in fresh.named_parameters()) == len(adapter)
    with torch.no_grad():
        theirs = family.predict(fresh, *asked)
    for name in ours:
        assert distance(ours[name], bare[name]) > 0.05, "the LoRA changes nothing: the comparison would prove nothing"
        assert distance(theirs[name], ours[name]) <= 1e-5
