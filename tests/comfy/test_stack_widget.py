"""The rows of Stack LoRAs in a real browser on a real server, in both of ComfyUI's renderers, by mouse and keyboard.

What counts is what would be queued: every step is followed by a look at the rows in the API prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import browser
import pytest
import torch
from browser import ALT, CONTROL, SHIFT, Page
from comfy_server import ComfyServer
from safetensors.torch import save_file

pytestmark = pytest.mark.comfy

READY = """window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner
    && window.LiteGraph?.registered_node_types.VLSStack"""
STACKS = """app.graphToPrompt().then(({ output }) => Object.values(output)
    .filter((node) => node.class_type === 'VLSStack').map(({ inputs }) => JSON.parse(inputs.loras)))"""
FILM, PAPER, LIGHT = "old_film.safetensors", "style/paper_cut.safetensors", "people/portrait_light.safetensors"
RAIN, RAIN_LOW = "wan2.2_rain_high_noise.safetensors", "wan2.2_rain_low_noise.safetensors"
HEADER = {"modelspec.trigger_phrase": "p4per_cut", "ss_base_model_version": "Wan 2.1 T2V 1.3B", "ss_steps": "2400"}
PLACE = """function () {
    const { x, y, width, height } = this.getBoundingClientRect();
    return [x, y, width, height];
}"""


def row(lora: str, strength: float = 1, on: bool = True, **more) -> dict:
    return {"on": on, "lora": lora, "strength": strength, **more}


@pytest.fixture(scope="module")
def loras(comfy: ComfyServer) -> ComfyServer:
    """The server with LoRAs of the tiny Wan in its folders, one of them with a header and a picture."""
    from PIL import Image

    for number, name in enumerate((FILM, PAPER, LIGHT, RAIN, RAIN_LOW)):
        generator = torch.Generator().manual_seed(number)
        module = "diffusion_model.blocks.0.self_attn.q"
        tensors = {f"{module}.lora_A.weight": torch.randn(4, 128, generator=generator),
                   f"{module}.lora_B.weight": torch.randn(128, 4, generator=generator)}
        path = comfy.models / "loras" / name
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path, HEADER if name == PAPER else None)
    Image.new("RGB", (64, 40), "teal").save(comfy.models / "loras" / "style" / "paper_cut.preview.png")
    return comfy


@pytest.fixture(scope="module")
def empty_page(comfyui_here, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser.why_not():
        pytest.skip(browser.why_not())
    with browser.browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def front(request, empty_page: Page, loras: ComfyServer) -> Page:
    """ComfyUI's front end with one renderer or the other."""
    status, _ = loras.post("/settings", {"Comfy.VueNodes.Enabled": request.param, "Comfy.TutorialCompleted": True})
    assert status == 200
    reload(empty_page, loras)
    return empty_page


@pytest.fixture
def page(front: Page) -> Iterator[Page]:
    """A graph of Stack LoRAs alone, without rows."""
    put_stack(front, [])
    yield front
    assert [error for error in front.errors() if "stack_" in error] == []


def reload(page: Page, server: ComfyServer) -> None:
    page.open(f"http://127.0.0.1:{server.port}/")
    page.wait(READY)


def put_stack(page: Page, rows: list[dict]) -> None:
    """Open a workflow of the stack alone."""
    node = {"id": 1, "type": "VLSStack", "pos": [120, 130], "size": [400, 200], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [], "properties": {}, "widgets_values": [json.dumps(rows), 1]}
    saved = {"version": 0.4, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "groups": [],
             "config": {}, "extra": {}}
    page.evaluate(f"app.loadGraphData({json.dumps(saved)})")
    page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] }), app.canvas.setDirty(true, true)")
    page.wait("document.querySelectorAll('.vls-stack').length === 1")  # what was open before is gone
    page.wait(f"document.querySelectorAll('.vls-row').length === {len(rows)}")
    page.find(".vls-add")


def rows_of(page: Page) -> list[dict]:
    """The rows that the one stack would be queued with."""
    (rows,) = page.evaluate(STACKS)
    return rows


def part(number: int, name: str) -> str:
    return f".vls-row:nth-child({number}) [data-part={name}]"


def mouse(page: Page, kind: str, x: float, y: float, button: str = "left") -> None:
    held = {"left": 1, "right": 2}[button] if kind != "mouseReleased" else 0
    page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=held, clickCount=1)


