"""Every way of saving memory, alone and in pairs, gives every family the loss and the gradients of the plain run.

    python tests/memory/test_exactness.py

prints the largest deviations as a Markdown table.
"""

import copy
import dataclasses
import itertools
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from family_studio import TWIN_NAMES, TWINS, open_studio

from video_lora_studio.loaders.low_bits_linear import LowBitsLinear
from video_lora_studio.loaders.module_weights import Storage
from video_lora_studio.training.adapter import Adapter
from video_lora_studio.training.config import AdapterConfig, RecipeConfig, RunConfig
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import micro_step_loss
from video_lora_studio.training.memory.block_swap import BlockSwap
from video_lora_studio.training.memory.recompute import ActivationOffload, recompute_blocks
from video_lora_studio.training.run import set_up

CPU = torch.device("cpu")
WEIGHTS = ("fp8", "int8", "nf4")
WAYS = ("recompute", "swap", "offload", "keep attention", *WEIGHTS)
PAIRS = [
    pair for pair in itertools.combinations(WAYS, 2)
    if not set(pair) <= set(WEIGHTS) and not ("recompute" in pair and not set(pair) & set(WEIGHTS))
]
CASES = [*((way,) for way in WAYS), *PAIRS, ("swap", "offload", "keep attention", "nf4")]
"""Swap, offload and keep attention are ways of recompute: with it they are no pairs."""


class ByCopy(ActivationOffload):
    """Host memory where the device is the host."""

    def keep(self, tensor):
        away = tensor.clone()
        return away.clone


class Twin:
    """One family's twin, deepened to four different blocks, in each of the forms that its weights are kept in."""

    def __init__(self, twin, folder):
        self.studio = open_studio(twin, folder)
        self.plain = cache(self._plain)
        self._context = cache(self._built)

    def deviations(self, case):
        """How far loss and gradients are from the plain run's, relative to these."""
        (loss, gradient), (plain_loss, plain) = self._run(case), self.plain(weights_of(case))
        return ((loss - plain_loss).abs() / plain_loss).item(), ((gradient - plain).norm() / plain.norm()).item()

    def _plain(self, weights):
        """The numbers of plain layers with what the weights say, without recompute."""
        context, _ = self._context(weights)
        transformer = copy.deepcopy(context.transformer)
        for name, layer in [(name, m) for name, m in transformer.named_modules() if isinstance(m, LowBitsLinear)]:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight, plain.bias = nn.Parameter(layer.numbers(torch.float32)), layer.bias
            transformer.set_submodule(name, plain.requires_grad_(False))
        return numbers(dataclasses.replace(context, transformer=transformer))

    def _run(self, case):
        context, blocks = self._context(weights_of(case))
        swap = BlockSwap(blocks, range(4), CPU) if "swap" in case else None
        if set(case) - set(WEIGHTS):
            recompute_blocks(
                context.transformer, keep_random_state=False, keep_attention="keep attention" in case,
                offload=ByCopy() if "offload" in case else None,
            )
        try:
            return numbers(context)
        finally:
            context.transformer.disable_gradient_checkpointing()
            if swap:
                swap.close()

    def _built(self, weights):
        base, config = self.studio.base, RunConfig(rank=4, recipe=RecipeConfig(first_frame=1.0))
        context = set_up(self.studio.data, base, config, CPU, torch.float32, SilentListener())
        transformer = base.family.load_transformer(
            base, dtype=torch.float32, device=CPU, storage=Storage(weights=weights)
        )
        blocks = base.family.blocks(transformer)
        for block in copy.deepcopy(list(blocks)):
            for tensor in block.parameters():
                tensor.data = tensor.data.roll(1, 0)
            blocks.append(block)
        assert any(isinstance(m, LowBitsLinear) for m in transformer.modules()) == (weights in WEIGHTS)
        adapter = Adapter(
            transformer, base, AdapterConfig(), rank=4, seed="1", streams=context.batches.streams
        )
        with torch.no_grad():
            for index, parameter in enumerate(adapter.parameters()):
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        return dataclasses.replace(context, transformer=transformer), blocks


def weights_of(case):
    return next((way for way in case if way in WEIGHTS), "as stored")


def numbers(context):
    """The mean loss of two accumulated micro-steps and their gradients, flat."""
    trained = [parameter for parameter in context.transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = None
    losses = []
    for position in range(2):
        losses.append(micro_step_loss(context, position))
        losses[-1].backward()
    return torch.stack(losses).mean().detach(), torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


@pytest.fixture(scope="module")
def twin(request, tmp_path_factory):
    return Twin(request.param, tmp_path_factory.mktemp("twin"))


TESTED = {
    ("Wan", "T2V"): CASES, ("LTX-2", "2.3"): [*((way,) for way in WAYS), CASES[-1]], ("Wan", "I2V"): CASES[-1:],
    ("LTX-Video", None): CASES[-1:], ("CogVideoX", "5b"): CASES[-1:],
}
"""The twins of every kind of block, and their cases; of all others the script's table shows all."""


@pytest.mark.parametrize(
    ("twin", "case"),
    [pytest.param(twin, case, id=f"{TWIN_NAMES[TWINS.index(twin)]}: {' + '.join(case)}")
     for twin, cases in TESTED.items() for case in cases],
    indirect=["twin"],
)
def test_loss_and_gradients_are_those_of_the_plain_run(twin, case):
    loss, gradient = twin.deviations(case)
    assert loss <= 1e-6 and gradient <= 1e-6


def main():
    print(f"| twin | {' | '.join(' + '.join(case) for case in CASES)} |\n|{'---|' * (len(CASES) + 1)}")
    for name, each in zip(TWIN_NAMES, TWINS, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            twin = Twin(each, Path(folder))
            print(f"| {name} | {' | '.join(f'{max(twin.deviations(case)):.1g}' for case in CASES)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
