"""Compiled blocks give the numbers of plain ones, with everything else that saves memory; failing is not the end."""

import pytest
import torch
from family_studio import TWINS, open_studio

from video_lora_studio.training.config import MemoryConfig, RecipeConfig, RunConfig
from video_lora_studio.training.memory import compiled
from video_lora_studio.training.memory.compiled import failed_to_compile
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.memory.out_of_memory import next_level
from video_lora_studio.training.memory.plan import describe
from video_lora_studio.training.run import plan_memory, train
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return open_studio(TWINS[0], tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def plain(studio, tmp_path_factory):
    return trained(studio, tmp_path_factory.mktemp("plain"), compile=False)


@pytest.fixture
def graphs(monkeypatch):
    """What was compiled: no compiler is needed for graphs that run operation by operation."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", backend)
    yield seen
    torch._dynamo.reset()


def settings(**memory):
    return RunConfig(name="fitted", steps=2, rank=4, recipe=RecipeConfig(warmup_steps=0), memory=MemoryConfig(**memory))


def trained(studio, folder, **memory):
    places = Places(lora_folder=folder / "loras", run_folder=folder / "run")
    return train(studio.data, studio.base, settings(**memory), places=places, device=CPU)


def test_numbers_are_those_of_plain_blocks(studio, plain, graphs, tmp_path):
    everything = {"level": "by hand", "blocks_to_swap": 2, "offload_activations": True, "weights": "full"}
    result = trained(studio, tmp_path, compile=True, **everything)
    assert graphs and "blocks compiled" in result.report and "does not work" not in result.report
    assert result.losses == pytest.approx(plain.losses, rel=1e-6)
    for name, tensor in plain.loras[0].items():
        torch.testing.assert_close(result.loras[0][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_where_nothing_can_be_compiled(studio, plain, monkeypatch, tmp_path):
    def broken(graph, inputs):
        raise RuntimeError("Cannot find a working Triton installation.")

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", broken)
    result = trained(studio, tmp_path, compile=True)
    assert result.losses == plain.losses
    assert "Compile does not work here (" in result.report and "Triton" in result.report


def test_only_compiling_counts_as_failed_to_compile(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)

    def broken(graph, inputs):
        raise OSError("no compiler")

    with pytest.raises(RuntimeError) as caught:
        torch.compile(lambda x: x + 1, backend=broken)(torch.zeros(1))
    assert failed_to_compile(caught.value)
    assert not failed_to_compile(RuntimeError("no compiler")) and not failed_to_compile(torch.OutOfMemoryError())


def test_levels_of_compiled_blocks_never_keep_attention(studio):
    plan = plan_memory(studio.data, studio.base, settings(compile=True), CPU, torch.float32)
    assert plan.level == Level(compiled=True) and describe(plan.level, 2) == "blocks compiled"
    assert next_level(plan.level, 2) == Level(compiled=True, recompute=True)
    with pytest.raises(ValueError, match="switch Keep attention or Compile off"):
        settings(level="by hand", keep_attention=True, compile=True)
