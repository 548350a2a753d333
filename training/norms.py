"""How much a LoRA changes each layer and block: Frobenius norms, without building the changes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..loaders.lora_forms import ALPHA, BIAS, DOWN, MID, MODULATION, UP, lora_layers

BLOCK = re.compile(r"(?:[a-z_]*blocks|layers)[._](\d{1,4})(?=[._]|$)")
"""What the name of a layer in a block begins with."""
ROWS = 512
"""Rows of a LoHa's change that are built at a time."""
DIFFERENCES = ("diff", "diff_b", MODULATION, BIAS)


@dataclass(frozen=True, kw_only=True)
class LoraNorms:
    """Frobenius norms of a LoRA's changes at strength 1."""

    blocks: Mapping[int, float]
    outside: float
    """Of the layers that are in no block; 0 where there are none."""
    unknown: tuple[str, ...]
    """Layers whose change depends on the model's weights, or cannot be read."""

    @property
    def total(self) -> float:
        return math.hypot(self.outside, *self.blocks.values())


def lora_norms(tensors: Mapping[str, Tensor]) -> LoraNorms:
    """The norms of a LoRA of any form, its blocks in order."""
    blocks: dict[int, float] = {}
    outside, unknown = 0.0, []
    for module, layer in lora_layers(tensors).items():
        norm = delta_norm(layer)
        if norm is None or not math.isfinite(norm):
            unknown.append(module)
        elif found := BLOCK.match(module):
            blocks[int(found[1])] = math.hypot(blocks.get(int(found[1]), 0.0), norm)
        else:
            outside = math.hypot(outside, norm)
    return LoraNorms(blocks=dict(sorted(blocks.items())), outside=outside, unknown=tuple(unknown))


def lora_rank(layer: Mapping[str, Tensor]) -> int | None:
    """The rank of one layer's change; None where it is not a product of small matrices."""
    names = (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    return next((layer[name].shape[0] for name in names if name in layer and layer[name].ndim), None)


def delta_norm(layer: Mapping[str, Tensor]) -> float | None:
    """The Frobenius norm of one layer's change, weight and bias together.

    `layer`: its tensors by role. DoRA's rescaling of the whole weight is not in it. None where the change is no sum
    that is added to the weight, or the shapes do not belong together.
    """
    try:
        weight = _weight_norm(layer)
    except (RuntimeError, IndexError, KeyError):
        return None
    others = [_norm(layer[name]) for name in DIFFERENCES if name in layer]
    return None if weight is None and not others else math.hypot(weight or 0.0, *others)


def _weight_norm(layer: Mapping[str, Tensor]) -> float | None:
    rank = lora_rank(layer)
    scale = layer[ALPHA].item() / rank if rank and ALPHA in layer else 1.0
    if DOWN in layer:
        norm = _product_norm(layer[UP].flatten(1), layer[DOWN].flatten(1), layer.get(MID))
    elif "hada_w1_a" in layer:
        if "hada_t1" in layer:
            return None
        norm = _hadamard_norm(*(layer[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")))
    elif any(name.startswith("lokr_") for name in layer):
        norm = _kronecker_part(layer, "w1") * _kronecker_part(layer, "w2")  # a Kronecker product's norm is theirs
    else:
        return None
    return abs(scale) * norm


def _norm(tensor: Tensor) -> float:
    return tensor.double().norm().item()


def _product_norm(up: Tensor, down: Tensor, mid: Tensor | None = None) -> float:
    """||up @ down|| from Gram matrices, rank by rank; with `mid` (rank, rank, ...) between them."""
    up, down = up.double(), down.double()
    if mid is None:
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()
    left, right = torch.linalg.qr(up).R, torch.linalg.qr(down.T).R
    return torch.einsum("ap,pq...,bq->ab...", left, mid.double(), right).norm().item()


def _hadamard_norm(first_up: Tensor, first_down: Tensor, second_up: Tensor, second_down: Tensor) -> float:
    """||(first_up @ first_down) * (second_up @ second_down)||, some rows at a time."""
    parts = zip(first_up.float().split(ROWS), second_up.float().split(ROWS), strict=True)
    first_down, second_down = first_down.float(), second_down.float()
    return math.hypot(*((first @ first_down).mul_(second @ second_down).norm().item() for first, second in parts))


def _kronecker_part(layer: Mapping[str, Tensor], name: str) -> float:
    if f"lokr_{name}" in layer:
        return _norm(layer[f"lokr_{name}"])
    left, right = layer[f"lokr_{name}_a"], layer[f"lokr_{name}_b"]
    core = layer.get("lokr_t2") if name == "w2" else None
    return _product_norm(left if core is None else left.T, right, core)
