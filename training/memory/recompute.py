"""Recompute (activation checkpointing): forget a block's activations, compute them again on the way back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

_inside: ContextVar[bool] = ContextVar("inside a recomputed block", default=False)

FUSED_ATTENTION = tuple(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(torch.ops.aten, name)
)
"""What torch's scaled_dot_product_attention becomes where a fused kernel serves it."""


def recompute_blocks(
    transformer: nn.Module,
    *,
    keep_random_state: bool,
    offload: ActivationOffload | None = None,
    keep_attention: bool = False,
) -> None:
    """Recompute each block of a diffusers transformer in the backward pass; called again, the last call holds.

    `keep_random_state` repeats the forward's random draws; only an adapter with dropout makes any. `offload`: where
    what blocks pass on to each other waits meanwhile, if not on the device. `keep_attention`: the answers of attention
    are kept, and all but the attention is computed again. The numbers stay the same in every case.
    """
    transformer.enable_gradient_checkpointing(
        _Recompute(keep_random_state=keep_random_state, keep_attention=keep_attention, offload=offload)
    )


def is_recomputed() -> bool:
    """Whether the block that is running now will be, or is being, recomputed."""
    return _inside.get()


class ActivationOffload:
    """Tensors of the device that wait in host memory. Copies out go beside the computation, copies back within it.

    A pinned copy takes up to twice its size: torch rounds pinned memory up to a power of two.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._leaving: list[Tensor] = []

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Copy `tensor` to host memory; a function that gives it back where it was."""
        device = tensor.device
        if device.type != "cuda":
            away = tensor.to("cpu")
            return lambda: away.to(device)
        away = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            away.copy_(tensor, non_blocking=True)
        self._leaving.append(tensor)
        return partial(self._back, away, device)

    def settle(self) -> None:
        """Let go of the tensors whose copies were begun; the device computes on when these are done.

        They are held until here, so that their memory is not reused while it is being read.
        """
        if self._leaving:
            torch.cuda.current_stream(self._leaving[0].device).wait_stream(self._stream)
            self._leaving.clear()

    def _back(self, away: Tensor, device: torch.device) -> Tensor:
        self.settle()
        return away.to(device, non_blocking=True)


class _Recompute:
    """Calls one block after the other so that the backward pass computes it again."""

    def __init__(self, *, keep_random_state: bool, keep_attention: bool, offload: ActivationOffload | None):
        contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
        self._checkpoint = partial(
            checkpoint,
            use_reentrant=False,
            preserve_rng_state=keep_random_state,
            context_fn=contexts if keep_attention else noop_context_fn,
        )
        self._offload = offload
        self._passed_on: list[weakref.ref[Tensor]] = []

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        with self._offloading(args) if self._offload else nullcontext():
            answer = self._checkpoint(partial(_call, block), *args)
        answers = answer if isinstance(answer, tuple) else (answer,)
        self._passed_on = [weakref.ref(tensor) for tensor in answers if isinstance(tensor, Tensor)]
        return answer

    def _offloading(self, args: tuple[Any, ...]) -> saved_tensors_hooks:
        """Hooks around a block that take those of its inputs to the host that the block before passed on.

        The others (conditions, rotary tables) are the same tensors for every block: copies would multiply them.
        What the block saves inside is recompute's own business, whose hooks lie over these.
        """
        self._offload.settle()
        before = [tensor() for tensor in self._passed_on]
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        passed_on = {arg.data_ptr() for arg in tensors if any(arg is tensor for tensor in before)}

        def pack(tensor: Tensor) -> Callable[[], Tensor]:
            return self._offload.keep(tensor) if tensor.data_ptr() in passed_on else lambda: tensor

        return saved_tensors_hooks(pack, lambda give_back: give_back())


def _call(block: nn.Module, *args: Any) -> Any:
    token = _inside.set(True)
    try:
        return block(*args)
    finally:
        _inside.reset(token)


def is_kept_attention(operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether `keep_attention` keeps what this operation answers.

    Attention over at least as many keys as there are queries: what it costs grows with the keys, what keeping its
    answer costs does not.
    """
    return operation in FUSED_ATTENTION and args[1].shape[-2] >= args[0].shape[-2]


def _keep_attention(_context: Any, operation: Any, *args: Any, **_named: Any) -> CheckpointPolicy:
    kept = is_kept_attention(operation, args)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
