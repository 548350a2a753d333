"""How well a model predicts given clips, at fixed noise: the same question before and after training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..loaders.lora_file import KEY_PREFIX, read_lora
from ..loaders.low_bits_linear import LowBitsLinear
from .families.model_family import ModelFamily
from .loop import StepContext, micro_step_loss

LEVELS = (0.15, 0.35, 0.55, 0.75, 0.95)


@torch.no_grad()
def fixed_noise_loss(context: StepContext, batches: int) -> float:
    """Mean loss over the first `batches` batches at each of `LEVELS`, with noise fixed by the context's seed."""
    losses = []
    for position in range(batches):
        size = len(context.batches.samples(position))
        losses += [micro_step_loss(context, position, torch.full((size,), level)) for level in LEVELS]
    return torch.stack(losses).mean().item()


@torch.no_grad()
def merge_lora(transformer: nn.Module, family: ModelFamily, lora_file: Path) -> int:
    """Add a LoRA file of ours to the weights, W + B A; how many layers it changed.

    Raises ValueError where the file names a layer that the transformer lacks, or whose weight is kept in few bits.
    """
    linear = [(name, module) for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    layers = {KEY_PREFIX + family.original_name(name): module for name, module in linear}
    tensors, _ = read_lora(lora_file)
    changed = 0
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        key = name.removesuffix(".lora_A.weight")
        if key not in layers:
            raise ValueError(f"{lora_file.name}: the model has no layer {key}.")
        if isinstance(layers[key], LowBitsLinear):
            raise ValueError(f"{lora_file.name}: {key} is kept in few bits: load the model with its weights in full.")
        weight = layers[key].weight
        delta = tensors[f"{key}.lora_B.weight"].float() @ down.float()
        weight.add_(delta.to(weight.device, weight.dtype))
        changed += 1
    return changed