def drag(page: Page, selector: str, across: float = 0, down: float = 0) -> None:
    """Press in the middle of an element, move by so many pixels in four moves, let go."""
    x, y = page.point(selector)
    mouse(page, "mousePressed", x, y)
    for share in (0.25, 0.5, 0.75, 1):
        mouse(page, "mouseMoved", x + across * share, y + down * share)
    mouse(page, "mouseReleased", x + across, y + down)


def click_at(page: Page, selector: str, share: float, button: str = "left") -> None:
    """Click at a share of an element's width."""
    page.point(selector)
    x, y, width, height = page.ask(page.find(selector), PLACE)
    for kind in ("mousePressed", "mouseReleased"):
        mouse(page, kind, x + share * width, y + height / 2, button)


def type_in(page: Page, text: str, *keys: str) -> None:
    for key in (*text, *keys):
        page.press(key)


def test_the_mouse_does_it_all(page: Page):
    page.click(".vls-add")
    page.find(".vls-option", "paper_cut")
    type_in(page, "cut style")
    assert page.evaluate("[...document.querySelectorAll('.vls-option')].map((one) => one.title)") == [PAPER]
    page.click(".vls-option", "paper_cut")
    assert rows_of(page) == [row(PAPER)]
    for lora in (FILM, LIGHT):
        page.click(".vls-add")
        page.click(".vls-option", lora.split("/")[-1].removesuffix(".safetensors"))
    assert rows_of(page) == [row(PAPER), row(FILM), row(LIGHT)]

    drag(page, part(1, "strength"), across=-170)
    assert rows_of(page)[0] == row(PAPER, -0.7)
    drag(page, part(2, "strength"), across=65)
    assert rows_of(page)[1] == row(FILM, 1.65)
    click_at(page, part(3, "strength"), 0.08)
    assert rows_of(page)[2] == row(LIGHT, 0.95)
    click_at(page, part(3, "strength"), 0.92)
    click_at(page, part(3, "strength"), 0.92)
    assert rows_of(page)[2] == row(LIGHT, 1.05)
    page.click(part(3, "strength"))
    page.find(part(3, "strength") + " input")
    type_in(page, "-2.375", "Enter")
    assert rows_of(page) == [row(PAPER, -0.7), row(FILM, 1.65), row(LIGHT, -2.375)]

    drag(page, ".vls-row:nth-child(3) .vls-grip", down=-70)
    assert [one["lora"] for one in rows_of(page)] == [LIGHT, PAPER, FILM]
    drag(page, ".vls-row:nth-child(1) .vls-grip", down=36)
    assert [one["lora"] for one in rows_of(page)] == [PAPER, LIGHT, FILM]
    page.click(part(2, "switch"))
    assert [one["on"] for one in rows_of(page)] == [True, False, True]
    page.click("[data-part=master]")
    assert [one["on"] for one in rows_of(page)] == [True, True, True]
    page.click("[data-part=master]")
    assert [one["on"] for one in rows_of(page)] == [False, False, False]
    page.click("[data-part=master]")

    page.click(part(1, "more"))
    page.click(".vls-act", "Duplicate")
    page.click(part(2, "pick"))
    page.click(".vls-option", "old_film")
    assert rows_of(page) == [row(PAPER, -0.7), row(FILM, -0.7), row(LIGHT, -2.375), row(FILM, 1.65)]
    click_at(page, part(3, "pick"), 0.5, "right")
    page.click(".vls-act", "Remove")
    assert rows_of(page) == [row(PAPER, -0.7), row(FILM, -0.7), row(FILM, 1.65)]


