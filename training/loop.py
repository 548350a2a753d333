"""The steps: draw, noise, predict, backward, clip, step, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batches, ReadAhead
from .config import RunConfig
from .families.model_family import BaseModel, Features, ModelFamily, Streams
from .listener import Listener, Progress
from .objective import Objective, mean_squared_error
from .optimizers import Stepper
from .seeds import generator, number
from .watch import Judgement, check_step


@dataclass(kw_only=True)
class RunState:
    """How far a run is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    judged: list[Judgement] = field(default_factory=list)
    """What the held-out clips said so far."""
    torn: bool = False
    """Whether a step was broken off while it changed the parameters, which then are of no step."""

    def copy(self) -> RunState:
        """The same, not changed by further steps."""
        return RunState(step=self.step, losses=list(self.losses), judged=list(self.judged), torn=self.torn)

    def become(self, other: RunState) -> None:
        """Be as far as `other`."""
        self.step, self.torn = other.step, other.torn
        self.losses, self.judged = list(other.losses), list(other.judged)


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step works with, fixed for the run."""

    transformer: nn.Module
    base: BaseModel
    objective: Objective
    batches: Batches
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    seed: str
    first_frame: float

    @property
    def family(self) -> ModelFamily:
        return self.base.family


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What one micro-step is about, read and drawn by its position alone: by name of the stream, and the features.

    On the CPU; in pinned memory where the step computes on a CUDA device.
    """

    clean: Streams
    features: Features
    given: Streams
    noise: Streams
    levels: Streams


def draw(context: StepContext, position: int, levels: Tensor | None = None) -> Draw:
    """The draw of a position. `levels` (B,) replaces its noise levels."""
    seed = context.seed
    clean, features = context.batches.read(position)
    given = context.family.given(context.base, clean, context.first_frame, generator(seed, "given", position))
    drawn: Streams = {}
    noise: Streams = {}
    for name, stream in clean.items():
        source = generator(seed, f"level/{name}", position)
        drawn[name] = context.objective.draw(stream.shape, source) if levels is None else levels
        noise[name] = torch.randn(stream.shape, generator=generator(seed, f"noise/{name}", position))
    parts = {"clean": clean, "features": features, "given": given, "noise": noise, "levels": drawn}
    if context.device.type == "cuda":
        # Only from pinned memory does a copy run beside the host; with no device of its own a thread would pin on the
        # first one.
        with torch.cuda.device(context.device):
            parts = {part: {name: tensor.pin_memory() for name, tensor in of.items()} for part, of in parts.items()}
    return Draw(**parts)


def micro_step_loss(context: StepContext, position: int, levels: Tensor | None = None) -> Tensor:
    """The loss of the batch at `position`, a scalar with its graph. `levels` (B,) replaces the drawn noise levels."""
    return loss_of(context, draw(context, position, levels))


def loss_of(context: StepContext, drawn: Draw) -> Tensor:
    """The loss of a draw, a scalar with its graph."""
    objective = context.objective

    def on_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(context.device, non_blocking=True) for name, tensor in tensors.items()}

    clean, noise, level, given = map(on_device, (drawn.clean, drawn.noise, drawn.levels, drawn.given))
    noisy: Streams = {}
    target: Streams = {}
    for name, stream in clean.items():
        noisy[name] = objective.noisy(stream, noise[name], level[name])
        target[name] = objective.target(stream, noise[name], level[name])
        if name in given:
            noisy[name] = torch.where(given[name], stream, noisy[name])
    features = on_device(drawn.features)
    with context.autocast():
        answer = context.family.predict(context.transformer, noisy, level, given, features)
    return sum(mean_squared_error(answer[name], target[name], given.get(name)) for name in target)


def run_steps(
    context: StepContext,
    config: RunConfig,
    *,
    parameters: list[nn.Parameter],
    optimizer: Stepper,
    state: RunState,
    listener: Listener,
    after_step: Callable[[RunState], None],
    recovery: Recovery = lambda error: None,
) -> None:
    """Train until `config.last_step`; `state` always describes the steps that are in the parameters.

    Where gradients cannot be computed, `recovery` may give what to do before the same step is tried again.
    Raises like `check_step` before the optimizer step that would have spoilt the parameters, and whatever `listener`
    raises to stop.
    """
    started, first = time.monotonic(), state.step
    end = config.last_step * config.recipe.gradient_accumulation
    with ReadAhead(partial(draw, context), end=end) as draws:
        while state.step < config.last_step:
            loss, norm = persist(
                partial(_accumulate, context, config, parameters, state.step, draws, listener), recovery
            )
            check_step(state.losses, loss, norm, partial(_clips, context, config, state.step))
            state.torn = True
            optimizer.step(state.step)
            state.step += 1
            state.losses.append(loss)
            state.torn = False
            per_step = (time.monotonic() - started) / (state.step - first)
            listener.report(
                Progress(
                    phase="Training",
                    done=state.step,
                    total=config.steps,
                    loss=loss,
                    seconds_left=per_step * (config.last_step - state.step),
                    expert=context.base.expert,
                )
            )
            after_step(state)


Recovery = Callable[[BaseException], Callable[[], None] | None]
"""For an error what to do before the same is tried again; None where there is nothing."""


def persist(work: Callable[[], Any], recovery: Recovery) -> Any:
    """What `work` gives, tried as often as `recovery` knows what to do about its error."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            recover = recovery(error)
            if recover is None:
                raise
        recover()  # out here nothing holds the error, whose traceback holds all of the failed work


def _accumulate(
    context: StepContext,
    config: RunConfig,
    parameters: list[nn.Parameter],
    step: int,
    draws: ReadAhead[Draw],
    listener: Listener,
) -> tuple[float, float]:
    """Gradients of one step into `parameters`; its mean loss, and the gradient's length before clipping."""
    for parameter in parameters:
        parameter.grad = None
    count = config.recipe.gradient_accumulation
    losses = []
    for micro in range(count):
        listener.check()
        position = step * count + micro
        if config.adapter.dropout:  # draws from the shared generator, which `train` gives back as it was
            torch.manual_seed(number(context.seed, "dropout", position))
        loss = loss_of(context, draws.take(position))
        (loss / count).backward()
        losses.append(loss.detach())
    norm = nn.utils.clip_grad_norm_(parameters, config.recipe.max_grad_norm or math.inf)
    # The step's only wait for the device: both figures come over together.
    loss, norm = torch.stack([torch.stack(losses).mean(), norm.float()]).tolist()
    return loss, norm


def _clips(context: StepContext, config: RunConfig, step: int) -> list[str]:
    """Names of the clips that are shown in the step after `step` others."""
    count = config.recipe.gradient_accumulation
    return [sample.name for micro in range(count) for sample in context.batches.samples(step * count + micro)]
