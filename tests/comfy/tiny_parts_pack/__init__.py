"""Test-only nodes: small real encoders, counters on them, and a node that writes what flows through a socket."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import comfy.sd
import comfy.text_encoders.wan
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file

from .family_parts import ClipVision, FamilyTextEncoder, FamilyVae
from .health_parts import Break, Fresh, Probe
from .named_files import install
from .weights import VOCABULARY, fill, tokenizer_model
from .writing_parts import WritingClip

COUNTS = {"vae": 0, "clip": 0}


def counts_file() -> Path:
    return Path(folder_paths.get_output_directory()) / "tiny_parts_counts.json"


def counted(kind: str, function):
    """`function`, each call of which is counted on disk."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        COUNTS[kind] += 1
        counts_file().write_text(json.dumps(COUNTS))
        return function(*args, **kwargs)

    call.counts_encodes = True
    return call


def umt5(seed: int = 0, width: int = 4096) -> comfy.sd.CLIP:
    class Target:
        params = {}
        clip = comfy.text_encoders.wan.te()
        tokenizer = comfy.text_encoders.wan.WanT5Tokenizer

    config = {
        "d_model": width, "d_ff": 64, "d_kv": 64, "num_heads": 1, "num_layers": 1, "vocab_size": VOCABULARY + 100,
    }
    options = {"umt5xxl_model_config": config, "dtype": torch.float32}
    clip = comfy.sd.CLIP(Target, tokenizer_data={"spiece_model": tokenizer_model()}, model_options=options)
    fill(clip.cond_stage_model, seed, width)
    return clip


class TinyTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsTextEncoder",
            category="tests",
            inputs=[
                io.Int.Input("seed", default=0, min=0),
                io.Int.Input("width", default=4096, min=64),
                io.Boolean.Input("count", default=True),
            ],
            outputs=[io.Clip.Output("clip")],
        )

    @classmethod
    def execute(cls, seed, width, count):
        clip = umt5(seed, width)
        if count:
            model = clip.cond_stage_model
            model.encode_token_weights = counted("clip", model.encode_token_weights)
        return io.NodeOutput(clip)


class CountEncodes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsCountEncodes",
            category="tests",
            inputs=[io.Vae.Input("vae")],
            outputs=[io.Vae.Output("vae")],
        )

    @classmethod
    def execute(cls, vae):
        model = vae.first_stage_model
        if not getattr(model.encode, "counts_encodes", False):
            model.encode = counted("vae", model.encode)
        return io.NodeOutput(vae)


class Write(io.ComfyNode):
    """Writes the tensors (and text) of any socket to `output/<name>.safetensors`."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsWrite",
            category="tests",
            inputs=[io.AnyType.Input("value"), io.String.Input("name")],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, value, name):
        tensors = {}
        if isinstance(value, torch.Tensor):
            tensors = {"value": value}
        elif isinstance(value, dict):
            tensors = {key: each for key, each in value.items() if isinstance(each, torch.Tensor)}
        elif isinstance(value, list) and value and isinstance(value[0], list):
            tensors = {"value": value[0][0]}
        tensors = {key: each.detach().cpu().clone().contiguous() for key, each in tensors.items()}
        path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        save_file(tensors, str(path))
        text = value if isinstance(value, str) else json.dumps(value, default=lambda each: type(each).__name__)
        return io.NodeOutput(ui={"text": (text,)})


class TinyParts(ComfyExtension):
    async def on_load(self):
        install(umt5)

    async def get_node_list(self):
        return [
            TinyTextEncoder, CountEncodes, Write, FamilyTextEncoder, FamilyVae, ClipVision, WritingClip, Break, Fresh,
            Probe,
        ]


async def comfy_entrypoint():
    return TinyParts()
