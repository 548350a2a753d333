"""Every optimizer: it learns, its state survives a file bit for bit, and what cannot work is said first."""

import importlib.util
import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.config import RecipeConfig, RunConfig, limits_of
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import RunState, run_steps
from video_lora_studio.training.optimizers import PACKAGES, build_optimizer, check_optimizer, state_bytes
from video_lora_studio.training.run import attach_adapter, set_up

CPU = torch.device("cpu")
OPTIMIZERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None,
            reason=f"{PACKAGES.get(name)} is not installed",
        ),
    )
    for name in limits_of(RecipeConfig, "optimizer").choices
]


def settings(optimizer="AdamW", rate=None, **recipe):
    rate = rate or (1.0 if optimizer == "Prodigy" else 1e-2)
    recipe = {"warmup_steps": 0, "weight_decay": 0.0} | recipe
    return RunConfig(steps=60, rank=64, learning_rate=rate, recipe=RecipeConfig(optimizer=optimizer, **recipe))


class Products:
    """Two small low-rank products that are to become two fixed matrices: a LoRA's A and B without a model."""

    def __init__(self):
        source = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=source)
        self.inputs = [draw(32, 96), draw(32, 96)]
        self.targets = [inputs @ draw(96, 80) * 0.02 for inputs in self.inputs]
        self.parameters = [
            nn.Parameter(draw(64, 96) * 0.1 if name == "A" else torch.zeros(80, 64)) for name in ("A", "B") * 2
        ]

    def loss(self):
        pairs = zip(self.parameters[0::2], self.parameters[1::2], strict=True)
        return sum(
            (inputs @ down.T @ up.T - target).square().mean()
            for (down, up), inputs, target in zip(pairs, self.inputs, self.targets, strict=True)
        )

    def step(self, optimizer, done):
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.loss()
        loss.backward()
        optimizer.step(done)
        return loss.item()

    def weights(self):
        return [parameter.detach().clone() for parameter in self.parameters]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_learns(optimizer):
    problem, config = Products(), settings(optimizer)
    stepper = build_optimizer(problem.parameters, config)
    first, *_, last = [problem.step(stepper, done) for done in range(config.steps)]
    assert last < first / 2


@pytest.mark.parametrize("recipe", [{}, {"ema": 0.9}, {"lora_plus": 4.0}, {"schedule": "cosine", "warmup_steps": 2}])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_six_steps_are_three_a_file_and_three(optimizer, recipe, tmp_path):
    config = settings(optimizer, **recipe)
    try:
        check_optimizer(config, CPU)
    except ValueError:
        pytest.skip("these settings are refused")
    whole = Products()
    stepper = build_optimizer(whole.parameters, config)
    for done in range(6):
        whole.step(stepper, done)

    first = Products()
    stopped = build_optimizer(first.parameters, config)
    for done in range(3):
        first.step(stopped, done)
    tensors, numbers = stopped.state()
    write_tensors(tmp_path / "state.safetensors", tensors, {})
    (tmp_path / "state.json").write_text(json.dumps(numbers, allow_nan=False))
    second = Products()
    for parameter, weight in zip(second.parameters, first.weights(), strict=True):
        parameter.data.copy_(weight)
    resumed = build_optimizer(second.parameters, config)
    resumed.restore(read_tensors(tmp_path / "state.safetensors")[0], json.loads((tmp_path / "state.json").read_text()))
    for done in range(3, 6):
        second.step(resumed, done)

    assert same(whole.weights(), second.weights())
    with stepper.kept_weights(), resumed.kept_weights():
        assert same(whole.weights(), second.weights())
    (tensors, numbers), (other_tensors, other_numbers) = stepper.state(), resumed.state()
    assert tensors.keys() == other_tensors.keys() and numbers == other_numbers
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)


def test_a_state_before_the_first_step_can_be_saved_too():
    for recipe in ({}, {"ema": 0.9}):
        config = settings(**recipe)
        fresh = build_optimizer(Products().parameters, config)
        build_optimizer(Products().parameters, config).restore(*fresh.state())


@pytest.mark.parametrize("other", [{"ema": 0.5}, {"lora_plus": 2.0}])
def test_a_state_of_other_settings_is_refused(other):
    tensors, numbers = build_optimizer(Products().parameters, settings()).state()
    with pytest.raises(ValueError, match="another recipe"):
        build_optimizer(Products().parameters, settings(**other)).restore(tensors, numbers)
    tensors, numbers = build_optimizer(Products().parameters, settings(**other)).state()
    with pytest.raises(ValueError, match="another recipe"):
        build_optimizer(Products().parameters, settings()).restore(tensors, numbers)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_looking_at_what_is_kept_changes_nothing(optimizer):
    plain, looked = Products(), Products()
    config = settings(optimizer)
    steppers = [build_optimizer(problem.parameters, config) for problem in (plain, looked)]
    for done in range(5):
        plain.step(steppers[0], done)
        looked.step(steppers[1], done)
        before = looked.weights()
        with steppers[1].kept_weights():
            assert same(before, looked.weights()) == (optimizer != "schedule-free AdamW" or done == 0)
        assert same(before, looked.weights())
    assert same(plain.weights(), looked.weights())


