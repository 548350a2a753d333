"""Where in a model a layer is, told from its name in weights files."""

from __future__ import annotations

from dataclasses import dataclass

from .families import FAMILIES
from .norms import BLOCK


@dataclass(frozen=True, kw_only=True)
class LayerPlace:
    """The block that a layer is in, counted from 0, None outside the blocks; and the stream that it makes."""

    block: int | None
    stream: str


def layer_place(name: str) -> LayerPlace:
    """The place of a module or parameter, without a prefix before its name."""
    block = BLOCK.match(name)
    streams = {family.stream_of(name) for family in FAMILIES} - {"video"}
    return LayerPlace(block=int(block[1]) if block else None, stream=min(streams, default="video"))
