"""What training reads: cached features, sample by sample."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from ...loaders.feature_cache import read_features
from ..families.model_family import STREAM_NAMES, Features

PREVIEW = "preview"
"""Small frames (N, P, Q, 3) uint8 beside a clip's features, for contact sheets only."""

CLIPS_FOR_ONE_HELD_OUT, MOST_HELD_OUT = 20, 4
"""How many clips are held out where nobody says: one in so many, and at most so many."""


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
    clip: str
    """Name of the clip, which other windows and sizes of it have as well."""
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
    prompts: tuple[Caption, ...] = ()
    """What previews show; no part of what is learnt."""
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

    def split(
        self, count: int, seed: int, streams: Collection[str] = STREAM_NAMES
    ) -> tuple[TrainingSet, TrainingSet]:
        """The samples to train on, and those of `count` clips that are held out, chosen by the seed.

        All windows and sizes of a clip, and other files with the same content, stay together and count as one clip.
        -1 holds one clip in twenty out, none of fewer, four at most. Only clips with one of `streams` are held out;
        ValueError unless another one of them is left.
        """
        clips = [group for group in _by_footage(self.samples) if any(s.streams & set(streams) for s in group)]
        if count < 0:
            count = min(MOST_HELD_OUT, len(clips) // CLIPS_FOR_ONE_HELD_OUT)
        if count and count >= len(clips):
            raise ValueError(
                f"Held-out clips is {count} and there are {len(clips)} clips to learn from: set it lower, so that at "
                "least one is left to train on, or to 0."
            )
        # By what the clips are: their names are no part of `data_hash`, and added clips move few others.
        clips.sort(key=lambda group: hashlib.sha256(f"{seed}/{group[0].clip_features.name}".encode()).digest())
        held_out = {id(sample) for group in clips[:count] for sample in group}
        parts = ([s for s in self.samples if (id(s) in held_out) is held] for held in (False, True))
        trained, rest = (dataclasses.replace(self, samples=tuple(part)) for part in parts)
        return trained, rest


def _by_footage(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples in groups: those of one clip are together, and those with the same features."""
    groups: dict[str | Path, list[Sample]] = {}
    for sample in samples:
        group = groups.setdefault(sample.clip, [])
        group.append(sample)
        same = groups.setdefault(sample.clip_features, group)
        if same is not group:
            group += same
            groups.update({mark: group for other in same for mark in (other.clip, other.clip_features)})
    return list({id(group): group for group in groups.values()}.values())


def load_sample(sample: Sample, caption: Path | None = None) -> Features:
    """The features of a clip and of one caption (its first where none is given), by name.

    ValueError where they are gone from the cache.
    """
    clip = read_features(sample.clip_features)
    clip.pop(PREVIEW, None)
    return {**clip, **read_features(caption or sample.captions[0].features)}
