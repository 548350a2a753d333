"""Formulas about noise: which level, the noisy sample, what the model should answer, how far off it was.

Shape letters: B batch; streams are (B, ...) of any further shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """What a kind of model is trained towards. Levels are noise levels sigma in 0..1, one for each sample."""

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Noise levels (B,) float32 for a stream of this shape."""

    def noisy(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The sample at each level: clean and noise (B, ...), level (B,)."""

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the model should answer, shaped like the stream."""


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Timestep shift, sigma' = s * sigma / (1 + (s - 1) * sigma): s > 1 moves levels towards noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def per_sample(level: Tensor, stream: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) of the stream's rank."""
    return level.view(-1, *[1] * (stream.ndim - 1))


def mean_squared_error(answer: Tensor, target: Tensor, given: Tensor | None = None) -> Tensor:
    """Mean over what was not given clean, in float32. `given`: a mask that broadcasts to the stream."""
    error = (answer.float() - target.float()).square()
    if given is None:
        return error.mean()
    asked = ~given.expand_as(error)
    return (error * asked).sum() / asked.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """Rectified flow: x = (1 - sigma) * clean + sigma * noise, and the model answers the velocity noise - clean.

    Levels are logit-normal or uniform in 0..1, then shifted (Esser et al. 2024, sec. 3.1 and 5.3.2), then cut to
    `levels`: what lies outside is not drawn, what lies inside keeps its proportions.
    """

    timesteps: str = "logit-normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0
    levels: tuple[float, float] = (0.0, 1.0)

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        edges = shifted(torch.tensor(self.levels, dtype=torch.float64), 1 / self.shift).clamp(0, 1)
        if self.timesteps == "logit-normal":
            edges = torch.special.ndtr((torch.logit(edges) - self.logit_mean) / self.logit_std)
        share = edges[0] + (edges[1] - edges[0]) * torch.rand(shape[0], generator=generator, dtype=torch.float64)
        if self.timesteps == "logit-normal":
            share = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(share))
        return shifted(share, self.shift).clamp(*self.levels).float()

    def noisy(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        sigma = per_sample(level, clean)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return noise - clean
