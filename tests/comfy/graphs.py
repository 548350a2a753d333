"""The prompts that the `comfy` tests queue, as ComfyUI's API takes them: node name to class and inputs."""

from __future__ import annotations

import json
from typing import Any

Graph = dict[str, dict]


def node(kind: str, **inputs: Any) -> dict:
    """One node. An input that is a tuple `(name, index)` is a link."""
    linked = {key: list(value) if isinstance(value, tuple) else value for key, value in inputs.items()}
    return {"class_type": kind, "inputs": linked}


def only(graph: Graph, *wanted: str) -> Graph:
    """The part of a graph that some of its nodes need."""
    names, open_ends = set(), [*wanted]
    while open_ends:
        name = open_ends.pop()
        if name not in names:
            names.add(name)
            open_ends += [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return {name: each for name, each in graph.items() if name in names}


def preparing(folder: str, *, width: int = 64, height: int = 64, frames: int = 9, text_width: int = 4096,
              model_file: str = "tiny_wan.safetensors", vae_name: str = "tiny_wan_vae.safetensors",
              trigger: str = "") -> Graph:
    """Clips to a training set, with counted encoders; the reports are shown by `clips_report` and `prepare_report`."""
    return {
        "clips": node("VLSLoadClips", folder=folder, trigger=trigger),
        "clips_report": node("PreviewAny", source=("clips", 1)),
        "base": node("VLSBaseModel", model_file=model_file, low_noise_file="none", precision="auto"),
        "vae_file": node("VAELoader", vae_name=vae_name),
        "vae": node("TinyPartsCountEncodes", vae=("vae_file", 0)),
        "clip": node("TinyPartsTextEncoder", seed=0, width=text_width, count=True),
        "prepare": node("VLSPrepare", clips=("clips", 0), base=("base", 0), vae=("vae", 0), clip=("clip", 0),
                        width=width, height=height, frames=frames),
        "prepare_report": node("PreviewAny", source=("prepare", 1)),
        "sheet": node("PreviewImage", images=("prepare", 2)),
    }


def training(folder: str, *, name: str, steps: Any = 6, rank: Any = 4, learning_rate: Any = 1e-3, seed: int = 0,
             save_as: str = "bf16", **prepared: Any) -> Graph:
    """Clips to a LoRA; the run's report is shown by `train_report`."""
    return {
        **preparing(folder, **prepared),
        "adapter": node("VLSAdapter", save_as=save_as),
        "train": node("VLSTrain", base=("base", 0), training_set=("prepare", 0), adapter=("adapter", 0), name=name,
                      steps=steps, rank=rank, learning_rate=learning_rate, seed=seed),
        "train_report": node("PreviewAny", source=("train", 4)),
        "lora_name": node("PreviewAny", source=("train", 3)),
    }


def sampling(model: tuple[str, int], *, name: str, steps: int = 2, seed: int = 3) -> Graph:
    """Latents sampled with `model` by ComfyUI's KSampler, written to output/`name`.safetensors as `samples`."""
    return {
        "text": node("TinyPartsTextEncoder", seed=0, width=4096, count=False),
        "positive": node("CLIPTextEncode", clip=("text", 0), text="two people ride bicycles"),
        "negative": node("CLIPTextEncode", clip=("text", 0), text=""),
        "noise": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        "sampler": node("KSampler", model=model, positive=("positive", 0), negative=("negative", 0),
                        latent_image=("noise", 0), seed=seed, steps=steps, cfg=1.0, sampler_name="euler",
                        scheduler="simple", denoise=1.0),
        "latents": node("TinyPartsWrite", value=("sampler", 0), name=name),
    }


def wan(model_file: str = "tiny_wan.safetensors") -> Graph:
    return {"unet": node("UNETLoader", unet_name=model_file, weight_dtype="default")}


def row(lora: str, strength: float = 1.0, on: bool = True) -> dict:
    return {"on": on, "lora": lora, "strength": strength}


def stacked(rows: list[dict], *, name: str) -> Graph:
    """Latents of the tiny Wan with rows of `VLSStack` on it; its report is shown by `stack_report`."""
    return {
        **wan(),
        "stack": node("VLSStack", model=("unet", 0), loras=json.dumps(rows)),
        "stack_report": node("PreviewAny", source=("stack", 3)),
        **sampling(("stack", 0), name=name),
    }


def main_job(folder: str, *, name: str, latents: str, seed: int = 3, **settings: Any) -> Graph:
    """Footage in, LoRA out, stacked on the model, sampled: the whole graph. Latents as in `sampling`."""
    return {
        **training(folder, name=name, **settings),
        **wan(),
        "stack": node("VLSStack", model=("unet", 0), loras="[]", lora_name=("train", 3)),
        "stack_report": node("PreviewAny", source=("stack", 3)),
        **sampling(("stack", 0), name=latents, seed=seed),
    }


def natively(loras: list[tuple[str, float]], *, name: str) -> Graph:
    """Latents of the tiny Wan with LoRAs put on by ComfyUI's own LoraLoaderModelOnly, one after the other."""
    graph, model = wan(), ("unet", 0)
    for number, (file, strength) in enumerate(loras):
        graph[f"lora_{number}"] = node("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=strength)
        model = (f"lora_{number}", 0)
    return {**graph, **sampling(model, name=name)}
