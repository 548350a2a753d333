"""An example workflow as a user has it: chosen among ComfyUI's templates, made small, queued, and looked at."""

from __future__ import annotations

import base64
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from browser import Page
from comfy_server import PROJECT, ComfyServer
from safetensors import safe_open

from video_lora_studio.loaders.video_file import probe

READY = "window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner"
PACK = "video_lora_studio"
PICTURES = os.environ.get("EXAMPLE_PICTURES", "")
"""Folder for pictures of what is tested; none are taken where it is empty."""
SMALL = {"width": 128, "height": 64, "length": 9, "frames": 9, "frames_number": 9, "steps": 2}
"""Widgets by name, of every node that has them."""
SMALL_AT = {
    "VLSTrain": {"steps": 3},
    "VLSCaptionClips": {"frames": 4, "max_tokens": 32},
    "Sampler (high noise)": {"end_at_step": 1},
    "Sampler (low noise)": {"start_at_step": 1},
}
"""Widgets of nodes of a type or title; they count for more than `SMALL`."""
SET = """(values) => {
    for (const node of app.graph.nodes) {
        const wanted = { ...values.all, ...values[node.type], ...values[node.title] };
        for (const widget of node.widgets ?? []) {
            if (widget.name in wanted) {
                widget.value = wanted[widget.name];
                widget.callback?.(widget.value, app.canvas, node);
            }
        }
    }
}"""
ON_THE_PAGE = {"control_after_generate", "fixed", "upload"}
"""Widgets that are not queued: what becomes of a seed after a run, and the button of *Load Image*."""
TROUBLE = """[...document.querySelectorAll("[role=dialog], [role=alertdialog], [data-testid*=error], "
    + ".p-toast-message-error, .p-toast-message-warn")].filter((one) => one.checkVisibility())
    .map((one) => one.innerText)"""
"""Dialogs, and what the page says of missing files and failed nodes."""
BOXES = """(() => {
    const { scale, offset } = app.canvas.ds, place = app.canvas.canvas.getBoundingClientRect();
    return app.graph.nodes.map((node) => {
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
        const [left, top, width, height] = drawn
            ? [(drawn.left - place.left) / scale - offset[0], (drawn.top - place.top) / scale - offset[1],
               drawn.width / scale, drawn.height / scale]
            : [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30];
        return [node.title, left, top, left + width, top + height];
    });
})()"""
"""Title, left, top, right and bottom of every node as it is drawn, in the graph's own measure."""
STEP = "Number(document.querySelector('.vls-run-steps')?.textContent.match(/^Step ([0-9]+)/)?.[1] ?? 0)"
"""How far the run on Train LoRA says it is."""
PICTURED_STEPS = 300
"""How long the first example trains where pictures are taken, for a curve to be seen."""
SHOW = """(([left, top, right, bottom]) => {
    const { ds, canvas } = app.canvas, place = canvas.getBoundingClientRect();
    ds.scale = Math.min(place.width / (right - left), place.height / (bottom - top));
    ds.offset[0] = place.width / ds.scale / 2 - (left + right) / 2;
    ds.offset[1] = place.height / ds.scale / 2 - (top + bottom) / 2;
    app.canvas.setDirty(true, true);
})"""
"""Fills the canvas with a part of the graph."""
WHOLE = """(() => {
    const all = app.graph.groups.map(({ pos, size }) => [...pos, pos[0] + size[0], pos[1] + size[1]]);
    return [0, 0, Math.max(...all.map((one) => one[2])), Math.max(...all.map((one) => one[3]))];
})()"""
"""The part that all groups are in, from the note's corner on."""
BARE = """(bare) => {
    app.extensionManager.focusMode = bare;
    app.canvas.show_info = !bare;
    for (const one of document.querySelectorAll("[aria-label='Canvas Toolbar'], .no-drag.fixed")) {
        one.style.visibility = bare ? "hidden" : "";
    }
}"""
"""Takes ComfyUI's own frame away, or puts it back."""


