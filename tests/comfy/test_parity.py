"""The engine's model with its trained adapter against ComfyUI's own model with the saved file."""

from __future__ import annotations

import json
from pathlib import Path

import comfy_server
import pytest

pytestmark = pytest.mark.comfy


def test_same_velocity_as_native_model(comfyui_here: Path, tmp_path: Path, record_property):
    from tiny import write_twin

    wan = tmp_path / "tiny_wan.safetensors"
    write_twin(wan)
    script = Path(__file__).with_name("parity_script.py")
    figures = json.loads(comfy_server.run_script(script, comfyui_here, wan, tmp_path, folder=tmp_path).splitlines()[-1])
    print("relative differences:", figures)
    for name, figure in figures.items():
        record_property(name, figure)
    assert figures["changed"] > 0.05, "the LoRA changes nothing: the comparison would prove nothing"
    assert figures["fp32"] <= 1e-4
    assert figures["bf16"] <= 2e-2
