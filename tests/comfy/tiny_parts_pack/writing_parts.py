"""Test-only node: a language model of ComfyUI's own class that looks at pictures and writes, a few numbers wide."""

from __future__ import annotations

from unittest import mock

import comfy.sd
import torch
from comfy.text_encoders import qwen3vl
from comfy_api.latest import io

from .weights import seeded

KIND = "qwen3vl_4b"
WORDS = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
         "num_key_value_heads": 1}
EYES = {"hidden_size": 32, "intermediate_size": 32, "depth": 2, "deepstack_visual_indexes": [0]}


def qwen3_vl() -> comfy.sd.CLIP:
    """Qwen3-VL with ComfyUI's real tokenizer and all its words."""
    class Target:
        params = {}
        clip = qwen3vl.te(model_type=KIND)
        tokenizer = qwen3vl.tokenizer(model_type=KIND)

    options = {f"{KIND}_model_config": WORDS, "dtype": torch.float32}
    with (
        mock.patch.dict(qwen3vl.QWEN3VL_VISION, {KIND: EYES}),
        mock.patch.dict(qwen3vl.QWEN3VL_VISION_COMMON, {"num_heads": 2}),
    ):
        clip = comfy.sd.CLIP(Target, model_options=options)
    clip.cond_stage_model.load_state_dict(seeded(clip.cond_stage_model))
    return clip


class WritingClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsWritingClip",
            category="tests",
            inputs=[],
            outputs=[io.Clip.Output("clip")],
        )

    @classmethod
    def execute(cls):
        return io.NodeOutput(qwen3_vl())
