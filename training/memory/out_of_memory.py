"""When memory runs out: tell such an error from others, and what to try next."""

from __future__ import annotations

import dataclasses

import torch

from .block_swap import AHEAD, present_blocks
from .level import Level

DEVICE_MESSAGES = (
    "out of memory",  # the drivers of CUDA and ROCm, MPS
    "alloc_failed",  # cuBLAS, cuDNN
    "out_of_resources", "out_of_device_memory",  # Level Zero under XPU
    "not enough gpu video memory",  # DirectML
)
HOST_MESSAGES = ("can't allocate memory", "not enough memory")
"""What errors say that have no class of their own, in small letters; host: torch's CPU allocator, here and on Windows.
"""


def is_out_of_memory(error: BaseException, device: torch.device) -> bool:
    """Whether an error says that the memory of `device` ran out.

    Host memory counts only where the computation is there: elsewhere saving the device's memory takes more of it.
    """
    if device.type == "cpu":
        if isinstance(error, MemoryError):
            return True
        messages = HOST_MESSAGES
    else:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        messages = DEVICE_MESSAGES
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(message in text for message in messages)


def next_level(level: Level, blocks: int) -> Level | None:
    """The cheapest level that needs less memory of the device than `level`, for a model of so many blocks.

    First recompute of all but attention, if blocks are not compiled, then of that too, then twice as many swapped
    blocks at a time, then offloaded activations. The weights' bits never change, as the numbers would. None where
    nothing is left.
    """
    if not level.recompute:
        return dataclasses.replace(level, recompute=True, keep_attention=not level.compiled)
    if level.keep_attention:
        return dataclasses.replace(level, keep_attention=False)
    if level.swapped < blocks and present_blocks(blocks, blocks) < blocks:
        return dataclasses.replace(level, swapped=min(blocks, max(2 * (1 + AHEAD), 2 * level.swapped)))
    if not level.offload_activations:
        return dataclasses.replace(level, offload_activations=True)
    return None
