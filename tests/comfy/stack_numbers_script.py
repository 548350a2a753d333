"""Run by ComfyUI's Python: what VLSStack makes of real ComfyUI models, beside what it should, COMFYUI PROJECT FOLDER.

FOLDER holds what test_stack_numbers.py wrote. Prints one line of JSON: measured differences and reports.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch

comfyui, project, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sys.argv[1:] = ["--cpu"]
sys.path[:0] = [comfyui]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

spec = importlib.util.spec_from_file_location(
    "pack", Path(project, "__init__.py"), submodule_search_locations=[project]
)
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from pack.nodes.stack import StackLoras  # noqa: E402

folder_paths.add_model_folder_path("loras", str(folder / "loras"), is_default=True)
DRAW = torch.Generator().manual_seed(11)
NOISE = torch.randn(1, 16, 3, 8, 8, generator=DRAW)
TEXT = torch.randn(1, 12, 4096, generator=DRAW)
THREE = ("small_0", "small_1", "small_2")


def base(name: str):
    """A model as ComfyUI loads it: `fp8` with that chosen in the loader, with scales as it is, others as float32."""
    options = {"fp8": {"dtype": torch.float8_e4m3fn}, "fp8_scaled": {}, "int8": {}}.get(name, {"dtype": torch.float32})
    return comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors"), model_options=options)


def lora(name: str) -> dict[str, torch.Tensor]:
    return comfy.utils.load_torch_file(str(folder / "loras" / f"{name}.safetensors"), safe_load=True)


def row(name: str, strength: float = 1.0, **more) -> dict:
    return {"on": True, "lora": f"{name}.safetensors", "strength": strength, **more}


def stack(model, *rows: dict):
    """(model with the rows on it, report)."""
    out = StackLoras.execute(json.dumps(rows), model=model)
    return out.args[0], out.args[3]


def chain(model, names: list[str], strengths: list[float]):
    for name, strength in zip(names, strengths, strict=True):
        model, _ = comfy.sd.load_lora_for_models(model, None, lora(name), strength, 0.0)
    return model


def sampled(model, *, steps: int = 2, sampler: str = "euler"):
    """(latents, what ComfyUI's model was called with, what it answered) of a sampling with ComfyUI's sampler."""
    calls, answers = [], []

    def record(executor, *args, **kwargs):
        calls.append((args, {key: value for key, value in kwargs.items() if key != "transformer_options"}))
        answers.append(executor(*args, **kwargs))
        return answers[-1]

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "record", record)
    conds = [[TEXT, {}]]
    latents = comfy.sample.sample(model, NOISE, steps, 1.0, sampler, "simple", conds, conds,
                                  torch.zeros_like(NOISE), disable_pbar=True, seed=1)
    return latents, calls, answers


def delta(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    rank = tensors[f"{layer}.lora_A.weight"].shape[0]
    scale = tensors[f"{layer}.alpha"].item() / rank if f"{layer}.alpha" in tensors else 1.0
    return scale * (tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"])


def layers(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def hooks_left(model) -> int:
    return sum(len(module._forward_hooks) for module in model.model.modules())


def eight() -> dict:
    model = base("fp32")
    names, strengths = [f"wan_{number}" for number in range(8)], [1, -0.5, 0.3, 0.7, 1.5, 0.2, -1, 0.4]
    ours, _ = stack(model, *(row(name, strength) for name, strength in zip(names, strengths, strict=True)))
    theirs, bare = (sampled(each)[0] for each in (chain(model, names, strengths), model))
    return {"difference": far(sampled(ours)[0], theirs), "changed": far(theirs, bare),
            "patches a weight": max(map(len, ours.patches.values()))}


def weights_changed(name: str, *rows: dict) -> tuple[dict[str, torch.Tensor], str]:
    """What rows change of each weight of a model, and the report."""
    model = base(name)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    ours, report = stack(model, *rows)
    ours.patch_model()
    after = {key: weight.clone() for key, weight in ours.model.state_dict().items()}
    ours.unpatch_model()
    changed = [key for key in after if not after[key].equal(before[key])]
    return {key.removesuffix(".weight"): after[key] - before[key] for key in changed}, report


def by_hand(name: str, base_name: str, factors: dict[str, float], *rows: dict) -> dict:
    """Changes of weights against deltas times `factors`, those of layers by a part of their name, else 1."""
    changes, report = weights_changed(base_name, *rows)
    tensors = lora(name)
    worst, unchanged = 0.0, []
    for layer in layers(tensors):
        factor = next((factor for part, factor in factors.items() if part in layer), 1.0)
        if factor == 0:
            unchanged.append(layer)
            continue
        worst = max(worst, relative(changes.pop(layer), factor * delta(tensors, layer)))
    return {"worst": worst, "more": sorted(changes), "unchanged": unchanged, "report": report}


def few_bits(name: str) -> dict:
    """Three LoRAs too small for few bits, one weighted by blocks, on a base in them, against their sum in float32."""
    model, rows = base(name), [row(THREE[0]), row(THREE[1], -0.8), row(THREE[2], 1.0, blocks="0:0.5, 1:2")]
    ours, report = stack(model, *rows)
    first, _ = stack(model, rows[0])
    in_a_row, _ = stack(first, *rows[1:])
    same, _ = stack(model, rows[0], rows[1], row(THREE[2]))
    lokr, lokr_report = stack(model, row("lokr"))
    answers = {
        "stack": sampled(ours, steps=1)[2][0], "in a row": sampled(in_a_row, steps=1)[2][0],
        "same": sampled(same, steps=1)[2][0],
        "chain": sampled(chain(model, THREE, [1.0, -0.8, 1.0]), steps=1)[2][0],
        "bare": sampled(model, steps=1)[2][0], "lokr": sampled(lokr, steps=1)[2][0],
        "true bare": sampled(base(f"true_{name}"), steps=1)[2][0],
        "true": sampled(base(f"true_{name}_stack"), steps=1)[2][0],
        "true same": sampled(base(f"true_{name}_same"), steps=1)[2][0],
    }
    true = answers["true"] - answers["true bare"]
    return {
        "report": report, "lokr report": lokr_report, "dtype": str(model.model.diffusion_model.dtype),
        "lokr": relative(answers["lokr"], answers["bare"]),
        "bare": relative(answers["bare"], answers["true bare"]),
        "beside": relative(answers["stack"], answers["true"]),
        "effect": relative(answers["stack"] - answers["bare"], true),
        "merged effect": relative(answers["chain"] - answers["bare"], answers["true same"] - answers["true bare"]),
        "beside, all blocks": relative(answers["same"], answers["true same"]),
        "merged, all blocks": relative(answers["chain"], answers["true same"]),
        "in a row": far(answers["stack"], answers["in a row"]),
        "changed": relative(answers["true"], answers["true bare"]), "hooks": hooks_left(model),
    }


def schedule(sampler: str, steps: int, calls_a_step: int) -> dict:
    """Every answer within a sampling against that of a model with the deltas of this step added by hand."""
    spans = {"wan_0": (0.0, 0.5), "wan_1": (0.25, 0.75), "wan_2": (0.0, 1.0), "wan_3": (0.5, 1.0)}
    model = base("fp32")
    bare = sampled(model)[0]
    ours, report = stack(model, *(row(name, 0.6, start=start, end=end) for name, (start, end) in spans.items()))
    _, calls, answers = sampled(ours, steps=steps, sampler=sampler)
    again = sampled(model)[0]
    truth = base("fp32").model
    clean = {key: weight.clone() for key, weight in truth.state_dict().items()}
    worst, parts = 0.0, set()
    for number, ((args, kwargs), answer) in enumerate(zip(calls, answers, strict=True)):
        share = number // calls_a_step / steps
        acting = [name for name, (start, end) in spans.items() if start <= share < end]
        weights = dict(clean)
        for tensors in map(lora, acting):
            for layer in layers(tensors):
                weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + 0.6 * delta(tensors, layer)
        truth.load_state_dict(weights)
        with torch.inference_mode():
            args = [*args[:5], {}]
            worst = max(worst, far(truth.apply_model(*args, **kwargs), answer))
        parts.add(tuple(acting))
    return {"calls": len(calls), "worst": worst, "different parts": len(parts), "report": report,
            "bare before and after": far(bare, again), "hooks": hooks_left(model)}


def stopped() -> dict:
    """A sampling that fails within the model leaves nothing behind."""
    model = base("fp32")
    ours, _ = stack(model, row("wan_0", end=0.5))
    inside = []

    def fail(executor, *args, **kwargs):
        inside.append(hooks_left(model))
        raise RuntimeError("stopped")

    ours = ours.clone()
    ours.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "fail", fail)
    try:
        sampled(ours)
    except RuntimeError as error:
        return {"error": str(error), "inside": inside, "left": hooks_left(model)}


def refused() -> str:
    try:
        stack(base("fp32"), row("lokr", start=0.5))
    except ValueError as error:
        return str(error)


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        print(json.dumps({
            "eight": eight(), "stopped": stopped(), "refused": refused(),
            "blocks": by_hand("wan_0", "fp32", {"blocks.0.": 0.35, "blocks.1.": -1.4, "time_embedding": 0.7},
                              row("wan_0", 0.7, blocks="0:0.5, 1:-2")),
            "one block": by_hand("wan_0", "fp32", {"blocks.0.": 0, "blocks.1.": 0.5, "time_embedding": 1},
                                 row("wan_0", blocks="1:0.5")),
            "sound": by_hand("sound", "ltx2", {"audio_to_video": 0.5, "audio": -1.5, "": 0.5},
                             row("sound", 0.5, audio=-1.5)),
            "sound alone": by_hand("sound", "ltx2", {"audio_patchify": 0.5, "audio_to_video": 0, "audio": 0.25, "": 0},
                                   row("sound", 0, audio=0.5, blocks="*:0.5")),
            **{name: few_bits(name) for name in ("fp8", "fp8_scaled", "int8")},
            "euler": schedule("euler", 8, 1), "dpm_2": schedule("dpm_2", 4, 2),
        }))


main()
