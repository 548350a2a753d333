"""How well a model predicts given clips, at fixed noise: the same question before, during and after training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from ..loaders.lora_file import KEY_PREFIX, read_lora
from ..loaders.low_bits_linear import LowBitsLinear
from .batches import Batches
from .config import RecipeConfig, RunConfig
from .dataset.training_set import Sample, TrainingSet
from .families.model_family import ModelFamily
from .listener import Listener, Progress
from .loop import Recovery, RunState, StepContext, draw, loss_of, micro_step_loss, persist
from .optimizers import Stepper
from .watch import Judgement, LossNotFinite

LEVELS = (0.15, 0.35, 0.55, 0.75, 0.95)

JUDGED_LEVELS = 4
"""Noise levels at which held-out clips are judged, evenly spread over those that the model answers for."""

JUDGED_SAMPLES = 8
"""About how many samples of the held-out clips are judged: clips of many windows would take longer than training."""


def held_out_context(context: StepContext, held_out: TrainingSet, recipe: RecipeConfig) -> StepContext:
    """The context's model, asked about held-out clips: one sample a batch, with a caption and noise of its own.

    `held_out` must not be empty. Every clip is judged by at least one sample, those of long ones by several.
    """
    streams = context.batches.streams
    by_clip: dict[str, list[Sample]] = {}
    for sample in held_out.samples:
        if streams & sample.streams:
            by_clip.setdefault(sample.clip, []).append(dataclasses.replace(sample, repeats=1))
    most = max(1, JUDGED_SAMPLES // len(by_clip))
    judged = tuple(sample for samples in by_clip.values() for sample in _evenly(samples, most))
    plain = dataclasses.replace(recipe, batch_size=1, caption_dropout=0.0, caption_shuffle="off")
    seed = f"{context.seed}/held out"
    batches = Batches(dataclasses.replace(held_out, samples=judged), context.base, plain, seed=seed)
    return dataclasses.replace(context, batches=batches, seed=seed)


def held_out_losses(context: StepContext, optimizer: Stepper, listener: Listener) -> dict[str, float]:
    """Mean loss of the LoRA that would be saved now, by noise level in words: `{"0.125": 0.31, ...}`.

    `context` of `held_out_context`. Noise and levels are the same in every call, and nothing but the losses is left
    behind: no gradient, no random state, dropout as it was. Raises LossNotFinite, naming the samples, and whatever
    `listener` raises to stop.
    """
    low, high = context.base.levels
    levels = [low + (high - low) * (place + 0.5) / JUDGED_LEVELS for place in range(JUDGED_LEVELS)]
    losses = []
    with torch.no_grad(), as_saved(context.transformer, optimizer):
        for position in range(len(context.batches)):
            drawn = draw(context, position)
            for level in levels:
                listener.check()
                same = {name: torch.full_like(old, level) for name, old in drawn.levels.items()}
                losses.append(loss_of(context, dataclasses.replace(drawn, levels=same)))
        by_sample = torch.stack(losses).view(-1, JUDGED_LEVELS).tolist()  # the only wait for the device
    broken = [
        context.batches.samples(position)[0].name
        for position, found in enumerate(by_sample) if not all(map(math.isfinite, found))
    ]
    if broken:
        raise LossNotFinite(
            f"The loss of held-out clips is not a number ({', '.join(broken)}): lower the learning rate or look at "
            "these clips."
        )
    return {f"{level:.3g}": fmean(found) for level, found in zip(levels, zip(*by_sample, strict=True), strict=True)}


def judging(
    context: StepContext, held_out: TrainingSet, config: RunConfig, optimizer: Stepper, listener: Listener,
    recovery: Recovery,
) -> Callable[[RunState], None]:
    """What adds a judgement to the state of a run, after the steps where one is due and before the first.

    It raises like `held_out_losses`; memory that runs out is met as in `run_steps`.
    """
    if not held_out.samples:
        return lambda state: None
    asked, every = held_out_context(context, held_out, config.recipe), config.recipe.judge_every

    def judge(state: RunState) -> None:
        due = state.step in (0, config.steps) or every and state.step % every == 0
        if not due or any(state.step == judgement.step for judgement in state.judged):
            return
        listener.report(Progress(phase="Judging held-out clips, step", done=state.step, total=config.steps))
        losses = persist(partial(held_out_losses, asked, optimizer, listener), recovery)
        state.judged.append(Judgement(step=state.step, levels=losses))

    return judge


def _evenly(samples: list[Sample], most: int) -> list[Sample]:
    """At most so many of the samples, evenly spread over them."""
    count = min(most, len(samples))
    return [samples[(2 * place + 1) * len(samples) // (2 * count)] for place in range(count)]


@contextmanager
def as_saved(transformer: nn.Module, optimizer: Stepper) -> Iterator[None]:
    """Meanwhile a transformer answers with the LoRA that would be saved now, without dropout."""
    training = [module for module in transformer.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with optimizer.kept_weights():
            yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def fixed_noise_loss(context: StepContext, batches: int) -> float:
    """Mean loss over the first `batches` batches at each of `LEVELS`, with noise fixed by the context's seed."""
    losses = []
    for position in range(batches):
        size = len(context.batches.samples(position))
        losses += [micro_step_loss(context, position, torch.full((size,), level)) for level in LEVELS]
    return torch.stack(losses).mean().item()


@torch.no_grad()
def merge_lora(transformer: nn.Module, family: ModelFamily, lora_file: Path) -> int:
    """Add a LoRA file of ours to the weights, W + B A; how many layers it changed.

    Raises ValueError where the file names a layer that the transformer lacks, or whose weight is kept in few bits.
    """
    linear = [(name, module) for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    layers = {KEY_PREFIX + family.original_name(name): module for name, module in linear}
    tensors, _ = read_lora(lora_file)
    changed = 0
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        key = name.removesuffix(".lora_A.weight")
        if key not in layers:
            raise ValueError(f"{lora_file.name}: the model has no layer {key}.")
        if isinstance(layers[key], LowBitsLinear):
            raise ValueError(f"{lora_file.name}: {key} is kept in few bits: load the model with its weights in full.")
        weight = layers[key].weight
        delta = tensors[f"{key}.lora_B.weight"].float() @ down.float()
        weight.add_(delta.to(weight.device, weight.dtype))
        changed += 1
    return changed
