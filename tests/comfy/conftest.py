"""The ComfyUI that the `comfy` tests share: started once, with tiny real parts in its model folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy_server
import pytest
from server_parts import put_clips, write_parts


@pytest.fixture(scope="session")
def comfyui_here() -> Path:
    """ComfyUI's folder; skips where it cannot be started."""
    reason = comfy_server.why_not()
    if reason:
        pytest.skip(reason)
    return comfy_server.comfyui_folder()


@pytest.fixture(scope="session")
def comfy(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[comfy_server.ComfyServer]:
    """A running server."""
    server = comfy_server.ComfyServer(tmp_path_factory.mktemp("comfyui"))
    write_parts(server)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def clips(comfy: comfy_server.ComfyServer) -> str:
    """A folder of six captioned clips, as the pack's `folder` widget names it."""
    return put_clips(comfy, "clips")
