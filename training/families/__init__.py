"""Every model family, once, and the two things that are asked of all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...loaders.low_bits_linear import LowBitsLinear
from ...loaders.safetensors_file import read_header
from .cogvideox import CogVideoX
from .ltx import LTXVideo
from .ltx2 import LTX2
from .model_family import BaseModel, ModelFamily
from .strangers import describe
from .wan import Wan

FAMILIES: tuple[ModelFamily, ...] = (Wan(), LTXVideo(), LTX2(), CogVideoX())


def open_base_model(path: str | Path, low_noise_path: str | Path | None = None, expert: str = "") -> BaseModel:
    """The model in a weights file, recognised from its header: nothing heavy is read.

    `low_noise_path`: the second file of a model that comes as two experts. `expert`: `high_noise` or `low_noise`,
    where the file is one of two and is trained alone. Raises ValueError, one sentence that names what the file is,
    where nothing here can be trained on it, or the two do not belong together.
    """
    base = _recognised(path)
    if low_noise_path is not None:
        return base.family.pair(base, _recognised(low_noise_path))
    return base.family.one_expert(base, expert) if expert else base


def _recognised(path: str | Path) -> BaseModel:
    header = read_header(path)
    for family in FAMILIES:
        if base := family.recognise(header):
            return base
    raise ValueError(describe(header, known=_listed([family.name for family in FAMILIES])))


def _listed(names: list[str]) -> str:
    """`A`, `A or B`, `A, B or C`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def file_tensors(family: ModelFamily, module: nn.Module) -> dict[str, Tensor]:
    """A transformer's tensors under the names that weights files use, without a prefix; few bits as float32."""
    tensors = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, LowBitsLinear):
            tensors.pop(f"{name}.scale", None)
            tensors[f"{name}.weight"] = layer.numbers(torch.float32)
    return {family.original_name(name): tensor for name, tensor in tensors.items()}
