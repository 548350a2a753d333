"""What training reads: cached features, clip by clip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...loaders.feature_cache import read_features
from ..families.model_family import STREAM_NAMES, Features

PREVIEW = "preview"
"""Small frames (N, P, Q, 3) uint8 beside a clip's features, for contact sheets only."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip with its caption: where their features are, and what was done to it."""

    name: str
    caption: str
    clip_features: Path
    caption_features: Path
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each of the clip's features; samples of the same shapes can be in one batch."""
    key: str
    """Changes whenever the features do."""
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
    trigger: str
    width: int
    height: int
    frames: int
    """Longest clip, in frames; a sample may have fewer."""
    fps: float

    @property
    def streams(self) -> frozenset[str]:
        """What of any sample can be learnt."""
        return frozenset().union(*(sample.streams for sample in self.samples))

    @property
    def data_hash(self) -> str:
        """Hex digest of all features, in order."""
        return hashlib.sha256("\n".join(sample.key for sample in self.samples).encode()).hexdigest()


def load_sample(sample: Sample) -> Features:
    """The features of a clip and of its caption, by name. ValueError where they are gone from the cache."""
    clip = read_features(sample.clip_features)
    clip.pop(PREVIEW, None)
    return {**clip, **read_features(sample.caption_features)}
