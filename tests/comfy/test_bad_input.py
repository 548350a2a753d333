"""What cannot be gets one clear sentence through the queue, before anything heavy, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from comfy_server import ComfyServer, Result
from graphs import Graph, only, preparing, training
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def bad(comfy: ComfyServer) -> ComfyServer:
    """The server, with unusable clips and model files in its folders."""
    from footage import cut_off, write_sound, write_video
    from nasty_files import scene

    folder = comfy.input
    for name in ("empty", "broken", "mixed", "short", "uncaptioned", "few_captions"):
        (folder / name).mkdir()
    whole = write_video(folder / "mixed" / "whole.mp4", frames=30)
    (folder / "mixed" / "whole.txt").write_text("a whole clip", encoding="utf-8")
    for place in ("broken", "mixed"):
        cut_off(whole, folder / place / "truncated.mp4", 0.4)
        (folder / place / "nothing.mp4").write_bytes(b"")
        (folder / place / "notes.mp4").write_text("these are notes, not a video", encoding="utf-8")
        write_sound(folder / place / "sound.mp4")
    write_video(folder / "short" / "blink.mp4", frames=2)
    (folder / "short" / "blink.txt").write_text("a blink", encoding="utf-8")
    for place in ("uncaptioned", "few_captions"):
        write_video(folder / place / "bare.mp4", frames=30, draw=scene(1))
        write_video(folder / place / "blank.mp4", frames=30, draw=scene(2))
        (folder / place / "blank.txt").write_text("  \n", encoding="utf-8")
    shutil.copy(whole, folder / "few_captions" / "told.mp4")
    (folder / "few_captions" / "told.txt").write_text("a told clip", encoding="utf-8")
    write_bad_models(comfy.models)
    return comfy


def write_bad_models(models: Path) -> None:
    folder = models / "diffusion_models"
    wan = load_file(folder / "tiny_wan.safetensors")
    shutil.copy(models / "vae" / "tiny_wan_vae.safetensors", folder / "a_vae.safetensors")
    module = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{module}.lora_A.weight": torch.zeros(4, 128), f"{module}.lora_B.weight": torch.zeros(128, 4)},
              folder / "a_lora.safetensors")
    whole = (folder / "tiny_wan.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "a_pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(2000))
    (folder / "a_page.safetensors").write_text("<!DOCTYPE html><html>not found</html>" * 50, encoding="utf-8")
    (folder / "odd.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + bytes(100))
    missing = {name: value for name, value in wan.items() if "blocks.1.self_attn.k" not in name}
    save_file(missing, folder / "incomplete.safetensors")
    spoilt = {**wan, "head.head.weight": torch.full_like(wan["head.head.weight"], float("nan"))}
    save_file(spoilt, folder / "gives_nan.safetensors")


def refused(server: ComfyServer, graph: Graph, *, encodes: int = 0) -> Result:
    """Queue what must fail; the result, after checking that it failed in words for people and cost nothing."""
    before, loras = server.counts(), sorted((server.models / "loras").iterdir())
    result = server.queue(only(graph, "train" if "train" in graph else "prepare_report"))
    assert result.status in ("error", "refused"), f"it was accepted: {result.outputs}"
    after = server.counts()
    assert after["vae"] - before["vae"] <= encodes, f"clips were encoded before it was refused: {result.error}"
    assert sorted((server.models / "loras").iterdir()) == loras
    print(f"\n[{result.status} {result.error_node}] {result.error}")
    for raw in ("Traceback", "KeyError", "AttributeError", "NoneType", "Errno", "<class"):
        assert raw not in result.error
    assert len(result.error) < 700
    of_comfyui = re.search(r"Value \S+ (smaller|bigger) than (min|max)", result.error)
    assert of_comfyui or result.error.endswith(".")
    return result


@pytest.mark.parametrize(("folder", "words"), [
    ("input/empty", ("empty",)),
    ("input/broken", ("truncated.mp4", "nothing.mp4", "notes.mp4", "sound.mp4")),
    ("input/uncaptioned", ("caption", "trigger")),
    ("input/no_such_folder", ("no_such_folder",)),
    ("../../outside", ("..",)),
    ("input/../../etc", ("..",)),
    ("/etc", ("/etc",)),
    ("C:\\clips", ("C:",)),
    ("", ("Folder",)),
], ids=lambda value: str(value) if isinstance(value, str) else "")
def test_folders(bad: ComfyServer, folder: str, words):
    result = refused(bad, preparing(folder))
    assert all(word.lower() in result.error.lower() for word in words), result.error


def test_unusable_clips_are_named_and_the_rest_is_used(bad: ComfyServer):
    result = bad.queue(preparing("input/mixed"))
    assert result.status == "success", result.error
    lines = {line.split(":")[0]: line for line in result.text("clips_report").splitlines()}
    for name in ("truncated.mp4", "nothing.mp4", "notes.mp4", "sound.mp4"):
        assert "left out, " in lines[name] and len(lines[name]) > len(name) + 15
        assert name in result.text("prepare_report")
    assert "left out" not in lines["whole.mp4"]


def test_clips_without_captions_are_named(bad: ComfyServer):
    result = bad.queue(preparing("input/few_captions"))
    assert result.status == "success", result.error
    report = result.text("clips_report")
    assert "no caption" in report and "blank.txt is empty" in report


def test_clip_with_too_few_frames(bad: ComfyServer):
    result = refused(bad, preparing("input/short"))
    assert "blink.mp4" in result.error and "too short" in result.error


@pytest.mark.parametrize(("size", "words"), [
    ({"width": 70}, ("Width 70", "multiple of 16", "64")),
    ({"height": 72}, ("Height 72", "multiple of 16")),
    ({"frames": 12}, ("Frames 12", "9 or 13")),
    ({"width": -16}, ("width",)),
], ids=["width", "height", "frames", "negative"])
def test_sizes(bad: ComfyServer, clips: str, size, words):
    result = refused(bad, preparing(clips, **size))
    assert all(word.lower() in result.error.lower() for word in words), result.error


@pytest.mark.parametrize(("file", "words"), [
    ("a_vae.safetensors", ("a_vae.safetensors", "VAE")),
    ("a_lora.safetensors", ("a_lora.safetensors", "LoRA")),
    ("half.safetensors", ("half.safetensors", "incomplete", "MB")),
    ("a_pickle.safetensors", ("a_pickle.safetensors", "pickle")),
    ("a_page.safetensors", ("a_page.safetensors",)),
    ("odd.safetensors", ("odd.safetensors",)),
    ("gone.safetensors", ("gone.safetensors",)),
], ids=lambda value: value if isinstance(value, str) else "")
def test_model_files(bad: ComfyServer, clips: str, file: str, words):
    result = refused(bad, preparing(clips, model_file=file))
    assert "vae" not in result.executed, "the VAE was loaded first"
    assert all(word in result.error for word in words), result.error


def test_model_file_with_missing_layers(bad: ComfyServer, clips: str):
    result = refused(bad, training(clips, name="incomplete", model_file="incomplete.safetensors"), encodes=6)
    assert "incomplete.safetensors" in result.error and "blocks.1.self_attn.k" in result.error


@pytest.mark.parametrize(("parts", "words"), [
    ({"vae_name": "pixel_space"}, ("VAE", "16")),
    ({"text_width": 768}, ("768", "4096")),
], ids=["vae", "clip"])
def test_encoders_of_another_model(bad: ComfyServer, clips: str, parts, words):
    result = refused(bad, preparing(clips, **parts))
    assert all(word in result.error for word in words), result.error


@pytest.mark.parametrize(("settings", "words"), [
    ({"steps": 0}, ("steps",)),
    ({"rank": -4}, ("rank",)),
    ({"learning_rate": float("nan")}, ("learning rate", "nan")),
    ({"learning_rate": -1.0}, ("learning rate",)),
    ({"name": "../escape"}, ("name", "../escape")),
    ({"name": "sub/folder"}, ("name", "sub/folder")),
    ({"name": ".."}, ("name",)),
    ({"name": "con"}, ("name", "reserved")),
    ({"name": ""}, ("name",)),
], ids=lambda value: str(value).replace("/", "_") if isinstance(value, dict) else "")
def test_settings_of_the_run(bad: ComfyServer, clips: str, settings, words):
    result = refused(bad, training(clips, **{"name": "never", **settings}))
    assert not result.executed
    assert all(word in result.error.lower() for word in words), result.error


def test_place_that_cannot_be_written(bad: ComfyServer, clips: str):
    runs = bad.output / "video_lora"
    runs.mkdir(exist_ok=True)
    (runs / "blocked").write_text("a file where the run's folder should be", encoding="utf-8")
    result = refused(bad, training(clips, name="blocked"), encodes=6)
    assert "blocked" in result.error and "write" in result.error.lower()


def test_foreign_lora_is_not_replaced(bad: ComfyServer, clips: str):
    foreign = bad.models / "loras" / "foreign.safetensors"
    save_file({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(1, 128)}, foreign)
    before = foreign.read_bytes()
    result = refused(bad, training(clips, name="foreign"), encodes=6)
    assert "foreign.safetensors" in result.error
    assert foreign.read_bytes() == before


def test_loss_that_is_not_a_number_stops_the_run(bad: ComfyServer, clips: str):
    result = refused(bad, training(clips, name="gives_nan", model_file="gives_nan.safetensors"), encodes=6)
    assert result.error_node == "train"
    assert "nan" in result.error and "step 1" in result.error
