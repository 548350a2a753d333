"""The main job on a default that comes with the pack: a tiny random model, drawn clips, a CPU, under a minute."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..loaders.feature_cache import FeatureCache
from ..loaders.safetensors_file import write_tensors
from .config import RecipeConfig, RunConfig
from .dataset.precompute import prepare
from .dataset.scan import scan
from .evaluate import fixed_noise_loss, merge_lora
from .families import FAMILIES, file_tensors, open_base_model
from .families.model_family import BaseModel, Encoders, Grid
from .listener import Listener
from .run import set_up, train
from .run_output import Places
from .train_result import TrainResult

SIZE, FRAMES, STEPS = 64, 9, 100


class StandInVae:
    """Pools pixels to a model's latent grid and mixes the colours into its channels by a fixed random matrix."""

    identity = "stand-in VAE 1"

    def __init__(self, grid: Grid):
        self._grid = grid
        self._mix = torch.randn(grid.channels, 3, generator=torch.Generator().manual_seed(1))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (T, P, Q, 3) in 0..1 to (C, F, H, W)."""
        stride = self._grid.space_stride
        small = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2) * 2 - 1, stride)
        times = torch.cat([small[:1], small[1:].unflatten(0, (-1, self._grid.time_stride)).mean(1)])
        return torch.einsum("ck,fkhw->cfhw", self._mix, times)


class StandInTextEncoder:
    """A fixed random vector for each word, and zeros up to as many tokens as a model reads."""

    identity = "stand-in text encoder 1"

    def __init__(self, width: int, tokens: int = 1):
        self._width = width
        self._tokens = tokens

    def encode(self, caption: str) -> Tensor:
        """A caption to (L, D)."""
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big") for word in caption.split()]
        out = torch.zeros(max(self._tokens, len(seeds)), self._width)
        for row, seed in zip(out, seeds, strict=False):
            row.normal_(generator=torch.Generator().manual_seed(seed))
        return out


def stand_ins(base: BaseModel) -> Encoders:
    """Encoders for a base model that need no files."""
    return Encoders(clip=StandInVae(base.grid), caption=StandInTextEncoder(base.text_width, base.text_tokens))


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """`before` and `after`: mean loss at fixed noise without the LoRA file and with it merged into the weights."""

    training: TrainResult
    dataset_report: str
    before: float
    after: float


def draw_clips(folder: Path, count: int = 4) -> None:
    """Write `count` short clips of a coloured ball crossing a dark ground, with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip, colour in enumerate(("red", "lime", "deepskyblue", "gold")[:count]):
        frames = []
        for t in range(16):
            image = Image.new("RGB", (96, 96), (12, 14, 24))
            x, y = 12 + 72 * t / 15, 48 + 30 * math.sin(t / 3 + clip)
            ImageDraw.Draw(image).ellipse((x - 12, y - 12, x + 12, y + 12), fill=colour)
            frames.append(image)
        frames[0].save(folder / f"ball_{colour}.gif", save_all=True, append_images=frames[1:], duration=60, loop=0)
        (folder / f"ball_{colour}.txt").write_text(f"a {colour} ball crosses the picture", encoding="utf-8")


def write_twin(path: Path) -> BaseModel:
    """Write the first family's tiny random model as a ComfyUI user's file would be, and recognise it again."""
    family = FAMILIES[0]
    _, transformer = family.twin()
    write_tensors(path, file_tensors(family, transformer), {})
    return open_base_model(path)


def run_demo(folder: Path, listener: Listener, *, clips: Path | None = None, steps: int = STEPS) -> DemoResult:
    """Clips to a LoRA file under `folder`, and the loss at fixed noise without and with it."""
    folder.mkdir(parents=True, exist_ok=True)
    base = write_twin(folder / "tiny_base_model.safetensors")
    if clips is None:
        clips = folder / "clips"
        draw_clips(clips)
    found = scan(clips, "", listener)
    prepared = prepare(
        found,
        base,
        stand_ins(base),
        width=SIZE,
        height=SIZE,
        frames=FRAMES,
        cache=FeatureCache(folder / "features"),
        listener=listener,
    )
    config = RunConfig(name="demo_lora", steps=steps, rank=8, learning_rate=2e-3, recipe=RecipeConfig(batch_size=2))
    device = torch.device("cpu")
    result = train(
        prepared.training_set,
        base,
        config,
        places=Places(lora_folder=folder, run_folder=folder / "run"),
        device=device,
        listener=listener,
    )
    context = set_up(prepared.training_set, base, config, device, torch.float32, listener)
    before = fixed_noise_loss(context, len(context.batches))
    merge_lora(context.transformer, base.family, result.lora_files[0])
    after = fixed_noise_loss(context, len(context.batches))
    return DemoResult(training=result, dataset_report=prepared.report, before=before, after=after)
