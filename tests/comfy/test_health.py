"""After a failure of a training the server is what it was before: flags, hooks, threads, memory, pictures."""

from __future__ import annotations

import pytest
from comfy_server import ComfyServer
from repeated_runs import forget_run, lora_file, probed, sampled, training_anew, usable_steps

pytestmark = pytest.mark.comfy
NAME = "unhealthy"

FAILURES = {
    "listener": ("a listener that fails", 3),
    "NaN in a clip": ("became nan", None),
    "memory in forward": ("memory", 3),
    "memory in backward": ("memory", 3),
    "memory in the optimizer": ("memory", 0),
}
"""What is said, and how many steps are kept: None where that depends on when the clip has its turn; of a step that was
broken off while it changed the parameters nothing is kept, here there is no resume point but that of the start."""


@pytest.fixture(scope="module")
def healthy(comfy: ComfyServer, clips: str) -> tuple[bytes, dict]:
    """What is sampled and what is probed in a server that has trained once, as things are loaded on first use."""
    first = comfy.queue(training_anew(clips, name=NAME, steps=1))
    assert first.status == "success", first.error
    sampled(comfy)
    return sampled(comfy), probed(comfy)


def test_the_probe_sees_an_engine_at_work_only_while_it_works(healthy: tuple[bytes, dict]):
    _, facts = healthy
    assert facts["inference mode"] and not facts["grad mode"]
    assert facts["modules of the engine"] == facts["optimizers"] == facts["hooks of every module"] == 0
    assert not facts["interrupt"] and facts["loaded models"]


@pytest.mark.parametrize("how", FAILURES)
def test_server_is_as_before_a_failure(comfy: ComfyServer, clips: str, healthy: tuple[bytes, dict], how: str):
    image, facts = healthy
    said, kept = FAILURES[how]
    forget_run(comfy, NAME)
    result = comfy.queue(training_anew(clips, name=NAME, steps=15, how=how))
    assert (result.status, result.error_node) == ("error", "train")
    assert said in result.error, result.error
    after = probed(comfy)
    assert after["loaded models"] == [] and after["modules of the engine"] == after["optimizers"] == 0
    assert sampled(comfy) == image
    assert {name: value for name, value in probed(comfy).items() if value != facts[name]} == {}
    assert kept in (None, usable_steps(comfy, NAME))


def test_the_run_after_a_failure_is_the_one_without_it(comfy: ComfyServer, clips: str, healthy: tuple[bytes, dict]):
    whole, broken = training_anew(clips, name=NAME, steps=12), training_anew(clips, name=NAME, steps=12, how="listener")
    loras = []
    for graphs in ((whole,), (broken, whole)):
        forget_run(comfy, NAME)
        for graph in graphs:
            last = comfy.queue(graph)
            probed(comfy)  # takes the failure out
        assert last.status == "success", last.error
        loras.append(lora_file(comfy, NAME).read_bytes())
    assert "Went on from step 3" in last.text("train_report")
    assert loras[0] == loras[1]