@pytest.mark.parametrize(
    ("optimizer", "recipe"),
    [*(pytest.param(*each.values, {}, marks=each.marks) for each in OPTIMIZERS), ("AdamW", {"ema": 0.9})],
)
def test_the_state_is_as_large_as_the_plan_takes_it_to_be(optimizer, recipe):
    problem, config = Products(), settings(optimizer, **recipe)
    stepper = build_optimizer(problem.parameters, config)
    problem.step(stepper, 0)
    problem.step(stepper, 1)
    tensors, _ = stepper.state()
    tables = "qmap"  # one small table for all parameters
    held = sum(t.numel() * t.element_size() for name, t in tensors.items() if tables not in name)
    each = held / sum(parameter.numel() for parameter in problem.parameters)
    # Prodigy keeps no copy of what begins at 0; the plan takes the larger figure.
    assert 0.85 * state_bytes(config) <= each <= 1.001 * state_bytes(config)


def test_adafactor_leaves_nought_at_the_learning_rate_and_survives_gradients_of_any_size():
    for size in (1e-10, 1e-4, 1e3):
        up = nn.Parameter(torch.zeros(8, 4))
        down = nn.Parameter(torch.ones(4, 8))
        stepper = build_optimizer([down, up], settings("Adafactor", rate=1e-3))
        up.grad, down.grad = torch.full((8, 4), size), torch.zeros(4, 8)
        stepper.step(0)
        torch.testing.assert_close(up.detach(), torch.full((8, 4), -1e-3), rtol=1e-2, atol=0)
        assert torch.equal(down.detach(), torch.ones(4, 8))


def test_lora_plus_makes_b_learn_faster():
    moved = []
    for ratio in (1.0, 16.0):
        problem = Products()
        start = problem.weights()
        stepper = build_optimizer(problem.parameters, settings(rate=1e-3, lora_plus=ratio))
        for parameter in problem.parameters:
            parameter.grad = torch.ones_like(parameter)
        stepper.step(0)
        moved.append([(a - b).abs().mean().item() for a, b in zip(start, problem.weights(), strict=True)])
    assert moved[1] == pytest.approx([moved[0][0], 16 * moved[0][1]] * 2, rel=1e-3)


def test_the_adapter_hands_out_a_and_b_by_turns(training_set, base):
    context = set_up(training_set, base, RunConfig(rank=4), CPU, torch.float32, SilentListener())
    parameters = list(attach_adapter(context, RunConfig(rank=4)).parameters())
    assert all(down.any() and down.shape[0] == 4 for down in parameters[0::2])
    assert not any(up.any() for up in parameters[1::2]) and all(up.shape[1] == 4 for up in parameters[1::2])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_with_it_learns(training_set, base, optimizer):
    config = RunConfig(
        steps=8, rank=4, learning_rate=1.0 if optimizer == "Prodigy" else 1e-3, recipe=RecipeConfig(optimizer=optimizer)
    )
    context = set_up(training_set, base, config, CPU, torch.float32, SilentListener())
    parameters = list(attach_adapter(context, config).parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    state = RunState()
    run_steps(
        context, config, parameters=parameters, optimizer=build_optimizer(parameters, config), state=state,
        listener=SilentListener(), after_step=lambda state: None,
    )
    assert len(state.losses) == 8
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert not any(torch.equal(one, other) for one, other in zip(start, parameters, strict=True))


@pytest.mark.parametrize(
    ("recipe", "rate", "words"),
    [
        ({"optimizer": "Prodigy"}, 1e-4, "multiplies it by Learning rate, which is 0.0001: set Learning rate to 1"),
        ({"optimizer": "Prodigy", "lora_plus": 2.0}, 1.0, r"set LoRA\+ to 1"),
        ({"optimizer": "schedule-free AdamW", "schedule": "cosine"}, 1e-4, "set Schedule to constant, not cosine"),
        ({"optimizer": "schedule-free AdamW", "ema": 0.9}, 1e-4, "set EMA to 0"),
    ],
)
def test_settings_at_odds_are_refused(recipe, rate, words):
    with pytest.raises(ValueError, match=words):
        check_optimizer(settings(rate=rate, **recipe), CPU)


@pytest.mark.parametrize(("optimizer", "package"), PACKAGES.items())
def test_a_missing_package_is_named_with_its_command(monkeypatch, optimizer, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{optimizer} needs the package {package}: run `pip install {package}`"):
        check_optimizer(settings(optimizer), CPU)


def test_a_package_that_does_not_work_here_is_said(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such backend")

    monkeypatch.setitem(sys.modules, "prodigyopt", SimpleNamespace(Prodigy=broken))
    with pytest.raises(ValueError, match=r"Prodigy does not run on cpu here \(prodigyopt: no such backend\)"):
        check_optimizer(settings("Prodigy"), CPU)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_installed_passes(optimizer):
    check_optimizer(settings(optimizer), CPU)
