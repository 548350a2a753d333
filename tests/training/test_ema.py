"""The running average, and a run that saves it."""

import pytest
import torch
from torch import nn

from video_lora_studio.training.config import RecipeConfig, RunConfig
from video_lora_studio.training.ema import Average
from video_lora_studio.training.optimizers import build_optimizer


def test_the_average_is_the_textbook_one_after_its_start():
    parameter = nn.Parameter(torch.zeros(3))
    average, expected = Average([parameter], 0.9), 0.0
    for steps in range(1, 200):
        with torch.no_grad():
            parameter.fill_(float(steps % 7))
        average.update(steps)
        decay = min(0.9, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * (steps % 7)
        assert average.weights[0].tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_the_start_is_soon_forgotten():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average([parameter], 0.9999)
    with torch.no_grad():
        parameter.fill_(1.0)
    for steps in range(1, 101):
        average.update(steps)
    assert average.weights[0].item() > 0.999


def test_kept_weights_are_the_average_and_training_goes_on_from_its_own():
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2, 2))]
    config = RunConfig(learning_rate=0.1, recipe=RecipeConfig(ema=0.5, warmup_steps=0))
    stepper = build_optimizer(parameters, config)
    average = Average(parameters, 0.5)
    for done in range(4):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, done - 1.5)
        stepper.step(done)
        average.update(done + 1)
        trained = [parameter.detach().clone() for parameter in parameters]
        with stepper.kept_weights():
            for parameter, weight, own in zip(parameters, average.weights, trained, strict=True):
                assert torch.equal(parameter, weight) and not torch.equal(parameter, own)
        assert all(torch.equal(parameter, own) for parameter, own in zip(parameters, trained, strict=True))


def test_an_error_while_saving_leaves_the_training_weights():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))]
    stepper = build_optimizer(parameters, RunConfig(recipe=RecipeConfig(ema=0.5)))
    with torch.no_grad():
        parameters[0].fill_(5.0)
    with pytest.raises(OSError), stepper.kept_weights():
        assert parameters[0].tolist() == [1.0, 1.0]
        raise OSError("disk full")
    assert parameters[0].tolist() == [5.0, 5.0]
