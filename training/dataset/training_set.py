"""What training reads: cached features, sample by sample."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...loaders.feature_cache import read_features
from ..families.model_family import STREAM_NAMES, Features

PREVIEW = "preview"
"""Small frames (N, P, Q, 3) uint8 beside a clip's features, for contact sheets only."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption of a clip, and where its features are."""

    text: str
    features: Path
    shuffled: tuple[Path, ...] = ()
    """Features of the same caption with its parts in other orders."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One window of a clip with its captions: where their features are, and what was done to it."""

    name: str
    captions: tuple[Caption, ...]
    """At least one."""
    clip_features: Path
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each of the clip's features; samples of the same shapes can be in one batch."""
    key: str
    """Changes whenever the features or the repeats do."""
    repeats: int = 1
    """How often an epoch shows it."""
    notes: tuple[str, ...] = ()

    @property
    def streams(self) -> frozenset[str]:
        """What of it can be learnt: `video`, `audio`."""
        return frozenset(name for name, _ in self.shapes if name in STREAM_NAMES)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Samples made for one kind of model, in the order of the clips."""

    family: str
    form: str
    """`BaseModel.form` and `caption_form` of the model it was prepared for."""
    caption_form: str
    samples: tuple[Sample, ...]
    no_caption: Path
    """Features of the empty caption, for caption dropout."""
    trigger: str
    width: int
    height: int
    """What was asked for: a sample may be of another shape, and smaller."""
    frames: int
    """Longest sample, in frames; a sample may have fewer."""
    fps: float
    shuffle: str = "off"
    """By what parts captions were shuffled, as `RecipeConfig.caption_shuffle`."""
    orders: int = 0
    """How many orders of each caption were asked for, as `RecipeConfig.caption_orders`."""

    @property
    def streams(self) -> frozenset[str]:
        """What of any sample can be learnt."""
        return frozenset().union(*(sample.streams for sample in self.samples))

    @property
    def data_hash(self) -> str:
        """Hex digest of all features, in order."""
        return hashlib.sha256("\n".join(sample.key for sample in self.samples).encode()).hexdigest()


def load_sample(sample: Sample, caption: Path | None = None) -> Features:
    """The features of a clip and of one caption (its first where none is given), by name.

    ValueError where they are gone from the cache.
    """
    clip = read_features(sample.clip_features)
    clip.pop(PREVIEW, None)
    return {**clip, **read_features(caption or sample.captions[0].features)}
