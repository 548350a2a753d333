"""How LoRAs are put on a ComfyUI model: merged into its weights, or beside them where merging would lose them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import LoRAAdapter

from .. import training
from ..loaders.lora_file import KEY_PREFIX
from .beside_weights import BesideWeights, LowRank, always, summed
from .key_check import Fit, ModelKeys
from .rows import Row


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What one LoRA came to on one model: its keys, and how many layers of it act how."""

    matched: int
    total: int
    merged: int
    beside: int
    sound: bool
    """Whether the model has sound and the LoRA layers for it."""

    @property
    def how(self) -> str:
        """For the report."""
        if self.merged and self.beside:
            return f"{self.beside} layers beside the weights, {self.merged} merged"
        return "merged" if self.merged else "beside the weights" if self.beside else "nothing of it acts"


class StackedModel:
    """A ComfyUI model and the LoRAs that go on it, one after the other."""

    def __init__(self, model: Any):
        """`model`: a ModelPatcher, left as it is."""
        self.model = model
        self.keys = ModelKeys.of(model.model)
        self._weights = dict(model.model.named_parameters())
        self._merged: list[tuple[dict, float]] = []
        self._beside = BesideWeights()

    def add(self, found: Fit, row: Row, strength: float, name: str) -> Placed:
        """Add a LoRA at the strengths of its row, `strength` being that of the picture on this model.

        Raises ValueError where it has layers that cannot act otherwise at some steps than at others, and shall.
        """
        merged: dict[float, dict] = {}
        counts: Counter[str] = Counter()
        for target, patch in found.patches.items():
            place = training.layer_place(_layer_of(target).removeprefix(KEY_PREFIX))
            factor = row.audio if place.stream == "audio" else strength
            factor *= 1 if place.block is None else row.blocks.of(place.block)
            counts["sound"] += place.stream == "audio"
            if not factor:
                continue
            lora = None
            if not row.steady or self._in_few_bits(target):
                lora = self._low_rank(target, patch, factor, row.factor_at)
            counts["beside" if lora else "merged"] += 1
            if lora:
                self._beside.add(_layer_of(target), lora)
            else:
                merged.setdefault(factor, {})[target] = patch
        if merged and not row.steady:
            raise ValueError(
                f"{name} cannot act {'by a curve' if row.curve.points else 'in a part of the steps'}: "
                f"{counts['merged']} of its {len(found.patches)} layers are not of the plain kind whose strength can "
                "change from step to step. Let it act alike in all steps, from 0 to 1 and without a curve."
            )
        self._merged += [(patches, factor) for factor, patches in merged.items()]
        return Placed(matched=found.matched, total=found.total, merged=counts["merged"], beside=counts["beside"],
                      sound=counts["sound"] > 0)

    def finished(self) -> Any:
        """The model with the LoRAs on it; the model itself where nothing of them acts."""
        if not self._merged and not self._beside:
            return self.model
        model = self.model.clone()
        together = self._together()
        if together:
            model.add_patches(together)
        for patches, factor in self._merged:
            if alone := {target: patch for target, patch in patches.items() if target not in together}:
                model.add_patches(alone, factor)
        if self._beside:
            self._beside.put_on(model)
        return model

    def _together(self) -> dict[str, LoRAAdapter]:
        """One patch for each weight that several plain LoRAs and nothing else are merged into: added in one pass."""
        loras: dict[Any, list[LowRank | None]] = {}
        for patches, factor in self._merged:
            for target, patch in patches.items():
                loras.setdefault(target, []).append(self._low_rank(target, patch, factor))
        several = {target: each for target, each in loras.items() if len(each) > 1 and all(each)}
        return {
            target: LoRAAdapter(set(), (*reversed(summed(each)), None, None, None, None))
            for target, each in several.items()
        }

    def _in_few_bits(self, target: Any) -> bool:
        """Whether what is added to a weight would be rounded to few bits: fp8, int8, GGUF and the like."""
        weight = self._weights.get(target)
        return weight is not None and in_few_bits(weight)

    def _low_rank(
        self, target: Any, patch: Any, factor: float, factor_at: Callable[[float], float] = always
    ) -> LowRank | None:
        """A patch as two small matrices; None where it is not the plain LoRA of a linear layer."""
        if not isinstance(target, str) or not target.endswith(".weight") or not isinstance(patch, LoRAAdapter):
            return None
        up, down, alpha, *others = patch.weights
        layer = self.model.model.get_submodule(_layer_of(target))
        if not hasattr(layer, "in_features") or up.ndim != 2 or down.ndim != 2 or any(o is not None for o in others):
            return None
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        return LowRank(down=down, up=up, scale=factor * scale, factor_at=factor_at)


def in_few_bits(weight: torch.Tensor) -> bool:
    """Whether a weight is stored in eight bits a number or fewer."""
    return isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1


def _layer_of(target: Any) -> str:
    """The module, or the parameter of no `weight`, that a patch's target names."""
    name = target if isinstance(target, str) else target[0]
    return name.removesuffix(".weight")
