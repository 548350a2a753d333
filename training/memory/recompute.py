"""Recompute (activation checkpointing): forget a block's activations, compute them again on the way back."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(transformer: nn.Module, *, keep_random_state: bool) -> None:
    """Recompute each block of a diffusers transformer in the backward pass.

    `keep_random_state` repeats the forward's random draws; only an adapter with dropout makes any.
    """
    transformer.enable_gradient_checkpointing(
        partial(checkpoint, use_reentrant=False, preserve_rng_state=keep_random_state)
    )
