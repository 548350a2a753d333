"""Run by ComfyUI's Python: what VLSStack makes of real ComfyUI models, beside what it should, COMFYUI PROJECT FOLDER.

FOLDER holds what test_stack_numbers.py wrote. Prints one line of JSON: measured differences and reports.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
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


SPANS = {"wan_0": (0.0, 0.5), "wan_1": (0.25, 0.75), "wan_2": (0.0, 1.0), "wan_3": (0.5, 1.0)}
CURVES = {"wan_0": "0:0, 0.3:1, 1:0.4", "wan_1": "0.2:-1.5, 0.6:2", "wan_3": "0.55:0, 0.9:1.25"}
"""Of LoRAs that all act in their part of the steps."""


def by_curve(text: str, share: float) -> float:
    """A curve's factor, as NumPy has it."""
    places, factors = zip(*(map(float, point.split(":")) for point in text.split(",")), strict=True)
    return float(np.interp(share, places, factors))


def schedule(sampler: str, steps: int, calls_a_step: int, curves: dict[str, str]) -> dict:
    """Every answer within a sampling against that of a model with the deltas of this step added by hand."""
    rows = {name: {"start": start, "end": end} | ({"curve": curves[name]} if name in curves else {})
            for name, (start, end) in SPANS.items()}
    model = base("fp32")
    bare = sampled(model)[0]
    ours, report = stack(model, *(row(name, 0.6, **more) for name, more in rows.items()))
    deltas = {name: lora(name) for name in SPANS}

    def factors(share: float) -> dict[str, float]:
        return {name: 0.6 * by_curve(curves.get(name, "0:1"), share)
                for name, (start, end) in SPANS.items() if start <= share < end}

    found = against_merged(ours, deltas, factors, sampler, steps, calls_a_step)
    return found | {"report": report, "bare before and after": far(bare, sampled(model)[0]), "hooks": hooks_left(model)}


def against_merged(ours, deltas: dict[str, dict], factors, sampler: str, steps: int, calls_a_step: int = 1) -> dict:
    """The largest difference at any call of a sampling from a model with `factors` of `deltas` in its weights."""
    _, calls, answers = sampled(ours, steps=steps, sampler=sampler)
    truth = base("fp32").model
    clean = {key: weight.clone() for key, weight in truth.state_dict().items()}
    worst, least_change, parts = 0.0, float("inf"), set()
    for number, ((args, kwargs), answer) in enumerate(zip(calls, answers, strict=True)):
        now = factors(number // calls_a_step / steps)
        weights = dict(clean)
        for name, factor in now.items():
            for layer in layers(deltas[name]):
                weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + factor * delta(deltas[name], layer)
        args = [*args[:5], {}]
        with torch.inference_mode():
            truth.load_state_dict(clean)
            without = truth.apply_model(*args, **kwargs)
            truth.load_state_dict(weights)
            worst = max(worst, far(truth.apply_model(*args, **kwargs), answer))
        least_change = min([least_change, far(without, answer)] if any(now.values()) else [least_change])
        parts.add(tuple(now.items()))
    return {"calls": len(calls), "worst": worst, "least change": least_change, "different parts": len(parts)}


def partner() -> dict:
    """A pair of LoRAs by a curve, the low-noise one on the low-noise model at its own strength."""
    curve = "0:1, 0.5:0.25, 1:0"
    rows = json.dumps([row("rain_high_noise", 0.9, strength_low=-0.5, end=0.8, curve=curve)])
    out = StackLoras.execute(rows, model=base("fp32"), model_low=base("fp32"))
    return {"report": out.args[3]} | {
        name: against_merged(model, {name: lora(f"rain_{name}_noise")},
                             lambda share, name=name, strength=strength: {
                                 name: strength * by_curve(curve, share) * (share < 0.8)}, "euler", 8)
        for name, model, strength in (("high", out.args[0], 0.9), ("low", out.args[1], -0.5))
    }


def sound_by_curve() -> dict:
    """What each layer of a model with sound adds at each step of four, against its delta by hand."""
    curve, audio = "0:0.5, 0.5:1, 0.75:-2", {"audio_to_video": 0.5, "audio": -1.5, "": 0.5}
    model = base("ltx2")
    ours, report = stack(model, row("sound", 0.5, audio=-1.5, curve=curve, blocks="0:2, 1:1"))
    (on_layers,) = [wrapper for wrappers in ours.wrappers[WrappersMP.APPLY_MODEL].values() for wrapper in wrappers]
    tensors, levels = lora("sound"), torch.linspace(1, 0, 5)
    draw, worst = torch.Generator().manual_seed(2), 0.0

    def added(layer: str, x: torch.Tensor) -> torch.Tensor:
        module = model.model.get_submodule(layer)
        return module(x) - torch.nn.functional.linear(x, module.weight, module.bias)

    for step in range(4):
        options = {"sigmas": levels[step : step + 1], "sample_sigmas": levels}
        for layer in layers(tensors):
            x = torch.randn(3, tensors[f"{layer}.lora_A.weight"].shape[1], generator=draw)
            got = on_layers(Inside(model.model, lambda layer=layer, x=x, **_: added(layer, x)),
                            transformer_options=options)
            factor = next(factor for part, factor in audio.items() if part in layer)
            factor *= (2 if "blocks.0." in layer else 1) * by_curve(curve, step / 4)
            worst = max(worst, relative(got, x @ (factor * delta(tensors, layer)).T))
    return {"worst": worst, "report": report, "hooks": hooks_left(model)}


class Inside:
    """What ComfyUI hands to a wrapper of `apply_model`."""

    def __init__(self, model, call):
        self.class_obj, self.call = model, call

    def __call__(self, **kwargs):
        return self.call(**kwargs)


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


def refused(**more) -> str:
    try:
        stack(base("fp32"), row("lokr", **more))
    except ValueError as error:
        return str(error)


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        print(json.dumps({
            "eight": eight(), "stopped": stopped(), "refused": refused(start=0.5),
            "refused curve": refused(curve="0:0, 1:1"), "partner": partner(), "sound by curve": sound_by_curve(),
            "blocks": by_hand("wan_0", "fp32", {"blocks.0.": 0.35, "blocks.1.": -1.4, "time_embedding": 0.7},
                              row("wan_0", 0.7, blocks="0:0.5, 1:-2")),
            "one block": by_hand("wan_0", "fp32", {"blocks.0.": 0, "blocks.1.": 0.5, "time_embedding": 1},
                                 row("wan_0", blocks="1:0.5")),
            "sound": by_hand("sound", "ltx2", {"audio_to_video": 0.5, "audio": -1.5, "": 0.5},
                             row("sound", 0.5, audio=-1.5)),
            "sound alone": by_hand("sound", "ltx2", {"audio_patchify": 0.5, "audio_to_video": 0, "audio": 0.25, "": 0},
                                   row("sound", 0, audio=0.5, blocks="*:0.5")),
            **{name: few_bits(name) for name in ("fp8", "fp8_scaled", "int8")},
            "euler": schedule("euler", 8, 1, {}), "dpm_2": schedule("dpm_2", 4, 2, {}),
            "euler by curve": schedule("euler", 8, 1, CURVES), "dpm_2 by curve": schedule("dpm_2", 4, 2, CURVES),
        }))


main()
