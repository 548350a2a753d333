"""What one micro-step will take on any level, from what a rehearsal with few blocks took.

What all blocks take follows in a straight line: blocks are alike, and the peak lies either where the way back begins,
with what all blocks keep, or where it ends, with the gradients of all blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..optimizers import state_bytes
from .block_swap import present_blocks
from .level import Level
from .rehearsal import Rehearsal, Run, Weights, load_shapes
from .workload import Workload

PLAIN = ("bf16", "fp16", "fp32")
"""Ways in which weights are stored that are the same numbers in full."""

ADAPTER_BYTES = 4
"""Of a number of the LoRA, which is float32."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes and work of a micro-step with the frozen weights kept in one way, with some kind of recompute or none."""

    weights: int
    """All frozen weights."""
    block: int
    """The frozen weights of the largest block."""
    blocks: int
    adapter: int
    """The LoRA's parameters; its gradients take the same."""
    optimizer: int
    """What the optimizer remembers between steps."""
    start: int
    """Beside weights and adapter, at most alive until the way back is through the last block."""
    end: int
    """The same when it is in the first block, with the gradients of all others."""
    kept: int
    """Of `start`, what each block keeps for the way back, but for answers of attention, which are never offloaded."""
    operations: float
    """Floating-point operations of matrix products and attention, forward to backward."""

    def on_device(self, level: Level, *, accumulated: bool = False) -> int:
        """Peak bytes on the device. `accumulated`: gradients of an earlier micro-step are there."""
        waiting = (self.blocks - present_blocks(level.swapped, self.blocks)) * self.block
        offloaded = max(0, self.blocks - 1) * self.kept if level.offload_activations else 0
        start = self.start - offloaded + (self.adapter if accumulated else 0)
        return self.weights - waiting + self.adapter + self.optimizer + max(start, self.end, self.adapter)

    def on_host(self, level: Level) -> int:
        """Bytes that wait in host memory."""
        return level.swapped * self.block + (self.blocks * self.kept if level.offload_activations else 0)

    def copied(self, level: Level) -> int:
        """Bytes between host and device in a micro-step, both ways together."""
        return 2 * self.on_host(level)


class Footprints:
    """The footprint of one workload for any level, each found when it is first asked for."""

    def __init__(self, workload: Workload):
        self.workload = workload
        self._rehearsal: Rehearsal | None = None
        self._runs: dict[bool, Run] = {}
        self._weights: dict[str, Weights] = {}

    def of(self, level: Level) -> Footprint:
        """What a micro-step takes; of `level` only its weights, recompute and kept attention count.

        A second or two on the first call, more for models of many parts. Raises like `load_transformer`.
        """
        if self._rehearsal is None:
            self._rehearsal = Rehearsal(self.workload)
        if level.recompute not in self._runs:
            self._runs[level.recompute] = self._rehearsal.run(recompute=level.recompute)
        found = _extended(self._runs[level.recompute], self._rehearsal, self._weights_kept(level.weights))
        return _with_attention_kept(found, self._runs[True]) if level.keep_attention else found

    def _weights_kept(self, kept_as: str) -> Weights:
        same = kept_as == "as stored" or (kept_as == "full" and self.workload.base.stored_as in PLAIN)
        if same:
            return self._rehearsal.weights
        if kept_as not in self._weights:
            self._weights[kept_as] = Weights.of(load_shapes(self.workload, kept_as), self.workload)
        return self._weights[kept_as]


def _extended(run: Run, rehearsal: Rehearsal, weights: Weights) -> Footprint:
    """What a rehearsal counted with few blocks, in a straight line to all of them, with the weights kept in some way.

    What blocks compute does not depend on how their weights are kept; the room to turn few bits into numbers does.
    """
    more = weights.blocks - rehearsal.blocks
    unpacked = max(0, weights.unpacked - rehearsal.weights.unpacked)
    adapter = rehearsal.adapter + more * rehearsal.adapter_in_block
    return Footprint(
        weights=weights.total, block=weights.block, blocks=weights.blocks, adapter=adapter,
        optimizer=round(state_bytes(rehearsal.workload.config) * adapter / ADAPTER_BYTES),
        start=run.start + more * run.kept + unpacked, end=run.end + more * rehearsal.adapter_in_block + unpacked,
        kept=run.kept, operations=run.operations + more * run.operations_in_block,
    )


def _with_attention_kept(found: Footprint, run: Run) -> Footprint:
    """The footprint of recompute where the answers of attention are kept.

    The last block has them with it when the way back begins, whether they were kept or have just been computed again.
    """
    more = max(0, found.blocks - 1) * run.attention
    return replace(
        found, start=found.start + more, operations=found.operations - found.blocks * run.attention_operations
    )
