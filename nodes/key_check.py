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
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor

from .. import training
from ..loaders.lora_file import KEY_PREFIX
from ..loaders.safetensors_file import read_header
from .host_encoders import tensors_in

NOT_WEIGHTS = ("scaled_fp8", ".comfy_quant", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale")
"""Endings of what quantised files hold beside the weights: ComfyUI reads their values, which a header has not."""
READ_AS_NUMBERS = ("alpha", "reshape_weight")
"""What ComfyUI reads as plain numbers, so that the patch does not hold the tensor."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What of a LoRA a model takes: ComfyUI's patches, and which of the file's keys did not go into them."""

    patches: Mapping[Any, Any]
    left: tuple[str, ...]
    """Names of the tensors that went into none of them."""
    total: int

    @property
    def matched(self) -> int:
        return self.total - len(self.left)


@dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """What LoRAs are held against: the names that ComfyUI's model takes, read from it once."""

    targets: Mapping[str, Any]
    """Names that a LoRA may have for the model's weights."""
    names: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> ModelKeys:
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        targets = comfy.lora.model_lora_keys_unet(model, {})
        return cls(targets=targets, names=frozenset(shapes.keys() | model.state_dict().keys()), shapes=shapes)


def read_for(path: Path, model: torch.nn.Module | ModelKeys) -> training.AnyLora:
    """A LoRA file of any form, its tensors under the names by which ComfyUI's `model` loads them: for `fit`.

    Raises ValueError where the file is no readable safetensors file.
    """
    known = model if isinstance(model, ModelKeys) else ModelKeys.of(model)
    names = [name.removeprefix(KEY_PREFIX) for name in known.names if name.startswith(KEY_PREFIX)]
    return training.read_any_lora(path, [name.removesuffix(".weight") for name in names if not name.endswith(".bias")])


def fit(lora: Mapping[str, Tensor], model: torch.nn.Module | ModelKeys) -> Fit:
    """The patches that ComfyUI would make of a LoRA's tensors for its `model`, without those of another shape.

    Raises ValueError where the tensors are none that a LoRA can have.
    """
    known = model if isinstance(model, ModelKeys) else ModelKeys.of(model)
    keys, shapes = known.targets, known.shapes
    try:
        lora = comfy.lora_convert.convert_lora(lora)
        loaded = comfy.lora.load_lora(lora, keys, log_missing=False)
        patches = {
            target: patch
            for target, patch in loaded.items()
            if (target if isinstance(target, str) else target[0]) in known.names and fits(patch, shapes.get(target))
        }
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("its tensors have shapes that no LoRA has, so it is damaged: download it again.") from error
    used = used_names(lora, keys, patches)
    return Fit(patches=patches, left=tuple(name for name in lora if name not in used), total=len(lora))


def used_names(lora: Mapping[str, Tensor], keys: Mapping[str, Any], patches: Mapping[Any, Any]) -> set[str]:
    """Names of the tensors that went into the patches: those held there, and the numbers read beside them."""
    names = {id(tensor): name for name, tensor in lora.items()}
    held = {names[id(tensor)] for patch in patches.values() for tensor in tensors_in(patch) if id(tensor) in names}
    beside = {f"{key}.{end}" for key, target in keys.items() if target in patches for end in READ_AS_NUMBERS}
    return held | (beside & lora.keys())


def fits(patch: Any, shape: tuple[int, ...] | None) -> bool:
    """Whether a patch has the shape of its weight; where that cannot be told, ComfyUI's answer stands."""
    if shape is None:
        return True
    if isinstance(patch, tuple) and patch[0] == "diff":
        return tuple(patch[1][0].shape) == shape
    made = shape_of(patch)
    return made is None or made == (*shape[:1], torch.Size(shape[1:]).numel())


def shape_of(patch: Any) -> tuple[int, int] | None:
    """Rows and columns of what a patch adds to a weight flattened to a matrix; None where that cannot be told."""
    weights = getattr(patch, "weights", ())
    if isinstance(patch, LoRAAdapter) and weights[3] is None:
        return weights[0].shape[0], weights[1][0].numel()
    if isinstance(patch, LoHaAdapter) and weights[5] is None:
        return weights[0].shape[0], weights[1].shape[1]
    if isinstance(patch, LoKrAdapter) and weights[7] is None:
        first, second = kronecker_part(weights[0], *weights[3:5]), kronecker_part(weights[1], *weights[5:7])
        return first[0] * second[0], first[1] * second[1]
    return None


def kronecker_part(whole: Tensor | None, left: Tensor | None, right: Tensor | None) -> tuple[int, int]:
    """Rows and columns of one of a LoKr's two factors, given whole or as a product."""
    if whole is None:
        return left.shape[0], right.shape[1]
    return whole.shape[0], whole[0].numel()


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
