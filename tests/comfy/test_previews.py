"""Previews and chunks of training in a real ComfyUI: what its own sampler gives, and what a run without them learns."""

from __future__ import annotations

import json
from pathlib import Path

import comfy_server
import pytest
import torch
from comfy_server import ComfyServer, Result
from graphs import Graph, node, only
from repeated_runs import forget_run, lora_file, run_folder, training_anew

from video_lora_studio.loaders.safetensors_file import read_tensors
from video_lora_studio.loaders.video_file import probe, read_frames

pytestmark = pytest.mark.comfy

COMPARED = ("Wan T2V", "Wan TI2V", "LTX-Video causal", "LTX-2 2.0", "LTX-2 2.3")
SHOWN, CHUNKED = "shown", "chunked"
PROMPT, SEED, SAMPLER_STEPS, GUIDANCE = "a red ball rolls", 5, 4, 2.5


@pytest.fixture(scope="module")
def parity(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("preview_parity")
    script = Path(__file__).with_name("preview_parity_script.py")
    out = comfy_server.run_script(script, comfyui_here, script.parents[1], folder, folder=folder)
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("case", COMPARED)
def test_a_preview_is_what_comfyuis_sampler_makes_of_the_saved_lora(parity: dict[str, dict], case: str):
    found = parity[case]
    print(case, found)
    assert min(found.pop("changed").values()) > 0.05, "the LoRA changes nothing: the comparison would prove nothing"
    assert found and max(found.values()) <= 1e-4


def with_previews(graph: Graph, **settings) -> Graph:
    """Previews every two steps of a prompt of its own."""
    graph["preview"] = node("VLSPreview", every=2, steps=SAMPLER_STEPS, guidance=GUIDANCE, seed=SEED, **settings)
    graph["prepare"]["inputs"]["preview_prompts"] = PROMPT
    graph["train"]["inputs"] |= {"preview": ["preview", 0], "vae": ["vae_file", 0]}
    return graph


def sampled_by(model: tuple[str, int], name: str) -> Graph:
    """The picture of the same prompt and seed by ComfyUI's KSampler and VAE, in output/`name`.safetensors."""
    return {
        "sampler_text": node("TinyPartsTextEncoder", seed=0, width=4096, count=False),
        "positive": node("CLIPTextEncode", clip=("sampler_text", 0), text=PROMPT),
        "negative": node("CLIPTextEncode", clip=("sampler_text", 0), text=""),
        "noise": node("EmptyHunyuanLatentVideo", width=80, height=48, length=9, batch_size=1),
        "sampler": node("KSampler", model=model, positive=("positive", 0), negative=("negative", 0),
                        latent_image=("noise", 0), seed=SEED, steps=SAMPLER_STEPS, cfg=GUIDANCE, sampler_name="euler",
                        scheduler="simple", denoise=1.0),
        "decoded": node("VAEDecode", samples=("sampler", 0), vae=("vae_file", 0)),
        "image": node("TinyPartsWrite", value=("decoded", 0), name=name),
    }


def finished(result: Result) -> Result:
    assert result.status == "success", result.error
    return result


def test_the_preview_file_shows_what_comfyui_then_samples(comfy: ComfyServer, clips: str):
    forget_run(comfy, SHOWN)
    graph = with_previews(training_anew(clips, name=SHOWN, steps=4, learning_rate=0.2, save_as="fp32"))
    graph["vae_file"] = node("VAELoader", vae_name="tiny_wan_vae.safetensors")
    graph["unet"] = node("UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default")
    graph["loaded"] = node("LoraModelLoader", model=("unet", 0), lora=("train", 0), strength_model=1.0, bypass=False)
    finished(comfy.queue(graph | sampled_by(("loaded", 0), "with_lora")))
    folder = run_folder(comfy, SHOWN) / "previews"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:06d}-1.mp4" for step in (0, 2, 4)]

    def apart(step: int, pictures: torch.Tensor) -> float:
        footage = probe(folder / f"step-{step:06d}-1.mp4")
        assert len(footage.times) == len(pictures) == 9 and (footage.width, footage.height) == (80, 48)
        apart = read_frames(footage, range(9), 80, 48).float() / 255 - pictures
        return (apart @ torch.tensor([0.2126, 0.7152, 0.0722])).abs().mean().item()  # videos halve colours, not light

    (pictures,) = read_tensors(comfy.output / "with_lora.safetensors")[0].values()
    print(apart(4, pictures), apart(0, pictures))
    assert apart(4, pictures) < 0.025 and apart(0, pictures) > 3 * apart(4, pictures)
    told = comfy.get(f"/video_lora/run?name={SHOWN}")["previews"]
    assert [(each["step"], each["number"], each["expert"]) for each in told] == [(0, 1, ""), (2, 1, ""), (4, 1, "")]
    path = told[-1]["path"]
    (folder / "step-000003-1.mp4").mkdir()
    (folder / "step-000005-1.mp4").touch()
    assert comfy.get(f"/video_lora/run?name={SHOWN}")["previews"] == told, "of a step that the run has not made"
    assert path == {"filename": "step-000004-1.mp4", "subfolder": f"video_lora/{SHOWN}/previews", "type": "output"}


