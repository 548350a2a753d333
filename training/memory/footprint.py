"""What one micro-step will take, found by running it on tensors without storage.

The family's own transformer, with its adapter, goes forward and backward with two and with three blocks. Nothing but
shapes is computed and nothing but the file's header is read. What all its blocks take follows in a straight line:
blocks are alike, and the peak lies either where the way back begins, with what all blocks keep, or where it ends, with
the gradients of all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ...loaders.module_weights import Storage
from ...loaders.safetensors_file import read_header
from ..adapter import Adapter
from ..config import RunConfig
from ..dataset.training_set import PREVIEW, TrainingSet
from ..families.model_family import BaseModel, Features, Streams
from ..loop import Draw, StepContext, loss_of
from ..objective import FlowMatching
from ..optimizers import state_bytes
from ..seeds import generator
from .block_swap import present_blocks
from .level import Level
from .live_bytes import LiveBytes
from .recompute import recompute_blocks

Shapes = Mapping[str, tuple[int, ...]]
"""Of the cached features of one sample, clip and caption, by name."""

FEW_BLOCKS = (3, 2)

FLOAT32_UNDER_AUTOCAST = frozenset(
    ("layer_norm", "rms_norm", "group_norm", "pow", "__pow__", "rsqrt", "reciprocal", "exp", "log", "softmax", "norm",
     "cumsum", "prod", "sum", "softplus")
)
"""Operations that autocast computes in float32 on a GPU and not on a CPU (ATen/autocast_mode.h)."""

FLASH_WORKSPACE = 4
"""Bytes for each number of the queries: their gradient's float32 sums (flash-attention, flash_api.cpp, dq_accum)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One micro-step of a run."""

    base: BaseModel
    config: RunConfig
    clean: Streams
    """Zeros, of a whole batch."""
    features: Features
    given: Streams
    """What the model is given clean in those steps where it is given something, which take the most memory."""
    device: torch.device
    compute: torch.dtype

    @classmethod
    def of(
        cls, base: BaseModel, config: RunConfig, sample: Shapes, streams: frozenset[str], device: torch.device,
        compute: torch.dtype,
    ) -> Workload:
        """A batch of samples like this one, of which `streams` are trained."""
        zeros = {name: torch.zeros(shape) for name, shape in sample.items()}
        clean, features = base.family.collate(base, [zeros] * config.recipe.batch_size)
        clean = {name: stream for name, stream in clean.items() if name in streams}
        share = base.defaults.first_frame if config.recipe.first_frame < 0 else config.recipe.first_frame
        given = base.family.given(base, clean, float(share > 0), generator("", "given"))
        return cls(
            base=base, config=config, clean=clean, features=features, given=given, device=device, compute=compute
        )


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes and work of a micro-step with the frozen weights kept in one way, with or without recompute."""

    weights: int
    """All frozen weights."""
    block: int
    """The frozen weights of the largest block."""
    blocks: int
    adapter: int
    """The LoRA's parameters; its gradients take the same."""
    optimizer: int
    """What the optimizer remembers between steps."""
    start: int
    """Beside weights and adapter, at most alive until the way back is through the last block."""
    end: int
    """The same when it is in the first block, with the gradients of all others."""
    kept: int
    """Of `start`, what each block keeps for the way back."""
    operations: float
    """Floating-point operations of matrix products and attention, forward to backward."""

    def on_device(self, level: Level, *, accumulated: bool = False) -> int:
        """Peak bytes on the device. `accumulated`: gradients of an earlier micro-step are there."""
        waiting = (self.blocks - present_blocks(level.swapped, self.blocks)) * self.block
        offloaded = max(0, self.blocks - 1) * self.kept if level.offload_activations else 0
        start = self.start - offloaded + (self.adapter if accumulated else 0)
        return self.weights - waiting + self.adapter + self.optimizer + max(start, self.end, self.adapter)

    def on_host(self, level: Level) -> int:
        """Bytes that wait in host memory."""
        return level.swapped * self.block + (self.blocks * self.kept if level.offload_activations else 0)

    def copied(self, level: Level) -> int:
        """Bytes between host and device in a micro-step, both ways together."""
        return 2 * self.on_host(level)


