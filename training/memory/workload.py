"""One micro-step of a run as shapes: what has to fit into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...loaders.safetensors_file import read_header
from ..config import RunConfig
from ..dataset.training_set import PREVIEW, TrainingSet
from ..families.model_family import BaseModel, Features, Streams
from ..seeds import generator

Shapes = Mapping[str, tuple[int, ...]]
"""Of the cached features of one sample, clip and caption, by name."""


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
