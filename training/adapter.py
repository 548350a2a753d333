"""The LoRA on the transformer: attach it, hand back what trains, read it out.

Shape letters: I a layer's inputs, O its outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..loaders.lora_file import KEY_PREFIX
from ..loaders.safetensors_file import read_header
from .config import AdapterConfig
from .families.model_family import BaseModel
from .seeds import generator

PEFT_NAME = "default"


def linear_layers(base: BaseModel) -> dict[str, tuple[int, int]]:
    """Original names and shapes (O, I) of the layers in a weights file that a LoRA can adapt, from its header alone."""
    header = read_header(base.path)
    return {
        name.removeprefix(base.key_prefix).removesuffix(".weight"): info.shape
        for name, info in header.tensors.items()
        if name.startswith(base.key_prefix) and name.endswith(".weight") and len(info.shape) == 2
    }


def count_numbers(base: BaseModel, config: AdapterConfig, *, rank: int, streams: Collection[str]) -> int:
    """How many numbers an adapter will have, from the weights file's header. Raises ValueError as `adapted_layers`."""
    layers = linear_layers(base)
    presets = base.family.adapter_targets(base, streams)
    return sum(rank * sum(layers[name]) for name in adapted_layers(layers, presets, config.targets))


def adapted_layers(layers: Iterable[str], presets: Mapping[str, tuple[str, ...]], targets: str) -> list[str]:
    """Those of `layers`, by original names, that `targets` asks for: a preset, endings separated by commas, or nothing.

    Raises ValueError where an ending fits no layer.
    """
    layers = list(layers)
    chosen = targets.strip() or next(iter(presets))
    endings = presets.get(chosen) or tuple(part.strip() for part in chosen.split(",") if part.strip())
    for ending in endings:
        if chosen not in presets and not any(f".{layer}".endswith(f".{ending}") for layer in layers):
            known = sorted({known for preset in presets.values() for known in preset})
            raise ValueError(
                f"Layers: nothing in this model ends with {ending!r}. Presets: {'; '.join(presets)}. "
                f"Endings: {', '.join(known)}."
            )
    return [layer for layer in layers if f".{layer}".endswith(tuple(f".{ending}" for ending in endings))]


class Adapter:
    """A LoRA attached to a frozen transformer. Its parameters are float32 whatever the transformer's weights are."""

    def __init__(
        self,
        transformer: nn.Module,
        base: BaseModel,
        config: AdapterConfig,
        *,
        rank: int,
        seed: str,
        streams: Collection[str],
    ):
        from peft import LoraConfig, inject_adapter_in_model

        family = base.family
        presets = family.adapter_targets(base, streams)
        self.scale = config.scale(rank)
        linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
        linear = {family.original_name(name): name for name in linear}
        modules = [linear[layer] for layer in adapted_layers(linear, presets, config.targets)]
        lora = LoraConfig(
            r=rank, lora_alpha=self.scale * rank, target_modules=modules, lora_dropout=config.dropout, bias="none"
        )
        inject_adapter_in_model(lora, transformer, adapter_name=PEFT_NAME)
        self._layers = {name: transformer.get_submodule(name) for name in modules}
        self._keys = {name: KEY_PREFIX + family.original_name(name) for name in modules}
        source = generator(seed, "adapter")
        device = next(transformer.parameters()).device  # of what is no block: blocks may wait in host memory
        for layer in self._layers.values():
            self._start_at_zero(layer, source, device)

    @staticmethod
    def _start_at_zero(layer: nn.Module, source: torch.Generator, device: torch.device) -> None:
        """Kaiming-uniform A and zero B, as peft does, but float32 (peft takes the base's dtype) and from our seed."""
        down, up = layer.lora_A[PEFT_NAME], layer.lora_B[PEFT_NAME]
        start = torch.empty(down.weight.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=source)
        down.weight = nn.Parameter(start.to(device))
        up.weight = nn.Parameter(torch.zeros(up.weight.shape, dtype=torch.float32, device=device))
        # Under autocast the casts happen in the matrix product; peft's own would copy the input to float32 first.
        layer.cast_input_dtype_enabled = False

    def __len__(self) -> int:
        """How many layers are adapted."""
        return len(self._layers)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What trains, in a fixed order."""
        return (weight for _, weight in self._named())

    def state(self) -> dict[str, Tensor]:
        """What `parameters` hold, as float32 on the CPU, by the names they have in the file. The scale is not in B."""
        return {name: weight.detach().to("cpu", copy=True) for name, weight in self._named()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises ValueError where it is that of another adapter."""
        named = dict(self._named())
        if {name: weight.shape for name, weight in named.items()} != {name: t.shape for name, t in state.items()}:
            raise ValueError("The saved state is of another adapter: other layers, or another rank.")
        for name, weight in named.items():
            weight.copy_(state[name])

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters in their order, by the names they have in the file."""
        for name, layer in self._layers.items():
            yield f"{self._keys[name]}.lora_A.weight", layer.lora_A[PEFT_NAME].weight
            yield f"{self._keys[name]}.lora_B.weight", layer.lora_B[PEFT_NAME].weight

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The LoRA as it is written: `<key>.lora_A.weight` (R, I) and `.lora_B.weight` (O, R) with the scale in B.

        Copies on the CPU. Without `.alpha` keys both ComfyUI and diffusers take the scale to be 1.
        """
        out = {}
        for name, weight in self._named():
            scaled = weight.detach() * self.scale if name.endswith(".lora_B.weight") else weight.detach()
            out[name] = scaled.to("cpu", dtype, copy=True)
        return out
