"""The steps: draw, noise, predict, backward, clip, step, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .batches import Batches
from .config import RunConfig
from .families.model_family import BaseModel, ModelFamily, Streams
from .listener import Listener, Progress
from .objective import Objective, mean_squared_error
from .optimizers import learning_rate_factor
from .seeds import generator


@dataclass(kw_only=True)
class RunState:
    """How far a run is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)


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


class LossNotFinite(ValueError):
    """The loss or the gradient became NaN or infinite."""


def micro_step_loss(context: StepContext, position: int, levels: Tensor | None = None) -> Tensor:
    """The loss of the batch at `position`, a scalar with its graph. `levels` (B,) replaces the drawn noise levels."""
    seed, device, objective = context.seed, context.device, context.objective
    clean, features = context.batches.read(position)
    given = context.family.given(
        context.base, clean, context.first_frame, generator(seed, "given", position)
    )
    noisy: Streams = {}
    target: Streams = {}
    level: Streams = {}
    for name, stream in clean.items():
        drawn = objective.draw(stream.shape, generator(seed, f"level/{name}", position)) if levels is None else levels
        noise = torch.randn(stream.shape, generator=generator(seed, f"noise/{name}", position))
        stream, noise = (tensor.to(device, non_blocking=True) for tensor in (stream, noise))
        level[name] = drawn.to(device)
        noisy[name] = objective.noisy(stream, noise, level[name])
        target[name] = objective.target(stream, noise, level[name])
        if name in given:
            given[name] = given[name].to(device)
            noisy[name] = torch.where(given[name], stream, noisy[name])
    features = {name: tensor.to(device, non_blocking=True) for name, tensor in features.items()}
    with context.autocast():
        answer = context.family.predict(context.transformer, noisy, level, given, features)
    return sum(mean_squared_error(answer[name], target[name], given.get(name)) for name in target)


def run_steps(
    context: StepContext,
    config: RunConfig,
    *,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: RunState,
    listener: Listener,
    after_step: Callable[[RunState], None],
) -> None:
    """Train until `config.steps`; `state` always describes the steps that are in the parameters.

    Raises LossNotFinite before the optimizer step that would have spoilt the parameters, and whatever `listener`
    raises to stop.
    """
    started, first = time.monotonic(), state.step
    while state.step < config.steps:
        loss, norm = _accumulate(context, config, parameters, state.step, listener)
        if not math.isfinite(loss) or not math.isfinite(norm):
            start = state.step * config.recipe.gradient_accumulation
            names = [
                sample.name
                for micro in range(config.recipe.gradient_accumulation)
                for sample in context.batches.samples(start + micro)
            ]
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise LossNotFinite(
                f"The {what} became {loss if what == 'loss' else norm} in step {state.step + 1} (clips: "
                f"{', '.join(names)}): lower the learning rate or look at these clips. "
                + (f"The LoRA of step {state.step} is kept." if state.step else "Nothing was learnt yet.")
            )
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(state.step, config)
        optimizer.step()
        state.step += 1
        state.losses.append(loss)
        per_step = (time.monotonic() - started) / (state.step - first)
        listener.report(
            Progress(
                phase="Training",
                done=state.step,
                total=config.steps,
                loss=loss,
                seconds_left=per_step * (config.steps - state.step),
            )
        )
        after_step(state)


def _accumulate(
    context: StepContext, config: RunConfig, parameters: list[nn.Parameter], step: int, listener: Listener
) -> tuple[float, float]:
    """Gradients of one step into `parameters`; its mean loss, and the gradient's length before clipping."""
    for parameter in parameters:
        parameter.grad = None
    count = config.recipe.gradient_accumulation
    losses = []
    for micro in range(count):
        listener.check()
        loss = micro_step_loss(context, step * count + micro)
        (loss / count).backward()
        losses.append(loss.detach())
    norm = nn.utils.clip_grad_norm_(parameters, config.recipe.max_grad_norm or math.inf)
    # The step's only wait for the device: both figures come over together.
    loss, norm = torch.stack([torch.stack(losses).mean(), norm.float()]).tolist()
    return loss, norm
