"""Matrices in few bits: quantise, and back to numbers.

Shape letters: O rows (a layer's outputs), I columns (its inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from .gguf_blocks import GGUF_BLOCKS

NF4_BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
"""NormalFloat of 4 bits: Dettmers et al., QLoRA (2023), appendix E."""

BITS = {"fp8": 8.0, "int8": 8.0, "nf4": 4.5}
"""What `quantise` makes, and the bits of a number in it."""
ROTATED = "int8 rotated "
PIECE = 2**22
"""Values that are turned back at a time where that needs float32 in between."""


@dataclass(frozen=True, kw_only=True)
class LowBits:
    """A weight in few bits, as it is kept."""

    form: str
    """`fp8`, `int8`, `int8 rotated 256`, `nf4`, or one of GGUF's (`Q8_0`, `Q4_K`)."""
    data: Tensor
    """fp8 or int8: shaped like the weight. Others: uint8 (O, bytes of a row)."""
    scale: Tensor | None
    """float32. fp8, int8: None (1), or one for the weight or for each row, (1, 1) or (O, 1). nf4: (O, I / 64)."""
    shape: tuple[int, ...]
    """Of the weight."""

    @property
    def bits(self) -> float:
        """Bits kept for each number, scales included."""
        kept = [tensor for tensor in (self.data, self.scale) if tensor is not None]
        count = max(1, torch.Size(self.shape).numel())
        return 8 * sum(tensor.numel() * tensor.element_size() for tensor in kept) / count

    def map(self, change: Callable[[Tensor], Tensor]) -> LowBits:
        """The same with its tensors changed, elsewhere for example."""
        return replace(self, data=change(self.data), scale=None if self.scale is None else change(self.scale))

    def to(self, device: torch.device | str) -> LowBits:
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers: computed in float32, then rounded to `dtype`."""
        return dequantise(self.form, self.data, self.scale, self.shape, dtype)


def quantise(weight: Tensor, form: str) -> LowBits:
    """A matrix (O, I) in one of the forms of `BITS`, on its own device.

    fp8 (e4m3) and int8 have one scale for each row; nf4 has one for each 64 numbers, of which I must be a multiple.
    Beside the result it takes a few copies of the weight in float32.
    """
    if weight.device.type == "meta":
        return _quantised_shape(tuple(weight.shape), form).map(torch.empty_like)  # nobody's tensor is another's
    return _quantised(weight.detach().float(), form)


@cache
def _quantised_shape(shape: tuple[int, ...], form: str) -> LowBits:
    """What `quantise` makes on `meta`, where it takes as long as elsewhere and models have few shapes many times."""
    return _quantised(torch.empty(shape, device="meta"), form)


def _quantised(weight: Tensor, form: str) -> LowBits:
    if form == "nf4":
        return _quantise_nf4(weight)
    most = torch.finfo(torch.float8_e4m3fn).max if form == "fp8" else 127.0
    scale = weight.abs().amax(dim=1, keepdim=True).div_(most).clamp_(min=torch.finfo(torch.float32).tiny)
    data = weight / scale
    data = data.clamp_(-most, most).to(torch.float8_e4m3fn) if form == "fp8" else data.round_().to(torch.int8)
    return LowBits(form=form, data=data, scale=scale, shape=tuple(weight.shape))


def _quantise_nf4(weight: Tensor) -> LowBits:
    rows, columns = weight.shape
    if columns % NF4_BLOCK:
        raise ValueError(f"nf4 needs rows of a multiple of {NF4_BLOCK} numbers, not {columns}.")
    blocks = weight.reshape(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    code = torch.tensor(NF4, device=weight.device)
    share = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)
    index = torch.bucketize(share, (code[1:] + code[:-1]) / 2, out_int32=True).to(torch.uint8)
    data = (index[:, ::2] << 4) | index[:, 1::2]
    return LowBits(
        form="nf4", data=data.reshape(rows, columns // 2), scale=scale.reshape(rows, columns // NF4_BLOCK),
        shape=(rows, columns),
    )


def dequantise(form: str, data: Tensor, scale: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`LowBits.numbers` of its parts."""
    if form in ("fp8", "int8"):
        # The product is computed in float32 and rounded once: the scale has dimensions, so its type counts.
        numbers = data.to(dtype)
        return numbers if scale is None else numbers.mul_(scale.reshape(-1, *[1] * (len(shape) - 1)))
    if form == "nf4":
        return _in_pieces(data, NF4_BLOCK // 2, NF4_BLOCK, _nf4_numbers, scale.reshape(-1, 1), dtype).reshape(shape)
    if form.startswith(ROTATED):
        return _turned_back(data, scale, int(form.removeprefix(ROTATED)), dtype)
    size, stored, numbers = GGUF_BLOCKS[form]
    return _in_pieces(data, stored, size, numbers, None, dtype).reshape(shape)


def _in_pieces(
    data: Tensor, stored: int, size: int, numbers: Callable[[Tensor], Tensor], scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Blocks of `stored` bytes to `size` values each, some at a time; (blocks, size) in `dtype`."""
    blocks = data.reshape(-1, stored)
    out = torch.empty(len(blocks), size, dtype=dtype, device=data.device)
    step = PIECE // size
    for start in range(0, len(blocks), step):
        piece, target = numbers(blocks[start : start + step]), out[start : start + step]
        if scale is None:
            target.copy_(piece)
        else:
            target.copy_(piece.mul_(scale[start : start + step]))
    return out


def _nf4_numbers(blocks: Tensor) -> Tensor:
    return _nf4_pairs(blocks.device).index_select(0, blocks.reshape(-1).int()).reshape(len(blocks), -1)


def _nf4_pairs(device: torch.device) -> Tensor:
    """The two numbers of every byte, (256, 2)."""
    def make() -> Tensor:
        code = torch.tensor(NF4, device=device)
        return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1)

    return _table("nf4 pairs", device, make)


_TABLES: dict[tuple[str, torch.device], Tensor] = {}


def _table(name: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    """A table that is made once for a device."""
    if (name, device) not in _TABLES:
        with torch.inference_mode(False), torch.no_grad():
            table = make()
        if type(table) is not Tensor:  # it only has a shape, for whoever counts bytes, and must not outlive them
            return table
        _TABLES[name, device] = table
    return _TABLES[name, device]


def rotated_form(columns: int, shape: tuple[int, ...]) -> str:
    """The form of an int8 weight of this shape whose columns are rotated in groups of `columns`.

    ValueError where the groups are no power of 4, or do not fit.
    """
    if len(shape) != 2 or columns < 4 or 4 ** round(math.log(columns, 4)) != columns or shape[1] % columns:
        raise ValueError(f"A weight of shape {list(shape)} cannot be rotated in groups of {columns} columns.")
    return f"{ROTATED}{columns}"


def _turned_back(data: Tensor, scale: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """int8 numbers times their scale, turned back, some rows at a time."""
    rotation = _rotation(columns, data.device)
    out = torch.empty(data.shape, dtype=dtype, device=data.device)
    step = max(1, PIECE // data.shape[1])
    for start in range(0, len(data), step):
        rows = data[start : start + step].float().mul_(scale if len(scale) == 1 else scale[start : start + step])
        with _no_autocast(data.device):
            out[start : start + step].copy_((rows.reshape(-1, columns) @ rotation).reshape(rows.shape))
    return out


def _rotation(columns: int, device: torch.device) -> Tensor:
    """The regular Hadamard matrix, normalised: symmetric, its own inverse (comfy-kitchen, tensor/int8_utils.py)."""
    def make() -> Tensor:
        four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1.0]], device=device)
        rotation = torch.ones(1, 1, device=device)
        while len(rotation) < columns:
            rotation = torch.kron(rotation, four)
        return rotation / columns**0.5

    return _table(f"rotation {columns}", device, make)


def _no_autocast(device: torch.device) -> AbstractContextManager:
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
