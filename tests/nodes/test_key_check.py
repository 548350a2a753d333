"""How many keys of a LoRA file ComfyUI's own model loads, told from the base model's header."""

import itertools
import json
from pathlib import Path

import comfy_server
import pytest
import torch
from safetensors.torch import save_file
from tiny import STORED_FORMS, write_twin

pytestmark = pytest.mark.comfy
PROJECT = Path(__file__).resolve().parents[2]
WIDTH = 128
LAYERS = [f"blocks.{block}.self_attn.{part}" for block, part in itertools.product((0, 1), "qkvo")]


def lora(name="diffusion_model.{}", ends=("lora_A", "lora_B"), width=WIDTH, rank=4, alpha=False, layers=LAYERS):
    tensors = {}
    for layer in layers:
        key = name.format(layer.replace(".", "_") if "lora_unet" in name else layer)
        tensors[f"{key}.{ends[0]}.weight"] = torch.ones(rank, width)
        tensors[f"{key}.{ends[1]}.weight"] = torch.ones(width, rank)
        if alpha:
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    return tensors


def loha(width):
    parts = {"w1_a": (width, 4), "w1_b": (4, width), "w2_a": (width, 4), "w2_b": (4, width)}
    return {f"lora_unet_blocks_0_self_attn_q.hada_{part}": torch.ones(shape) for part, shape in parts.items()}


def lokr(width):
    parts = {"w1": (2, 2), "w2_a": (width // 2, 4), "w2_b": (4, width // 2)}
    return {f"diffusion_model.blocks.0.self_attn.q.lokr_{part}": torch.ones(shape) for part, shape in parts.items()}


KOHYA = {"name": "lora_unet_{}", "ends": ("lora_down", "lora_up"), "alpha": True}
CASES = {
    "ours": (lora(), 16, 16),
    "kohya with alpha": (lora(**KOHYA), 24, 24),
    "without prefix": (lora(name="{}"), 0, 16),
    "another size": (lora(width=256), 0, 16),
    "another size with alpha": (lora(**KOHYA, width=256), 0, 24),
    "more blocks than the model": (lora(layers=[*LAYERS, "blocks.7.self_attn.q"]), 16, 18),
    "half of a pair": ({**lora(), "diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(4, WIDTH)}, 16, 17),
    "a difference": ({"diffusion_model.blocks.0.self_attn.q.diff": torch.ones(WIDTH, WIDTH),
                      "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(WIDTH)}, 2, 2),
    "a difference of another size": ({"diffusion_model.blocks.0.self_attn.q.diff": torch.ones(64, 64),
                                      "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(64)}, 0, 2),
    "a bias of a layer without one": ({"diffusion_model.blocks.0.self_attn.norm_q.diff_b": torch.ones(WIDTH)}, 0, 1),
    "LoHa": (loha(WIDTH), 4, 4),
    "LoHa of another size": (loha(64), 0, 4),
    "LoKr": (lokr(WIDTH), 3, 3),
    "LoKr of another size": (lokr(64), 0, 3),
    "nothing of it": ({"text_model.encoder.weight": torch.ones(3)}, 0, 1),
}


BASES = [("fp32", ""), ("bf16", "model.diffusion_model."), ("fp8 scaled new", "model.diffusion_model."),
         *((stored, "") for stored in STORED_FORMS if stored.startswith("fp8"))]


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> dict[tuple, tuple[int, int]]:
    """(matched, total) of each case for the first base, and of the first case for each base, from one process."""
    if reason := comfy_server.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("keys")
    bases = {base: folder / f"base_{number}.safetensors" for number, base in enumerate(BASES)}
    for (stored, prefix), file in bases.items():
        write_twin(file, stored=stored, prefix=prefix)
    loras = {name: folder / f"{name}.safetensors" for name in CASES}
    for name, file in loras.items():
        save_file(CASES[name][0], file)
    asked = [*((BASES[0], name) for name in CASES), *((base, "ours") for base in BASES[1:])]
    files = [file for base, name in asked for file in (bases[base], loras[name])]
    script = PROJECT / "tests" / "nodes" / "node_facts.py"
    said = comfy_server.run_script(script, comfy_server.comfyui_folder(), PROJECT, "keys", *files, folder=folder)
    return dict(zip(asked, map(tuple, json.loads(said.splitlines()[-1])), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_key_is_counted(counted, name):
    assert counted[BASES[0], name] == CASES[name][1:]


@pytest.mark.parametrize("base", BASES, ids=lambda base: f"{base[0]} {base[1] or 'bare'}")
def test_the_base_may_be_stored_in_any_form(counted, base):
    assert counted[base, "ours"] == (16, 16)