@pytest.mark.parametrize(("at", "wrong", "said"), [
    ("train", {"vae": ["other", 0]}, "another model's VAE"),
    ("train", {"vae": ["vae_file", 0], "audio_vae": ["vae_file", 0]}, "connected to audio_vae makes no sound"),
    ("prepare", {"preview_prompts": "a dog\n" * 17}, "Preview prompts has 17 lines, and at most 16 are shown"),
    ("prepare", {"preview_prompts": "half a \ud800"}, "Preview prompts holds half a character"),
], ids=["vae", "audio vae", "prompts", "surrogate"])
def test_what_previews_cannot_be_made_of_is_refused_before_anything_is_trained(
    comfy: ComfyServer, clips: str, at: str, wrong: dict, said: str
):
    forget_run(comfy, SHOWN)
    graph = training_anew(clips, name=SHOWN, steps=4)
    graph["other"] = node("TinyPartsFamilyVae", family="wan 2.2")
    graph[at]["inputs"] |= wrong
    result = comfy.queue(graph)
    assert result.error_node == at and said in result.error
    assert not run_folder(comfy, SHOWN).exists()


def test_an_audio_vae_alone_is_not_passed_over_in_silence(comfy: ComfyServer, clips: str):
    graph = training_anew(clips, name=SHOWN, steps=4)
    graph["other"] = node("TinyPartsFamilyVae", family="wan 2.2")
    graph["train"]["inputs"]["audio_vae"] = ["other", 0]
    result = comfy.queue(graph)
    assert result.error_node == "train" and "connect vae as well" in result.error


def test_chunks_with_the_users_own_sampler_between_end_with_the_same_lora(comfy: ComfyServer, clips: str):
    forget_run(comfy, CHUNKED)
    recipe = {"recipe": node("VLSRecipe", schedule="cosine", warmup_steps=2)}
    whole = training_anew(clips, name=CHUNKED, steps=8, learning_rate=1e-2) | recipe
    whole["train"]["inputs"]["recipe"] = ["recipe", 0]
    finished(comfy.queue(whole))
    wanted = lora_file(comfy, CHUNKED).read_bytes()

    forget_run(comfy, CHUNKED)
    graph = whole | {"vae_file": node("VAELoader", vae_name="tiny_wan_vae.safetensors")}
    graph["unet"] = node("UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default")
    graph["train"]["inputs"]["pause_at"] = 3
    graph["loaded"] = node("LoraModelLoader", model=("unet", 0), lora=("train", 0), strength_model=1.0, bypass=False)
    graph |= sampled_by(("loaded", 0), "between")
    graph["second"] = node("VLSContinue", run=("train", 5), pause_at=6, after=("decoded", 0))
    graph["second_report"] = node("PreviewAny", source=("second", 4))
    graph["stack"] = node("VLSStack", model=("unet", 0), loras="[]", lora_name=("second", 3))
    later = sampled_by(("stack", 0), "later")
    for name in ("sampler", "decoded", "image"):
        inputs = {key: ["later_sampler" if value == ["sampler", 0] else value[0], value[1]]
                  if isinstance(value, list) and value[0] in ("sampler", "decoded") else value
                  for key, value in later[name]["inputs"].items()}
        graph[f"later_{name}"] = {**later[name], "inputs": inputs}
    graph["later_image"]["inputs"]["value"] = ["later_decoded", 0]
    graph["last"] = node("VLSContinue", run=("second", 5), pause_at=0, after=("later_decoded", 0))
    graph["last_report"] = node("PreviewAny", source=("last", 4))
    result = finished(comfy.queue(graph))
    order = [result.executed.index(name) for name in ("train", "sampler", "second", "later_sampler", "last")]
    assert order == sorted(order)
    assert lora_file(comfy, CHUNKED).read_bytes() == wanted
    assert "Went on from step 3." in result.text("second_report")
    assert "Went on from step 6." in result.text("last_report")
    (between,), (later,) = (
        read_tensors(comfy.output / f"{name}.safetensors")[0].values() for name in ("between", "later")
    )
    assert (between - later).abs().max() > 1e-3, "each sampler had the LoRA of its chunk"

    comfy.forget()
    again = finished(comfy.queue(only(graph, "train_report", "second_report", "last_report")))
    assert all("Nothing to do" in again.text(f"{name}_report") for name in ("train", "second", "last"))
    assert lora_file(comfy, CHUNKED).read_bytes() == wanted
