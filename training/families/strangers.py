"""Names for weights files that no family trains, by keys that tell them apart."""

from __future__ import annotations

from collections.abc import Iterable

from ...loaders.safetensors_file import Header

LORA_ENDINGS = (
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora.down.weight", ".lora.up.weight",
    ".lora_A.default.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".lokr_w2_a", ".dora_scale", ".oft_blocks",
    ".diff_b",
)

MODELS = (
    ("a Wan model in the diffusers layout", ("condition_embedder.time_embedder.linear_1.weight",)),
    ("an LTX-2 model in the diffusers layout", ("audio_time_embed.emb.timestep_embedder.linear_1.weight",)),
    ("an LTX-Video model in the diffusers layout", ("proj_in.weight", "time_embed.emb.timestep_embedder.")),
    ("a HunyuanVideo model", ("txt_in.individual_token_refiner.blocks.0.",)),
    ("a Flux.2 model", ("double_stream_modulation_img.lin.weight",)),
    ("a Chroma model", ("distilled_guidance_layer.",)),
    ("a Flux model", ("double_blocks.0.img_attn.", "single_blocks.0.")),
    ("a Flux model", ("single_transformer_blocks.0.attn.to_q.weight",)),
    ("a Qwen-Image model", ("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight")),
    ("a Lumina or Z-Image model", ("cap_embedder.1.weight",)),
    ("a Stable Diffusion 3 model", ("joint_blocks.0.context_block.",)),
    ("a Mochi model", ("t5_yproj.weight",)),
    ("a Cosmos model", ("blocks.0.adaln_modulation_self_attn.1.weight",)),
    ("a ControlNet", ("controlnet_cond_embedding.",)),
    ("a ControlNet", ("input_hint_block.",)),
    ("an SDXL model", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    ("a Stable Diffusion model", ("input_blocks.0.0.weight",)),
    ("a Stable Diffusion model in the diffusers layout", ("down_blocks.0.attentions.0.transformer_blocks.0.",)),
)
"""What a file is called, and pieces that its keys must all show. The first that fits names it."""

PARTS = (
    ("a umT5 text encoder", ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",)),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("a CLIP vision model", ("vision_model.encoder.layers.0.",)),
    ("a CLIP vision model", ("visual.transformer.resblocks.0.",)),
    ("a CLIP text encoder", ("text_model.encoder.layers.0.",)),
    ("a CLIP text encoder", ("transformer.resblocks.0.",)),
    ("a Gemma text encoder", ("layers.0.post_feedforward_layernorm.weight",)),
    ("a language model", ("layers.0.self_attn.q_proj.weight",)),
    ("a VAE", ("decoder.conv_in.",)),
    ("a VAE", ("decoder.conv1.weight", "encoder.conv1.weight")),
    ("a VAE", ("decoder.up_blocks.0.",)),
    ("an upscaler", ("rdb1.conv1.weight",)),
    ("an upscaler", ("RDB1.conv1.",)),
)
"""The same for files that belong beside a model."""


def describe(header: Header, *, known: str) -> str:
    """One sentence that says what a file is, and what to choose instead. `known`: what can be trained, for people."""
    name, keys = header.path.name, list(header.tensors)
    if any(key.endswith(LORA_ENDINGS) for key in keys):
        return f"{name} is a LoRA, not a base model: choose the model that it is to be used with."
    if model := _first(MODELS, keys):
        return f"{name} is {model}; choose a {known} model in ComfyUI's single-file form."
    if part := _first(PARTS, keys):
        return f"{name} is {part}, not a diffusion model: choose a file from models/diffusion_models."
    if "-of-0" in name:
        return f"{name} is one part of a model that was split: choose a model that is one file."
    if not keys:
        return f"{name} holds no tensors: choose another file."
    begin = ", ".join(sorted({".".join(key.split(".")[:2]) for key in keys})[:3])
    return f"{name} is not a model this pack knows: its keys begin with {begin}; choose a {known} model."


def _first(table: Iterable[tuple[str, tuple[str, ...]]], keys: list[str]) -> str | None:
    """The first name of the table all of whose pieces occur in the keys."""
    return next(
        (called for called, pieces in table if all(any(piece in key for key in keys) for piece in pieces)), None
    )
