"""Small encoders and VAEs under the names of real files, for ComfyUI's own loaders.

ComfyUI builds them in sizes that no file can make smaller. A file whose header says
`tiny_part` stands for one of the small ones; every other file is loaded as ever.
"""

from __future__ import annotations

import functools
from pathlib import Path

import comfy.clip_vision
import comfy.sd
from safetensors import safe_open

from .family_parts import TEXT_ENCODERS, clip_vision, small_vae
from .writing_parts import qwen3_vl

MARK = "tiny_part"


def mark_of(path: str) -> str:
    if Path(path).suffix != ".safetensors":
        return ""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(MARK, "")


def install(umt5) -> None:
    """Put the small ones in; `umt5` makes the text encoder of Wan."""
    makers = {"umt5": umt5, "qwen3vl": qwen3_vl, "gemma": TEXT_ENCODERS["ltx-2.0"]}
    load_clip, load_clip_vision, init = comfy.sd.load_clip, comfy.clip_vision.load, comfy.sd.VAE.__init__

    @functools.wraps(load_clip)
    def load_small_clip(ckpt_paths, *args, **kwargs):
        mark = mark_of(ckpt_paths[0])
        if mark == "t5xxl":
            return TEXT_ENCODERS[kwargs["clip_type"].name.lower()]()
        return makers[mark]() if mark else load_clip(ckpt_paths, *args, **kwargs)

    @functools.wraps(load_clip_vision)
    def load_small_clip_vision(path):
        return clip_vision() if mark_of(path) else load_clip_vision(path)

    @functools.wraps(init)
    def small_init(self, *args, metadata=None, **kwargs):
        if metadata and MARK in metadata:
            small_vae(metadata[MARK], functools.partial(init, self))
        else:
            init(self, *args, metadata=metadata, **kwargs)

    comfy.sd.load_clip, comfy.clip_vision.load, comfy.sd.VAE.__init__ = (
        load_small_clip, load_small_clip_vision, small_init)