def open_front(page: Page, server: ComfyServer, vue: bool) -> None:
    """ComfyUI's page with one renderer or the other."""
    status, _ = server.post("/settings", {"Comfy.VueNodes.Enabled": vue, "Comfy.TutorialCompleted": True,
                                          "Comfy.Minimap.Visible": False})
    assert status == 200
    page.open(f"http://127.0.0.1:{server.port}/")
    page.wait(READY)


def read_example(name: str) -> dict:
    return json.loads((PROJECT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def choose_example(page: Page, name: str) -> None:
    """Open the templates, among them the pack's, and there the example."""
    saved = read_example(name)
    page.click(".templates-tab-button")
    page.click("[role=dialog] [role=button]", PACK)
    card = f"[data-testid='template-workflow-{name}']"
    page.find(card)
    page.wait("""[...document.querySelectorAll("[data-testid^='template-workflow-'] img")]
        .every((image) => image.complete && image.naturalWidth > 0)""")
    photograph(page, "templates")
    page.click(card)
    page.wait(f"app.extensionManager.workflow.activeWorkflow.path.includes({json.dumps(name)}) "
              f"&& app.graph.nodes.length === {len(saved['nodes'])} && !document.querySelector('[role=dialog]')")


def open_example(page: Page, name: str) -> None:
    """Choose an example: nothing must be missing, everything stands where it should."""
    saved = read_example(name)
    choose_example(page, name)
    time.sleep(1)  # what is missing is told a moment later
    assert page.evaluate(TROUBLE) == []
    check_values(page, saved)
    check_places(page)


def check_values(page: Page, saved: dict) -> None:
    """The page would queue what the file says, widget by widget, and every node that is switched on."""
    prompt = page.evaluate("app.graphToPrompt().then(({ output }) => output)")
    on = {str(node["id"]): node for node in saved["nodes"] if node["mode"] == 0 and "Note" not in node["type"]}
    assert set(prompt) == set(on)
    for number, node in on.items():
        given = node.get("widgets_values_named", {})
        queued = prompt[number]["inputs"]
        assert {name: queued[name] for name in given if name in queued} == {
            name: value for name, value in given.items() if name in queued}, node["type"]
        assert {name for name in given if name not in queued} <= ON_THE_PAGE, node["type"]


def check_places(page: Page) -> None:
    """No node lies on another, and each but the note lies in one group."""
    boxes = page.evaluate(BOXES)
    for (title, *one), (other_title, *other) in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (title, one, other_title, other)
    groups = page.evaluate("app.graph.groups.map(({ pos, size }) => [...pos, pos[0] + size[0], pos[1] + size[1]])")
    for title, left, top, right, bottom in boxes:
        inside = [x <= left and y <= top and right <= to_x and bottom <= to_y for x, y, to_x, to_y in groups]
        assert sum(inside) == (title != "Read me first"), (title, left, top, right, bottom)


def make_small(page: Page, **more: dict[str, Any]) -> None:
    """Sizes and steps for a tiny model; `more`: other widgets, by type of node."""
    values = {"all": SMALL, **SMALL_AT}
    for kind, widgets in more.items():
        values[kind] = {**values.get(kind, {}), **widgets}
    page.evaluate(f"({SET})({json.dumps(values)})")


def run(page: Page, server: ComfyServer, timeout: float = 120) -> dict[str, dict]:
    """Press Run and wait for the end; what the nodes show, all of them that show anything."""
    server.post("/history", {"clear": True})  # that of many tests takes longer to send than a run takes
    page.click("[data-testid=queue-button]")
    entry = ended(page, server, time.monotonic() + timeout)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    shown = entry["outputs"]
    silent = [node["class_type"] for number, node in entry["prompt"][2].items()
              if number not in shown and server.object_info(node["class_type"])["output_node"]]
    assert silent == []
    page.wait("!document.querySelector('[data-testid=queue-progress-overlay] progress')")
    assert page.evaluate(TROUBLE) == []
    return shown


def ended(page: Page, server: ComfyServer, ends: float) -> dict:
    """The one entry in ComfyUI's history, once it is there."""
    pictured = False
    while time.monotonic() < ends:
        if PICTURES and not pictured and page.evaluate(f"({STEP}) > {PICTURED_STEPS} / 2"):
            photograph(page, "training")
            pictured = True
        if history := server.get("/history"):
            (entry,) = history.values()
            return entry
        trouble = page.evaluate(TROUBLE)
        assert not trouble, trouble
        time.sleep(0.2)
    raise AssertionError(f"the run did not end in time:\n{server.log()[-3000:]}")


def number_of(name: str, kind: str, place: int = 0) -> str:
    """Which number a node of a type has in an example's file."""
    return str([node["id"] for node in read_example(name)["nodes"] if node["type"] == kind][place])


def check_loras(server: ComfyServer, said: str, *names: str) -> None:
    """The files are there, and what was said of each is that all its keys match."""
    for name in names:
        with safe_open(server.models / "loras" / f"{name}.safetensors", framework="pt") as lora:
            total = len(lora.keys())
        assert total > 0
        assert f"{name}.safetensors loaded back through ComfyUI: {total} of {total} keys match" in said


def check_video(server: ComfyServer, shown: dict, *, size: tuple[int, int], frames: int, sound: bool = False) -> None:
    """The video that *Save Video* shows is in the output folder, whole."""
    (saved,) = shown["images"]
    footage = probe(server.output / saved["subfolder"] / saved["filename"])
    assert (footage.width, footage.height, len(footage.times)) == (*size, frames)
    assert footage.has_audio is sound


def photograph(page: Page, name: str, *, quality: int = 80) -> None:
    """What is in sight as a JPEG in the folder for pictures, once videos and images have come."""
    if not PICTURES:
        return
    time.sleep(2)
    data = page.call("Page.captureScreenshot", format="jpeg", quality=quality)["data"]
    Path(PICTURES).mkdir(parents=True, exist_ok=True)
    (Path(PICTURES) / f"{name}.jpg").write_bytes(base64.b64decode(data))


def new_name(server: ComfyServer, name: str) -> str:
    """A name that no LoRA has yet."""
    taken = len([*(server.models / "loras").glob(f"{name}*.safetensors")])
    return f"{name}_{taken}" if taken else name


def train_and_sample(page: Page, server: ComfyServer, name: str, *, experts: tuple[str, ...] = ("",),
                     size: tuple[int, int] = (128, 64), frames: int, sound: bool = False) -> None:
    """One of the examples from clips to a LoRA and a video."""
    open_example(page, name)
    photograph(page, f"{name}_opened")
    pictured = PICTURES and name == "wan_t2v_lora"
    lora = "my_video_lora" if pictured else new_name(server, name)
    steps = PICTURED_STEPS if pictured else 3 * len(experts)
    lengths = {"VLSPrepare": "frames", "EmptyLTXVLatentVideo": "length", "LTXVEmptyLatentAudio": "frames_number"}
    make_small(page, VLSTrain={"name": lora, "steps": steps},
               **{kind: {widget: frames} for kind, widget in lengths.items()})
    shown = run(page, server)
    check_loras(server, shown[number_of(name, "VLSTrain")]["text"][0], *(f"{lora}{expert}" for expert in experts))
    stacked = [each["text"][0] for each in shown.values() if "text" in each and "merged" in each["text"][0]]
    assert len(stacked) == 1 and all(f"{lora}{expert}.safetensors" in stacked[0] for expert in experts)
    check_video(server, shown[number_of(name, "SaveVideo")], size=size, frames=frames, sound=sound)
    photograph(page, f"{name}_done")
    check_places(page)
    take_portrait(page, name)


def take_portrait(page: Page, name: str) -> None:
    """The whole graph, and the square at its right, which the templates show."""
    if not PICTURES:
        return
    left, top, right, bottom = page.evaluate(WHOLE)
    for ending, width, height, start in (("_graph", 1600, round(1600 * (bottom - top) / (right - left)), left),
                                         ("", 720, 720, right - (bottom - top))):
        page.size(width, height)
        page.evaluate(f"({BARE})(true)")
        time.sleep(1)
        page.evaluate(f"{SHOW}([{start - 10}, {top - 10}, {right + 10}, {bottom + 10}])")
        photograph(page, f"{name}{ending}", quality=70)
    page.size(1920, 1080)
    page.evaluate(f"({BARE})(false)")
