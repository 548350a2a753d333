"""Which keys of a LoRA ComfyUI's own model loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_detection
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from .. import training
from ..loaders.safetensors_file import read_header
from .host_encoders import tensors_in

NOT_WEIGHTS = ("scaled_fp8", ".comfy_quant", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale")
"""Endings of what quantised files hold beside the weights: ComfyUI reads their values, which a header has not."""
READ_AS_NUMBERS = ("alpha", "reshape_weight")
"""What ComfyUI reads as plain numbers, so that the patch does not hold the tensor."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What of a LoRA a model takes: ComfyUI's patches, and how many of the file's keys went into them."""

    patches: Mapping[Any, Any]
    matched: int
    total: int


def fit(lora: Mapping[str, Tensor], model: torch.nn.Module) -> Fit:
    """The patches that ComfyUI would make of a LoRA's tensors for its `model`, without those of another shape."""
    keys = comfy.lora.model_lora_keys_unet(model, {})
    lora = comfy.lora_convert.convert_lora(lora)
    loaded = comfy.lora.load_lora(lora, keys, log_missing=False)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    patches = {target: patch for target, patch in loaded.items() if fits(patch, shapes.get(target))}
    return Fit(patches=patches, matched=len(used_names(lora, keys, patches)), total=len(lora))


def used_names(lora: Mapping[str, Tensor], keys: Mapping[str, Any], patches: Mapping[Any, Any]) -> set[str]:
    """Names of the tensors that went into the patches: those held there, and the numbers read beside them."""
    names = {id(tensor): name for name, tensor in lora.items()}
    held = {names[id(tensor)] for patch in patches.values() for tensor in tensors_in(patch) if id(tensor) in names}
    beside = {f"{key}.{end}" for key, target in keys.items() if target in patches for end in READ_AS_NUMBERS}
    return held | (beside & lora.keys())


def fits(patch: Any, shape: tuple[int, ...] | None) -> bool:
    """Whether a patch has the shape of its weight; where that cannot be told, ComfyUI's answer stands."""
    if shape is None or not isinstance(patch, LoRAAdapter) or patch.weights[3] is not None:
        return True
    up, down = patch.weights[:2]
    return up.shape[0] == shape[0] and down[0].numel() == torch.Size(shape[1:]).numel()


def check_keys(path: Path, base: training.BaseModel) -> training.KeyMatch:
    """How many keys of a LoRA file ComfyUI's model for `base` loads; built from the header, without storage."""
    lora, _ = training.read_lora(path)
    found = fit(lora, model_without_storage(base))
    return training.KeyMatch(matched=found.matched, total=found.total)


def model_without_storage(base: training.BaseModel) -> torch.nn.Module:
    """ComfyUI's own model for a weights file, its parameters on the meta device."""
    header = read_header(base.path)
    meta = torch.device("meta")
    weights = {
        name.removeprefix(base.key_prefix): torch.empty(info.shape, device=meta)
        for name, info in header.tensors.items()
        if name.startswith(base.key_prefix) and not name.endswith(NOT_WEIGHTS)
    }
    config = comfy.model_detection.model_config_from_unet(weights, "", metadata=dict(header.metadata))
    if config is None:
        raise ValueError(f"ComfyUI does not recognise {base.path.name}: the LoRA cannot be checked against it.")
    return config.get_model(weights, "", device=meta)
