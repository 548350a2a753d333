"""What a test server has in its folders: tiny real model files, and clips with captions."""

from __future__ import annotations

from pathlib import Path

from comfy_server import ComfyServer, comfyui_folder, run_script


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

    folder = server.input / name
    folder.mkdir(parents=True)
    if not cut_real_clips(folder, count=count, width=width):
        for number in range(count):
            write_video(folder / f"drawn_{number}.mp4", frames=24 + number, size=(width, width * 5 // 8 // 2 * 2))
    for number, path in enumerate(sorted(folder.glob("*.mp4"))):
        path.with_suffix(".txt").write_text(f"{name}, clip number {number}", encoding="utf-8")
    return f"input/{name}"
