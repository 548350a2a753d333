"""A transformer on its device as a level says, and the next level when memory runs out all the same."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .block_swap import BlockSwap, swapped_blocks
from .compiled import compile_blocks, failed_to_compile, reason, uncompile_blocks
from .level import Level
from .out_of_memory import is_out_of_memory, next_level
from .plan import describe
from .recompute import ActivationOffload, recompute_blocks

log = logging.getLogger(__name__)


class Fitting:
    """Recompute, offloading, block swap and compiling on a transformer with its adapter attached.

    `blocks` in the order they run, those that the level swaps in host memory. `keep_random_state` as for
    `recompute_blocks`. Raises like `BlockSwap`.
    """

    def __init__(
        self,
        transformer: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        level: Level,
        *,
        keep_random_state: bool = False,
    ):
        self.level = level
        self.notes: list[str] = []
        """What was changed on the way, in sentences."""
        self._transformer, self._blocks, self._device = transformer, blocks, device
        self._keep_random_state = keep_random_state
        self._swap: BlockSwap | None = None
        self._apply()

    def recovery(self, error: BaseException) -> Callable[[], None] | None:
        """What helps where `error` says that memory ran out, and something is left to do, or that compiling failed.

        None for other errors.

        To be called when nothing holds the failed step any more: the error's traceback holds all of it.
        """
        if self.level.compiled and failed_to_compile(error):
            plain, why = dataclasses.replace(self.level, compiled=False), reason(error)
            return lambda: self._change(plain, f"Compile does not work here ({why})")
        if not is_out_of_memory(error, self._device):
            return None
        level = next_level(self.level, len(self._blocks))
        return level and (lambda: self._change(level, "Memory ran out"))

    def close(self) -> None:
        """Let go of what swapping holds on the device. The blocks must not run any more."""
        uncompile_blocks(self._blocks)
        if self._swap is not None:
            self._swap.close()
            self._swap = None

    def _change(self, level: Level, why: str) -> None:
        self.close()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.level = level
        self.notes.append(f"{why}; from there on: {describe(level, len(self._blocks))}.")
        log.warning("%s", self.notes[-1])
        self._apply()

    def _apply(self) -> None:
        level = self.level
        if level.recompute:
            offload = ActivationOffload() if level.offload_activations else None
            recompute_blocks(
                self._transformer, keep_random_state=self._keep_random_state, offload=offload,
                keep_attention=level.keep_attention,
            )
        if level.swapped:
            swapped = swapped_blocks(level.swapped, len(self._blocks))
            self._swap = BlockSwap(self._blocks, swapped, self._device)
        if level.compiled:
            compile_blocks(self._blocks)