class Footprints:
    """The footprint of one workload for any way to keep its weights, each found when it is first asked for."""

    def __init__(self, workload: Workload):
        self.workload = workload
        self._known: dict[tuple[str, bool], Footprint] = {}

    def of(self, weights: str, recompute: bool) -> Footprint:
        """`weights` as in `Storage`. A second or two on the first call."""
        key = weights, recompute
        if key not in self._known:
            self._known[key] = footprint(self.workload, *key)
        return self._known[key]


def largest_sample(training_set: TrainingSet, streams: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the sample that takes the most memory: the largest clip, with the longest caption of such a one.

    `streams` are those that are trained.
    """
    def size(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
        return sum(math.prod(shape[1:]) for name, shape in shapes if name in streams)

    largest = max((sample.shapes for sample in training_set.samples), key=size)
    captions = {caption.features for sample in training_set.samples if sample.shapes == largest
                for caption in sample.captions}
    found = [read_header(path).tensors for path in sorted(captions)]
    longest = max(found, key=lambda tensors: max(info.shape[0] for info in tensors.values()))
    shapes = dict(largest) | {name: tuple(info.shape) for name, info in longest.items()}
    shapes.pop(PREVIEW, None)
    return shapes


def footprint(workload: Workload, weights: str, recompute: bool) -> Footprint:
    """What a micro-step of `workload` takes. `weights` as in `Storage`. Raises like `load_transformer`."""
    family = workload.base.family
    transformer = family.load_transformer(
        workload.base, dtype=workload.compute, device=torch.device("meta"), storage=Storage(weights=weights)
    )
    blocks, total = family.blocks(transformer), _bytes(_held(transformer))
    count, block = len(blocks), max(_bytes(_held(part)) for part in blocks)
    few = [number for number in FEW_BLOCKS if number < count] or [count]
    del blocks[few[0] :]
    Adapter(
        transformer, workload.base, workload.config.adapter, rank=workload.config.rank, seed="0",
        streams=workload.clean.keys(),
    )
    if recompute:
        recompute_blocks(transformer, keep_random_state=workload.config.adapter.dropout > 0)
    if workload.device.type != "cpu" and workload.compute != torch.float32:
        for module in (transformer, *blocks):
            _compute_as_on_gpu(module)
    runs = []
    for number in few:
        del blocks[number:]
        runs.append(_run(workload, transformer, number))
    extended = _extended(runs, few, count)
    return Footprint(weights=total, block=block, blocks=count, **extended)


@dataclass(frozen=True)
class _Run:
    """What was counted with few blocks; fields as in `Footprint`."""

    adapter: int
    optimizer: int
    start: int
    end: int
    operations: int


def _extended(runs: list[_Run], few: list[int], count: int) -> dict[str, Any]:
    """What was counted with few blocks, in a straight line to `count` blocks."""
    if len(runs) == 1:
        return {**vars(runs[0]), "kept": 0}
    more, less = runs
    slope = {name: getattr(more, name) - getattr(less, name) for name in vars(more)}
    return {
        **{name: getattr(more, name) + (count - few[0]) * each for name, each in slope.items()},
        "kept": slope["start"],
    }


def _run(workload: Workload, transformer: nn.Module, blocks: int) -> _Run:
    """Forward and backward once, on tensors that only have shapes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        _pretend(transformer)
        parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        workspace = 0 if workload.device.type == "cpu" else FLASH_WORKSPACE
        counted = LiveBytes(_held(transformer), attention_workspace=workspace)
        before = counted.now
        stages = _Stages(counted, parameters, blocks)
        with counted:
            _micro_step(workload, transformer)
        start, end = stages.finish()
    return _Run(
        adapter=_bytes(parameters),
        optimizer=round(state_bytes(workload.config) * sum(parameter.numel() for parameter in parameters)),
        start=start - before, end=end - before, operations=counted.operations,
    )


class _Stages:
    """The peak until the way back is through one block, and the peak once only one block is left."""

    def __init__(self, counted: LiveBytes, parameters: list[nn.Parameter], blocks: int):
        self._counted, self._share = counted, len(parameters) / blocks
        self._last = len(parameters) - self._share
        self._gradients = self._start = 0
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._note) for parameter in parameters]

    def _note(self, _: Tensor) -> None:
        self._gradients += 1
        if self._gradients <= self._share:
            self._start = self._counted.peak
        if self._share <= self._gradients <= self._last:
            self._counted.restart()

    def finish(self) -> tuple[int, int]:
        """Both peaks."""
        for hook in self._hooks:
            hook.remove()
        return self._start, self._counted.peak


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
