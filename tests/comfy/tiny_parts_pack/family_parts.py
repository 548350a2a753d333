"""Test-only nodes: encoders of ComfyUI's own classes, a few channels wide, for the model families beside Wan 2.1."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import comfy.clip_vision
import comfy.ldm.cogvideo.vae
import comfy.ldm.wan.vae2_2
import comfy.sd
import comfy.text_encoders.llama
import torch
from comfy.text_encoders import cogvideo, lt
from comfy_api.latest import io

from .weights import VOCABULARY, fill, seeded, tokenizer_model

GEMMA = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1, "vocab_size": VOCABULARY + 100,
}
GEMMA_EYES = {
    "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1, "image_size": 28,
    "patch_size": 14,
}
CLIP_VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1280, "intermediate_size": 64, "num_attention_heads": 16,
    "num_hidden_layers": 2, "image_size": 224, "patch_size": 14, "num_channels": 3, "projection_dim": 16,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}
"""As ViT-H: 257 tokens of 1280 numbers; two layers of 32."""


def t5(te, tokenizer) -> comfy.sd.CLIP:
    """A T5 with ComfyUI's real tokenizer, whose tokens fold onto a small vocabulary."""
    class Target:
        params = {}
        clip = te

    Target.tokenizer = tokenizer
    config = {"d_model": 4096, "d_ff": 64, "d_kv": 64, "num_heads": 1, "num_layers": 1, "vocab_size": VOCABULARY}
    clip = comfy.sd.CLIP(Target, model_options={"t5xxl_model_config": config, "dtype": torch.float32})
    fill(clip.cond_stage_model, 0, 4096)
    words = clip.cond_stage_model.t5xxl.transformer.get_input_embeddings()
    words.register_forward_pre_hook(lambda module, args: (args[0] % VOCABULARY, *args[1:]))
    return clip


def gemma(**projection) -> comfy.sd.CLIP:
    """The text encoder of LTX-2: a small Gemma 3 and its projection."""
    class Target:
        params = {}
        clip = lt.ltxav_te(**projection)
        tokenizer = lt.LTXAVGemmaTokenizer

    options = {"_model_config": GEMMA, "dtype": torch.float32}
    with mock.patch.dict(comfy.text_encoders.llama.GEMMA3_VISION_CONFIG, GEMMA_EYES):
        clip = comfy.sd.CLIP(Target, tokenizer_data={"spiece_model": tokenizer_model(bos_id=3)}, model_options=options)
    fill(clip.cond_stage_model, 0, GEMMA["hidden_size"])
    return clip


TEXT_ENCODERS = {
    "ltxv": lambda: t5(lt.ltxv_te(), lt.LTXVT5Tokenizer),
    "cogvideox": lambda: t5(cogvideo.cogvideo_te(), cogvideo.CogVideoXTokenizer),
    "ltx-2.0": lambda: gemma(text_projection_type="single_linear", video_projection_dim=120),
    "ltx-2.3": lambda: gemma(text_projection_type="dual_linear", video_projection_dim=128, audio_projection_dim=64),
}

VAES = {
    "wan 2.2": (comfy.ldm.wan.vae2_2, "WanVAE", {"dim": 8, "dec_dim": 8}),
    "cogvideox": (comfy.ldm.cogvideo.vae, "AutoencoderKLCogVideoX", {"block_out_channels": (8, 8, 8, 8), "groups": 4}),
}
"""Module, class, and the widths that make it small."""
EXAMPLES = {
    "wan 2.2": {"z_dim": 48, "temperal_downsample": [False, True, True]},
    "cogvideox": {"latent_channels": 16},
}
"""What ComfyUI's VAE object gives these classes beside their widths."""


def small_vae(kind: str, make: Callable[..., comfy.sd.VAE] = comfy.sd.VAE) -> comfy.sd.VAE:
    """ComfyUI's VAE object around its own class with fewer channels than any file has."""
    module, name, widths = VAES[kind]
    full = getattr(module, name)

    def small(**config):
        return full(**{**config, **widths})

    with mock.patch.object(module, name, small):
        return make(sd=seeded(small(**EXAMPLES[kind])), dtype=torch.float32)


def clip_vision() -> comfy.clip_vision.ClipVisionModel:
    model = comfy.clip_vision.ClipVisionModel(CLIP_VISION)
    model.load_sd(seeded(model.model))
    return model


class FamilyTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsFamilyTextEncoder",
            category="tests",
            inputs=[io.Combo.Input("family", options=list(TEXT_ENCODERS))],
            outputs=[io.Clip.Output("clip")],
        )

    @classmethod
    def execute(cls, family):
        return io.NodeOutput(TEXT_ENCODERS[family]())


class FamilyVae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsFamilyVae",
            category="tests",
            inputs=[io.Combo.Input("family", options=list(VAES))],
            outputs=[io.Vae.Output("vae")],
        )

    @classmethod
    def execute(cls, family):
        return io.NodeOutput(small_vae(family))


class ClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsClipVision",
            category="tests",
            inputs=[],
            outputs=[io.ClipVision.Output("clip_vision")],
        )

    @classmethod
    def execute(cls):
        return io.NodeOutput(clip_vision())
