"""For each family a whole graph: clips in, LoRA out, stacked on the model, sampled as users of that family sample.

Each graph writes the latents that are sampled without the LoRA to output/`bare_<name>.safetensors`, and those with it
to `lora_<name>.safetensors`; the sound of LTX-2 to `bare_<name>_sound` and `lora_<name>_sound`.
"""

from __future__ import annotations

from typing import Any

from graphs import Graph, node, wan

SIZE = {"width": 64, "height": 64}
NOTHING = "none"


def trained(folder: str, *, name: str, model_file: str, vae: tuple, clip: tuple, frames: int, steps: int = 3,
            low_noise_file: str = NOTHING, size: dict[str, int] = SIZE, **encoders: Any) -> Graph:
    """Clips to LoRA with encoders of the graph, with previews before and after; shown by `prepare_report` and
    `train_report`.
    """
    heard = {"audio_vae": encoders["audio_vae"]} if "audio_vae" in encoders else {}
    return {
        "clips": node("VLSLoadClips", folder=folder, trigger=""),
        "base": node("VLSBaseModel", model_file=model_file, low_noise_file=low_noise_file, precision="auto"),
        "prepare": node("VLSPrepare", clips=("clips", 0), base=("base", 0), vae=vae, clip=clip, frames=frames, **size,
                        **encoders),
        "prepare_report": node("PreviewAny", source=("prepare", 1)),
        "recipe": node("VLSRecipe", warmup_steps=0),
        "preview": node("VLSPreview", every=0, steps=2),
        "train": node("VLSTrain", base=("base", 0), training_set=("prepare", 0), recipe=("recipe", 0), name=name,
                      steps=steps, rank=4, learning_rate=2e-2, seed=0, vae=vae, preview=("preview", 0), **heard),
        "train_report": node("PreviewAny", source=("train", 4)),
    }


def stacked(model: tuple, model_low: tuple | None = None) -> Graph:
    """`VLSStack` on the models, with the LoRA just trained; its report is shown by `stack_report`."""
    low = {} if model_low is None else {"model_low": model_low}
    return {
        "stack": node("VLSStack", model=model, loras="[]", lora_name=("train", 3), **low),
        "stack_report": node("PreviewAny", source=("stack", 3)),
    }


def prompts(clip: tuple) -> Graph:
    return {
        "positive": node("CLIPTextEncode", clip=clip, text="two people ride bicycles"),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
    }


def sampled(name: str, models: dict[str, tuple], *, latent: tuple,
            conditions: tuple = (("positive", 0), ("negative", 0))) -> Graph:
    """One KSampler for each of `models`, written as `<which>_<name>`."""
    graph = {}
    for which, model in models.items():
        graph[f"{which}_sampler"] = node(
            "KSampler", model=model, positive=conditions[0], negative=conditions[1], latent_image=latent, seed=3,
            steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        )
        graph[f"{which}_latents"] = node("TinyPartsWrite", value=(f"{which}_sampler", 0), name=f"{which}_{name}")
    return graph


def wan_i2v(folder: str, name: str) -> Graph:
    return {
        "vae": node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "clip": node("TinyPartsTextEncoder", seed=0, width=4096, count=False),
        "eyes": node("TinyPartsClipVision"),
        **trained(folder, name=name, model_file="tiny_wan_i2v.safetensors", vae=("vae", 0), clip=("clip", 0), frames=9,
                  clip_vision=("eyes", 0)),
        **wan("tiny_wan_i2v.safetensors"),
        **stacked(("unet", 0)),
        **prompts(("clip", 0)),
        "image": node("EmptyImage", **SIZE, batch_size=1, color=0x806040),
        "seen": node("CLIPVisionEncode", clip_vision=("eyes", 0), image=("image", 0), crop="center"),
        "start": node("WanImageToVideo", positive=("positive", 0), negative=("negative", 0), vae=("vae", 0), **SIZE,
                      length=9, batch_size=1, clip_vision_output=("seen", 0), start_image=("image", 0)),
        **sampled(name, {"bare": ("unet", 0), "lora": ("stack", 0)}, latent=("start", 2),
                  conditions=(("start", 0), ("start", 1))),
    }


def wan_22_pair(folder: str, name: str) -> Graph:
    """Two samplers one after the other, as for Wan 2.2: the high-noise model first."""
    high, low = "tiny_wan2.2_high_noise.safetensors", "tiny_wan2.2_low_noise.safetensors"
    graph = {
        "vae": node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "clip": node("TinyPartsTextEncoder", seed=0, width=4096, count=False),
        **trained(folder, name=name, model_file=high, low_noise_file=low, vae=("vae", 0), clip=("clip", 0), frames=9,
                  steps=6),
        "high": node("UNETLoader", unet_name=high, weight_dtype="default"),
        "low": node("UNETLoader", unet_name=low, weight_dtype="default"),
        **stacked(("high", 0), ("low", 0)),
        **prompts(("clip", 0)),
        "noise": node("EmptyHunyuanLatentVideo", **SIZE, length=5, batch_size=1),
    }
    pairs = {"bare": (("high", 0), ("low", 0)), "lora": (("stack", 0), ("stack", 1)),
             "high_only": (("stack", 0), ("low", 0))}
    for which, (first, second) in pairs.items():
        shared = {"positive": ("positive", 0), "negative": ("negative", 0), "noise_seed": 3, "steps": 2, "cfg": 1.0,
                  "sampler_name": "euler", "scheduler": "simple"}
        graph[f"{which}_first"] = node(
            "KSamplerAdvanced", model=first, latent_image=("noise", 0), add_noise="enable", start_at_step=0,
            end_at_step=1, return_with_leftover_noise="enable", **shared)
        graph[f"{which}_second"] = node(
            "KSamplerAdvanced", model=second, latent_image=(f"{which}_first", 0), add_noise="disable", start_at_step=1,
            end_at_step=100, return_with_leftover_noise="disable", **shared)
        graph[f"{which}_latents"] = node("TinyPartsWrite", value=(f"{which}_second", 0), name=f"{which}_{name}")
    return graph


