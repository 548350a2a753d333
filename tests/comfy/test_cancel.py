"""Cancel while training: obeyed at once, what was learnt is kept, the server is as before, and the run goes on."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from comfy_server import ComfyServer
from repeated_runs import Moment, cancel, cancel_and_go_on, forget_run, lora_file, probed, sampled, training_anew

pytestmark = pytest.mark.comfy
NAME, STEPS = "cancelled", 40
DRAWN = random.Random(6)
MOMENTS = {
    "while it is set up": Moment(step=0, seconds=0),
    "early": Moment(step=DRAWN.randint(2, 10), seconds=DRAWN.uniform(0, 0.3)),
    "late": Moment(step=DRAWN.randint(11, 30), seconds=DRAWN.uniform(0, 0.3)),
}


@dataclass(frozen=True, kw_only=True)
class Uninterrupted:
    graph: dict
    lora: bytes
    image: bytes
    """What the model gives without a LoRA."""


@pytest.fixture(scope="module")
def whole(comfy: ComfyServer, clips: str) -> Uninterrupted:
    image = sampled(comfy)
    forget_run(comfy, NAME)
    graph = training_anew(clips, name=NAME, steps=STEPS)
    result = comfy.queue(graph)
    assert result.status == "success", result.error
    return Uninterrupted(graph=graph, lora=lora_file(comfy, NAME).read_bytes(), image=image)


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_cancelled_run_leaves_a_usable_lora_and_goes_on(comfy: ComfyServer, whole: Uninterrupted, moment: Moment):
    cancelled = cancel_and_go_on(comfy, whole.graph, moment, name=NAME, image=whole.image)
    print(f"asked at {cancelled.at!r}, obeyed in {cancelled.latency:.2f} s, {cancelled.kept} of {STEPS} steps kept")
    assert cancelled.latency < 15  # seconds; the machine may be busy
    assert moment.step <= cancelled.kept < STEPS
    assert lora_file(comfy, NAME).read_bytes() == whole.lora


def test_cancel_is_obeyed_while_a_large_model_is_loaded(comfy: ComfyServer, whole: Uninterrupted, clips: str):
    forget_run(comfy, NAME)
    graph = training_anew(clips, name=NAME, steps=STEPS, how="slow disk")  # half a second for each of over 50 tensors
    cancelled = cancel(comfy, graph, Moment(step=0, seconds=6), name=NAME)
    probed(comfy)  # takes the slow disk out
    assert (cancelled.result.status, cancelled.kept) == ("interrupted", 0)
    assert any(line.startswith("train: Loading") for line in cancelled.result.lines)
    assert not any(line.startswith("train: Training") for line in cancelled.result.lines)
    assert cancelled.latency < 15
