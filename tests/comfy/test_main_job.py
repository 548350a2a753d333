"""The main job in a real ComfyUI: footage in, LoRA out, stacked on the model in the same graph."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from comfy_server import ComfyServer, Result
from graphs import main_job, natively, node, sampling, wan
from safetensors import safe_open
from safetensors.torch import load_file
from server_parts import put_clips

pytestmark = pytest.mark.comfy
CLIPS, STEPS = 6, 8


@dataclass
class Job:
    """The first queue of the graph, and what it cost."""

    server: ComfyServer
    folder: str
    result: Result
    encoded: dict[str, int]

    def again(self, latents: str, **changed) -> tuple[Result, dict[str, int]]:
        """Queue the graph once more; what ran, and how much was encoded meanwhile."""
        before = self.server.counts()
        result = self.server.queue(self.graph(latents, **changed))
        after = self.server.counts()
        assert result.status == "success", result.error
        return result, {kind: after[kind] - before[kind] for kind in after}

    def graph(self, latents: str, **changed) -> dict:
        settings = {"name": "main_job", "steps": STEPS, "learning_rate": 5e-3, "trigger": "zwk", "frames": 13}
        return main_job(self.folder, latents=latents, **settings | changed)

    @property
    def lora(self):
        return self.server.models / "loras" / "main_job.safetensors"


def steps_shown(result: Result) -> list[str]:
    """The lines that the train node showed while it was training."""
    return [line for line in result.lines if re.match(r"train: Training \d", line)]


@pytest.fixture(scope="module")
def job(comfy: ComfyServer) -> Job:
    folder = put_clips(comfy, "main_job", count=CLIPS, width=176)
    job = Job(comfy, folder, Result("", ""), {})
    job.result, job.encoded = job.again("main_first")
    return job


def test_ends_with_a_lora_whose_keys_all_match(job: Job):
    report = job.result.text("train_report")
    matched, total = map(int, re.search(r"(\d+) of (\d+) keys match", report).groups())
    with safe_open(job.lora, framework="pt") as lora:
        names, header = set(lora.keys()), lora.metadata()
    assert matched == total == len(names) > 0
    assert all(re.fullmatch(r"diffusion_model\.blocks\.\d+\.[\w.]+\.lora_[AB]\.weight", name) for name in names)
    assert header["modelspec.trigger_phrase"] == "zwk" and header["ss_network_dim"] == "4"
    assert job.result.text("lora_name") == "main_job.safetensors"
    assert f"{total} of {total} keys match" in job.result.text("stack_report")
    print(f"whole graph: {job.result.seconds:.1f} s\n{report}")


def test_each_clip_and_caption_was_encoded_once(job: Job):
    assert job.encoded["vae"] == CLIPS
    assert job.encoded["clip"] - CLIPS in (0, 1)  # the empty caption, unless another test on this server had it encoded
    for name in ("clips_report", "prepare_report"):
        assert len(re.findall(r"\.mp4:", job.result.text(name))) == CLIPS, job.result.text(name)


def test_progress_is_shown_on_the_node(job: Job):
    bar = job.result.progress("train")
    assert bar and bar[-1] == (STEPS, STEPS)
    assert re.match(rf"train: Training {STEPS} of {STEPS}, loss \d", steps_shown(job.result)[-1])


def test_trained_lora_changes_what_is_sampled(job: Job):
    job.server.queue(natively([], name="main_bare"))
    job.server.queue(natively([("main_job.safetensors", 1.0)], name="main_native"))
    ours, bare, native = (load_file(job.server.output / f"main_{name}.safetensors")["samples"]
                          for name in ("first", "bare", "native"))
    assert (ours - bare).abs().max() > 1e-3
    assert (ours - native).abs().max() <= 1e-5


def test_native_nodes_take_the_outputs(job: Job):
    graph = {
        **job.graph("unused"),
        **wan(),
        "put_on": node("LoraModelLoader", model=("unet", 0), lora=("train", 0), strength_model=1.0, bypass=False),
        **sampling(("put_on", 0), name="main_loader"),
        "save": node("SaveLoRA", lora=("train", 0), prefix="loras/native_copy"),
        "plot": node("LossGraphNode", loss=("train", 2), filename_prefix="loss"),
        "losses": node("PreviewAny", source=("train", 2)),
    }
    result = job.server.queue(graph)
    assert result.status == "success", result.error
    loaded, stacked = (load_file(job.server.output / f"main_{name}.safetensors")["samples"]
                       for name in ("loader", "first"))
    assert (loaded - stacked).abs().max() <= 1e-5
    [copy] = (job.server.output / "loras").glob("native_copy*.safetensors")
    saved, ours = load_file(copy), load_file(job.lora)
    assert saved.keys() == ours.keys() and all(torch.equal(saved[key], ours[key]) for key in ours)
    assert result.outputs["plot"]["images"]
    assert len(re.findall(r"\d\.\d+", result.text("losses"))) == STEPS


@pytest.mark.parametrize("meanwhile", ["nothing", "seed_of_the_sampler", "caches_emptied", "server_restarted"])
def test_second_queue_trains_and_encodes_nothing(job: Job, meanwhile: str):
    before = job.lora.stat().st_mtime_ns, job.lora.read_bytes()
    if meanwhile == "caches_emptied":
        job.server.forget()
    if meanwhile == "server_restarted":
        job.server.restart()
    seed = 4 if meanwhile == "seed_of_the_sampler" else 3
    result, encoded = job.again(f"main_{meanwhile}", seed=seed)
    assert encoded == {"vae": 0, "clip": 0}
    assert not steps_shown(result), "it trained again"
    assert (job.lora.stat().st_mtime_ns, job.lora.read_bytes()) == before
    if meanwhile in ("caches_emptied", "server_restarted"):
        assert "train" in result.executed and "prepare" in result.executed
        first = load_file(job.server.output / "main_first.safetensors")["samples"]
        assert torch.equal(load_file(job.server.output / f"main_{meanwhile}.safetensors")["samples"], first)


def test_changed_caption_is_the_only_one_encoded(job: Job):
    caption = sorted((job.server.input / "main_job").glob("*.txt"))[2]
    caption.write_text("a caption that was not there before", encoding="utf-8")
    result, encoded = job.again("main_caption", name="main_job_captioned")
    assert encoded == {"vae": 0, "clip": 1}
    assert "a caption that was not there before" in result.text("prepare_report")


def test_new_clip_costs_one_clip(job: Job):
    from footage import write_video

    folder = job.server.input / "main_job"
    write_video(folder / "new.mp4", frames=20, size=(96, 64))
    (folder / "new.txt").write_text("the new one", encoding="utf-8")
    _, encoded = job.again("main_new", name="main_job_captioned")
    assert encoded == {"vae": 1, "clip": 1}
