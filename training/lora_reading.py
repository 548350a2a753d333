"""Read a LoRA of any maker: what it fits, and its tensors as ComfyUI loads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

from ..loaders.lora_file import read_lora
from ..loaders.lora_forms import AnyLora, as_comfyui_loads, take_apart
from .families import FAMILIES
from .families.model_family import ModelFamily

BLOCK_NUMBER = re.compile(r"(?<=[._])\d+(?=[._])")
"""The first of these in a module's name is the number of its block."""


def read_any_lora(path: Path, modules: Collection[str] = ()) -> AnyLora:
    """A LoRA file of any form, its tensors under names that ComfyUI loads onto a model with these modules.

    `modules`: names of the model's modules and parameters, without `diffusion_model.`; none leaves names as they are.
    Raises ValueError where the file is no readable safetensors file.
    """
    tensors, metadata = read_lora(path)
    return as_comfyui_loads(tensors, metadata, modules, [family.names for family in FAMILIES])


def families_of(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the families whose models have the modules that a LoRA's keys name, in either layout.

    More than one where its modules are the same in both; none where fewer than half of them are in any.
    """
    found = {_of_any_block(key.module) for name in names if (key := take_apart(name))}
    hits = {family.name: len(found & _module_names(family)) for family in FAMILIES}
    most = max(hits.values())
    return tuple(name for name, count in hits.items() if count >= 0.95 * most and 2 * count >= len(found) > 0)


@lru_cache
def _module_names(family: ModelFamily) -> frozenset[str]:
    """The modules and parameters of a family's models in files and classes, with dots and with underscores."""
    _, twin = family.twin()
    parameters = [name for name, _ in twin.named_parameters()]
    named = {name.removesuffix(".weight").removesuffix(".bias") for name in parameters}
    both = {_of_any_block(name) for own in named for name in (own, family.original_name(own))}
    return frozenset(both | {name.replace(".", "_") for name in both})


def _of_any_block(module: str) -> str:
    return BLOCK_NUMBER.sub("0", module, count=1)
