"""The step's mathematics."""

import dataclasses

import pytest
import torch

from video_lora_studio.training.batches import Batches
from video_lora_studio.training.config import RecipeConfig, RunConfig
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import micro_step_loss
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.optimizers import learning_rate_factor
from video_lora_studio.training.run import attach_adapter, fit, set_up

CPU = torch.device("cpu")


def attached(training_set, base, **more):
    config = RunConfig(rank=4, **more)
    context = set_up(training_set, base, config, CPU, torch.float32, SilentListener())
    return context, attach_adapter(context, config)


def perturb(adapter):
    """Give the adapter an effect, so that its gradients say something."""
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))


def test_a_fresh_adapter_changes_nothing(training_set, base):
    context = set_up(training_set, base, RunConfig(), CPU, torch.float32, SilentListener())
    with torch.no_grad():
        bare = micro_step_loss(context, 0)
        attach_adapter(context, RunConfig())
        assert torch.equal(micro_step_loss(context, 0), bare)


def test_only_the_adapter_gets_gradients(training_set, base):
    context, adapter = attached(training_set, base)
    micro_step_loss(context, 0).backward()
    trained = {id(parameter) for parameter in adapter.parameters()}
    for name, parameter in context.transformer.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert parameter.requires_grad == (id(parameter) in trained), name
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())


def test_recompute_gives_the_same_loss_and_gradients(training_set, base):
    found = []
    for recompute in (True, False):
        context, adapter = attached(training_set, base)
        fit(context, RunConfig(rank=4), Level(recompute=recompute))
        perturb(adapter)
        loss = micro_step_loss(context, 0)
        loss.backward()
        found.append((loss.detach(), [parameter.grad for parameter in adapter.parameters()]))
    (loss, gradients), (plain_loss, plain_gradients) = found
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-7)


def test_gradients_agree_with_finite_differences(training_set, base):
    context, adapter = attached(training_set, base)
    perturb(adapter)
    parameters = list(adapter.parameters())
    micro_step_loss(context, 0).backward()
    directions = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(parameters)]
    slope = sum((p.grad.double() * d.double()).sum() for p, d in zip(parameters, directions, strict=True)).item()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * 1e-3 * direction
            losses.append(micro_step_loss(context, 0).double().item())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= sign * 1e-3 * direction
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_one_clip_with_fixed_noise_is_learnt(make_set, base):
    context, adapter = attached(make_set(1), base)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = micro_step_loss(context, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, f"{losses[0]:.4f} to {losses[-1]:.4f}"


def test_every_epoch_shows_every_sample_once_and_no_batch_mixes_shapes(training_set, make_set, base):
    shapes = (("video", (16, 5, 8, 8)),)
    longer = [dataclasses.replace(s, name=f"long {s.name}", shapes=shapes) for s in training_set.samples]
    mixed = dataclasses.replace(training_set, samples=(*training_set.samples, *longer))
    batches = Batches(mixed, base, RecipeConfig(batch_size=2), seed="3")
    assert len(batches) == 4
    orders = []
    for epoch in range(3):
        shown = [batches.samples(epoch * 4 + place) for place in range(4)]
        assert all(len({sample.shapes for sample in batch}) == 1 for batch in shown)
        assert sorted(s.name for batch in shown for s in batch) == sorted(s.name for s in mixed.samples)
        orders.append([sample.name for batch in shown for sample in batch])
    assert orders[0] != orders[1] or orders[1] != orders[2]
    fresh = Batches(mixed, base, RecipeConfig(batch_size=2), seed="3")
    assert [s.name for s in fresh.samples(9)] == [s.name for s in batches.samples(9)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]), ("constant", 2, [0.5, 1, 1, 1]), ("constant", 100, [0.01, 0.02, 0.03, 0.04]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]), ("linear", 2, [0.5, 1, 1, 0.5]), ("cosine", 0, [1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_schedules(schedule, warmup, expected):
    config = RunConfig(steps=4, recipe=RecipeConfig(schedule=schedule, warmup_steps=warmup))
    assert [learning_rate_factor(step, config) for step in range(4)] == pytest.approx(expected, abs=1e-4)


def test_accumulating_is_the_mean_over_its_micro_steps(training_set, base):
    context, adapter = attached(training_set, base)
    perturb(adapter)
    single = []
    for position in (0, 1):
        micro_step_loss(context, position).backward()
        single.append([parameter.grad.clone() for parameter in adapter.parameters()])
        for parameter in adapter.parameters():
            parameter.grad = None
    for position in (0, 1):
        (micro_step_loss(context, position) / 2).backward()
    for parameter, *each in zip(adapter.parameters(), *single, strict=True):
        torch.testing.assert_close(parameter.grad, sum(each) / 2, rtol=1e-5, atol=1e-8)
