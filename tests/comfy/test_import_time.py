"""What the pack costs when ComfyUI starts, by ComfyUI's own log."""

from __future__ import annotations

import pytest
from comfy_server import ComfyServer

pytestmark = pytest.mark.comfy
IDS = ("VLSLoadClips", "VLSBaseModel", "VLSPrepare", "VLSAdapter", "VLSRecipe", "VLSMemory", "VLSTrain", "VLSStack")


def test_import_takes_at_most_300_ms(comfy: ComfyServer):
    seconds = comfy.import_seconds("video_lora_studio")
    assert seconds, f"the pack was not imported:\n{comfy.log()[-3000:]}"
    print("import times:", seconds)
    assert max(seconds) <= 0.3


@pytest.mark.parametrize("node", IDS)
def test_every_input_and_output_has_a_tooltip(comfy: ComfyServer, node: str):
    info = comfy.object_info(node)
    assert info["category"].startswith("Video LoRA")
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    for name, (_, *options) in inputs.items():
        assert options and options[0].get("tooltip"), f"{node}.{name} has no tooltip"
    assert all(info["output_tooltips"]), f"{node} has an output without a tooltip"
