"""Small stand-ins that tests share: a twin of a model as a file in every form users have, and encoders beside it."""

import json
from pathlib import Path

import torch

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.demo import StandInTextEncoder, StandInVae
from video_lora_studio.training.families import FAMILIES, file_tensors

__all__ = ["STORED_FORMS", "StandInImageEncoder", "StandInTextEncoder", "StandInVae", "write_twin"]

PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STORED_FORMS = (*PLAIN, "fp8", "fp8 e5m2", "fp8 scaled old", "fp8 scaled new", "fp8 scaled header")


class StandInImageEncoder:
    """What a CLIP vision model gives, by a fixed random matrix from an image's mean colour."""

    identity = "stand-in image encoder 1"

    def __init__(self, tokens=257, width=1280):
        self._mix = torch.randn(tokens, width, 3, generator=torch.Generator().manual_seed(2))

    def encode(self, image):
        return self._mix @ image.mean((0, 1))


def write_twin(path, *, prefix="", stored="fp32", family=FAMILIES[0], kind=None):
    """Write a family's tiny random model as a ComfyUI file; what it holds as float32, by names without prefix.

    `kind`: which of the family's twins; None is its default one.
    fp8 forms store the blocks' matrices so, and the rest as bf16. `fp8 scaled old`: `scaled_fp8`, `.scale_weight`,
    `.scale_input`. `fp8 scaled new`: `.weight_scale`, `.input_scale`, `.comfy_quant`. `fp8 scaled header`:
    `.weight_scale`, and the format in the header.
    """
    _, twin = family.twin() if kind is None else family.twin(kind=kind)
    weights = file_tensors(family, twin)
    stored_tensors, truth, layers = {}, {}, {}
    for name, weight in weights.items():
        if stored in PLAIN or not ("blocks." in name and name.endswith(".weight") and weight.ndim == 2):
            stored_tensors[name] = weight.to(PLAIN.get(stored, torch.bfloat16))
            truth[name] = stored_tensors[name].float()
            continue
        dtype = torch.float8_e5m2 if stored == "fp8 e5m2" else torch.float8_e4m3fn
        scale = weight.abs().max() / 448 if "scaled" in stored else torch.tensor(1.0)
        stored_tensors[name] = (weight / scale).to(dtype)
        truth[name] = stored_tensors[name].float() * scale
        layer = name.removesuffix(".weight")
        layers[layer] = {"format": "float8_e4m3fn"}
        stored_tensors |= _marks(stored, layer, scale)
    if stored == "fp8 scaled old":
        stored_tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if stored == "fp8 scaled header" else {}
    write_tensors(Path(path), {prefix + name: tensor for name, tensor in stored_tensors.items()}, metadata)
    return truth


def _marks(stored, layer, scale):
    """The tensors that stand beside a scaled fp8 weight."""
    mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    return {
        "fp8 scaled old": {f"{layer}.scale_weight": scale.reshape(1), f"{layer}.scale_input": torch.ones(1)},
        "fp8 scaled new": {
            f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.tensor(1.0), f"{layer}.comfy_quant": mark,
        },
        "fp8 scaled header": {f"{layer}.weight_scale": scale},
    }.get(stored, {})
