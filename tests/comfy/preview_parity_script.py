"""Run by ComfyUI's Python: a preview of the engine against ComfyUI's own sampler with the saved LoRA, same seed.

Arguments as of `family_parity_script`. Prints one line of JSON: case to, for each stream, the relative difference
between the preview's latents and those of ComfyUI's `euler` and `simple`, and that between ComfyUI's with and without
the LoRA.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from family_parity_script import CASES, distance, in_official_order, prepared, trained, write_case
from parity_script import start_comfyui
from torch import Tensor

COMPARED = ("Wan T2V", "Wan TI2V", "LTX-Video causal", "LTX-2 2.0", "LTX-2 2.3")
STEPS, GUIDANCE, SEED = 8, 3.0, 21


def conditioning(base, clip: dict, captions: list[dict], texts: list[Tensor]) -> list[list]:
    """What ComfyUI's nodes hand to a sampler, of each caption."""
    found = []
    for features, text in zip(captions, texts, strict=True):
        if base.family.name == "Wan":
            _, collated = base.family.collate(base, [clip | features])
            found.append([[collated["text"], {}]])
        elif base.family.name == "LTX-Video":
            mask = torch.ones(1, len(text), dtype=torch.long)
            found.append([[text[None], {"attention_mask": mask, "frame_rate": 25}]])
        else:
            found.append([[text[None], {"unprocessed_ltxav_embeds": True, "frame_rate": 24}]])
    return found


def sampled_natively(patcher, base, shapes: dict[str, torch.Size], positive, negative) -> dict[str, Tensor]:
    """What ComfyUI's sampler makes of the noise of a seed, as its VAEs decode it, without batch."""
    import comfy.nested_tensor
    import comfy.sample

    empty = [torch.zeros(shape) for shape in shapes.values()]
    empty = comfy.nested_tensor.NestedTensor(empty) if len(empty) > 1 else empty[0]
    noise = comfy.sample.prepare_noise(empty, SEED)
    with contextlib.ExitStack() as patched:
        if base.family.name == "LTX-2":
            for block in patcher.model.diffusion_model.transformer_blocks:
                patched.enter_context(mock.patch.object(block, "forward", in_official_order(block.forward)))
        made = comfy.sample.sample(
            patcher, noise, STEPS, GUIDANCE, "euler", "simple", positive, negative, empty, seed=SEED, disable_pbar=True
        )
    parts = made.unbind() if made.is_nested else [made]
    return {name: part[0].float() for name, part in zip(shapes, parts, strict=True)}


def compare(name: str, folder: Path) -> dict[str, Any]:
    import comfy.sd
    import comfy.utils

    from video_lora_studio.training import PreviewConfig, RunConfig, SilentListener
    from video_lora_studio.training.optimizers import build_optimizer
    from video_lora_studio.training.preview import sampled, scenes_of

    case, model_file = CASES[name], folder / "model.safetensors"
    _, base = write_case(case, model_file)
    clips, captions, _, texts = prepared(case, base)
    context, training_set, lora = trained(base, clips, captions, folder)
    config = RunConfig(name="parity", preview=PreviewConfig(steps=STEPS, guidance=GUIDANCE, seed=SEED))
    optimizer = build_optimizer([each for each in context.transformer.parameters() if each.requires_grad], config)
    scene = scenes_of(training_set, 1)[0]
    ours = sampled(
        context, training_set, scene, config.preview, 0, optimizer, SilentListener(), lambda error: None
    )
    shapes = {stream: torch.Size((1, *clips[0][stream].shape)) for stream in ours}
    positive, negative = conditioning(base, clips[0], captions, texts)  # the last caption stands for the empty one
    patcher = comfy.sd.load_diffusion_model(str(model_file), model_options={"dtype": torch.float32})
    tensors = comfy.utils.load_torch_file(str(lora), safe_load=True)
    with torch.no_grad():
        bare = sampled_natively(patcher, base, shapes, positive, negative)
        patched, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
        theirs = sampled_natively(patched, base, shapes, positive, negative)
    return {
        **{stream: distance(ours[stream], theirs[stream]) for stream in ours},
        "changed": {stream: distance(theirs[stream], bare[stream]) for stream in ours},
    }


def main(comfyui: str, tests: str, folder: Path) -> None:
    start_comfyui(comfyui)
    torch.set_num_threads(1)
    sys.path.insert(0, tests)
    figures = {}
    for name in COMPARED:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        figures[name] = compare(name, place)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
