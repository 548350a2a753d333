"""Blocks compiled by torch.compile: fewer, larger kernels instead of one for each operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

BACKEND = "inductor"


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile each block's forward when it first runs; blocks that are alike share what was compiled.

    Sizes that change between batches are compiled once more, for any size. Hooks of the block and recompute stay
    outside of what is compiled.
    """
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=BACKEND, dynamic=None)


def uncompile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Let blocks run as they are written."""
    for block in blocks:
        vars(block).pop("forward", None)


def failed_to_compile(error: BaseException) -> bool:
    """Whether an error says that something could not be compiled: no compiler, no Triton, an operation not known."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def reason(error: BaseException) -> str:
    """The first line of what stood in the way of compiling."""
    inner = getattr(error, "inner_exception", error)
    return (str(inner).strip().splitlines() or [type(inner).__name__])[0][:200]
