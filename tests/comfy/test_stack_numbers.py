"""What VLSStack adds to real ComfyUI models, in figures: beside ComfyUI's own loaders, and beside deltas by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import comfy_server
import pytest
import torch
from few_bits import write_in_few_bits
from ltx2_twin import write_ltx2_twin
from safetensors.torch import save_file
from tiny import write_twin

pytestmark = pytest.mark.comfy
PROJECT = Path(__file__).resolve().parents[2]
SHAPES = {
    **{f"blocks.{block}.{layer}": (128, 128) for block, layer in itertools.product(
        (0, 1), ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o"))},
    "time_embedding.0": None,
}
SOUND = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.audio_attn1.to_v", "patchify_proj",
         "transformer_blocks.0.audio_to_video_attn.to_q", "transformer_blocks.0.video_to_audio_attn.to_q",
         "transformer_blocks.1.audio_ff.net.2", "audio_patchify_proj")
FEW_BITS = {"fp8": "fp8", "fp8_scaled": "fp8 scaled", "int8": "int8"}


def lora(shapes: dict[str, tuple[int, int]], seed: int, size: float, alpha: float | None = None) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors, rank = {}, 2 + seed % 3
    for layer, (rows, columns) in shapes.items():
        key = f"diffusion_model.{layer}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
        tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * size
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def with_deltas(weights: dict, loras: list[tuple[dict, dict[str, float]]]) -> dict:
    """Weights plus deltas, each times the factor of the first part of a name that is in the layer's."""
    summed = dict(weights)
    for tensors, factors in loras:
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                layer = key.removesuffix(".lora_A.weight")
                name = f"{layer.removeprefix('diffusion_model.')}.weight"
                factor = next(factor for part, factor in factors.items() if part in layer)
                scale = tensors[f"{layer}.alpha"].item() / tensors[key].shape[0] if f"{layer}.alpha" in tensors else 1
                summed[name] = summed[name] + factor * scale * tensors[f"{layer}.lora_B.weight"] @ tensors[key]
    return summed


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    """What the script measured, from one process."""
    if reason := comfy_server.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("stack_numbers")
    (folder / "loras").mkdir()
    weights = write_twin(folder / "fp32.safetensors")
    shapes = {layer: shape or tuple(weights[f"{layer}.weight"].shape) for layer, shape in SHAPES.items()}
    loras = {f"wan_{number}": lora(shapes, number, 0.15, alpha=1.5 if number % 2 else None) for number in range(8)}
    small = [lora(shapes, 20 + number, 0.004, alpha=3.0 if number == 1 else None) for number in range(3)]
    loras |= {f"small_{number}": tensors for number, tensors in enumerate(small)}
    generator = torch.Generator().manual_seed(7)
    layer = "diffusion_model.blocks.0.self_attn.q"
    loras["lokr"] = {f"{layer}.lokr_w{part}": torch.randn(size, size, generator=generator) * 0.1
                     for part, size in ((1, 8), (2, 16))}
    ltx2 = write_ltx2_twin(folder / "ltx2.safetensors")
    loras |= {f"rain_{name}_noise": lora(shapes, 30 + number, 0.15) for number, name in enumerate(("high", "low"))}
    loras["sound"] = lora({name: tuple(ltx2[f"{name}.weight"].shape) for name in SOUND}, 3, 0.3, alpha=2.0)
    for name, tensors in loras.items():
        save_file(tensors, folder / "loras" / f"{name}.safetensors")
    for name, stored in FEW_BITS.items():
        true = write_in_few_bits(folder / "fp32.safetensors", folder / f"{name}.safetensors", stored)
        if name == "fp8":  # the loader stores everything so
            true = {key: tensor.to(torch.float8_e4m3fn).float() for key, tensor in true.items()}
        first = [(small[0], {"": 1.0}), (small[1], {"": -0.8})]
        blocks = {"blocks.0.": 0.5, "blocks.1.": 2.0, "": 1.0}
        for end, tensors in {"": true, "_stack": with_deltas(true, [*first, (small[2], blocks)]),
                             "_same": with_deltas(true, [*first, (small[2], {"": 1.0})])}.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()},
                      folder / f"true_{name}{end}.safetensors")
    script = PROJECT / "tests" / "comfy" / "stack_numbers_script.py"
    said = comfy_server.run_script(script, comfy_server.comfyui_folder(), PROJECT, folder, folder=folder)
    return json.loads(said.splitlines()[-1])


def test_eight_rows_are_a_chain_of_eight_loaders(figures):
    assert figures["eight"]["difference"] <= 1e-5
    assert figures["eight"]["patches a weight"] == 1, "eight passes over each weight would take eight times as long"
    assert figures["eight"]["changed"] > 0.1


