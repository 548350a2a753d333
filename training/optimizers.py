"""What turns gradients into steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from .config import RunConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """AdamW over the adapter (Loshchilov and Hutter 2019), all parameters in one launch where the device can."""
    parameters = list(parameters)
    fused = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.recipe.weight_decay, fused=fused or None
    )


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """What the learning rate is multiplied by at `step`, counted from 0: warm-up, then the schedule."""
    warmup = config.recipe.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    match config.recipe.schedule:
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
    return 1.0
