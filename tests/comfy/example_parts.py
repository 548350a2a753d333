"""Tiny files under the names of the files that the example workflows load, and footage where they look for it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import av
import numpy as np
import torch
from comfy_server import ComfyServer
from footage import write_video
from PIL import Image
from safetensors.torch import save_file
from server_parts import put_clips, put_sounding_clips, write_family_parts

COPIES = {
    "diffusion_models/wan2.1_t2v_1.3B_bf16": "diffusion_models/tiny_wan",
    "diffusion_models/wan2.1_i2v_480p_14B_fp16": "diffusion_models/tiny_wan_i2v",
    "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled": "diffusion_models/tiny_wan2.2_high_noise",
    "diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled": "diffusion_models/tiny_wan2.2_low_noise",
    "diffusion_models/wan2.2_ti2v_5B_fp16": "diffusion_models/tiny_wan2.2_ti2v",
    "diffusion_models/CogVideoX_1_5_5b_T2V_bf16": "diffusion_models/tiny_cogvideox_2b",
    "checkpoints/ltx-video-2b-v0.9.5": "checkpoints/tiny_ltxv",
    "checkpoints/ltx-2-19b-dev-fp8": "checkpoints/tiny_ltx-2.0",
    "vae/wan_2.1_vae": "vae/tiny_wan_vae",
}
"""Named file: the tiny one that lies under its name; both without `.safetensors`."""
STAND_INS = {
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled": "umt5", "text_encoders/t5xxl_fp16": "t5xxl",
    "text_encoders/gemma_3_12B_it_fp4_mixed": "gemma", "text_encoders/qwen3vl_8b_fp8_scaled": "qwen3vl",
    "clip_vision/clip_vision_h": "clip_vision", "vae/wan2.2_vae": "wan 2.2", "vae/cogvideox_vae": "cogvideox",
}
"""Named file: which small encoder or VAE of the test-only pack it stands for."""


def write_example_parts(server: ComfyServer) -> None:
    """Every model file of every example, where `write_parts` has been."""
    write_family_parts(server)
    for name, source in COPIES.items():
        shutil.copy(path_of(server, source), path_of(server, name))
    for name, mark in STAND_INS.items():
        save_file({"none": torch.zeros(1)}, path_of(server, name), {"tiny_part": mark})


def path_of(server: ComfyServer, name: str) -> Path:
    path = server.models / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    return path


def put_example_footage(server: ComfyServer) -> None:
    """Captioned clips in input/my_clips, two of them with sound, input/my_film.mp4 of three shots, and a picture."""
    put_clips(server, "my_clips", count=3)
    put_sounding_clips(server, "sounding")
    for path in (server.input / "sounding").iterdir():
        path.rename(server.input / "my_clips" / path.name)
    (server.input / "sounding").rmdir()
    shots = [path for path in sorted((server.input / "my_clips").glob("*.mp4")) if not path.stem.startswith("clip_")]
    pictures = [picture for shot in shots for picture in pictures_of(shot)]
    height, width, _ = pictures[0].shape
    write_video(server.input / "my_film.mp4", frames=len(pictures), fps=24, size=(width, height),
                draw=lambda number, *_: pictures[number])
    Image.fromarray(pictures[0]).save(server.input / "example.png")


def pictures_of(path: Path, count: int = 30) -> list[np.ndarray]:
    """The first frames as RGB, cut to the proportions of a clip 160 wide and 90 high."""
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(video.decode(video=0), count)]
    return [frame[:90, :160] for frame in frames]
