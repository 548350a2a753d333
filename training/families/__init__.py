"""Every model family, once, and the two things that are asked of all of them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ...loaders.safetensors_file import read_header
from .model_family import BaseModel, ModelFamily
from .strangers import describe
from .wan import Wan

FAMILIES: tuple[ModelFamily, ...] = (Wan(),)


def open_base_model(path: str | Path) -> BaseModel:
    """The model in a weights file, recognised from its header: nothing heavy is read.

    Raises ValueError, one sentence that names what the file is, where nothing here can be trained on it.
    """
    header = read_header(path)
    for family in FAMILIES:
        if base := family.recognise(header):
            return base
    raise ValueError(describe(header, known=" and ".join(family.name for family in FAMILIES)))


def file_tensors(family: ModelFamily, module: nn.Module) -> dict[str, Tensor]:
    """A transformer's tensors under the names that weights files use, without a prefix."""
    return {family.original_name(name): tensor for name, tensor in module.state_dict().items()}
