"""Which samples make up which batch, by position alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch

from .config import RecipeConfig
from .dataset.training_set import Sample, TrainingSet, load_sample
from .families.model_family import BaseModel, Features, Streams
from .seeds import generator

T = TypeVar("T")


def trained_streams(training_set: TrainingSet, base: BaseModel, recipe: RecipeConfig) -> frozenset[str]:
    """Names of the streams that a run trains. Models of one stream have no choice.

    Raises ValueError where the recipe asks for sound and no clip has any.
    """
    if len(base.streams) == 1:
        return frozenset(base.streams)
    streams = recipe.trained(training_set.streams)
    if not streams:
        raise ValueError(
            f"Learn from is set to {recipe.learn!r}, and none of the {len(training_set.samples)} clips has it: set it "
            "to 'picture', or prepare clips with sound with the audio VAE connected."
        )
    return streams


def check_captions(training_set: TrainingSet, recipe: RecipeConfig) -> None:
    """ValueError where the recipe asks for orders of captions that were not prepared."""
    asked, there = (recipe.caption_shuffle, recipe.caption_orders), (training_set.shuffle, training_set.orders)
    if recipe.caption_shuffle != "off" and asked != there:
        has = "no other orders" if training_set.shuffle == "off" else f"{there[1]} orders by {there[0]}"
        raise ValueError(
            f"Caption shuffle is set to {asked[1]} orders by {asked[0]}, and the training set has {has}: connect the "
            "same Recipe Settings to Prepare and Train."
        )


class Batches:
    """An endless, shuffled sequence of batches, each of samples of one shape.

    Every epoch shows every sample as often as its repeats say. The batch at a position, and which captions stand
    beside its clips, depend on the seed and the position only.
    """

    def __init__(self, training_set: TrainingSet, base: BaseModel, recipe: RecipeConfig, *, seed: str):
        self.streams = trained_streams(training_set, base, recipe)
        """Names of the streams that are trained; a sample may lack some of them, not all."""
        self._samples = [sample for sample in training_set.samples if self.streams & sample.streams]
        self._base = base
        self._recipe = recipe
        self._batch_size = recipe.batch_size
        self._no_caption = training_set.no_caption
        self._seed = seed
        self._shapes: dict[tuple, list[int]] = defaultdict(list)
        for index, sample in enumerate(self._samples):
            self._shapes[sample.shapes] += [index] * sample.repeats
        self._order: tuple[int, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(group) // self._batch_size) for group in self._shapes.values())

    def samples(self, position: int) -> list[Sample]:
        """The samples of the batch at `position`, counted from 0 over all epochs."""
        epoch, place = divmod(position, len(self))
        order = self._order  # read and replaced as one value: another thread may ask for another epoch meanwhile
        if epoch != order[0]:
            order = self._order = (epoch, self._shuffled(epoch))
        return [self._samples[index] for index in order[1][place]]

    def size(self, position: int) -> int:
        """How many numbers are noised and predicted in the batch at `position`."""
        shapes = (shape for sample in self.samples(position) for shape in sample.shapes)
        return sum(math.prod(shape) for name, shape in shapes if name in self.streams)

    def captions(self, position: int) -> list[Path]:
        """For each sample of the batch at `position` the features of the caption that is shown with it.

        Any of its captions, in any of its orders where the recipe shuffles, or none as often as it drops them.
        """
        samples = self.samples(position)
        drawn = torch.rand(len(samples), 3, generator=generator(self._seed, "caption", position)).tolist()
        return [self._caption(sample, *draws) for sample, draws in zip(samples, drawn, strict=True)]

    def _caption(self, sample: Sample, drop: float, which: float, order: float) -> Path:
        """The caption that three numbers in 0..1, 1 excluded, choose."""
        if drop < self._recipe.caption_dropout:
            return self._no_caption
        caption = sample.captions[int(which * len(sample.captions))]
        orders = [caption.features, *(caption.shuffled if self._recipe.caption_shuffle != "off" else ())]
        return orders[int(order * len(orders))]

    def read(self, position: int) -> tuple[Streams, Features]:
        """The clean streams and the features of the batch at `position`, on the CPU."""
        clean, features = self._base.family.collate(
            self._base,
            [
                load_sample(sample, caption)
                for sample, caption in zip(self.samples(position), self.captions(position), strict=True)
            ],
        )
        return {name: clean[name] for name in clean if name in self.streams}, features

    def _shuffled(self, epoch: int) -> list[list[int]]:
        source = generator(self._seed, "order", epoch)
        batches = []
        for group in self._shapes.values():
            order = torch.randperm(len(group), generator=source).tolist()
            batches += [
                [group[i] for i in order[start : start + self._batch_size]]
                for start in range(0, len(group), self._batch_size)
            ]
        return [batches[i] for i in torch.randperm(len(batches), generator=source).tolist()]


class ReadAhead(Generic[T]):
    """What `make` gives for one position after another, the next made on a thread of its own while one is in use.

    `make` must depend on nothing but the position, so that the order in which it is called does not matter; it is not
    called for `end` or later. What it raises is raised when its position is taken. A context manager: leaving it waits
    for the thread.
    """

    def __init__(self, make: Callable[[int], T], *, end: int):
        self._make = make
        self._end = end
        self._thread = ThreadPoolExecutor(1, "video_lora_read_ahead")
        self._coming: tuple[int, Future[T]] | None = None

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, position: int) -> T:
        """The value at a position; the next one begins to be made."""
        place, future = self._coming or (None, None)
        if place != position:
            future = self._thread.submit(self._make, position)
        value = future.result()
        following = position + 1
        self._coming = (following, self._thread.submit(self._make, following)) if following < self._end else None
        return value
