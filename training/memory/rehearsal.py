"""A micro-step rehearsed with few blocks, on tensors without storage.

The family's own transformer, with its adapter, goes forward and backward as in training. Nothing but shapes is
computed and nothing but the file's header is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ...loaders.low_bits_linear import LowBitsLinear
from ...loaders.module_weights import Storage
from ..adapter import Adapter
from ..loop import Draw, StepContext, loss_of
from ..objective import FlowMatching
from .live_bytes import LiveBytes
from .recompute import is_kept_attention, recompute_blocks
from .workload import Workload

FEW_BLOCKS = 3
"""The second and the third are like all that follow; the first differs, as its input needs no gradient."""

FLOAT32_UNDER_AUTOCAST = frozenset(
    ("layer_norm", "rms_norm", "group_norm", "pow", "__pow__", "rsqrt", "reciprocal", "exp", "log", "softmax", "norm",
     "cumsum", "prod", "sum", "softplus")
)
"""Operations that autocast computes in float32 on a GPU and not on a CPU (ATen/autocast_mode.h)."""

FLASH_WORKSPACE = 4
"""Bytes for each number of the queries: their gradient's float32 sums (flash-attention, flash_api.cpp, dq_accum)."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of frozen weights kept in one way."""

    total: int
    block: int
    """The largest block's."""
    blocks: int
    unpacked: int
    """What turning the largest layer's few bits into numbers takes for a while; 0 where there are none."""

    @classmethod
    def of(cls, transformer: nn.Module, workload: Workload) -> Weights:
        """Those of a transformer without adapter, on `meta`."""
        blocks = workload.base.family.blocks(transformer)
        return cls(
            total=_bytes(_held(transformer)), block=max(_bytes(_held(block)) for block in blocks), blocks=len(blocks),
            unpacked=_unpacked(blocks, workload.compute),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a micro-step with few blocks took."""

    start: int
    """Beside weights and adapter, at most alive until the way back is through the last block."""
    end: int
    """The same when it is in the first block, with the gradients of all others."""
    kept: int
    """Of `start`, what each block keeps for the way back."""
    operations: int
    """Floating-point operations of matrix products and attention, forward to backward."""
    operations_in_block: int
    """Of these, each further block's."""
    attention: int
    """Bytes that each block keeps more where it is recomputed and the answers of attention are kept."""
    attention_operations: int
    """What that saves in each block."""


def load_shapes(workload: Workload, weights: str) -> nn.Module:
    """The workload's transformer on `meta`. `weights` as in `Storage`. Raises like `load_transformer`."""
    return workload.base.family.load_transformer(
        workload.base, dtype=workload.compute, device=torch.device("meta"), storage=Storage(weights=weights)
    )


class Rehearsal:
    """A workload's transformer, its weights as stored, cut to few blocks, with its adapter."""

    def __init__(self, workload: Workload):
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.workload, transformer = workload, load_shapes(workload, "as stored")
        self.weights = Weights.of(transformer, workload)
        self._transformer, self._parts = transformer, workload.base.family.blocks(transformer)
        del self._parts[FEW_BLOCKS:]
        self.blocks = len(self._parts)
        Adapter(
            transformer, workload.base, workload.config.adapter, rank=workload.config.rank, seed="0",
            streams=workload.clean.keys(),
        )
        self.adapter, self.adapter_in_block = _bytes(_trained(transformer)), _bytes(_trained(self._parts[-1]))
        if workload.device.type != "cpu" and workload.compute != torch.float32:
            for module in (transformer, *self._parts):
                _compute_as_on_gpu(module)
        self._shapes_only = FakeTensorMode(allow_non_fake_inputs=True)
        with self._shapes_only:
            _pretend(transformer)

    def run(self, *, recompute: bool) -> Run:
        """Forward and backward once."""
        workload, transformer = self.workload, self._transformer
        transformer.disable_gradient_checkpointing()
        if recompute:
            recompute_blocks(transformer, keep_random_state=workload.config.adapter.dropout > 0)
        for parameter in transformer.parameters():
            parameter.grad = None
        with self._shapes_only:
            workspace = 0 if workload.device.type == "cpu" else FLASH_WORKSPACE
            counted = _WithAttention(_held(transformer), attention_workspace=workspace)
            before, stages = counted.now, _Stages(counted, self._parts, _trained(transformer))
            with counted:
                _micro_step(workload, transformer)
            return stages.finish(before, self.adapter_in_block)


class _WithAttention(LiveBytes):
    """Counts the attention that recompute may keep by itself as well: bytes of its answers, and operations."""

    answers = work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = self.operations
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if is_kept_attention(func, args):
            self.answers += _bytes(tensor for tensor in out if isinstance(tensor, Tensor))
            self.work += self.operations - before
        return out


class _Stages:
    """What is alive, and what was computed, on the way through the blocks and back."""

    def __init__(self, counted: _WithAttention, blocks: Sequence[nn.Module], trained: Sequence[nn.Parameter]):
        self._counted, self._share = counted, len(trained) / len(blocks)
        self._last = len(trained) - self._share
        self._start = 0
        self._upwards: list[tuple[int, int, int]] = []
        """Before each block: operations, bytes of attention's answers so far, its operations."""
        self._back: list[tuple[int, int]] = []
        """Bytes alive and operations after each gradient."""
        self._hooks = [block.register_forward_pre_hook(self._before) for block in blocks]
        self._blocks = len(blocks)
        self._hooks += [parameter.register_post_accumulate_grad_hook(self._note) for parameter in trained]

    def _before(self, *_: Any) -> None:
        """Before a block; those that are computed again on the way back come later."""
        if len(self._upwards) < self._blocks:
            counted = self._counted
            self._upwards.append((counted.operations, counted.answers, counted.work))

    def _note(self, _: Tensor) -> None:
        """After each gradient."""
        self._back.append((self._counted.now, self._counted.operations))
        if len(self._back) <= self._share:
            self._start = self._counted.peak
        if self._share <= len(self._back) <= self._last:
            self._counted.restart()

    def finish(self, before: int, gradients: int) -> Run:
        """What was seen; `before` bytes were there, and each further block leaves so many bytes of gradients."""
        for hook in self._hooks:
            hook.remove()
        kept = computed = attention = spared = 0
        if self._blocks >= 2:
            computed, attention, spared = (b - a for a, b in zip(*self._upwards[-2:], strict=True))
        if self._blocks == FEW_BLOCKS:
            share = round(self._share)
            (last, above), (second, below) = self._back[share - 1], self._back[2 * share - 1]
            kept = last - second + gradients
            computed += below - above
        return Run(
            start=self._start - before, end=self._counted.peak - before, kept=kept,
            operations=self._counted.operations, operations_in_block=computed, attention=attention,
            attention_operations=spared,
        )


def _unpacked(blocks: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """The most bytes that turning one layer's few bits into numbers takes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    layers = [layer for block in blocks for layer in block.modules() if isinstance(layer, LowBitsLinear)]
    if not layers:
        return 0
    largest = max(layers, key=lambda layer: layer.in_features * layer.out_features)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _pretend(largest)
        with LiveBytes() as counted:
            largest.numbers(dtype)
    return counted.peak


def _compute_as_on_gpu(module: nn.Module) -> None:
    """Let a module's forward cast as autocast does on a GPU; a CPU's does less.

    Blocks and transformer one by one: the way back, where blocks are computed again, is not in the transformer's.
    """
    forward = module.forward

    def on_gpu(*args: Any, **named: Any) -> Any:
        with _Float32OnGpu():
            return forward(*args, **named)

    module.forward = on_gpu


class _Float32OnGpu(TorchFunctionMode):
    """Casts the inputs of what autocast computes in float32 on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu") and getattr(func, "__name__", "") in FLOAT32_UNDER_AUTOCAST:
            args, kwargs = tree_map(_float32, (args, kwargs))
        return func(*args, **kwargs)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _pretend(transformer: nn.Module) -> None:
    """Tensors of the same shapes in place of a module's own; to be called where tensors are only shapes."""
    for module in transformer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _held(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _micro_step(workload: Workload, transformer: nn.Module) -> None:
    """One of the engine's own, of which only the shapes matter: so levels and noise may be any family's."""
    compute = workload.compute
    context = StepContext(
        transformer=transformer, base=workload.base, objective=FlowMatching(), batches=None, seed="", first_frame=0.0,
        device=torch.device("cpu"),
        autocast=lambda: torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32),
    )
    loss_of(context, _draw(workload)).backward()


def _draw(workload: Workload) -> Draw:
    def empty(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}

    return Draw(
        clean=empty(workload.clean), noise=empty(workload.clean), features=empty(workload.features),
        given=empty(workload.given),
        levels={name: torch.empty(stream.shape[:1]) for name, stream in workload.clean.items()},
    )
