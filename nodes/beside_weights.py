"""LoRA layers beside a ComfyUI model's weights: each answer y of a layer becomes y + up(down(x))."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

OPTIONS_AT = 5
"""Where ComfyUI's `BaseModel.apply_model` takes its `transformer_options`, counted from x (0.33)."""
NEAR = 1e-4
"""Levels this near to each other, relatively, are one: samplers compute them anew."""


def always(_: float) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """One LoRA on one linear layer."""

    down: Tensor
    """(R, in)"""
    up: Tensor
    """(out, R)"""
    scale: float
    factor_at: Callable[[float], float] = always
    """What it is multiplied by once a share of the sampling steps, 0 until before 1, is done."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The LoRAs that act on one layer now, as one pair of matrices where it is computed."""

    acting: tuple[int, ...]
    ranks: tuple[int, ...]
    down: Tensor
    up: Tensor

    def of(self, x: Tensor, factors: Sequence[float]) -> Tensor:
        """What they add to the layer's answer to x, each times its factor."""
        inner = F.linear(x, self.down)
        if any(factor != 1 for factor in factors):
            parts = zip(inner.split(self.ranks, dim=-1), factors, strict=True)
            inner = torch.cat([part * factor for part, factor in parts], dim=-1)
        return F.linear(inner, self.up)


def summed(loras: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """down (R, in) and up (out, R) of the sum of the LoRAs of one layer, their ranks side by side; up as float32."""
    down = torch.cat([lora.down if lora.down.dtype.itemsize > 1 else lora.down.float() for lora in loras])
    return down, torch.cat([lora.up.float() * lora.scale for lora in loras], dim=1)


class BesideWeights:
    """LoRAs of a model's linear layers, put on the layers only while the model computes: nothing stays on them.

    Wraps `apply_model`; works on any copy of the model, on any device, and beside others of its kind.
    """

    def __init__(self):
        self._layers: dict[str, list[LowRank]] = {}
        self._ready: dict[tuple[str, torch.device, torch.dtype], Ready] = {}
        self._inside: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._layers)

    def add(self, layer: str, lora: LowRank) -> None:
        """Add a LoRA to those of one layer, a module's name in ComfyUI's model."""
        self._layers.setdefault(layer, []).append(lora)

    def put_on(self, model: Any) -> None:
        """Let a ModelPatcher compute with them. They take memory on the device only while it samples."""
        key = f"video_lora_{uuid.uuid4().hex}"  # one of its own, so that stacks in a row all count
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, self)
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, lambda _: self._ready.clear())

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        model = executor.class_obj
        if id(model) in self._inside:  # ComfyUI may list a wrapper twice where there are hooks as well
            return executor(*args, **kwargs)
        options = kwargs.get("transformer_options") or (args[OPTIONS_AT] if len(args) > OPTIONS_AT else {})
        self._inside.add(id(model))
        try:
            with self._on_layers(model, share_done(options)):
                return executor(*args, **kwargs)
        finally:
            self._inside.discard(id(model))

    @contextlib.contextmanager
    def _on_layers(self, model: nn.Module, share: float) -> Iterator[None]:
        with contextlib.ExitStack() as taken_off:
            for name, loras in self._layers.items():
                factors = {number: factor for number, lora in enumerate(loras) if (factor := lora.factor_at(share))}
                if factors:
                    hook = model.get_submodule(name).register_forward_hook(self._adding(name, factors))
                    taken_off.callback(hook.remove)
            yield

    def _adding(self, name: str, factors: Mapping[int, float]) -> Any:
        acting, times = tuple(factors), tuple(factors.values())

        def add(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
            return answer + self._ready_for(name, acting, given[0]).of(given[0], times).to(answer.dtype)

        return add

    def _ready_for(self, name: str, acting: tuple[int, ...], x: Tensor) -> Ready:
        key = (name, x.device, x.dtype)
        ready = self._ready.get(key)
        if ready is None or ready.acting != acting:
            loras = [self._layers[name][number] for number in acting]
            down, up = summed(loras)
            ranks = tuple(lora.down.shape[0] for lora in loras)
            ready = self._ready[key] = Ready(acting=acting, ranks=ranks, down=down.to(x), up=up.to(x))
        return ready


def share_done(options: dict[str, Any]) -> float:
    """Which share of its steps, 0 until before 1, a sampler has done when it calls the model with these options.

    Told from the noise level asked for and those of its steps. A level between two steps belongs to the earlier one.
    0 where no sampler says.
    """
    asked, levels = options.get("sigmas"), options.get("sample_sigmas")
    if asked is None or levels is None or len(levels) < 2:
        return 0.0
    level = float(asked.max()) * (1 - NEAR)
    begun = int((levels[:-1] > level).sum())
    return max(begun - 1, 0) / (len(levels) - 1)