def test_the_keyboard_does_it_all(page: Page):
    page.evaluate("app.canvas.selectNode(app.graph.nodes[0])")
    page.evaluate("document.querySelector('.vls-add').focus()")
    type_in(page, "", "Enter")
    page.find(".vls-option", "paper_cut")
    type_in(page, "wan rain", "ArrowDown", "Enter")
    page.wait("document.activeElement.dataset.part === 'strength'")
    assert rows_of(page) == [row(RAIN_LOW)]
    type_in(page, "", "ArrowUp", "ArrowUp", "PageDown", "PageDown", "PageDown")
    assert rows_of(page) == [row(RAIN_LOW, -0.4)]
    type_in(page, "1,3", "Enter")
    assert rows_of(page) == [row(RAIN_LOW, 1.3)]
    type_in(page, "7", "Escape")
    page.press("ArrowLeft", SHIFT)
    assert rows_of(page) == [row(RAIN_LOW, 1.29)]
    type_in(page, "99", "Enter")
    assert rows_of(page) == [row(RAIN_LOW, 10)]

    for key in ("Tab", "Tab"):
        page.press(key)
    page.wait("document.activeElement.dataset.part === 'add'")
    type_in(page, "", "Enter")
    page.find(".vls-option", "old_film")
    type_in(page, "nothing like it")
    page.find(".vls-nothing", "No LoRA has these words")
    page.press("Escape")
    page.wait("document.activeElement.dataset.part === 'add'")
    type_in(page, "", "Enter")
    page.find(".vls-option", "old_film")
    type_in(page, "film", "Enter")
    page.wait("document.activeElement.dataset.part === 'strength'")
    page.press("Tab", SHIFT)
    page.press("ArrowUp", ALT)
    assert [one["lora"] for one in rows_of(page)] == [FILM, RAIN_LOW]
    assert page.evaluate("document.activeElement.ariaLabel") == f"LoRA: {FILM}"
    page.press("Tab", SHIFT)
    page.press(" ")
    assert rows_of(page) == [row(FILM, on=False), row(RAIN_LOW, 10)]
    page.press("ArrowDown")
    page.press("Delete")
    assert rows_of(page) == [row(FILM, on=False)]
    assert page.evaluate("app.graph.nodes.length") == 1, "the key went to the rows alone"
    page.press("Tab", SHIFT)
    page.press("Tab", SHIFT)
    page.press("Tab", SHIFT)
    page.press("Enter")
    assert rows_of(page) == [row(FILM)]


def test_undo_copy_subgraph_and_reload_keep_the_rows(page: Page, loras: ComfyServer):
    put_stack(page, [row(FILM), row(PAPER, 0.5)])
    drag(page, part(1, "strength"), across=-20)
    page.click(part(2, "switch"))
    changed = [row(FILM, 0.8), row(PAPER, 0.5, on=False)]
    assert rows_of(page) == changed
    for before in ([row(FILM, 0.8), row(PAPER, 0.5)], [row(FILM), row(PAPER, 0.5)]):
        page.press("z", CONTROL)
        page.wait(f"{STACKS}.then(([rows]) => JSON.stringify(rows) === {json.dumps(compact(before))})")
        page.wait(f"document.querySelector('{part(1, 'strength')}')?.ariaValueNow === '{before[0]['strength']:g}'")
    for _ in range(2):
        page.press("y", CONTROL)
    page.wait(f"{STACKS}.then(([rows]) => JSON.stringify(rows) === {json.dumps(compact(changed))})")
    page.wait("document.querySelectorAll('.vls-row.vls-off').length === 1")

    page.evaluate("app.canvas.selectNode(app.graph.nodes[0]), document.activeElement.blur()")
    page.press("c", CONTROL, ("copy",))
    page.press("v", CONTROL, ("paste",))
    page.wait("app.graph.nodes.length === 2 && document.querySelectorAll('.vls-row').length === 4")
    assert page.evaluate(STACKS) == [changed, changed]
    page.evaluate("""(() => { const [one, other] = app.graph.nodes; other.pos = [620, 130];
        app.canvas.setDirty(true, true); })()""")
    page.evaluate("document.querySelectorAll('.vls-stack')[1].querySelector('[data-part=switch]').click()")
    assert page.evaluate(STACKS) == [changed, [row(FILM, 0.8, on=False), row(PAPER, 0.5, on=False)]], "two nodes"
    page.evaluate("app.graph.remove(app.graph.nodes[1])")

    page.evaluate("app.canvas.deselectAll(), app.canvas.selectNode(app.graph.nodes[0]), document.activeElement.blur()")
    page.press("e", CONTROL | SHIFT)
    page.wait("app.graph.nodes[0]?.subgraph?.nodes.length === 1")
    assert rows_of(page) == changed
    page.evaluate("app.canvas.setGraph(app.graph.nodes[0].subgraph)")
    page.wait("document.querySelectorAll('.vls-row').length === 2")
    page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [100, 100] }), app.canvas.setDirty(true, true)")
    page.click(part(2, "switch"))
    assert rows_of(page) == [row(FILM, 0.8), row(PAPER, 0.5)], "changed inside the subgraph"
    page.wait("app.extensionManager.workflow.activeWorkflow.isModified")

    put_stack(page, changed)
    page.click(part(2, "switch"))
    page.evaluate("new Promise((done) => setTimeout(done, 1000))")  # ComfyUI keeps its draft a moment later
    reload(page, loras)
    page.wait("document.querySelectorAll('.vls-row').length === 2")
    assert rows_of(page) == [row(FILM, 0.8), row(PAPER, 0.5)]


