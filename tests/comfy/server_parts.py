"""What a test server has in its folders: tiny real model files, and clips with captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from comfy_server import ComfyServer, comfyui_folder, run_script

from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.families import FAMILIES, file_tensors


def write_parts(server: ComfyServer) -> None:
    """The tiny Wan in its original key format, and the tiny VAE of ComfyUI's own class."""
    from tiny import write_twin

    write_twin(server.models / "diffusion_models" / "tiny_wan.safetensors")
    script = Path(__file__).with_name("write_tiny_vae.py")
    run_script(script, comfyui_folder(), server.models / "vae" / "tiny_wan_vae.safetensors", folder=server.folder)


def put_clips(server: ComfyServer, name: str, *, count: int = 6, width: int = 160) -> str:
    """Pieces of real footage with captions in input/`name`, drawn clips where no footage is installed.

    Returns the folder as the pack's `folder` widget names it. Another width makes other clips.
    """
    from footage import cut_real_clips, write_video
    from nasty_files import scene

    folder = server.input / name
    folder.mkdir(parents=True)
    if not cut_real_clips(folder, count=count, width=width):
        for number in range(count):
            size = width, width * 5 // 8 // 2 * 2
            write_video(folder / f"drawn_{number}.mp4", frames=24 + number, size=size, draw=scene(number))
    for number, path in enumerate(sorted(folder.glob("*.mp4"))):
        path.with_suffix(".txt").write_text(f"{name}, clip number {number}", encoding="utf-8")
    return f"input/{name}"


def write_family_parts(server: ComfyServer) -> None:
    """Tiny models of the other families: alone, and for LTX as checkpoints with VAEs in them, as users have them."""
    from ltx2_twin import FAMILY as LTX2
    from ltx2_twin import header_of
    from tiny import write_twin

    models, checkpoints = server.models / "diffusion_models", server.models / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    write_twin(models / "tiny_wan_i2v.safetensors", kind="I2V")
    write_twin(models / "tiny_wan2.2_high_noise.safetensors")
    shift_weights(models / "tiny_wan2.2_high_noise.safetensors", models / "tiny_wan2.2_low_noise.safetensors")
    write_twin(models / "tiny_wan2.2_ti2v.safetensors", kind="TI2V")
    families = {family.name: family for family in FAMILIES}
    for kind in ("2b", "1.5 I2V"):
        write_twin(models / f"tiny_cogvideox_{kind.replace(' ', '_').lower()}.safetensors",
                   family=families["CogVideoX"], kind=kind)

    beside_file = server.folder / "ltx_parts.safetensors"
    script = Path(__file__).with_name("write_tiny_ltx_parts.py")
    run_script(script, comfyui_folder(), beside_file, folder=server.folder)
    beside, metadata = read_tensors(beside_file)
    described = json.loads(metadata["config"])
    write_checkpoint(checkpoints / "tiny_ltxv.safetensors", families["LTX-Video"], None, beside,
                     described | {"transformer": {"causal_temporal_positioning": True}})
    for kind in ("2.0", "2.3"):
        config, _ = LTX2.twin(kind)
        write_checkpoint(checkpoints / f"tiny_ltx-{kind}.safetensors", LTX2, kind, beside,
                         described | json.loads(header_of(config, kind)["config"]))


def write_checkpoint(path: Path, family: Any, kind: str | None, beside: dict, config: dict) -> None:
    """A family's twin and what stands beside it in one file, described in the header."""
    _, twin = family.twin() if kind is None else family.twin(kind=kind)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in file_tensors(family, twin).items()}
    write_tensors(path, tensors | beside, {"config": json.dumps(config)})


def shift_weights(source: Path, target: Path) -> None:
    """A copy of a model in which every matrix is a little different."""
    generator = torch.Generator().manual_seed(9)
    tensors, metadata = read_tensors(source)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    write_tensors(target, tensors, metadata)


def put_sounding_clips(server: ComfyServer, name: str) -> str:
    """Two drawn clips with a tone and one without sound, with captions, in input/`name`; the folder as in `put_clips`.
    """
    from footage import write_video
    from nasty_files import scene

    folder = server.input / name
    folder.mkdir(parents=True)
    for number, sound in enumerate((440.0, 660.0, False)):
        path = write_video(
            folder / f"clip_{number}.mp4", frames=32 + number, fps=24, sound=sound, draw=scene(number)
        )
        path.with_suffix(".txt").write_text(f"{name}, clip number {number}", encoding="utf-8")
    return f"input/{name}"
