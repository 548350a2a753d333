"""Seconds per training step, ours against ComfyUI's own TrainLoraNode, in one process, taking turns.

The same Wan weights (512 wide, 8 layers), the same latents (1, 16, 5, 32, 32) and text features (512, 4096), rank 16,
float32 on the CPU, AdamW, every block recomputed on both sides (its `gradient_checkpointing`, `checkpoint_depth=2`).
Both are called as a user calls them: `training.train`, and the node's `execute`. A step's time is what lies between
two optimizer steps, taken by PyTorch's own global hook, so loading and saving do not count.

    python tests/bench/step_time.py [--pairs 5] [--steps 6] [--threads N] [--clock cpu] [--attention pytorch]

Run it with the Python that ComfyUI runs with. Prints every pair's ratio ours/theirs, and median, least and greatest.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

HERE = Path(__file__).resolve().parent
RANK, LEARNING_RATE = 16, 1e-4
LATENTS, TOKENS = (16, 5, 32, 32), 512


class StepClock:
    """Seconds between one optimizer step and the next."""

    def __init__(self, now: Callable[[], float]):
        self._now = now
        self._stamps: list[float] = []
        register_optimizer_step_post_hook(self._stamp)

    def _stamp(self, *_) -> None:
        self._stamps.append(self._now())

    def seconds_per_step(self, run) -> float:
        """The median over the steps of `run()` but the first."""
        self._stamps.clear()
        run()
        assert len(self._stamps) > 1, "fewer than two optimizer steps were seen"
        return statistics.median(after - before for before, after in itertools.pairwise(self._stamps))


def start_comfyui(folder: Path, attention: str, site: Path) -> None:
    """ComfyUI's modules, the pack and the test parts made importable; the pack by a link in `site`."""
    sys.path[:0] = [str(folder), str(HERE.parent / "comfy"), str(site)]
    from comfy_server import PROJECT, link

    link(PROJECT, site / "video_lora_studio")
    warnings.filterwarnings("ignore", message="In CPU autocast")
    flags = {"pytorch": ["--use-pytorch-cross-attention"]}.get(attention, [])
    sys.argv = [sys.argv[0], "--cpu", *flags]
    sys.modules.setdefault("comfy.zluda", types.ModuleType("comfy.zluda"))  # the Zluda fork would install packages
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)


def write_wan(path: Path) -> None:
    """A random Wan in its original key format, float32."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel
    from safetensors.torch import save_file

    model = WanModel(model_type="t2v", dim=512, ffn_dim=2048, num_heads=4, num_layers=8, in_dim=16, out_dim=16,
                     text_dim=4096, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            weights[name] = 0.1 * noise + name.endswith("weight")
        else:
            weights[name] = noise * (value[0].numel() ** -0.5 if name.endswith("weight") else 0.1)
    save_file(weights, path)


def ours(wan: Path, folder: Path, steps: int):
    """A function that trains `steps` steps with the engine."""
    from prepared_set import random_set

    from video_lora_studio.training import MemoryConfig, Places, RunConfig, open_base_model, train

    base = open_base_model(wan)
    data = random_set(folder, base, clips=1, latent_shape=LATENTS, tokens=TOKENS)
    numbers = iter(range(1000))

    def run() -> None:
        number = next(numbers)
        config = RunConfig(name=f"bench_{number}", steps=steps, rank=RANK, learning_rate=LEARNING_RATE, seed=number,
                           memory=MemoryConfig(level="by hand", recompute=True))
        places = Places(lora_folder=folder / "loras", run_folder=folder / "runs" / config.name)
        result = train(data, base, config, places=places, device=torch.device("cpu"), precision="fp32")
        assert len(result.losses) == steps and not result.reused

    return run


def theirs(wan: Path, steps: int):
    """A function that trains `steps` steps with ComfyUI's node, in inference mode as its executor calls it."""
    import comfy.sd
    from comfy_extras.nodes_train import TrainLoraNode

    generator = torch.Generator().manual_seed(5)
    latents = {"samples": torch.randn(1, *LATENTS, generator=generator)}
    positive = [[torch.randn(1, TOKENS, 4096, generator=generator), {}]]
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(wan))
    one_of_each = {
        "model": model, "latents": latents, "positive": positive, "batch_size": 1, "steps": steps,
        "grad_accumulation_steps": 1, "learning_rate": LEARNING_RATE, "rank": RANK, "optimizer": "AdamW",
        "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 2, "offloading": False,
        "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }

    def run() -> None:
        with torch.inference_mode():
            TrainLoraNode.execute(**{name: [value] for name, value in one_of_each.items()})

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu, with --threads 1: where other work shares the machine")
    parser.add_argument("--comfyui", type=Path, default=Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI"))
    parser.add_argument("--attention", choices=("default", "pytorch"), default="default",
                        help="what ComfyUI's side computes attention with")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_comfyui(given.comfyui, given.attention, folder)
        logging.disable(logging.INFO)
        wan = folder / "wan.safetensors"
        write_wan(wan)
        sides = {"ours": ours(wan, folder, given.steps), "theirs": theirs(wan, given.steps)}
        clock = StepClock({"wall": time.perf_counter, "cpu": time.process_time}[given.clock])
        for run in sides.values():
            clock.seconds_per_step(run)  # warm-up
        ratios = []
        for pair in range(given.pairs):
            order = ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours")
            seconds = {side: clock.seconds_per_step(sides[side]) for side in order}
            ratios.append(seconds["ours"] / seconds["theirs"])
            print(f"pair {pair + 1}, {order[0]} first: ours {seconds['ours']:.3f} s, theirs {seconds['theirs']:.3f} s, "
                  f"ratio {ratios[-1]:.3f}", flush=True)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.clock} time; ratio ours/theirs: "
              f"median {statistics.median(ratios):.3f}, least {min(ratios):.3f}, greatest {max(ratios):.3f}")


if __name__ == "__main__":
    main()
