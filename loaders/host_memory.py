"""Host memory for weights that wait beside the device."""

from __future__ import annotations

import torch
from torch import Tensor

SLAB = 2**29
ALIGNMENT = 256


class HostMemory:
    """Tensors in host memory, pinned or not.

    Pinned ones lie side by side in slabs of 512 MB: torch rounds every pinned piece up to a power of two, which alone
    would cost a large model half its size again.
    """

    def __init__(self, *, pinned: bool):
        self._pinned = pinned
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory: a pinned copy, or plainly on the CPU."""
        if not self._pinned:
            return tensor.to("cpu")
        size = tensor.numel() * tensor.element_size()
        if self._used + size > len(self._slab):
            self._slab, self._used = self._empty(max(SLAB, size)), 0
        place = self._slab[self._used : self._used + size].view(tensor.dtype).view(tensor.shape)
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return place.copy_(tensor)

    @staticmethod
    def _empty(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
