"""Seconds per training step, ours against ComfyUI's own TrainLoraNode, in one process, taking turns.

The same Wan weights (512 wide), the same latents (1, 16, 5, 32, 32) and text features (512, 4096), rank 16,
float32 on the CPU, AdamW, every block recomputed on both sides (its `gradient_checkpointing`, `checkpoint_depth=2`).
Both are called as a user calls them: `training.train`, and the node's `execute`. A step's time is what lies between
two optimizer steps, taken by PyTorch's own global hook, so loading and saving do not count.

    python tests/bench/step_time.py [--pairs 5] [--steps 6] [--layers 8] [--threads N] [--clock cpu] [--no-recompute]
        [--attention pytorch]

Run it with the Python that ComfyUI runs with. Prints every pair's ratio ours/theirs, and median, least and greatest.
"""

import logging
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path

import torch
from pairs import CLOCKS, StepClock, arguments, compare


def start_comfyui(folder: Path, attention: str, site: Path) -> None:
    """ComfyUI's modules, the pack and the test parts made importable; the pack by a link in `site`."""
    sys.path[:0] = [str(folder), str(Path(__file__).resolve().parents[1] / "comfy"), str(site)]
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


def theirs(wan: Path, steps: int, recompute: bool):
    """A function that trains `steps` steps with ComfyUI's node, in inference mode as its executor calls it."""
    import comfy.sd
    from comfy_extras.nodes_train import TrainLoraNode
    from our_side import LEARNING_RATE, RANK
    from wan_sides import LATENTS, TOKENS

    generator = torch.Generator().manual_seed(5)
    latents = {"samples": torch.randn(1, *LATENTS, generator=generator)}
    positive = [[torch.randn(1, TOKENS, 4096, generator=generator), {}]]
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(wan))
    one_of_each = {
        "model": model, "latents": latents, "positive": positive, "batch_size": 1, "steps": steps,
        "grad_accumulation_steps": 1, "learning_rate": LEARNING_RATE, "rank": RANK, "optimizer": "AdamW",
        "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": recompute, "checkpoint_depth": 2, "offloading": False,
        "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }

    def run() -> None:
        with torch.inference_mode():
            TrainLoraNode.execute(**{name: [value] for name, value in one_of_each.items()})

    return run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--comfyui", type=Path, default=Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI"))
    parser.add_argument("--attention", choices=("default", "pytorch"), default="default",
                        help="what ComfyUI's side computes attention with")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_comfyui(given.comfyui, given.attention, folder)
        from our_side import config_for, ours  # these import the pack, which only now can be found
        from wan_sides import data_for, model_of

        logging.disable(logging.INFO)
        base = model_of(folder / "wan.safetensors", given.layers)
        sides = {
            "ours": ours(base, data_for(base, folder), folder, config_for(given.steps, given.recompute)),
            "theirs": theirs(base.path, given.steps, given.recompute),
        }
        compare(sides, StepClock(CLOCKS[given.clock]), given)


if __name__ == "__main__":
    main()
