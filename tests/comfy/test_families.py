"""Every family in a real ComfyUI: from clips to a LoRA that is stacked on the model and changes what is sampled."""

from __future__ import annotations

import re

import family_graphs
import pytest
import torch
from comfy_server import ComfyServer, Result
from repeated_runs import run_folder
from safetensors import safe_open
from safetensors.torch import load_file
from server_parts import put_clips, put_sounding_clips, write_family_parts

from video_lora_studio.loaders.video_file import probe, read_sound

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def families(comfy: ComfyServer) -> ComfyServer:
    """The server with tiny models of every family, two silent clips in input/few, and three with sound in
    input/sounding.
    """
    write_family_parts(comfy)
    put_clips(comfy, "few", count=2)
    put_sounding_clips(comfy, "sounding")
    return comfy


def run(server: ComfyServer, graph: dict) -> Result:
    result = server.queue(graph)
    assert result.status == "success", f"{result.error_node}: {result.error}\n{server.log()[-3000:]}"
    print(f"{result.seconds:.1f} s\n{result.text('prepare_report')}\n{result.text('train_report')}\n"
          f"{result.text('stack_report')}")
    return result


def keys_of(server: ComfyServer, name: str) -> set[str]:
    with safe_open(server.models / "loras" / f"{name}.safetensors", framework="pt") as lora:
        return set(lora.keys())


def check_all_keys_match(server: ComfyServer, result: Result, *names: str) -> None:
    """Every key of every file, by the run's own check and by the stack's."""
    for name in names:
        total = len(keys_of(server, name))
        assert total > 0
        assert f"{name}.safetensors loaded back through ComfyUI: {total} of {total} keys match" in result.text(
            "train_report")
        assert f"{total} of {total} keys match" in result.text("stack_report")


def check_previews(server: ComfyServer, name: str, *ends: str, frames: int = 9, sound: bool = False) -> None:
    """Two clips of each part that was trained, with so many frames, and with sound or without."""
    folder = run_folder(server, name) / "previews"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{end}-1.mp4" for end in ends)
    for path in folder.iterdir():
        footage = probe(path)
        assert len(footage.times) == frames and footage.has_audio is sound, path.name
        if sound:
            heard = read_sound(footage, 0, footage.seconds, 16000)
            assert heard.shape[1] >= 0.9 * 16000 * frames / footage.fps and heard.abs().max() > 0


def difference(server: ComfyServer, one: str, other: str) -> float:
    """Relative difference of two sampled latents."""
    first, second = (load_file(server.output / f"{name}.safetensors")["samples"].double() for name in (one, other))
    assert torch.isfinite(first).all() and torch.isfinite(second).all()
    return ((first - second).norm() / second.norm()).item()


@pytest.mark.parametrize(("name", "graph"), [
    ("wan_i2v", family_graphs.wan_i2v),
    ("wan_ti2v", family_graphs.wan_22_ti2v),
    ("ltxv", family_graphs.ltx_video),
    ("cogvideox_2b", family_graphs.cogvideox),
])
def test_from_clips_to_a_lora_that_changes_what_is_sampled(families: ComfyServer, name: str, graph):
    result = run(families, graph("input/few", name))
    check_all_keys_match(families, result, name)
    check_previews(families, name, "step-000000", "step-000003")
    assert difference(families, f"lora_{name}", f"bare_{name}") > 1e-3


def test_two_experts_give_two_loras_and_each_goes_on_its_own_model(families: ComfyServer):
    result = run(families, family_graphs.wan_22_pair("input/few", "pair"))
    check_all_keys_match(families, result, "pair_high_noise", "pair_low_noise")
    experts = ("high_noise", "low_noise")
    check_previews(families, "pair", *(f"{expert}-step-00000{step}" for expert in experts for step in (0, 3)))
    assert re.search(r"pair_high_noise\.safetensors: .*; low noise: pair_low_noise\.safetensors, ",
                     result.text("stack_report"))
    high, low = (load_file(families.models / "loras" / f"pair_{which}_noise.safetensors") for which in ("high", "low"))
    assert any(not torch.equal(high[key], low[key]) for key in high)
    assert difference(families, "high_only_pair", "bare_pair") > 1e-3
    assert difference(families, "lora_pair", "high_only_pair") > 1e-3


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_picture_and_sound_with_a_silent_clip_among_them(families: ComfyServer, version: str):
    name = f"ltx_{version}"
    result = run(families, family_graphs.ltx_2("input/sounding", name, version=version))
    check_all_keys_match(families, result, name)
    check_previews(families, name, "step-000000", "step-000003", frames=17, sound=True)
    lines = [line for line in result.text("prepare_report").splitlines() if line.startswith("clip_")]
    assert ["no sound" in line for line in lines] == [False, False, True], lines
    assert any(".audio_attn1." in key for key in keys_of(families, name))
    assert any(".audio_to_video_attn." in key for key in keys_of(families, name))
    for sound in ("", "_sound"):
        assert difference(families, f"lora_{name}{sound}", f"bare_{name}{sound}") > 1e-3
