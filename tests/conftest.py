"""What every test may use: the files beside this one are importable by their plain names."""

import gc
import sys
from pathlib import Path

import pytest
import torch

# The models here are so small that threads would mostly wait for each other.
torch.set_num_threads(1)

TESTS = Path(__file__).parent

for folder in (TESTS, TESTS / "comfy"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture(scope="session")
def plans():
    """Plans by what they were made for, shared by tests: planning takes longer than a small run."""
    gc.collect()
    gc.freeze()  # every run collects at its end, which takes longest over what imports have made
    return {}


@pytest.fixture(autouse=True)
def planned_once(request, monkeypatch, plans):
    """Memory is planned once for each model and kind of run, but in the tests of planning itself."""
    if "memory" in request.path.parts or "comfy" in request.path.parts or "nodes" in request.path.parts:
        return
    from video_lora_studio.training import run

    plan = run.plan_memory

    def plan_memory(training_set, base, config, device, compute, weights=None):
        made_for = base.path, training_set.data_hash, config.rank, config.memory, config.recipe, str(compute), weights
        if made_for not in plans:
            plans[made_for] = plan(training_set, base, config, device, compute, weights)
        return plans[made_for]

    monkeypatch.setattr(run, "plan_memory", plan_memory)
