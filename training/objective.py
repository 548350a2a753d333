"""Formulas about noise: which level, the noisy sample, what the model should answer, how far off it was.

Shape letters: B batch; streams are (B, ...) of any further shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

TIMESTEPS = 1000


class Objective(Protocol):
    """What a kind of model is trained towards. Levels are noise levels sigma in 0..1, one for each sample."""

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Noise levels (B,) float32 for a stream of this shape."""

    def noisy(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The sample at each level: clean and noise (B, ...), level (B,)."""

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the model should answer, shaped like the stream."""

    def split(self, noisy: Tensor, answer: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The clean sample and the noise that an answer makes of a noisy one: `noisy` of the two gives it again."""

    def schedule(self, steps: int, shift: float) -> Tensor:
        """The levels (steps + 1,) float32 through which a sampler goes, from noise to 0."""


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

    def split(self, noisy: Tensor, answer: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        sigma = per_sample(level, noisy)
        return noisy - sigma * answer, noisy + (1 - sigma) * answer

    def schedule(self, steps: int, shift: float) -> Tensor:
        """Even in whole thousandths before the shift: ComfyUI's scheduler `simple`."""
        even = [1 - int(step * TIMESTEPS / steps) / TIMESTEPS for step in range(steps)]
        return shifted(torch.tensor([*even, 0.0], dtype=torch.float64), shift).float()


@dataclass(frozen=True, kw_only=True)
class ShiftedLogitNormal:
    """Flow matching whose levels grow noisier the more tokens a stream has, as Lightricks' own trainer draws them.

    A logit-normal whose mean rises in a line with the tokens, stretched so that its 0.5 and 99.9 percentiles lie at 0
    and 1, with one draw in ten uniform instead (timestep_samplers.py of that trainer: all constants below).
    """

    tokens: Callable[[torch.Size], int]
    """A stream's shape to how many tokens the transformer makes of each sample."""
    logit_mean: float = 0.0
    """Added to the mean that the tokens ask for."""
    logit_std: float = 1.0

    def mean(self, tokens: int) -> float:
        """Mean of the logit: 0.95 at 1024 tokens, 2.05 at 4096, and on in the same line."""
        return 0.95 + (tokens - 1024) / (4096 - 1024) * (2.05 - 0.95) + self.logit_mean

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        count, least = shape[0], 1e-3
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        uniform, coin = torch.rand(2, count, generator=generator, dtype=torch.float64)
        percentiles = torch.tensor([-2.5758, 3.0902], dtype=torch.float64)
        # 1 - sigma instead of sigma: at many tokens all of them lie so near 1 that their differences would vanish.
        clean = torch.sigmoid(-self.mean(self.tokens(shape)) - self.logit_std * torch.cat([percentiles, normal]))
        most, fewest, clean = clean[0], clean[1], clean[2:]
        level = (most - clean) / (most - fewest)
        level = torch.where(level >= least, level, 2 * least - level).clamp(0, 1)
        return torch.where(coin > 0.1, level, least + (1 - least) * uniform).float()

    noisy = FlowMatching.noisy
    target = FlowMatching.target
    split = FlowMatching.split
    schedule = FlowMatching.schedule


def timestep_of(level: Tensor) -> Tensor:
    """The integer timestep 0..999 that a level t / 1000 stands for."""
    return (level * TIMESTEPS).round().long().clamp(0, TIMESTEPS - 1)


@dataclass(frozen=True, kw_only=True)
class VPrediction:
    """Diffusion in 1000 steps: x = a * clean + b * noise, and the model answers v = a * noise - b * clean.

    a^2 is the share of the signal at a timestep t in 0..999, b^2 = 1 - a^2. A level is t / 1000, and all timesteps are
    as likely as each other. Betas are the squares of even steps from the root of 0.00085 to that of 0.012 (diffusers,
    "scaled_linear"); the signal-to-noise ratio is divided by `snr_shift`, then the last timestep is made pure noise.
    """

    snr_shift: float

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randint(TIMESTEPS, shape[:1], generator=generator) / TIMESTEPS

    def noisy(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        signal, rest = self._amounts(level, clean)
        return signal * clean + rest * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        signal, rest = self._amounts(level, clean)
        return signal * noise - rest * clean

    def split(self, noisy: Tensor, answer: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        signal, rest = self._amounts(level, noisy)
        return signal * noisy - rest * answer, rest * noisy + signal * answer

    def schedule(self, steps: int, shift: float) -> Tensor:
        """Evenly spread timesteps that end at pure noise (diffusers, "trailing"); a shift has no say."""
        even = [round(TIMESTEPS * (1 - step / steps)) - 1 for step in range(steps)]
        return torch.tensor([*even, 0], dtype=torch.float32) / TIMESTEPS

    def _amounts(self, level: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of each sample, in the stream's rank."""
        signal, rest = _signal_and_noise(self.snr_shift).to(level.device)[:, timestep_of(level)]
        return per_sample(signal, stream), per_sample(rest, stream)


@lru_cache
def _signal_and_noise(snr_shift: float) -> Tensor:
    """a and b of every timestep, (2, 1000) float32; a falls to 0 (Lin et al. 2023, algorithm 1)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    share = (1 - betas).cumprod(0)
    signal = (share / (snr_shift + (1 - snr_shift) * share)).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return torch.stack([signal, (1 - signal**2).sqrt()]).float()
