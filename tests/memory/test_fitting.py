"""A run that runs out of memory goes on from the same step with the next level, and gives the same LoRA."""

import pytest
import torch
from family_studio import TWINS, open_studio

from video_lora_studio.training.config import MemoryConfig, RecipeConfig, RunConfig
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.run import attach_adapter, dry_run, fit, plan_memory, set_up, train
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")
FAILS_AT = 4
"""The pass at which memory begins to run out: the plan makes the first, on shapes alone, the third step this one."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return open_studio(TWINS[0], tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def plain(studio, tmp_path_factory):
    """A run with memory enough, and its folder."""
    folder = tmp_path_factory.mktemp("plain")
    return trained(studio, folder, settings()), folder


def assert_same(result, plain):
    assert result.losses == plain[0].losses
    assert all(torch.equal(result.loras[0][name], tensor) for name, tensor in plain[0].loras[0].items())


def settings(**memory):
    return RunConfig(
        name="fitted", steps=4, rank=4, recipe=RecipeConfig(warmup_steps=0), memory=MemoryConfig(**memory)
    )


def trained(studio, folder, config):
    places = Places(lora_folder=folder / "loras", run_folder=folder / "run")
    return train(studio.data, studio.base, config, places=places, device=CPU)


class Passage(torch.autograd.Function):
    """Lets a tensor and its gradient through, and tells of both."""

    @staticmethod
    def forward(ctx, tensor, passed):
        ctx.passed = passed
        passed("forward")
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.passed("backward")
        return gradient, None


def run_out(monkeypatch, studio, where, times):
    """Have the model's pass `where` run out of memory `times` times, from the third step on."""
    family, count = type(studio.base.family), {"forward": 0, "failed": 0}
    predict = family.predict

    def passed(place):
        count["forward"] += place == "forward"
        if place == where and count["forward"] >= FAILS_AT and count["failed"] < times:
            count["failed"] += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    def watched(self, *given):
        return {name: Passage.apply(stream, passed) for name, stream in predict(self, *given).items()}

    monkeypatch.setattr(family, "predict", watched)
    return count


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("times", "said"), [
    (1, ["recompute, attention kept."]),
    (3, ["recompute, attention kept.", "recompute.", "recompute, activations wait in host memory."]),
])
def test_the_same_step_is_tried_again_with_the_next_level(studio, plain, tmp_path, monkeypatch, where, times, said):
    count = run_out(monkeypatch, studio, where, times)
    result = trained(studio, tmp_path, settings())
    assert count["failed"] == times
    assert_same(result, plain)
    for words in said:
        assert f"Memory ran out; from there on: {words}" in result.report


def test_where_nothing_is_left_the_lora_so_far_is_kept(studio, tmp_path, monkeypatch):
    run_out(monkeypatch, studio, "backward", times=100)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        trained(studio, tmp_path, settings())
    assert (tmp_path / "loras" / "fitted.safetensors").is_file()


def test_other_errors_are_not_tried_again(studio, tmp_path, monkeypatch):
    def broken(*given):
        raise RuntimeError("something else")

    monkeypatch.setattr(type(studio.base.family), "predict", broken)
    with pytest.raises(RuntimeError, match="something else"):
        trained(studio, tmp_path, settings())


@pytest.mark.parametrize("memory", [
    {"level": "24 GB"},
    {"level": "by hand", "recompute": False},
    {"level": "by hand", "blocks_to_swap": 2, "offload_activations": True, "keep_attention": True},
    {"level": "by hand", "weights": "full"},
], ids=str)
def test_exact_levels_give_the_same_lora(studio, plain, tmp_path, memory):
    result = trained(studio, tmp_path, settings(**memory))
    assert_same(result, plain)
    assert "Memory: " in result.report


@pytest.mark.parametrize("weights", ["fp8", "int8", "nf4"])
def test_fewer_bits_are_another_run(studio, plain, weights):
    result, folder = plain
    other = trained(studio, folder, settings(level="by hand", weights=weights))
    assert not other.reused and other.losses != result.losses
    assert other.losses == pytest.approx(result.losses, rel=0.2)


@pytest.mark.parametrize("needy", [{"blocks_to_swap": 3}, {"offload_activations": True}, {"keep_attention": True}],
                         ids=str)
def test_what_needs_recompute_is_refused_without_where_it_is_set(needy):
    with pytest.raises(ValueError, match="switch Recompute on"):
        settings(level="by hand", recompute=False, **needy)


def test_more_blocks_than_there_are(studio, tmp_path):
    with pytest.raises(ValueError, match="Blocks to swap is 9; the model has 2 blocks"):
        trained(studio, tmp_path, settings(level="by hand", blocks_to_swap=9))


def test_the_dry_run_measures_the_largest_batch_and_leaves_nothing(studio):
    config = settings()
    plan = plan_memory(studio.data, studio.base, config, CPU, torch.float32)
    assert plan.level == Level()
    context = set_up(studio.data, studio.base, config, CPU, torch.float32, SilentListener())
    adapter = attach_adapter(context, config)
    fitting = fit(context, config, Level())
    before = torch.random.get_rng_state()
    corrected = dry_run(context, adapter, fitting, plan)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in adapter.parameters())
    assert corrected.chosen.device == pytest.approx(plan.chosen.device, rel=0.1)


def test_the_plan_of_a_run_that_goes_on_keeps_its_weights(studio):
    plan = plan_memory(studio.data, studio.base, settings(), CPU, torch.float32, weights="nf4")
    assert plan.level == Level(weights="nf4")
