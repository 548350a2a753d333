"""What turns gradients into steps: the optimizer, its learning rates, and the average of what it made."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import RunConfig
from .ema import Average

Groups = list[dict[str, Any]]

PACKAGES = {"AdamW 8-bit": "bitsandbytes", "Prodigy": "prodigyopt", "schedule-free AdamW": "schedulefree"}
"""What has to be installed for optimizers that PyTorch does not bring."""

FIRST_SAFE_RATE = 0.01
"""Below this factor Prodigy's steps, d * learning rate, would be so small that somebody meant another optimizer's."""


def _adamw(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Loshchilov and Hutter 2019; all parameters in one launch where the device can."""
    on_cuda = groups[0]["params"][0].device.type == "cuda"
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=on_cuda or None)


def _adamw_8bit(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with its two moments in blocks of 8-bit numbers (Dettmers et al. 2022)."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, weight_decay=weight_decay)


def _adafactor(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Shazeer and Stern 2018, its second moments as rows and columns, steps as long as the learning rate says.

    The second epsilon is the least size that a parameter is taken to have: at 1 a step is not made shorter where a
    matrix is small, or B could never leave 0. The first one is small because a LoRA's gradients are: their squares lie
    far below PyTorch's default, 1.2e-7; its square must still be a float32.
    """
    return torch.optim.Adafactor(groups, eps=(1e-18, 1.0), weight_decay=weight_decay)


def _prodigy(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Mishchenko and Defazio 2024, with the two options its authors advise for diffusion models and warm-up."""
    from prodigyopt import Prodigy

    return Prodigy(groups, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True)


def _schedule_free(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Defazio et al. 2024."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(groups, weight_decay=weight_decay)
    optimizer.train()
    return optimizer


MAKERS: Mapping[str, Callable[[Groups, float], torch.optim.Optimizer]] = {
    "AdamW": _adamw,
    "AdamW 8-bit": _adamw_8bit,
    "Adafactor": _adafactor,
    "Prodigy": _prodigy,
    "schedule-free AdamW": _schedule_free,
}


def state_bytes(config: RunConfig) -> float:
    """Bytes that the recipe's optimizer and average keep for each number of the adapter, at most.

    Adafactor keeps a row and a column of float32 for each matrix, of which no side is shorter than the rank; 8-bit
    states have one float32 scale for every 256 numbers.
    """
    kept = {"AdamW 8-bit": 2 * (1 + 4 / 256), "Adafactor": 8 / config.rank, "Prodigy": 16.0}
    return kept.get(config.recipe.optimizer, 8.0) + (4.0 if config.recipe.ema else 0.0)


def check_optimizer(config: RunConfig, device: torch.device) -> None:
    """ValueError where the recipe's optimizer is not installed, does not run on the device, or has settings at odds."""
    recipe = config.recipe
    name = recipe.optimizer
    if name == "Prodigy" and config.learning_rate < FIRST_SAFE_RATE:
        raise ValueError(
            f"Prodigy finds the learning rate by itself and multiplies it by Learning rate, which is "
            f"{config.learning_rate:g}: set Learning rate to 1."
        )
    if name == "Prodigy" and recipe.lora_plus != 1:
        raise ValueError("Prodigy has one learning rate for the whole LoRA: set LoRA+ to 1 or choose AdamW.")
    if name == "schedule-free AdamW" and recipe.schedule != "constant":
        raise ValueError(f"Schedule-free AdamW needs no schedule: set Schedule to constant, not {recipe.schedule}.")
    if name == "schedule-free AdamW" and recipe.ema:
        raise ValueError("Schedule-free AdamW saves an average already: set EMA to 0.")
    if package := PACKAGES.get(name):
        _check_package(name, package, device)


def _check_package(name: str, package: str, device: torch.device) -> None:
    """ValueError unless one step of this optimizer can be made on the device."""
    try:
        importlib.import_module(package)
        trial = nn.Parameter(torch.zeros(64, 64, device=device))
        trial.grad = torch.ones_like(trial)
        MAKERS[name]([{"params": [trial], "lr": 1e-3}], 0.0).step()
    except ImportError as error:
        raise ValueError(
            f"Optimizer {name} needs the package {package}: run `pip install {package}` with the Python that runs "
            "this, or choose AdamW."
        ) from error
    except Exception as error:  # a library's own complaint, whatever its kind, is shown
        raise ValueError(
            f"Optimizer {name} does not run on {device.type} here ({package}: {error}): choose AdamW."
        ) from error


class Stepper:
    """An optimizer over an adapter's parameters, told each step's learning rates, with an average beside it."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: RunConfig):
        self._parameters = list(parameters)
        self._config = config
        recipe = config.recipe
        if recipe.lora_plus == 1:
            groups, self._ratios = [self._parameters], [1.0]
        else:
            groups, self._ratios = [self._parameters[0::2], self._parameters[1::2]], [1.0, recipe.lora_plus]
        self._optimizer = MAKERS[recipe.optimizer](
            [
                {"params": group, "lr": config.learning_rate * ratio}
                for group, ratio in zip(groups, self._ratios, strict=True)
            ],
            recipe.weight_decay,
        )
        self._average = Average(self._parameters, recipe.ema) if recipe.ema else None
        # Schedule-free optimizers train at one point and are judged at another, which this brings in.
        self._average_within = getattr(self._optimizer, "eval", None)

    def step(self, done: int) -> None:
        """One step with the gradients that are there, after `done` steps before it."""
        rate = self._config.learning_rate * learning_rate_factor(done, self._config)
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio
        self._optimizer.step()
        if self._average:
            self._average.update(done + 1)

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Meanwhile the parameters hold what is worth keeping: their average where there is one.

        Afterwards they are what they were, bit for bit. Takes no memory of the device: a run that ended for want of it
        is saved like any other.
        """
        if not self._average and not self._average_within:
            yield
            return
        training = [parameter.detach().to("cpu", copy=True) for parameter in self._parameters]
        try:
            if self._average:
                self._put(self._average.weights)
            else:
                self._average_within()
            yield
        finally:
            if not self._average:
                self._optimizer.train()
            self._put(training)

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float | bool]]:
        """All that the next steps depend on beside the parameters: tensors on the CPU, copied, and plain numbers.

        Names are paths, `state/0/exp_avg`, `groups/0/d`, `average/0`; the tensors can stand in a safetensors file and
        the numbers in JSON.
        """
        saved = self._optimizer.state_dict()
        groups = [{name: value for name, value in group.items() if name != "params"} for group in saved["param_groups"]]
        tensors, numbers = {}, {}
        for path, leaf in _leaves({"state": saved["state"], "groups": dict(enumerate(groups))}):
            if isinstance(leaf, Tensor):
                tensors[path] = leaf.detach().to("cpu", copy=True).contiguous()
            elif isinstance(leaf, (bool, int)) or isinstance(leaf, float) and math.isfinite(leaf):
                numbers[path] = leaf
        for index, weight in enumerate(self._average.weights if self._average else ()):
            tensors[f"average/{index}"] = weight.to("cpu", copy=True)
        return tensors, numbers

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float | bool]) -> None:
        """Go on from what `state` gave for the same recipe and an adapter of the same shapes.

        Raises ValueError where it is another recipe's or another adapter's.
        """
        tree = _grow({**tensors, **numbers})
        state = {int(index): entries for index, entries in tree.get("state", {}).items()}
        averages = [weight for _, weight in sorted(tree.get("average", {}).items(), key=lambda item: int(item[0]))]
        shapes = [weight.shape for weight in self._average.weights] if self._average else []
        groups = tree.get("groups", {})
        if (
            [weight.shape for weight in averages] != shapes
            or groups.keys() != {str(index) for index in range(len(self._ratios))}
            or not state.keys() <= set(range(len(self._parameters)))
        ):
            raise ValueError("The saved state of the optimizer is of another recipe or another adapter.")
        fresh = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict(
            {"state": state, "param_groups": [{**group, **groups[str(i)]} for i, group in enumerate(fresh)]}
        )
        if self._average:
            for weight, average in zip(self._average.weights, averages, strict=True):
                weight.copy_(average)


def build_optimizer(parameters: Iterable[nn.Parameter], config: RunConfig) -> Stepper:
    """The recipe's optimizer over what an adapter trains: each layer's A, then its B, as `Adapter.parameters` has them.

    What `check_optimizer` accepts can be built.
    """
    return Stepper(parameters, config)


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """What the learning rate is multiplied by at `step`, counted from 0: warm-up, then the schedule."""
    warmup = config.recipe.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    match config.recipe.schedule:
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
    return 1.0


def _leaves(tree: Mapping, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dictionaries that is none, with its path."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}/")
        else:
            yield f"{path}{name}", value


def _grow(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with these leaves at their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *branches, name = path.split("/")
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
        place[name] = leaf
    return tree
