"""What training reads: cached features, clip by clip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...loaders.feature_cache import read_features
from ..families.model_family import Features

PREVIEW = "preview"
"""Small frames (N, P, Q, 3) uint8 beside a clip's features, for contact sheets only."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip with its caption: where their features are, and what was done to it."""

    name: str
    caption: str
    clip_features: Path
    caption_features: Path
    latent_shape: tuple[int, ...]
    """(C, F, H, W) of its `video` latents."""
    key: str
    """Changes whenever the features do."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Samples made for one family of models, in the order of the clips."""

    family: str
    samples: tuple[Sample, ...]
    trigger: str
    width: int
    height: int
    frames: int
    """Longest clip, in frames; a sample may have fewer."""
    fps: float

    @property
    def data_hash(self) -> str:
        """Hex digest of all features, in order."""
        return hashlib.sha256("\n".join(sample.key for sample in self.samples).encode()).hexdigest()


def load_sample(sample: Sample) -> Features:
    """The features of a clip and of its caption, by name. ValueError where they are gone from the cache."""
    clip = read_features(sample.clip_features)
    clip.pop(PREVIEW, None)
    return {**clip, **read_features(sample.caption_features)}
