"""Files that no family trains get a name and one sentence."""

import pytest
import torch

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.families import open_base_model

KNOWN = "Wan, LTX-Video, LTX-2 or CogVideoX model"

MODELS = [
    ("a Wan model in the diffusers layout", ["condition_embedder.time_embedder.linear_1.weight",
                                             "blocks.0.attn1.to_q.weight"]),
    ("an LTX-2 model in the diffusers layout", ["proj_in.weight", "time_embed.emb.timestep_embedder.linear_1.weight",
                                                "audio_time_embed.emb.timestep_embedder.linear_1.weight"]),
    ("an LTX-Video model in the diffusers layout", ["proj_in.weight",
                                                    "time_embed.emb.timestep_embedder.linear_1.weight",
                                                    "transformer_blocks.0.attn1.norm_q.weight"]),
    ("a HunyuanVideo model", ["double_blocks.0.img_attn.qkv.weight",
                              "txt_in.individual_token_refiner.blocks.0.norm1.weight"]),
    ("a Flux.2 model", ["double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.norm.key_norm.scale",
                        "single_blocks.0.linear1.weight"]),
    ("a Chroma model", ["distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.norm.key_norm.scale",
                        "single_blocks.0.linear1.weight"]),
    ("a Flux model", ["double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.linear1.weight"]),
    ("a Flux model", ["transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.attn.to_q.weight"]),
    ("a Qwen-Image model", ["transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"]),
    ("a Lumina or Z-Image model", ["cap_embedder.1.weight", "layers.0.attention.qkv.weight"]),
    ("a Stable Diffusion 3 model", ["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",
                                    "first_stage_model.decoder.conv_in.weight"]),
    ("a Mochi model", ["t5_yproj.weight", "blocks.0.attn.qkv_x.weight"]),
    ("a Cosmos model", ["blocks.0.adaln_modulation_self_attn.1.weight", "blocks.0.self_attn.q_proj.weight"]),
    ("a ControlNet", ["controlnet_cond_embedding.conv_in.weight",
                      "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"]),
    ("a ControlNet", ["control_model.input_hint_block.0.weight", "control_model.input_blocks.0.0.weight"]),
    ("an SDXL model", ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight",
                       "first_stage_model.decoder.conv_in.weight"]),
    ("a Stable Diffusion model", ["model.diffusion_model.input_blocks.0.0.weight",
                                  "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"]),
    ("a Stable Diffusion model in the diffusers layout",
     ["conv_in.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"]),
]

PARTS = [
    ("a umT5 text encoder", ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight",
                             "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]),
    ("a T5 text encoder", ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"]),
    ("a CLIP vision model", ["vision_model.encoder.layers.0.mlp.fc1.weight"]),
    ("a CLIP vision model", ["visual.transformer.resblocks.0.attn.in_proj_weight"]),
    ("a CLIP text encoder", ["text_model.encoder.layers.0.mlp.fc1.weight"]),
    ("a CLIP text encoder", ["transformer.resblocks.0.attn.in_proj_weight"]),
    ("a Gemma text encoder", ["model.layers.0.post_feedforward_layernorm.weight",
                              "model.layers.0.self_attn.q_proj.weight"]),
    ("a language model", ["model.layers.0.self_attn.q_proj.weight"]),
    ("a VAE", ["encoder.conv_in.weight", "decoder.conv_in.weight"]),
    ("a VAE", ["decoder.conv1.weight", "encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"]),
    ("a VAE", ["decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"]),
    ("an upscaler", ["body.0.rdb1.conv1.weight"]),
    ("an upscaler", ["model.1.sub.0.RDB1.conv1.0.weight"]),
]

LORAS = [
    ["diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"],
    ["lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.alpha"],
    ["transformer.blocks.0.attn1.to_q.lora_A.weight"],
    ["diffusion_model.blocks.0.self_attn.q.lokr_w1", "diffusion_model.blocks.0.self_attn.q.lokr_w2"],
    ["diffusion_model.patchify_proj.lora_A.weight", "diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight"],
]


def refused(tmp_path, keys, name="file.safetensors"):
    write_tensors(tmp_path / name, {key: torch.zeros(2) for key in keys}, {})
    with pytest.raises(ValueError) as caught:
        open_base_model(tmp_path / name)
    return str(caught.value)


@pytest.mark.parametrize("called, keys", MODELS)
def test_another_model_is_named(tmp_path, called, keys):
    assert refused(tmp_path, keys) == (
        f"file.safetensors is {called}; choose a {KNOWN} in ComfyUI's single-file form.")


@pytest.mark.parametrize("called, keys", PARTS)
def test_a_part_that_belongs_beside_a_model_is_named(tmp_path, called, keys):
    assert refused(tmp_path, keys) == (
        f"file.safetensors is {called}, not a diffusion model: choose a file from models/diffusion_models.")


@pytest.mark.parametrize("keys", LORAS)
def test_a_lora_is_named(tmp_path, keys):
    assert refused(tmp_path, keys) == (
        "file.safetensors is a LoRA, not a base model: choose the model that it is to be used with.")


@pytest.mark.parametrize("keys, name, sentence", [
    (["foo.bar.0.weight", "foo.bar.1.weight", "what.ever"], "file.safetensors",
     f"is not a model this pack knows: its keys begin with foo.bar, what.ever; choose a {KNOWN}."),
    (["blocks.9.ffn.0.weight"], "model-00002-of-00006.safetensors",
     "is one part of a model that was split: choose a model that is one file."),
    ([], "file.safetensors", "holds no tensors: choose another file."),
])
def test_anything_else_is_described(tmp_path, keys, name, sentence):
    assert refused(tmp_path, keys, name) == f"{name} {sentence}"
