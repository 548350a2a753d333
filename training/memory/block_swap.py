"""Block swap: frozen weights of some blocks wait in host memory and come to the device when their block is next.

Frozen weights never change, so nothing is ever copied back: the one master copy stays in host memory, and the device
has a few slots into which it is copied, over what was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ...loaders.host_memory import HostMemory
from .recompute import is_recomputed

ALIGNMENT = 128
"""Numbers; each tensor in a slot begins at a multiple of them, as fast matrix products want."""

AHEAD = 1
"""Blocks that are on their way while one computes."""


def swapped_blocks(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` blocks to swap, evenly spread: each copy then hides behind the blocks that need none.

    Raises ValueError unless 0 <= count <= total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"Blocks to swap is {count}; the model has {total} blocks.")
    return tuple((2 * place + 1) * total // (2 * count) for place in range(count))


def present_blocks(swapped: int, total: int, *, ahead: int = AHEAD) -> int:
    """How many of `total` blocks' weights the device has room for when `swapped` of them are swapped."""
    return total - swapped + min(swapped, 1 + ahead)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A frozen tensor of a swapped block, its numbers in host memory, and where they begin in a slot."""

    tensor: Tensor
    master: Tensor
    start: int

    def room_in(self, slot: _Slot) -> Tensor:
        """Its part of the slot, in its own shape."""
        return slot.rooms[self.master.dtype][self.start : self.start + self.master.numel()].view(self.master.shape)


@dataclass(kw_only=True)
class _Slot:
    """Room on the device for one block's weights, in one stretch for each dtype."""

    rooms: dict[torch.dtype, Tensor]
    holds: int | None = None
    ready: torch.cuda.Event | None = None
    """When what it holds has arrived, on CUDA."""


