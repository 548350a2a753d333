"""Cancel while training: obeyed at once, what was learnt is kept, and the queue goes on."""

from __future__ import annotations

import re
import time

import pytest
from comfy_server import ComfyServer
from graphs import natively, training
from safetensors import safe_open

pytestmark = pytest.mark.comfy


def test_cancel_keeps_a_usable_lora(comfy: ComfyServer, clips: str):
    asked: list[float] = []
    said_before = len(comfy.log())

    def cancel_in_training(message: dict) -> None:
        text = message["data"]["text"] if message["type"] == "progress_text" else ""
        step = re.match(r"Training (\d+) of", text)
        if step and int(step[1]) >= 3 and not asked:
            asked.append(time.monotonic())
            comfy.interrupt()

    result = comfy.queue(training(clips, name="cancelled", steps=5000), on_message=cancel_in_training)
    waited = time.monotonic() - asked[0]
    assert (result.status, result.error_node) == ("interrupted", "train")
    print(f"cancel obeyed after {waited:.2f} s")
    assert waited < 5

    file = comfy.models / "loras" / "cancelled.safetensors"
    with safe_open(file, framework="pt") as lora:
        names = list(lora.keys())
        assert any(lora.get_tensor(name).any() for name in names if ".lora_B." in name)
    after = comfy.queue(natively([("cancelled.safetensors", 1.0)], name="after_cancel"))
    assert after.status == "success", after.error
    assert "lora key not loaded" not in comfy.log()[said_before:]
