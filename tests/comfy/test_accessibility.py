"""Every element of ours on ComfyUI's page, in both renderers and both themes: read, reached by Tab, named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
import torch
from browser import Page
from comfy_server import PROJECT, ComfyServer
from readable import nameless, not_reached, texts, unreadable
from safetensors.torch import save_file
from test_train_view import write_run

pytestmark = pytest.mark.comfy

READY = "window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner"
RUN = "readable_run"
ROWS = [
    {"on": True, "lora": "readable/paper_cut.safetensors", "strength": 0.8},
    {"on": True, "lora": "readable_high_noise.safetensors", "strength": 1.25, "blocks": "0-9:0.5", "start": 0.25,
     "curve": "0:0, 0.5:1"},
    {"on": False, "lora": "readable_low_noise.safetensors", "strength": -1, "end": 0.5},
    {"on": True, "lora": "elsewhere/paper_cut.safetensors", "strength": 1},
    {"on": True, "lora": "readable_low_noise.safetensors", "strength": 1, "curve": "1:1, 0:0"},
]
WIDE = "(() => { const node = app.graph.nodes.find(({ comfyClass }) => comfyClass === 'VLSTrain'); node.setSize([%d, \
node.size[1]]); app.canvas.setDirty(true, true); })()"


@pytest.fixture(scope="module")
def server(comfy: ComfyServer) -> ComfyServer:
    """The server with what the widgets show: LoRAs, a folder of clips, a run that is over."""
    from footage import write_video

    for number, name in enumerate(("readable/paper_cut", "readable_high_noise", "readable_low_noise")):
        module, draw = "diffusion_model.blocks.0.self_attn.q", torch.Generator().manual_seed(number)
        path = comfy.models / "loras" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({f"{module}.lora_A.weight": torch.randn(4, 128, generator=draw),
                   f"{module}.lora_B.weight": torch.randn(128, 4, generator=draw)}, path,
                  {"modelspec.trigger_phrase": "p4per_cut", "ss_base_model_version": "Wan 2.1 T2V 1.3B"})
    folder = comfy.input / "readable"
    folder.mkdir()
    for name in ("kept", "bare"):
        write_video(folder / f"{name}.mp4", frames=24)
    (folder / "kept.txt").write_text("a rabbit looks up", encoding="utf-8")
    (folder / "broken.mp4").write_bytes(b"no video")
    write_run(comfy, RUN)
    yield comfy
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def empty_page(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser.why_not():
        pytest.skip(browser.why_not())
    with browser.browser(tmp_path_factory.mktemp("browser"), width=1700, height=1000) as page:
        page.call("Accessibility.enable")
        yield page


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def front(request, empty_page: Page, server: ComfyServer) -> Page:
    """ComfyUI's front end with one renderer or the other."""
    status, _ = server.post("/settings", {"Comfy.VueNodes.Enabled": request.param, "Comfy.TutorialCompleted": True})
    assert status == 200
    empty_page.open(f"http://127.0.0.1:{server.port}/")
    empty_page.wait(READY)
    return empty_page


@pytest.fixture(scope="module", params=["dark", "light"])
def theme(request, front: Page) -> str:
    front.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{request.param}')")
    return request.param


@pytest.fixture
def page(front: Page, theme: str) -> Iterator[Page]:
    """A graph of the nodes that have a widget of ours, in a theme."""
    front.evaluate("document.querySelectorAll('.vls-pop, .vls-review').forEach((one) => one.remove())")
    put_nodes(front)
    yield front
    assert [error for error in front.errors() if "video_lora_studio" in error] == []


def put_nodes(page: Page) -> None:
    """Open a saved workflow: Stack LoRAs, and Load Clips and Train LoRA of the example, without links."""
    saved = json.loads((PROJECT / "example_workflows" / "wan_t2v_lora.json").read_text(encoding="utf-8"))
    found = {node["type"]: node for node in saved["nodes"]}
    clips, train = (found[kind] for kind in ("VLSLoadClips", "VLSTrain"))
    clips |= {"pos": [90, 560], "widgets_values": ["input/readable", "r4bbit"]}
    train |= {"pos": [600, 60], "widgets_values": [RUN, *train["widgets_values"][1:]]}
    for node in (clips, train):
        node.pop("widgets_values_named", None)
        for each in node["inputs"]:
            each["link"] = None
        for each in node["outputs"]:
            each["links"] = None
    stack = {"id": 900, "type": "VLSStack", "pos": [90, 60], "size": [480, 200], "flags": {}, "order": 0, "mode": 0,
             "inputs": [], "outputs": [], "properties": {}, "widgets_values": [json.dumps(ROWS), 1]}
    saved |= {"nodes": [clips, train, stack], "links": [], "groups": [], "extra": {}}
    page.evaluate(f"app.loadGraphData({json.dumps(saved)})")
    page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] }), app.canvas.setDirty(true, true)")
    page.wait("document.querySelectorAll('.vls-row').length === 5")
    page.find(".vls-run-said", "On held-out clips")


