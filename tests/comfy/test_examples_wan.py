"""The examples for Wan, opened from ComfyUI's templates, queued with Run and finished, in both renderers.

EXAMPLE_PICTURES=folder keeps pictures of what is seen: `templates`; `training`, half way through the first example,
which is then trained for longer; and of each example `<name>_opened`, `<name>_done`, the whole `<name>_graph`, and the
square `<name>` that the templates show.
"""

from __future__ import annotations

import example_pages as seen
import pytest
from browser import Page
from comfy_server import ComfyServer
from graphs import node, training

pytestmark = pytest.mark.comfy
TRAINED = "my_video_lora"


@pytest.fixture(scope="module")
def with_copies(examples: ComfyServer) -> ComfyServer:
    """The server with a LoRA that a run has left, and the copies it kept."""
    graph = training("input/my_clips", name=TRAINED, steps=4, model_file="wan2.1_t2v_1.3B_bf16.safetensors")
    graph["recipe"] = node("VLSRecipe", save_every=2)
    graph["train"]["inputs"]["recipe"] = ["recipe", 0]
    result = examples.queue(graph)
    assert result.status == "success", result.error
    return examples


@pytest.mark.parametrize(("name", "experts", "size"), [
    ("wan_t2v_lora", ("",), (128, 64)),
    ("wan_i2v_lora", ("",), (128, 64)),
    ("wan22_pair_lora", ("_high_noise", "_low_noise"), (128, 64)),
    ("wan22_ti2v_lora", ("",), (128, 64)),
])
def test_clips_become_a_lora_and_a_video(example_page: Page, examples: ComfyServer, name: str, experts, size):
    seen.train_and_sample(example_page, examples, name, experts=experts, size=size, frames=9)


def test_a_run_goes_on_after_its_first_video(example_page: Page, examples: ComfyServer):
    name = "train_in_chunks"
    seen.open_example(example_page, name)
    lora = seen.new_name(examples, name)
    seen.make_small(example_page, VLSTrain={"name": lora, "steps": 4, "pause_at": 2})
    shown = seen.run(example_page, examples)
    first, last = (shown[seen.number_of(name, kind)]["text"][0] for kind in ("VLSTrain", "VLSContinue"))
    assert "2 steps of 4, paused" in first and "Went on from step 2." in last
    seen.check_loras(examples, first, lora)
    seen.check_loras(examples, last, lora)
    for place in (0, 1):
        seen.check_video(examples, shown[seen.number_of(name, "SaveVideo", place)], size=(128, 64), frames=9)
    seen.check_places(example_page)
    seen.take_portrait(example_page, name)


def test_a_lora_is_compared_and_looked_into(example_page: Page, with_copies: ComfyServer):
    name = "compare_lora"
    example_page.evaluate("app.refreshComboInNodes()")  # as pressing R: the LoRA may be newer than the page
    seen.open_example(example_page, name)
    seen.make_small(example_page)
    shown = seen.run(example_page, with_copies)
    compared = shown[seen.number_of(name, "VLSCompare")]["text"][0]
    assert all(words in compared for words in ("0.5", "keys match")), compared
    inspected = shown[seen.number_of(name, "VLSLoraInfo")]
    assert "40 of 40 keys match" in inspected["text"][0] and inspected["images"]
    seen.check_places(example_page)
    seen.take_portrait(example_page, name)
