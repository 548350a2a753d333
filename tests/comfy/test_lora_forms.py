"""LoRAs of every form on ComfyUI's own models: every key matched, and the change that the numbers say."""

import itertools
import json
from pathlib import Path

import comfy_server
import pytest
import torch
from lora_files import FORMS, NATIVE, Layers
from safetensors.torch import load_file, save_file
from tiny import write_twin

from video_lora_studio.training.families import FAMILIES

pytestmark = pytest.mark.comfy
PROJECT = Path(__file__).resolve().parents[2]
FAMILY = {family.name: family for family in FAMILIES}
LAYERS = {
    "Wan": ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.0.ffn.0", "time_embedding.0"),
    "LTX-Video": ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0",
                  "transformer_blocks.0.ff.net.0.proj", "patchify_proj"),
}
CASES = list(itertools.product(LAYERS, FORMS))
MODULATED = ("blocks.1", "head")
IN_DIFFUSERS = ", layers named as in diffusers"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """(facts of the script, changes it found, changes by hand) of every form on every base, from one process."""
    if reason := comfy_server.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("forms")
    files, truths = [], {}  # truths in the order of the files
    for name, layers in LAYERS.items():
        base = folder / f"{name}.safetensors"
        weights = write_twin(base, family=FAMILY[name])
        sizes = {layer: tuple(weights[f"{layer}.weight"].shape) for layer in layers}
        for number, (form, (write, _)) in enumerate(FORMS.items()):
            tensors, header, truths[name, form] = write(Layers(sizes, FAMILY[name].names))
            file = folder / f"{name}_{number}.safetensors"
            save_file(tensors, file, header | {"modelspec.trigger_phrase": "zdrgn"})
            files += [base, file]
        if name == "Wan":
            changes = {part: torch.full_like(weights[f"{part}.modulation"], 0.5) for part in MODULATED}
            truths[name, "modulations"] = {f"{part}.modulation": change for part, change in changes.items()}
            file = folder / "modulations.safetensors"
            save_file({f"diffusion_model.{part}.diff_m": change for part, change in changes.items()}, file)
            files += [base, file]
    script = PROJECT / "tests" / "comfy" / "lora_effect_script.py"
    said = comfy_server.run_script(script, comfy_server.comfyui_folder(), PROJECT, folder, *files, folder=folder)
    facts = json.loads(said.splitlines()[-1])
    return {case: (facts[number], load_file(folder / f"{number}.safetensors"), truths[case])
            for number, case in enumerate(truths)}


@pytest.mark.parametrize(("family", "form"), CASES)
def test_all_keys_match_and_the_change_is_right(read, family, form):
    (matched, alone, total, called, left, *_), changes, truth = read[family, form]
    assert (matched, left) == (total, [])
    assert called == FORMS[form][1].replace("{}", IN_DIFFUSERS)
    assert alone == total or form not in NATIVE
    assert changes.keys() == truth.keys()
    for name, change in truth.items():
        torch.testing.assert_close(changes[name], change, rtol=1e-4, atol=2e-6)
        assert change.abs().max() > 1e-2, "the LoRA changes nothing: the comparison would prove nothing"


def test_differences_of_modulations_load(read):
    """ComfyUI alone passes them over (Comfy-Org/ComfyUI issue 8922)."""
    (matched, alone, total, *_), changes, truth = read["Wan", "modulations"]
    assert (matched, alone, total) == (2, 0, 2)
    assert changes.keys() == truth.keys()
    for name, change in truth.items():
        torch.testing.assert_close(changes[name], change)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_inspect_lora_says_so(read, family, form):
    (_, alone, total, called, _, report, triggers), _, _ = read[family, form]
    lines = report.splitlines()
    assert lines[1] == f"Form: {called}" and family in lines[2] and triggers == "zdrgn"
    extra = "" if alone == total else f", {alone} with ComfyUI's own loaders"
    assert lines[-1] == f"On this model: {total} of {total} keys match{extra}"