def wan_22_ti2v(folder: str, name: str) -> Graph:
    return {
        "vae": node("TinyPartsFamilyVae", family="wan 2.2"),
        "clip": node("TinyPartsTextEncoder", seed=0, width=4096, count=False),
        **trained(folder, name=name, model_file="tiny_wan2.2_ti2v.safetensors", vae=("vae", 0), clip=("clip", 0),
                  frames=9),
        **wan("tiny_wan2.2_ti2v.safetensors"),
        **stacked(("unet", 0)),
        **prompts(("clip", 0)),
        "image": node("EmptyImage", **SIZE, batch_size=1, color=0x806040),
        "start": node("Wan22ImageToVideoLatent", vae=("vae", 0), **SIZE, length=9, batch_size=1,
                      start_image=("image", 0)),
        **sampled(name, {"bare": ("unet", 0), "lora": ("stack", 0)}, latent=("start", 0)),
    }


def ltx_video(folder: str, name: str) -> Graph:
    return {
        "model": node("CheckpointLoaderSimple", ckpt_name="tiny_ltxv.safetensors"),
        "clip": node("TinyPartsFamilyTextEncoder", family="ltxv"),
        # Its VAE decodes nothing of one latent row.
        **trained(folder, name=name, model_file="tiny_ltxv.safetensors", vae=("model", 2), clip=("clip", 0), frames=9,
                  size={"width": 128, "height": 96}),
        **stacked(("model", 0)),
        **prompts(("clip", 0)),
        "rate": node("LTXVConditioning", positive=("positive", 0), negative=("negative", 0), frame_rate=25.0),
        "noise": node("EmptyLTXVLatentVideo", **SIZE, length=9, batch_size=1),
        **sampled(name, {"bare": ("model", 0), "lora": ("stack", 0)}, latent=("noise", 0),
                  conditions=(("rate", 0), ("rate", 1))),
    }


def ltx_2(folder: str, name: str, *, version: str = "2.0") -> Graph:
    """Picture and sound: everything but the text encoder comes from one checkpoint."""
    file = f"tiny_ltx-{version}.safetensors"
    graph = {
        "model": node("CheckpointLoaderSimple", ckpt_name=file),
        "audio_vae": node("LTXVAudioVAELoader", ckpt_name=file),
        "clip": node("TinyPartsFamilyTextEncoder", family=f"ltx-{version}"),
        **trained(folder, name=name, model_file=file, vae=("model", 2), clip=("clip", 0), audio_vae=("audio_vae", 0),
                  frames=17),
        **stacked(("model", 0)),
        **prompts(("clip", 0)),
        "rate": node("LTXVConditioning", positive=("positive", 0), negative=("negative", 0), frame_rate=24.0),
        "picture": node("EmptyLTXVLatentVideo", **SIZE, length=17, batch_size=1),
        "sound": node("LTXVEmptyLatentAudio", frames_number=17, frame_rate=24.0, batch_size=1,
                      audio_vae=("audio_vae", 0)),
        "noise": node("LTXVConcatAVLatent", video_latent=("picture", 0), audio_latent=("sound", 0)),
        **sampled(name, {"bare": ("model", 0), "lora": ("stack", 0)}, latent=("noise", 0),
                  conditions=(("rate", 0), ("rate", 1))),
    }
    for which in ("bare", "lora"):
        graph[f"{which}_both"] = node("LTXVSeparateAVLatent", av_latent=(f"{which}_sampler", 0))
        graph[f"{which}_latents"] = node("TinyPartsWrite", value=(f"{which}_both", 0), name=f"{which}_{name}")
        graph[f"{which}_sound"] = node("TinyPartsWrite", value=(f"{which}_both", 1), name=f"{which}_{name}_sound")
    return graph


def cogvideox(folder: str, name: str) -> Graph:
    return {
        "vae": node("TinyPartsFamilyVae", family="cogvideox"),
        "clip": node("TinyPartsFamilyTextEncoder", family="cogvideox"),
        **trained(folder, name=name, model_file="tiny_cogvideox_2b.safetensors", vae=("vae", 0), clip=("clip", 0),
                  frames=9),
        **wan("tiny_cogvideox_2b.safetensors"),
        **stacked(("unet", 0)),
        **prompts(("clip", 0)),
        "noise": node("EmptyHunyuanLatentVideo", **SIZE, length=9, batch_size=1),
        **sampled(name, {"bare": ("unet", 0), "lora": ("stack", 0)}, latent=("noise", 0)),
    }
