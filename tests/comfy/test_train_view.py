"""A run watched on Train LoRA, in a real browser on a real server, in both of ComfyUI's renderers."""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import pytest
import torch
from browser import Page
from comfy_server import PROJECT, ComfyServer, Result
from graphs import node
from readable import unreadable
from repeated_runs import forget_run, run_folder, training_anew

from video_lora_studio.loaders.clip_writer import write_clip
from video_lora_studio.training.progress_file import ProgressFile
from video_lora_studio.training.run_folder import RunFolder

pytestmark = pytest.mark.comfy

READY = "window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner"
VIEW = "document.querySelector('.vls-run')"
EMPTY = "The loss is shown here while it trains"
PAST, LIVE = "watched_past", "watched_live"
STEPS = 2000


def write_run(server: ComfyServer, name: str, *, steps: int = STEPS, done: int = STEPS, status: str = "finished",
              experts: int = 1) -> list[float]:
    """A run's folder as it is left behind: a loss that falls from 0.16 to 0.09, and held-out clips beside it."""
    draw = random.Random(name)
    forget_run(server, name)
    folder = RunFolder(run_folder(server, name))
    names = ["high_noise", "low_noise"][:experts] if experts > 1 else [""]
    folder.write_record({
        "key": "0" * 64, "status": status, "steps": done,
        "settings": {"name": name, "steps": steps, "recipe": {"high_noise_share": 0.5}},
        "facts": {"base": [[f"{number}" * 16, expert] for number, expert in enumerate(names)]},
    })
    losses = [(0.09 + 0.07 * math.exp(-step / 500)) * draw.lognormvariate(-0.1, 0.45) for step in range(1, done + 1)]
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    for step in range(0, done + 1, 250):
        levels = {f"{level:.3g}": (0.05 + 0.2 * level) * (0.75 + 0.25 * math.exp(-step / (300 + 500 * level)))
                  * (1 + 0.00005 * max(0, step - 1250)) for level in (0.125, 0.375, 0.625, 0.875)}
        expert = {"expert": names[step > steps // 2]} if experts > 1 else {}
        lines.append({"step": step, "held_out": sum(levels.values()) / 4, "levels": levels, **expert})
    moving = torch.stack([torch.linspace(0, 1, 64).roll(4 * frame) for frame in range(9)])
    for step in (0, done):
        write_clip(folder.preview(step, "", 1), moving[:, None, :, None].expand(-1, 48, -1, 3), 16)
    (folder.folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return losses


def reload(page: Page, server: ComfyServer, name: str) -> None:
    page.open(f"http://127.0.0.1:{server.port}/")
    page.wait(READY)
    put_train(page, name)


def put_train(page: Page, name: str) -> None:
    """Open a saved workflow: Train LoRA of the example, alone, with another name."""
    saved = json.loads((PROJECT / "example_workflows" / "wan_t2v_lora.json").read_text(encoding="utf-8"))
    (train,) = [each for each in saved["nodes"] if each["type"] == "VLSTrain"]
    train |= {"pos": [140, 40], "widgets_values": [name, *train["widgets_values"][1:]]}
    train.pop("widgets_values_named", None)
    for each in train["inputs"]:
        each["link"] = None
    for each in train["outputs"]:
        each["links"] = None
    saved = {**saved, "nodes": [train], "links": [], "groups": []}
    page.evaluate(f"app.loadGraphData({json.dumps(saved)})")
    page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] }), app.canvas.setDirty(true, true)")
    page.wait("document.querySelectorAll('.vls-run').length === 1")
    page.find(".vls-run")


def text_of(page: Page) -> str:
    return page.evaluate(f"{VIEW}.innerText")


