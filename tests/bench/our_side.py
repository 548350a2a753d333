"""The engine's side of a step benchmark: runs as a user starts them, and the memory that any side's steps take."""

import dataclasses
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from video_lora_studio.loaders.safetensors_file import read_tensors
from video_lora_studio.training import BaseModel, MemoryConfig, Places, RecipeConfig, RunConfig, TrainingSet, train
from video_lora_studio.training.memory.live_bytes import LiveBytes

RANK, LEARNING_RATE = 16, 1e-4
CPU = torch.device("cpu")


def config_for(steps: int, recompute: bool) -> RunConfig:
    """Rank and learning rate of all sides; no clip's first frame is given clean."""
    return RunConfig(
        name="bench", steps=steps, rank=RANK, learning_rate=LEARNING_RATE, recipe=RecipeConfig(first_frame=0.0),
        memory=MemoryConfig(level="by hand", recompute=recompute),
    )


def ours(
    base: BaseModel, data: TrainingSet, folder: Path, config: RunConfig, device: torch.device = CPU,
    precision: str = "fp32",
) -> Callable[[], None]:
    """A function that makes a run, a new one each time."""
    numbers = itertools.count()

    def run() -> None:
        number = next(numbers)
        named = dataclasses.replace(config, name=f"{config.name}_{number}", seed=number)
        places = Places(lora_folder=folder / "loras", run_folder=folder / "runs" / named.name)
        result = train(data, base, named, places=places, device=device, precision=precision)
        assert len(result.losses) == config.steps and not result.reused

    return run


def layers_adapted(folder: Path) -> int:
    """How many layers the LoRAs adapt that `ours` wrote."""
    written = next((folder / "loras").glob("*.safetensors"))
    return sum(name.endswith("lora_A.weight") for name in read_tensors(written)[0])


def peak_of_steps(run: Callable[[], object], device: torch.device = CPU) -> int:
    """The most bytes of tensors alive on `device` between the first and the last optimizer step of `run()`."""
    peaks = []
    on_gpu = device.type == "cuda"

    def note(*_) -> None:
        peaks.append(torch.cuda.max_memory_allocated(device) if on_gpu else counted.peak)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        else:
            counted.restart()

    hook = register_optimizer_step_post_hook(note)
    try:
        with nullcontext() if on_gpu else LiveBytes() as counted:
            run()
    finally:
        hook.remove()
    return max(peaks[1:])
