"""One way of fitting a run into memory, chosen by hand or by the plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Level:
    """What is done to save memory. Without arguments: nothing."""

    weights: str = "as stored"
    """How the frozen weights are kept: `as stored`, `full`, `fp8`, `int8` or `nf4`."""
    recompute: bool = False
    """Blocks' activations are forgotten and computed again on the way back."""
    keep_attention: bool = False
    """Of these the answers of attention are kept; only with `recompute`, and not where blocks are compiled."""
    offload_activations: bool = False
    """What recompute keeps, the blocks' inputs, waits in host memory."""
    swapped: int = 0
    """How many blocks' frozen weights stay in host memory and come to the device one at a time."""
    compiled: bool = False
    """Blocks are compiled, for speed. The numbers differ in their last digits."""