def checked(page: Page, roots: str, *expected: str, alone: bool = False) -> None:
    """All three of what is in sight, which has the expected texts."""
    seen = {text for text, *_ in texts(page, roots)}
    assert set(expected) <= seen, seen
    assert unreadable(page, roots) == []
    assert nameless(page, roots) == []
    assert not_reached(page, roots, alone=alone) == []


def open_at(page: Page, selector: str) -> None:
    page.ask(page.find(selector), "function () { this.focus(); }")
    page.press("Enter")


def closed(page: Page, part: str) -> None:
    """Tab beyond the last control closed a panel and went back to where it was opened."""
    page.wait("!document.querySelector('.vls-pop')")
    assert page.evaluate("document.activeElement.dataset.part") == part


def test_rows_of_the_stack(page: Page):
    page.find(".vls-missing .vls-line2", "Not found.")
    checked(page, ".vls-stack", "paper_cut", "pair", "1.25", "Add LoRA", "Not found.", "readable_low_noise",
            "blocks 0-9:0.5 · steps 25 to 100 % · cur", "Curve: 0:0 must lie after 1: the places ")


def test_about_a_lora(page: Page):
    open_at(page, ".vls-row:nth-child(2) [data-part=more]")
    page.find(".vls-words", "p4per_cut")
    checked(page, ".vls-pop", "p4per_cut", "Blocks", "0-9:0.5", "Fade in", "25 %", "Duplicate", alone=True)
    closed(page, "more")
    open_at(page, ".vls-row:nth-child(2) [data-part=more]")
    page.write("#vls-curve", "0")
    page.write("#vls-blocks", "0")
    page.find("#vls-curve-said.vls-bad", "cannot be read")
    assert unreadable(page) == []
    page.write("#vls-blocks", "")
    page.write("#vls-curve", "")
    assert {"all blocks", "level"} <= {text for text, *_ in texts(page)}
    assert unreadable(page) == []


def test_the_choice_of_a_lora(page: Page):
    open_at(page, ".vls-add")
    page.find(".vls-option", "paper_cut")
    for _ in range(2):
        page.press("ArrowDown")
        page.wait("document.activeElement.getAttribute('aria-activedescendant') === document.querySelector("
                  "'.vls-option.vls-active').id")
    checked(page, ".vls-pop", "Search LoRAs", "paper_cut", "readable", alone=True)
    closed(page, "add")


def test_the_choice_of_strengths(page: Page):
    open_at(page, "[data-part=mode]")
    page.find(".vls-item", "One strength")
    checked(page, ".vls-pop", "One strength", "Picture and sound", alone=True)
    closed(page, "mode")


def test_the_strip_of_load_clips(page: Page, tmp_path: Path):
    checked(page, ".vls-clips", "Review", "Files…", "or drop clips and captions here")
    given = tmp_path / "more.txt"
    given.write_text("a caption", encoding="utf-8")
    page.choose_files(".vls-clips button", "Files…", [given])
    page.find(".vls-told", "0 clips, 1 caption")
    checked(page, ".vls-clips", "input/", "readable", "Upload", "0 clips, 1 caption")


def test_the_review_of_clips(page: Page):
    page.click(".vls-clips button", "Review")
    page.wait("document.querySelectorAll('.vls-card').length === 3")
    page.find(".vls-note", "No frame of this file can be read")
    page.click(".vls-card[aria-label='bare.mp4'] label", "Use")
    page.find(".vls-status", "bare.mp4 is left out.")
    checked(page, ".vls-review", "Review", "Done", "a rabbit looks up", "No caption", "r4bbit", "All clips",
            "bare.mp4 is left out.", alone=True)
    page.click(".vls-card[aria-label='bare.mp4'] label", "Use")
    page.find(".vls-status", "bare.mp4 is used.")


@pytest.mark.parametrize("width", [340, 900])
def test_a_run(page: Page, width: int):
    page.evaluate(WIDE % width)
    for tab, words in (("Loss", "smoothed"), ("Noise levels", "88 % noise")):
        page.click(".vls-run-tabs button", tab)
        page.find(".vls-run *", words)
        checked(page, ".vls-run", words, "Finished", "2,000", "Preview after 2,000 steps (2 of 2)")
