"""A run watched on Train LoRA, in a real browser on a real server, in both of ComfyUI's renderers."""

from __future__ import annotations

import json
import math
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import pytest
from browser import Page
from comfy_server import PROJECT, ComfyServer, Result
from graphs import node
from readable import NAMELESS, TEXTS
from repeated_runs import forget_run, run_folder, training_anew

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
    folder.start_progress(lines)
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
    assert page.evaluate(f"{VIEW}.querySelector('svg').ariaLabel").startswith("Loss over 2,000 steps. The loss fell")
    for tab, words in (("Loss", "smoothed"), ("Noise levels", "88 % noise")):
        page.click(".vls-run-tabs button", tab)
        page.find(".vls-run *", words)
        texts = page.evaluate(TEXTS.replace(".vls-stack", ".vls-run"))
        assert len(texts) > 8 and [text for text, size, *_ in texts if size < 11] == []
        assert [(text, round(contrast, 2)) for text, _, contrast, _ in texts if contrast < 4.5] == []
    assert page.evaluate(NAMELESS.replace(".vls-stack", ".vls-run")) == []
    page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


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
    graph["train"]["inputs"]["recipe"] = ["recipe", 0]
    run = Queued(comfy, graph)
    run.start()
    seen = steps_seen(page, lambda step: step >= 20)
    assert seen == sorted(seen) and len(set(seen)) >= 3, "it moves"
    for figure in ("Loss", "A step takes", "Time left", "Memory"):
        page.find(".vls-run-figures dt", figure)
    page.find(".vls-run-state", "Training")

    reload(page, comfy, LIVE)  # as a second browser does
    assert steps_seen(page, lambda step: step > max(seen))
    drawn = page.wait("document.querySelector('.vls-run .vls-smooth[d]')?.getAttribute('d')")
    assert drawn.count("L") >= max(seen) - 15, "the whole curve is there, from the beginning"
    run.join(120)
    assert run.result.status == "success", run.result.error
    page.find(".vls-run-state", "Finished")
    page.find(".vls-run-steps", "Step 70 of 70")
    losses = RunFolder(run_folder(comfy, LIVE)).losses()
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
