"""Time until the first step with eight LoRAs: VLSStack beside a chain of ComfyUI's LoraLoaderModelOnly, in turns.

    ~/comfy-venv/bin/python tests/bench/stack_time.py [--width 1024] [--layers 8] [--rounds 7]

Builds a random model of this size and eight LoRAs in a temporary folder. From the files on the disk to the model
patched in memory, which is all that comes before a first step. Both are timed anew each round, the first in turns;
the first round warms up and does not count. Prints medians and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parents[2]
LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
          "cross_attn.o", "ffn.0", "ffn.2")
LORAS, RANK = 8, 32


def load_pack(comfyui: Path):
    sys.argv[1:] = ["--cpu"]
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    place = PROJECT / "__init__.py"
    spec = importlib.util.spec_from_file_location("pack", place, submodule_search_locations=[str(PROJECT)])
    pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)


def write_files(folder: Path, width: int, layers: int) -> None:
    """A Wan of random numbers, and LoRAs on all its blocks' layers."""
    from diffusers import WanTransformer3DModel
    from pack.training.families import FAMILIES, file_tensors
    from safetensors.torch import save_file

    config, _ = FAMILIES[0].twin()
    sizes = {"num_layers": layers, "num_attention_heads": width // 128, "attention_head_dim": 128,
             "ffn_dim": 4 * width}
    tensors = file_tensors(FAMILIES[0], WanTransformer3DModel(**{**config, **sizes}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    for number in range(LORAS):
        lora = {}
        for block in range(layers):
            for layer in LAYERS:
                name = f"blocks.{block}.{layer}"
                rows, columns = tensors[f"{name}.weight"].shape
                lora[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(RANK, columns)
                lora[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, RANK) * 1e-3
        save_file(lora, folder / f"lora_{number}.safetensors")


def seconds(model, put_on) -> float:
    began = time.perf_counter()
    patched = put_on(model)
    patched.patch_model()
    took = time.perf_counter() - began
    patched.unpatch_model()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "ComfyUI")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    load_pack(asked.comfyui)
    import comfy.sd
    import folder_paths
    from pack.nodes.stack import StackLoras

    import nodes

    names = [f"lora_{number}.safetensors" for number in range(LORAS)]
    rows = json.dumps([{"on": True, "lora": name, "strength": 0.5} for name in names])

    def stack(model):
        return StackLoras.execute(rows, model=model).args[0]

    def chain(model):
        for name in names:
            model, = nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 0.5)
        return model

    taken: dict[str, list[float]] = {"stack": [], "chain": []}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write_files(Path(folder), asked.width, asked.layers)
        folder_paths.add_model_folder_path("loras", folder, is_default=True)
        model = comfy.sd.load_diffusion_model(f"{folder}/model.safetensors", model_options={"dtype": torch.bfloat16})
        for number in range(asked.rounds + 1):
            for name, put_on in (("stack", stack), ("chain", chain))[:: 1 if number % 2 else -1]:
                taken[name].append(seconds(model, put_on))
    ratios = [ours / theirs for ours, theirs in zip(*(each[1:] for each in taken.values()), strict=True)]
    print(json.dumps({name: round(statistics.median(each[1:]), 4) for name, each in taken.items()}
                     | {"ratio": round(statistics.median(ratios), 3), "ratios": [round(each, 3) for each in ratios]}))


if __name__ == "__main__":
    main()