@pytest.mark.parametrize("case", ["blocks", "one block", "sound", "sound alone"])
def test_each_delta_is_scaled_as_by_hand(figures, case):
    assert figures[case]["worst"] < 1e-4
    assert figures[case]["more"] == [], "weights changed that should not"


def test_blocks_with_weight_0_and_silent_streams_are_left_alone(figures):
    assert len(figures["one block"]["unchanged"]) == 6
    assert "weighted by blocks, merged" in figures["one block"]["report"]
    picture = {SOUND[0], "patchify_proj", "transformer_blocks.0.audio_to_video_attn.to_q"}
    assert {name.removeprefix("diffusion_model.") for name in figures["sound alone"]["unchanged"]} == picture
    assert "strength 0.5, sound -1.5, 21 of 21 keys match, merged" in figures["sound"]["report"]


@pytest.mark.parametrize("name", FEW_BITS)
def test_beside_weights_in_few_bits_nothing_is_rounded_away(figures, name):
    found = figures[name]
    assert found["changed"] > 3e-3, "the LoRAs change nothing: the comparison would prove nothing"
    assert found["beside"] <= 1.05 * found["bare"] + 1e-6, "beyond what the base rounds by itself"
    assert found["beside, all blocks"] < found["merged, all blocks"]
    if name != "int8":  # there ComfyUI rounds what goes into each layer as well, with the LoRAs otherwise than without
        assert found["effect"] < 0.1 < 1 < found["merged effect"], "merging must be what loses them"
    assert found["in a row"] <= 1e-5, "two stacks in a row must add up"
    assert found["hooks"] == 0
    how = "beside the weights" if name == "fp8" else "12 layers beside the weights, 1 merged"
    assert [line.split(", ")[-1 - how.count(",") :] for line in found["report"].splitlines()] == [how.split(", ")] * 3


@pytest.mark.parametrize("name", FEW_BITS)
def test_other_kinds_are_merged_into_few_bits_and_the_report_says_so(figures, name):
    assert figures[name]["lokr"] > 1e-3
    assert figures[name]["lokr report"].endswith("2 of 2 keys match, merged")


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 8), ("dpm_2", 7)])
def test_part_of_the_steps_is_piecewise_constant(figures, sampler, calls):
    found = figures[sampler]
    assert (found["calls"], found["different parts"]) == (calls, 4)
    assert found["worst"] <= 2e-5
    assert found["bare before and after"] == 0 and found["hooks"] == 0
    assert "from 0.25 to 0.75 of the steps, beside the weights" in found["report"].splitlines()[1]
    assert found["report"].splitlines()[2].endswith("keys match, merged")


@pytest.mark.parametrize(("sampler", "calls", "different"), [("euler", 8, 8), ("dpm_2", 7, 4)])
def test_a_curve_is_the_piecewise_constant_truth_at_every_call(figures, sampler, calls, different):
    found = figures[f"{sampler} by curve"]
    assert (found["calls"], found["different parts"]) == (calls, different)
    assert found["worst"] <= 2e-5 and found["least change"] > 1e-2
    assert found["bare before and after"] == 0 and found["hooks"] == 0
    lines = found["report"].splitlines()
    assert lines[1].endswith("from 0.25 to 0.75 of the steps, by a curve, beside the weights")
    assert lines[2].endswith("keys match, merged")


def test_a_curve_goes_for_both_of_a_pair_each_at_its_own_strength(figures):
    found = figures["partner"]
    for name in ("high", "low"):
        assert found[name]["calls"] == 8 and found[name]["different parts"] == 8
        assert found[name]["worst"] <= 2e-5 and found[name]["least change"] > 1e-2
    high, low = found["report"].split("; low noise: rain_low_noise.safetensors, ")
    assert "strength 0.9" in high and "strength -0.5" in low
    assert all(told.endswith("from 0 to 0.8 of the steps, by a curve, beside the weights") for told in (high, low))


def test_a_curve_multiplies_blocks_and_sound(figures):
    found = figures["sound by curve"]
    assert found["worst"] < 1e-4 and found["hooks"] == 0
    assert found["report"].endswith("weighted by blocks, by a curve, beside the weights")


def test_a_failed_sampling_leaves_nothing_on_the_model(figures):
    assert figures["stopped"] == {"error": "stopped", "inside": [13], "left": 0}


def test_what_cannot_act_in_a_part_of_the_steps_is_refused(figures):
    assert "lokr.safetensors cannot act in a part of the steps: 1 of its 1 layers" in figures["refused"]
    assert "lokr.safetensors cannot act by a curve: 1 of its 1 layers" in figures["refused curve"]