def compact(rows: list[dict]) -> str:
    return json.dumps(rows, separators=(",", ":"))


def test_the_panel_of_parameters_leaves_the_rows_their_width(page: Page):
    put_stack(page, [row(FILM)])
    width = page.evaluate("document.querySelector('.vls-row').offsetWidth")
    page.evaluate("app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', true)")
    page.evaluate("app.canvas.selectNode(app.graph.nodes[0])")
    page.find(".widget-item", "lora_name strength")
    page.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert page.evaluate("document.querySelector('.vls-row').offsetWidth") == width >= 350
    page.evaluate("app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")


def test_a_second_strength_blocks_and_steps(page: Page):
    put_stack(page, [row(RAIN, 0.9)])
    page.find(".vls-tag", "pair")
    page.click("[data-part=mode]")
    page.click(".vls-item", "High and low noise")
    assert rows_of(page) == [row(RAIN, 0.9, strength_low=0.9)]
    drag(page, part(1, "strength_low"), across=-30)
    page.click(".vls-add")
    page.click(".vls-option", "old_film")
    assert rows_of(page) == [row(RAIN, 0.9, strength_low=0.6), row(FILM, strength_low=1)]
    page.click("[data-part=mode]")
    page.press("ArrowDown")
    page.press("Enter")
    assert rows_of(page) == [row(RAIN, 0.9, audio=0.9), row(FILM, audio=1)]
    page.click("[data-part=mode]")
    page.click(".vls-item", "One strength")
    assert rows_of(page) == [row(RAIN, 0.9), row(FILM)]

    page.click(part(1, "more"))
    page.write("#vls-blocks", "0-9:")
    page.find(".vls-bad", "Strength in each block")
    page.write("#vls-blocks", "0-9:0.5, 31-35:1")
    page.press("Enter")
    assert rows_of(page)[0] == row(RAIN, 0.9, blocks="0-9:0.5, 31-35:1")
    page.click(".vls-form [role=spinbutton][aria-label^=From]")
    type_in(page, "20", "Enter")
    page.click(".vls-form [role=spinbutton][aria-label^=To]")
    type_in(page, "10", "Enter")
    assert rows_of(page)[0] == row(RAIN, 0.9, blocks="0-9:0.5, 31-35:1", start=0.2, end=0.21)
    type_in(page, "100", "Enter")
    page.press("Escape")
    assert rows_of(page)[0] == row(RAIN, 0.9, blocks="0-9:0.5, 31-35:1", start=0.2)
    page.find(".vls-line2", "blocks 0-9:0.5, 31-35:1 · steps 20 to 100 %")


def course(page: Page, inside: str) -> list[list[float]]:
    """The corners of a curve's picture, as [across, down] in a box 60 by 18."""
    path = page.ask(page.find(f"{inside} .vls-course"), "function () { return this.getAttribute('d'); }")
    corners = [[0.0, 0.0]]
    for kind, numbers in re.findall(r"([MLHV])([\d. ]+)", path):
        (across, down), given = corners[-1], [*map(float, numbers.split())]
        corners.append({"H": [given[0], down], "V": [across, given[0]]}.get(kind, given))
    return corners[1:]


