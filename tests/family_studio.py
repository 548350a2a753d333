"""For every family and every kind of model in it: a twin of two layers in a file, and clips prepared for it."""

import dataclasses

import torch
from footage import write_video
from ltx2_twin import write_ltx2_twin
from tiny import StandInImageEncoder, write_twin

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.demo import stand_ins
from video_lora_studio.training.families import FAMILIES, open_base_model

BY_NAME = {family.name: family for family in FAMILIES}
TWINS = [
    ("Wan", "T2V"), ("Wan", "I2V"), ("Wan", "FLF2V"), ("Wan", "2.2 I2V"), ("Wan", "TI2V"), ("LTX-Video", None),
    ("LTX-2", "2.0"), ("LTX-2", "2.3"), ("CogVideoX", "2b"), ("CogVideoX", "5b"), ("CogVideoX", "1.5"),
    ("CogVideoX", "5b I2V"), ("CogVideoX", "1.5 I2V"),
]
TWIN_NAMES = [" ".join(filter(None, twin)) for twin in TWINS]


class StandInAudioVae:
    """Loudness in 16 bins at 25 steps a second, mixed into 8 channels by a fixed random matrix."""

    identity, rate = "stand-in audio VAE 1", 16000

    def encode(self, sound):
        steps = sound.mean(0).unfold(0, 640, 640).unflatten(1, (16, 40)).square().mean(-1).sqrt()
        mix = torch.randn(8, generator=torch.Generator().manual_seed(3))
        return mix[:, None, None] * steps


@dataclasses.dataclass(frozen=True)
class Studio:
    """A twin in a file, and two clips prepared for it, of which one has sound."""

    base: object
    data: object


def open_studio(twin, folder):
    """The studio of one of `TWINS`, in an empty folder."""
    name, kind = twin
    file, clips = folder / "twin.safetensors", folder / "clips"
    clips.mkdir()
    if name == "LTX-2":
        write_ltx2_twin(file, kind)
    else:
        write_twin(file, family=BY_NAME[name], kind=kind)
    base = open_base_model(file)
    width, height = (base.grid.width, base.grid.height) if hasattr(base.grid, "width") else (64, 64)
    for clip, sound in (("loud", True), ("silent", False)):
        write_video(clips / f"{clip}.mp4", frames=60, fps=24, size=(64, 64), **({"sound": True} if sound else {}))
        (clips / f"{clip}.txt").write_text(f"a {clip} clip", encoding="utf-8")
    encoders = dataclasses.replace(stand_ins(base), image=StandInImageEncoder(), sound=StandInAudioVae())
    data = prepare(
        scan(clips), base, encoders, width=width, height=height, frames=base.grid.frames_within(9),
        cache=FeatureCache(folder / "cache"),
    ).training_set
    return Studio(base, data)
