"""The ComfyUI that the `comfy` tests share: started once, with tiny real parts in its model folders."""

from __future__ import annotations

from pathlib import Path

import comfy_server
import pytest


@pytest.fixture(scope="session")
def comfyui_here() -> Path:
    """ComfyUI's folder; skips where it cannot be started."""
    reason = comfy_server.why_not()
    if reason:
        pytest.skip(reason)
    return comfy_server.comfyui_folder()


@pytest.fixture(scope="session")
def comfy(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory):
    """A running server."""
    server = comfy_server.ComfyServer(tmp_path_factory.mktemp("comfyui"))
    write_parts(server)
    server.start()
    yield server
    server.stop()


def write_parts(server: comfy_server.ComfyServer) -> None:
    """The tiny VAE (ComfyUI's own class) and the tiny Wan in its original key format."""
    from tiny import write_twin

    script = Path(comfy_server.__file__).with_name("write_tiny_vae.py")
    comfy_server.run_script(script, comfy_server.comfyui_folder(), server.models / "vae" / "tiny_wan_vae.safetensors",
                            folder=server.folder)
    write_twin(server.models / "diffusion_models" / "tiny_wan.safetensors")
