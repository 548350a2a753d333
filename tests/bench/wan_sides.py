"""What step benchmarks share: a random Wan in the original key format, random features, and a run of ours on them."""

import itertools
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from prepared_set import random_set

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training import MemoryConfig, Places, RunConfig, open_base_model, train
from video_lora_studio.training.families import FAMILIES, file_tensors

WIDTH, FFN, HEADS = 512, 2048, 4
LATENTS, TOKENS = (16, 5, 32, 32), 512
RANK, LEARNING_RATE = 16, 1e-4


def write_wan(path: Path, layers: int) -> None:
    """A random Wan T2V, float32, 512 wide."""
    model = WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, ffn_dim=FFN, num_layers=layers, text_dim=4096
    )
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in file_tensors(FAMILIES[0], model).items():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            weights[name] = 0.1 * noise + name.endswith("weight")
        else:
            weights[name] = noise * (value[0].numel() ** -0.5 if name.endswith("weight") else 0.1)
    write_tensors(path, weights, {})


def data_for(base, folder: Path):
    """One clip of random features."""
    return random_set(folder, base, clips=1, latent_shape=LATENTS, tokens=TOKENS)


def config_for(number: int, steps: int, recompute: bool) -> RunConfig:
    return RunConfig(
        name=f"bench_{number}", steps=steps, rank=RANK, learning_rate=LEARNING_RATE, seed=number,
        memory=MemoryConfig(level="by hand", recompute=recompute),
    )


def ours(wan: Path, folder: Path, steps: int, recompute: bool):
    """A function that trains `steps` steps with the engine, a new run each time."""
    base = open_base_model(wan)
    data = data_for(base, folder)
    numbers = itertools.count()

    def run() -> None:
        config = config_for(next(numbers), steps, recompute)
        places = Places(lora_folder=folder / "loras", run_folder=folder / "runs" / config.name)
        result = train(data, base, config, places=places, device=torch.device("cpu"), precision="fp32")
        assert len(result.losses) == steps and not result.reused

    return run
