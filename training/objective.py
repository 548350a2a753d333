"""Formulas about noise: which level, the noisy sample, what the model should answer, how far off it was.

Shape letters: B batch; streams are (B, ...) of any further shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Timestep shift, sigma' = s * sigma / (1 + (s - 1) * sigma): s > 1 moves levels towards noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """Rectified flow: x = (1 - sigma) * clean + sigma * noise, and the model answers the velocity noise - clean.

    Levels sigma are logit-normal or uniform in 0..1, then shifted (Esser et al. 2024, sec. 3.1 and 5.3.2).
    """

    timesteps: str = "logit-normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` noise levels, (B,) float32 in 0..1."""
        if self.timesteps == "uniform":
            sigma = torch.rand(count, generator=generator, dtype=torch.float64)
        else:
            normal = torch.randn(count, generator=generator, dtype=torch.float64)
            sigma = torch.sigmoid(self.logit_mean + self.logit_std * normal)
        return shifted(sigma, self.shift).float()

    @staticmethod
    def noisy(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The sample at each level: clean and noise (B, ...), level (B,)."""
        sigma = level.view(-1, *[1] * (clean.ndim - 1))
        return (1 - sigma) * clean + sigma * noise

    @staticmethod
    def target(clean: Tensor, noise: Tensor) -> Tensor:
        """What the model should answer."""
        return noise - clean

    @staticmethod
    def loss(answer: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in float32."""
        return torch.nn.functional.mse_loss(answer.float(), target.float())
