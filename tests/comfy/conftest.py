"""The ComfyUI that the `comfy` tests share: started once, with tiny real parts in its model folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import comfy_server
import pytest
from example_pages import PICTURES, open_front
from example_parts import put_example_footage, write_example_parts
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


@pytest.fixture(scope="session")
def examples(comfy: comfy_server.ComfyServer) -> comfy_server.ComfyServer:
    """The server with everything that the example workflows name."""
    write_example_parts(comfy)
    put_example_footage(comfy)
    return comfy


@pytest.fixture(scope="module")
def wide_page(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    """An empty page, as large as many screens are where pictures are taken: drawing it takes most of the time."""
    if browser.why_not():
        pytest.skip(browser.why_not())
    with browser.browser(tmp_path_factory.mktemp("browser"), *((1920, 1080) if PICTURES else (1100, 620))) as page:
        yield page


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def example_page(request, wide_page: browser.Page, examples: comfy_server.ComfyServer) -> Iterator[browser.Page]:
    """ComfyUI's page with one renderer or the other; no script of ours may fail on it."""
    open_front(wide_page, examples, request.param)
    yield wide_page
    assert [error for error in wide_page.errors() if "video_lora" in error] == []
