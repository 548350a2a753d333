"""A running average of what is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Exponential moving average of some parameters, in their dtype and on their device.

    The decay after n steps is the least of `decay` and (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage with `num_updates`: the start, which says nothing yet, is soon forgotten.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self._parameters = list(parameters)
        self._decay = decay
        self.weights = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the parameters as they are after `steps` steps, counted from 1."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay)(self.weights, [parameter.detach() for parameter in self._parameters], steps)
