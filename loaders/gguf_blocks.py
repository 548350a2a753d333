"""GGUF's blocks of packed numbers, turned back to float32 (llama.cpp, ggml/src/ggml-quants.c).

Every function takes blocks (N, bytes), uint8, and gives their values (N, values), float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _half(blocks: Tensor, start: int) -> Tensor:
    """The half-precision number at a byte of every block, (N, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _shifted(packed: Tensor, width: int, *, group: int) -> Tensor:
    """Fields of `width` bits of bytes (N, M): for every `group` bytes their lowest fields, then the next, (N, M x)."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).reshape(1, 1, -1, 1)
    fields = packed.reshape(len(packed), -1, 1, group) >> shifts
    return (fields & (2**width - 1)).reshape(len(packed), -1)


def _bits(packed: Tensor) -> Tensor:
    """Every bit of bytes (N, M), the lowest first, (N, 8 M)."""
    return _shifted(packed, 1, group=1)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_shifted(blocks[:, 2:], 4, group=16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _shifted(blocks[:, 4:], 4, group=16).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _shifted(blocks[:, 6:], 4, group=16) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (numbers.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _shifted(blocks[:, 8:], 4, group=16) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * numbers.float() + _half(blocks, 2)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, numbers = blocks[:, :16], _shifted(blocks[:, 16:80], 2, group=32)
    factor, offset = _half(blocks, 80) * (scales & 15).float(), _half(blocks, 82) * (scales >> 4).float()
    return _grouped(numbers.float(), factor, offset)


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    scales = _shifted(packed[:, :8], 4, group=8) | (_shifted(packed[:, 8:], 2, group=4) << 4)
    numbers = _shifted(low, 2, group=32).float() - 4 * (1 - _shifted(high, 1, group=32).float())
    return _grouped(numbers, _half(blocks, 108) * (scales.float() - 32))


def _q4_k(blocks: Tensor) -> Tensor:
    factor, offset = _scales_and_offsets(blocks)
    return _grouped(_shifted(blocks[:, 16:], 4, group=32).float(), factor, offset)


def _q5_k(blocks: Tensor) -> Tensor:
    factor, offset = _scales_and_offsets(blocks)
    numbers = _shifted(blocks[:, 48:], 4, group=32) | (_shifted(blocks[:, 16:48], 1, group=32) << 4)
    return _grouped(numbers.float(), factor, offset)


def _q6_k(blocks: Tensor) -> Tensor:
    numbers = _shifted(blocks[:, :128], 4, group=64) | (_shifted(blocks[:, 128:192], 2, group=32) << 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return _grouped(numbers.float() - 32, _half(blocks, 208) * scales)


def _scales_and_offsets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight factors and eight offsets, of six bits each in twelve bytes, (N, 8)."""
    scales, offsets, rest = blocks[:, 4:16].reshape(-1, 3, 4).unbind(1)
    factor = torch.cat([scales & 63, (rest & 15) | ((scales >> 2) & 48)], dim=1)
    offset = torch.cat([offsets & 63, (rest >> 4) | ((offsets >> 2) & 48)], dim=1)
    return _half(blocks, 0) * factor.float(), _half(blocks, 2) * offset.float()


def _grouped(numbers: Tensor, factor: Tensor, offset: Tensor | None = None) -> Tensor:
    """numbers (N, V) times factor (N, G) minus offset (N, G), each for V / G numbers."""
    count, groups = factor.shape
    out = numbers.reshape(count, groups, -1) * factor[:, :, None]
    return (out if offset is None else out.sub_(offset[:, :, None])).reshape(count, -1)


GGUF_BLOCKS = {
    "Q4_0": (32, 18, _q4_0), "Q4_1": (32, 20, _q4_1), "Q5_0": (32, 22, _q5_0), "Q5_1": (32, 24, _q5_1),
    "Q8_0": (32, 34, _q8_0), "Q2_K": (256, 84, _q2_k), "Q3_K": (256, 110, _q3_k), "Q4_K": (256, 144, _q4_k),
    "Q5_K": (256, 176, _q5_k), "Q6_K": (256, 210, _q6_k),
}
"""By the form's name: values in a block, bytes of a block, and what turns blocks back."""
