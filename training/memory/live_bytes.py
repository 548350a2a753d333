"""How many bytes of tensors are alive, and how many at most: on any device, and of tensors without storage."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"

_DEVICE = torch.ops.prim.device.default
"""A question that tensors of only a shape are asked more often than anything is computed."""


class LiveBytes(TorchDispatchMode):
    """While entered, counts the storages that operations make until they are freed, and the operations' work.

    A storage counts once, however many tensors look into it. What an operation allocates and frees inside itself is
    not seen. `held`: tensors that were there before. `attention_workspace`: bytes that the backward of attention needs
    for itself for each number of its queries.
    """

    def __init__(self, held: Iterable[Tensor] = (), *, attention_workspace: int = 0):
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most bytes alive since the start, or since `restart`."""
        self.operations = 0
        """Floating-point operations of matrix products, convolutions and attention so far."""
        self._alive: dict[int, weakref.ref] = {}
        self._attention_workspace = attention_workspace
        for tensor in held:
            self._note(tensor)

    def restart(self) -> None:
        """Count the peak from here."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is _DEVICE:
            return out
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        name = func.overloadpacket.__name__
        if self._attention_workspace and "scaled_dot_product" in name and name.endswith("backward"):
            self.peak = max(self.peak, self.now + args[1].numel() * self._attention_workspace)
        self.operations += _operations(func.overloadpacket, name, args, kwargs, out)
        return out

    def _note(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        if self._alive.pop(key, None) is not None:
            self.now -= size


def _operations(packet: Any, name: str, args: tuple, kwargs: dict, out: Any) -> int:
    """Multiplications and additions of one call; 0 for what takes no time beside matrix products."""
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    if name == CPU_ATTENTION:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if name == f"{CPU_ATTENTION}_backward":
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    return 0


def peak_bytes(run: Callable[[], Any], device: torch.device, held: Iterable[Tensor] = ()) -> int:
    """The most bytes alive on `device` while `run()` works, with what was there before.

    On CUDA as PyTorch's allocator counts them. Elsewhere as `LiveBytes` does, where `held` names what was there.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with LiveBytes(held) as counted:
        run()
    return counted.peak
