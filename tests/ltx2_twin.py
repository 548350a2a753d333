"""Twins of LTX-2 as files with the header that Lightricks' own files have, which ComfyUI needs to open them."""

import json

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.families import FAMILIES, file_tensors

FAMILY = next(family for family in FAMILIES if family.name == "LTX-2")


def header_of(config, kind="2.0", **changes):
    """What Lightricks' header says of a transformer with this configuration of diffusers' class."""
    newer = kind == "2.3"
    transformer = {
        "num_attention_heads": config["num_attention_heads"], "attention_head_dim": config["attention_head_dim"],
        "cross_attention_dim": config["cross_attention_dim"], "num_layers": config["num_layers"],
        "caption_channels": config["caption_channels"], "in_channels": 128, "out_channels": 128,
        "audio_num_attention_heads": config["audio_num_attention_heads"],
        "audio_attention_head_dim": config["audio_attention_head_dim"],
        "audio_cross_attention_dim": config["audio_cross_attention_dim"],
        "connector_num_attention_heads": 32 if newer else 30, "connector_attention_head_dim": 4,
        "audio_connector_num_attention_heads": 32 if newer else 30,
        "audio_connector_attention_head_dim": 2 if newer else 4, "connector_num_layers": 1,
        "connector_apply_gated_attention": newer, "apply_gated_attention": newer, "cross_attention_adaln": newer,
        "caption_proj_before_connector": newer, "caption_projection_first_linear": not newer,
        "rope_type": "split", "frequencies_precision": "float64", "norm_eps": 1e-6,
        "positional_embedding_theta": 10000.0, "positional_embedding_max_pos": [20, 2048, 2048],
        "audio_positional_embedding_max_pos": [20], "timestep_scale_multiplier": 1000,
        "av_ca_timestep_scale_multiplier": 1000.0, "causal_temporal_positioning": True, "use_middle_indices_grid": True,
    }
    return {"config": json.dumps({"transformer": transformer | changes})}


def write_ltx2_twin(path, kind="2.0", *, prefix="model.diffusion_model.", without=(), beside=None, **changes):
    """Write a twin with its header; its tensors by file names. `without`: beginnings of names to leave out."""
    config, twin = FAMILY.twin(kind)
    tensors = {name: tensor for name, tensor in file_tensors(FAMILY, twin).items() if not name.startswith(without)}
    write_tensors(path, {prefix + name: tensor for name, tensor in tensors.items()} | (beside or {}),
                  header_of(config, kind, **changes))
    return tensors