def test_a_curve_is_typed_chosen_and_seen(page: Page, loras: ComfyServer):
    curve = "0:0, 0.3:1, 1:0.4"
    put_stack(page, [row(RAIN, 0.9, strength_low=0.5)])
    page.click(part(1, "more"))
    for wrong, words in (("0:0, 0.3", "“0.3” cannot be read"), ("0.5:1, 0.2:1", "0.2:1 must lie after 0.5"),
                         ("0:1, 3:1", "The place of 3:1 must lie between 0 and 1"), ("0:11", "The factor of 0:11")):
        page.write("#vls-curve", wrong)
        page.press("Enter")
        page.find("#vls-curve[aria-invalid=true]")
        page.find("#vls-curve-said.vls-bad", words)
        assert rows_of(page) == [row(RAIN, 0.9, strength_low=0.5)], "what cannot be read is not kept"
    page.write("#vls-curve", curve)
    page.press("Enter")
    assert rows_of(page) == [row(RAIN, 0.9, strength_low=0.5, curve=curve)]
    page.find("#vls-curve[aria-invalid=false]")
    assert course(page, ".vls-form") == [[1, 17], [1, 17], [1, 17], [18.4, 1], [59, 10.6], [59, 17], [59, 17]]
    page.click(".vls-form [role=spinbutton][aria-label^=From]")
    type_in(page, "50", "Enter")
    assert course(page, ".vls-form")[1:4] == [[30, 17], [30, 3.7], [59, 10.6]], "nothing before half of the steps"
    page.press("Escape")
    wanted = [row(RAIN, 0.9, strength_low=0.5, start=0.5, curve=curve)]
    assert rows_of(page) == wanted
    page.find(".vls-line2", f"steps 50 to 100 % · curve {curve}")
    page.evaluate("new Promise((done) => setTimeout(done, 1000))")  # ComfyUI keeps its draft a moment later
    reload(page, loras)
    page.find(".vls-line2", f"steps 50 to 100 % · curve {curve}")
    assert rows_of(page) == wanted
    assert course(page, ".vls-row")[1:4] == [[30, 17], [30, 3.7], [59, 10.6]]

    page.click(part(1, "more"))
    page.click("#vls-curve")
    page.press("Tab", SHIFT)
    assert page.evaluate("document.activeElement.ariaLabel") == "Shape of the curve"
    assert page.evaluate("document.activeElement.selectedOptions[0].text") == "Own curve"
    type_in(page, "Fade o")
    page.wait("document.querySelector('#vls-curve').value === '0.5:1, 1:0'")
    assert rows_of(page) == [row(RAIN, 0.9, strength_low=0.5, start=0.5, curve="0.5:1, 1:0")]
    page.write("#vls-curve", "")
    page.press("Enter")
    assert rows_of(page) == [row(RAIN, 0.9, strength_low=0.5, start=0.5)], "no key where there is no curve"
    page.press("Escape")

    put_stack(page, [row(FILM, curve="1:1, 0:0"), row(PAPER)])
    page.find(".vls-line2.vls-bad", "Curve: 0:0 must lie after 1: the places rise.")
    assert rows_of(page) == [row(FILM, curve="1:1, 0:0"), row(PAPER)]


def test_a_lora_tells_what_it_is(page: Page):
    put_stack(page, [row(PAPER)])
    click_at(page, part(1, "pick"), 0.5, "right")
    page.find(".vls-words", "p4per_cut")
    told = page.evaluate("[...document.querySelectorAll('.vls-facts dt')].map((term) => "
                         "[term.textContent, term.nextSibling.textContent])")
    assert dict(told) | {"Size": ""} == {"Base": "Wan 2.1 T2V 1.3B", "Rank": "4", "Steps": "2,400", "Keys": "2",
                                         "Size": ""}
    page.wait("document.querySelector('.vls-facts img').naturalWidth === 64")
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click(".vls-act", "Copy trigger words")
    page.find(".vls-act", "Copied")
    assert page.evaluate("window.copied") == "p4per_cut"
    page.press("Escape")
    page.wait("!document.querySelector('.vls-pop')")


def test_a_missing_lora_is_red_stops_the_queue_and_is_found_elsewhere(page: Page, loras: ComfyServer):
    put_stack(page, [row("wan\\portrait_light.safetensors"), row(FILM, 0.5)])
    page.evaluate("""(() => {
        const stack = app.graph.nodes[0];
        const [model, shown] = ['UNETLoader', 'PreviewAny'].map((kind) => {
            const node = LiteGraph.createNode(kind);
            app.graph.add(node);
            return node;
        });
        model.pos = [620, 130], shown.pos = [620, 330];
        model.widgets[0].value = 'tiny_wan.safetensors';
        model.connect(0, stack, stack.findInputSlot('model'));
        stack.connect(3, shown, 0);
    })()""")
    page.find(".vls-missing .vls-line2", "Not found.")
    page.click("[data-testid=queue-button]")
    page.find(".p-toast-detail", "wan\\portrait_light.safetensors: not in ComfyUI's LoRA folders.")
    page.find("[role=alert], .p-toast, div", "rejected the value for loras")
    assert "row 1: wan\\portrait_light.safetensors was not found" in loras.log()
    assert loras.get("/queue") == {"queue_running": [], "queue_pending": []}
    page.click(".vls-offer", f"Use {LIGHT}")
    assert rows_of(page) == [row(LIGHT), row(FILM, 0.5)]
    page.wait("!document.querySelector('.vls-missing')")
    loras.forget()  # what comes from ComfyUI's cache tells nothing
    page.click("[data-testid=queue-button]")
    page.wait("[...document.querySelectorAll('.vls-fit')].map((one) => one.textContent).join() === '2/2,2/2'")
