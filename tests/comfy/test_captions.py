"""Captions written in a real ComfyUI: by the graph's own CLIP, and by a model in a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from comfy_server import PROJECT, ComfyServer, comfyui_python, environment, run_script
from footage import write_video
from graphs import node

pytestmark = pytest.mark.comfy
HERS = "a caption written by hand"


def put_bare_clips(server: ComfyServer, name: str) -> Path:
    """Two clips without captions and one with, in input/`name`."""
    folder = server.input / name
    folder.mkdir(parents=True)
    for number in range(3):
        write_video(folder / f"clip_{number}.mp4", frames=20 + 4 * number, size=(64, 48))
    (folder / "clip_2.txt").write_text(HERS, encoding="utf-8")
    return folder


def captioning(folder: Path, captioner: dict[str, dict], **settings) -> dict[str, dict]:
    settings = {"overwrite": False, "preset": "style", "frames": 4, "max_tokens": 32} | settings
    return captioner | {
        "clips": node("VLSLoadClips", folder=f"input/{folder.name}", trigger="zwk"),
        "caption": node("VLSCaptionClips", clips=("clips", 0), captioner=("captioner", 0), **settings),
        "report": node("PreviewAny", source=("caption", 1)),
    }


def by_clip(source: str = "TinyPartsWritingClip", **inputs) -> dict[str, dict]:
    return {"clip": node(source, **inputs), "captioner": node("VLSCaptionerClip", clip=("clip", 0))}


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))}


def test_the_graphs_clip_writes_the_captions_that_are_missing(comfy: ComfyServer):
    folder = put_bare_clips(comfy, "bare")
    result = comfy.queue(captioning(folder, by_clip()))
    assert result.status == "success", result.error
    written = texts(folder)
    assert set(written) == {"clip_0", "clip_1", "clip_2"} and written["clip_2"] == HERS
    assert all(written.values()) and written["clip_0"] != written["clip_1"]
    assert not any("zwk" in text for text in written.values())
    assert "2 captions written, 1 kept, 0 failed" in result.text("report")

    again = comfy.queue(captioning(folder, by_clip(), seed=5))
    assert again.status == "success", again.error
    assert texts(folder) == written and "captioner" not in again.executed, "no model is wanted where all is there"

    third = comfy.queue(captioning(folder, by_clip(), seed=5, overwrite=True))
    assert third.status == "success", third.error
    changed = texts(folder)
    assert all(changed[name] != written[name] for name in written)
    assert (folder / "clip_2.txt.bak").read_text(encoding="utf-8").strip() == HERS


def test_the_same_seed_gives_the_same_captions(comfy: ComfyServer):
    first, second = put_bare_clips(comfy, "seed_a"), put_bare_clips(comfy, "seed_b")
    for folder in (first, second):
        assert comfy.queue(captioning(folder, by_clip())).status == "success"
    assert texts(first) == texts(second)


def test_a_clip_that_only_reads_is_refused_before_anything_is_encoded(comfy: ComfyServer):
    folder = put_bare_clips(comfy, "reads_only")
    before = comfy.counts()
    result = comfy.queue(captioning(folder, by_clip("TinyPartsTextEncoder", seed=0, width=64, count=True)))
    assert result.status == "error" and result.error_node == "captioner"
    assert "only reads text" in result.error and "Qwen3-VL" in result.error
    assert comfy.counts() == before and set(texts(folder)) == {"clip_2"}


def test_a_model_in_a_folder_writes_captions(comfy: ComfyServer):
    place = comfy.models / "LLM" / "Qwen-VL" / "Tiny-VL"
    place.mkdir(parents=True)
    run_script(PROJECT / "tests" / "tiny_captioners.py", place, folder=comfy.folder)
    assert comfy.object_info("VLSCaptionerLocal")["input"]["required"]["folder"]
    folder = put_bare_clips(comfy, "by_folder")
    local = {"captioner": node("VLSCaptionerLocal", folder="LLM/Qwen-VL/Tiny-VL", bits="16")}
    result = comfy.queue(captioning(folder, local))
    assert result.status == "success", result.error
    assert all(texts(folder).values()) and len(texts(folder)) == 3
    assert "Captioner: Tiny-VL, on this machine" in result.text("report")


def test_models_in_folders_with_comfyuis_own_packages(comfyui_here, tmp_path):
    command = [comfyui_python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/dataset/test_local_model.py"]
    done = subprocess.run(command, env=environment(tmp_path), cwd=PROJECT, capture_output=True, text=True,
                          encoding="utf-8", timeout=300)
    if "No module named pytest" in done.stderr:
        pytest.skip(f"ComfyUI's Python ({comfyui_python()}) has no pytest")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "video processors need torchvision" not in done.stdout