class BlockSwap:
    """Keeps the frozen weights of some of a transformer's blocks in host memory until their block is next.

    `blocks` in the order they run, with their adapters attached; `swapped` indexes of those to swap. All other blocks'
    weights, and whatever trains, are brought to `device`, which has room for `present_blocks` blocks' weights and no
    more. While one block computes, the `ahead` next swapped ones in the direction of travel (forward up, backward
    down) are copied; on CUDA beside the computation and from pinned memory. `host` keeps what is not there already;
    `place(tensor, device)` brings to the device what stays there. Raises ValueError for an index without a block.

    In training the blocks must be recomputed (`recompute_blocks`): autograd would otherwise hold on to weights that
    are overwritten before it needs them. A block that runs without raises ValueError.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        swapped: Collection[int],
        device: torch.device,
        *,
        ahead: int = AHEAD,
        host: HostMemory | None = None,
        place: Callable[[Tensor, torch.device], Tensor] = Tensor.to,
    ):
        cuda = device.type == "cuda"
        self._device, self._ahead = device, ahead
        self._order = sorted(set(swapped))
        self._pieces: dict[int, list[_Piece]] = {}
        self._slots: list[_Slot] = []
        self._hooks: list[Any] = []
        self._at, self._upwards = 0, True
        self._stream = torch.cuda.Stream(device) if cuda and self._order else None
        if any(not 0 <= index < len(blocks) for index in self._order):
            raise ValueError(f"Blocks to swap are {self._order}; the model has {len(blocks)} blocks.")
        with torch.no_grad():
            # To the host first: where memory ran out, this makes the room for what follows.
            for index in self._order:
                self._pieces[index] = _to_host(blocks[index], host or HostMemory(pinned=cuda))
            for index, block in enumerate(blocks):
                trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
                for tensor in trained if index in self._pieces else [*trained, *_frozen(block)]:
                    tensor.data = place(tensor.data, device)
            sizes = _slot_sizes(self._pieces.values())
            for _ in range(min(1 + ahead, len(self._order))):
                rooms = {dtype: place(torch.empty(size, dtype=dtype), device) for dtype, size in sizes.items()}
                self._slots.append(_Slot(rooms=rooms))
        if self._order:
            self._hooks = [
                block.register_forward_pre_hook(partial(self._before, index)) for index, block in enumerate(blocks)
            ]

    def close(self) -> None:
        """Free the device of swapped weights and let the blocks be; their weights stay in host memory.

        A new BlockSwap takes them from there; one of no swapped blocks brings all of them to the device.
        """
        for hook in self._hooks:
            hook.remove()
        if self._stream:
            # The slots' memory may be reused as soon as they are gone.
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        for index in self._pieces:
            self._leave(index)
        self._hooks, self._slots, self._pieces = [], [], {}

    def _before(self, index: int, *_: Any) -> None:
        """Before a block runs, in the forward pass and in recompute: have it on the device, send for the next."""
        if torch.is_grad_enabled() and not is_recomputed():
            raise ValueError("Blocks to swap needs Recompute: switch Recompute on, or set Blocks to swap to 0.")
        # Selective recompute counts every operation of a block, and would miss the copies the second time.
        with _disable_current_modes(), torch.no_grad():
            wanted = self._next(index)
            for other in wanted:
                if all(slot.holds != other for slot in self._slots):
                    self._fetch(other, next(slot for slot in self._slots if slot.holds not in wanted))
            if self._stream and index in self._pieces:
                ready = next(slot.ready for slot in self._slots if slot.holds == index)
                torch.cuda.current_stream(self._device).wait_event(ready)

    def _next(self, index: int) -> list[int]:
        """The swapped blocks to have or to send for while block `index` computes; at most as many as there are slots.

        The backward pass begins where the forward pass ended, and the next forward pass where that ended: what is in
        the slots at the turns is what is needed next.
        """
        if index != self._at:
            self._upwards = index > self._at
        self._at = index
        if self._upwards:
            coming = [other for other in self._order if other > index]
        else:
            coming = [other for other in reversed(self._order) if other < index]
        return [index] * (index in self._pieces) + coming[: self._ahead]

    def _fetch(self, index: int, slot: _Slot) -> None:
        """Copy a block's weights into a slot that no unfinished block uses.

        Whatever used the slot was computed, or is queued, on the current stream: autograd finishes a block's backward
        pass before it recomputes the block before it. The copies wait for that stream, and the block for the copies.
        """
        if slot.holds is not None:
            self._leave(slot.holds)
            slot.holds = None
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            for piece in self._pieces[index]:
                piece.room_in(slot).copy_(piece.master, non_blocking=True)
        if self._stream:
            slot.ready = self._stream.record_event()
        for piece in self._pieces[index]:
            piece.tensor.data = piece.room_in(slot)
        slot.holds = index

    def _leave(self, index: int) -> None:
        """Let a block's tensors, which stay the same objects, have their numbers in host memory."""
        for piece in self._pieces[index]:
            piece.tensor.data = piece.master


def _frozen(block: nn.Module) -> list[Tensor]:
    """A block's parameters that do not train, and its buffers."""
    return [tensor for tensor in (*block.parameters(), *block.buffers()) if not tensor.requires_grad]


def _to_host(block: nn.Module, host: HostMemory) -> list[_Piece]:
    """Move a block's frozen tensors to host memory, unless they are pinned there; where each begins in a slot."""
    pieces, ends = [], {}
    for tensor in _frozen(block):
        if not tensor.is_pinned():
            tensor.data = host.keep(tensor.data)
        start = ends.get(tensor.dtype, 0)
        ends[tensor.dtype] = start + -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
        pieces.append(_Piece(tensor=tensor, master=tensor.data, start=start))
    return pieces


def _slot_sizes(blocks: Iterable[list[_Piece]]) -> dict[torch.dtype, int]:
    """How many numbers of each dtype a slot needs, to take any of the blocks."""
    sizes = {}
    for piece in (piece for pieces in blocks for piece in pieces):
        end = piece.start + piece.master.numel()
        sizes[piece.master.dtype] = max(end, sizes.get(piece.master.dtype, 0))
    return sizes