@pytest.fixture(scope="module")
def empty_page(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser.why_not():
        pytest.skip(browser.why_not())
    with browser.browser(tmp_path_factory.mktemp("browser"), height=860) as page:
        yield page


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def front(request, empty_page: Page, comfy: ComfyServer) -> Page:
    """ComfyUI's front end with one renderer or the other."""
    status, _ = comfy.post("/settings", {"Comfy.VueNodes.Enabled": request.param, "Comfy.TutorialCompleted": True})
    assert status == 200
    reload(empty_page, comfy, "nothing_yet")
    assert empty_page.evaluate("Boolean(document.querySelector('[data-node-id]'))") is request.param
    return empty_page


@pytest.fixture
def page(front: Page) -> Iterator[Page]:
    yield front
    assert [error for error in front.errors() if "train_view" in error] == []


PICTURES = os.environ.get("VIDEO_LORA_PICTURES", "")
"""A folder for pictures of what is tested, to look at; none are taken where it is not named."""

PREVIEWS = "[...document.querySelectorAll('.vls-run-clips video')]"
FITS = """(() => {
    const boxes = ['.vls-run-previews', '.vls-run'].map((one) => document.querySelector(one).getBoundingClientRect());
    const [stage, view] = boxes;
    return stage.bottom <= view.bottom + 1 && stage.height > 100;
})()"""


def assert_previews_play(page: Page) -> None:
    """Two clips side by side, moving."""
    times = f"{PREVIEWS}.map((one) => one.currentTime)"
    page.wait(f"{times}.length === 2 && {PREVIEWS}.every((one) => one.readyState > 2)")
    before = page.evaluate(times)
    page.wait(f"{times}.every((time, place) => time !== {json.dumps(before)}[place])")


def refused(server: ComfyServer, path: str, origin: str = "") -> int:
    headers = {"Origin": origin} if origin else {}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=30)
    return answer.value.code


def test_the_route_gives_a_run_by_its_name_alone(comfy: ComfyServer):
    losses = write_run(comfy, PAST)
    told = comfy.get(f"/video_lora/run?name={PAST}")
    assert (told["status"], told["total"], told["last"], told["now"]) == ("finished", STEPS, STEPS, None)
    assert len(told["points"]) == 500 and [step for step, *_ in told["held_out"]] == [*range(0, STEPS + 1, 250)]
    assert max(high for _, _, high, _ in told["points"]) == pytest.approx(max(losses), rel=1e-4)
    assert comfy.get("/video_lora/run?name=nobody_trained_this")["points"] == []
    for name in ("", "..", "../output", "a/b", "%2Fetc", "CON", "_features"):
        assert refused(comfy, f"/video_lora/run?name={name}") == 400
    assert refused(comfy, f"/video_lora/run?name={PAST}", "http://elsewhere.example") == 403


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_a_run_that_is_over_is_shown_and_can_be_read(page: Page, comfy: ComfyServer, palette: str):
    page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{palette}')")
    write_run(comfy, PAST)
    put_train(page, "nothing_yet")
    page.find(".vls-run-none", EMPTY)
    put_train(page, PAST)
    page.find(".vls-run-said", "On held-out clips it was lowest at step 1,500")
    page.find(".vls-run-state", "Finished")
    page.find(".vls-run-steps", "Step 2,000 of 2,000")
    assert page.evaluate("document.querySelectorAll('.vls-run circle').length") == 9 + 1
    page.find(".vls-run-which", "Preview after 2,000 steps (2 of 2)")
    assert page.evaluate(f"{VIEW}.querySelector('svg').ariaLabel").startswith("Loss over 2,000 steps. The loss fell")
    for tab, words in (("Loss", "smoothed"), ("Noise levels", "88 % noise")):
        page.click(".vls-run-tabs button", tab)
        page.find(".vls-run *", words)
        assert unreadable(page, ".vls-run") == []
    page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


CONTROL, SHIFT = 2, 8
"""Of the DevTools protocol's modifiers."""
SHOWN = "[...document.querySelectorAll('.vls-run-state')].filter((one) => one.textContent === 'Finished').length"


def test_copy_undo_and_a_subgraph_keep_the_view(page: Page, comfy: ComfyServer):
    write_run(comfy, PAST)
    put_train(page, PAST)
    page.wait(f"{SHOWN} === 1")
    page.evaluate("app.canvas.selectNode(app.graph.nodes[0]), document.activeElement.blur()")
    page.press("c", CONTROL, ("copy",))
    page.press("v", CONTROL, ("paste",))
    page.wait(f"app.graph.nodes.length === 2 && {SHOWN} === 2")
    page.press("z", CONTROL)
    page.wait(f"app.graph.nodes.length === 1 && {SHOWN} === 1")
    page.press("y", CONTROL)
    page.wait(f"app.graph.nodes.length === 2 && {SHOWN} === 2")
    page.evaluate("app.graph.remove(app.graph.nodes[1])")
    page.wait(f"{SHOWN} === 1")

    page.evaluate("app.canvas.deselectAll(), app.canvas.selectNode(app.graph.nodes[0]), document.activeElement.blur()")
    page.press("e", CONTROL | SHIFT)
    page.wait("app.graph.nodes[0]?.subgraph?.nodes.length === 1")
    page.evaluate("app.canvas.setGraph(app.graph.nodes[0].subgraph)")
    page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [100, 40] }), app.canvas.setDirty(true, true)")
    page.wait(f"{SHOWN} === 1")
    page.find(".vls-run-said", "On held-out clips it was lowest")


def test_continue_training_shows_the_run_that_it_goes_on_with(page: Page, comfy: ComfyServer):
    write_run(comfy, PAST, done=1000, status="paused")
    put_train(page, PAST)
    page.evaluate("""(() => {
        const more = LiteGraph.createNode("VLSContinue");
        more.pos = [760, 40];
        app.graph.add(more);
        app.graph.nodes[0].connect("run", more, "run");
        app.graph.nodes[0].pos = [0, 40];
    })()""")
    for part, words in (("state", "Paused"), ("steps", "Step 1,000 of 2,000")):
        shown = f"[...document.querySelectorAll('.vls-run-{part}')].map((one) => one.textContent)"
        page.wait(f"{shown}.length === 2 && {shown}.every((text) => text === '{words}')")


class Queued(threading.Thread):
    """A training in a queue of its own."""

    def __init__(self, server: ComfyServer, graph: dict):
        super().__init__(daemon=True)
        self.server, self.graph, self.result = server, graph, Result("", "")

    def run(self) -> None:
        self.result = self.server.queue(self.graph)


def test_a_run_is_watched_as_it_goes(page: Page, comfy: ComfyServer, clips: str):
    forget_run(comfy, LIVE)
    put_train(page, LIVE)
    page.find(".vls-run-none", EMPTY)
    graph = training_anew(clips, name=LIVE, steps=70)
    graph["recipe"] = node("VLSRecipe", held_out=2, judge_every=10)
    graph["preview"] = node("VLSPreview", every=20, steps=2, clips=2)
    graph["vae_file"] = node("VAELoader", vae_name="tiny_wan_vae.safetensors")
    graph["train"]["inputs"] |= {"recipe": ["recipe", 0], "preview": ["preview", 0], "vae": ["vae_file", 0]}
    run = Queued(comfy, graph)
    run.start()
    seen = steps_seen(page, lambda step: step >= 20)
    assert seen == sorted(seen) and len(set(seen)) >= 3, "it moves"
    for figure in ("Loss", "A step takes", "Time left", "Memory"):
        page.find(".vls-run-figures dt", figure)
    page.find(".vls-run-state", "Training")

    assert_previews_play(page)
    if PICTURES:
        page.picture(Path(PICTURES) / f"training_{page.evaluate('LiteGraph.vueNodesMode')}.png")

    reload(page, comfy, LIVE)  # as a second browser does
    assert steps_seen(page, lambda step: step > max(seen))
    drawn = page.wait("document.querySelector('.vls-run .vls-smooth[d]')?.getAttribute('d')")
    assert drawn.count("L") >= max(seen) - 15, "the whole curve is there, from the beginning"
    run.join(120)
    assert run.result.status == "success", run.result.error
    page.find(".vls-run-state", "Finished")
    page.find(".vls-run-steps", "Step 70 of 70")
    page.find(".vls-run-which", "after 70 steps (5 of 5)")
    assert_previews_play(page)
    page.click(".vls-run-turn button", "‹")
    page.find(".vls-run-which", "after 60 steps (4 of 5)")
    assert page.evaluate(f"{PREVIEWS}.map((one) => one.src.includes('000060'))") == [True, True]
    assert page.evaluate(FITS), "the node is large enough for what is on it"
    if PICTURES:
        page.picture(Path(PICTURES) / f"live_{page.evaluate('LiteGraph.vueNodesMode')}.png")
    losses = [*ProgressFile(run_folder(comfy, LIVE)).read()[0].values()]
    told = comfy.get(f"/video_lora/run?name={LIVE}")
    assert [low for _, low, _, _ in told["points"]] == pytest.approx(losses, rel=1e-4) and told["now"] is None
    assert [step for step, *_ in told["held_out"]] == [*range(0, 71, 10)]
    events = [each["data"] for each in run.result.messages if each["type"] == "video_lora.run"]
    assert [loss for each in events for loss in each.get("losses", ())] == pytest.approx(losses), "nothing is lost"
    assert events[-1] == {"run": LIVE, "node": "train", "ended": True}


def steps_seen(page: Page, enough: Callable[[int], bool]) -> list[int]:
    """The steps that the page shows one after the other, until one is enough."""
    ends, seen = time.monotonic() + 60, []
    while time.monotonic() < ends:
        text = page.evaluate("document.querySelector('.vls-run-steps').textContent")
        if text.startswith("Step "):
            seen.append(int(text.split()[1].replace(",", "")))
            if enough(seen[-1]):
                return seen
        time.sleep(0.1)
    raise AssertionError(f"the page has shown {seen}")
