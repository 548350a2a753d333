"""Load Clips in a real browser on a real server, in both of ComfyUI's renderers: upload and the review page.

What is shown is what the files say: every check looks at both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from browser import CONTROL, SHIFT, Page
from comfy_server import PROJECT, ComfyServer

from video_lora_studio.loaders.caption_file import read_excluded

pytestmark = pytest.mark.comfy

READY = "window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner"
NODE = "app.graph.nodes.find((node) => node.comfyClass === 'VLSLoadClips')"
SHOWN = """Object.fromEntries([...document.querySelectorAll('.vls-card')].map((card) => [card.ariaLabel, [
    card.querySelector('textarea').value, card.querySelector('input').checked]]))"""
CAPTIONS = {"walk_0": "a rabbit looks up", "bikes_1": "a rider turns left", "face_2": "",
            "walk_3": "two rabbits meet\n---\nrabbit friends", "bikes_4": "a rider waits at a crossing"}


@pytest.fixture(scope="module")
def footage(comfy: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip for each of CAPTIONS: real footage where some is installed."""
    from footage import cut_real_clips, write_video

    folder, pieces = tmp_path_factory.mktemp("footage"), tmp_path_factory.mktemp("pieces")
    clips = cut_real_clips(pieces, count=len(CAPTIONS), seconds=2.0, width=320) or [
        write_video(pieces / f"{number}.mp4", frames=48 + number) for number in range(len(CAPTIONS))]
    for name, clip in zip(CAPTIONS, clips, strict=True):
        shutil.copy(clip, folder / f"{name}.mp4")
    (comfy.input / "watched").mkdir()
    return folder


@pytest.fixture(scope="module")
def empty_page(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser.why_not():
        pytest.skip(browser.why_not())
    with browser.browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def page(request, empty_page: Page, comfy: ComfyServer, footage: Path) -> Page:
    """ComfyUI's front end with one renderer or the other."""
    status, _ = comfy.post("/settings", {"Comfy.VueNodes.Enabled": request.param, "Comfy.TutorialCompleted": True})
    assert status == 200
    empty_page.open(f"http://127.0.0.1:{comfy.port}/")
    empty_page.wait(READY)
    load_workflow(empty_page)
    assert empty_page.evaluate("Boolean(document.querySelector('[data-node-id]'))") is request.param
    return empty_page


@pytest.fixture
def folder(comfy: ComfyServer, footage: Path, page: Page) -> Iterator[Path]:
    """input/watched as it was at first, chosen in the graph's Load Clips."""
    folder = comfy.input / "watched"
    shutil.rmtree(folder)
    shutil.copytree(footage, folder)
    for name, caption in CAPTIONS.items():
        if caption:
            (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
    load_workflow(page)
    yield folder
    assert [error for error in page.errors() if "clips_" in error] == []


def load_workflow(page: Page) -> None:
    """Open a saved workflow: Load Clips of the example, alone."""
    saved = json.loads((PROJECT / "example_workflows" / "wan_t2v_lora.json").read_text(encoding="utf-8"))
    (node,) = [node for node in saved["nodes"] if node["type"] == "VLSLoadClips"]
    node |= {"pos": [420, 160], "outputs": [], "inputs": [], "widgets_values": ["input/watched", "myst1le"]}
    node.pop("widgets_values_named", None)
    saved |= {"nodes": [node], "links": [], "groups": [], "extra": {}}
    page.evaluate(f"app.loadGraphData({json.dumps(saved)})")
    page.evaluate("Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] }), app.canvas.setDirty(true, true)")
    page.wait(f"{NODE}.widgets.at(-1).element.checkVisibility()")
    page.wait("document.querySelectorAll('.vls-clips').length === 1")  # what was open before is gone


def open_review(page: Page) -> None:
    page.click(".vls-clips button", "Review")
    page.wait(f"document.querySelectorAll('.vls-card').length === {len(CAPTIONS)}")


def card(name: str, inside: str) -> str:
    return f'.vls-card[aria-label="{name}.mp4"] {inside}'


def field(label: str) -> str:
    return f".vls-field input[title*={json.dumps(label)}]"


def on_disk(folder: Path) -> dict[str, list]:
    """Caption, and whether it is used, of every clip, as the files have it."""
    excluded = read_excluded(folder)
    texts = {clip: clip.with_suffix(".txt") for clip in sorted(folder.glob("*.mp4"))}
    return {clip.name: [text.read_text(encoding="utf-8").strip() if text.exists() else "", clip.name not in excluded]
            for clip, text in texts.items()}


def told(page: Page, words: str) -> None:
    """Wait until the page's last line says so."""
    page.wait(f"document.querySelector('.vls-status').textContent.includes({json.dumps(words)})")


def test_captions_and_choices_are_the_files(page: Page, folder: Path, comfy: ComfyServer):
    wanted = {f"{name}.mp4": [caption, True] for name, caption in CAPTIONS.items()}
    open_review(page)
    assert page.evaluate(SHOWN) == on_disk(folder) == wanted

    page.write(card("face_2", "textarea"), "a man speaks, Größe 4")
    page.wait(f"document.querySelector('{card('face_2', '.vls-state')}').textContent === 'Saved'")
    wanted["face_2.mp4"][0] = "a man speaks, Größe 4"
    page.click(card("bikes_1", "label"), "Use")
    told(page, "bikes_1.mp4 is left out.")
    wanted["bikes_1.mp4"][1] = False
    assert page.evaluate(SHOWN) == on_disk(folder) == wanted

    page.write(field("Words to find"), "Rabbit")
    page.write(field("What to put"), "hare")
    page.click(".vls-tools button", "Replace all (3 in 2 clips)")
    told(page, "Changed 2 captions.")
    wanted["walk_0.mp4"][0], wanted["walk_3.mp4"][0] = "a hare looks up", "two hares meet\n---\nhare friends"
    assert page.evaluate(SHOWN) == on_disk(folder) == wanted

    page.click(".vls-tools button", "Insert")
    told(page, "Changed 5 captions.")
    assert page.evaluate(SHOWN) == on_disk(folder)
    assert on_disk(folder)["walk_3.mp4"] == ["myst1le, two hares meet\n---\nmyst1le, hare friends", True]
    page.click(".vls-review button", "Undo (5 clips)")
    told(page, "Took back 5 captions.")
    assert page.evaluate(SHOWN) == on_disk(folder) == wanted

    page.open(f"http://127.0.0.1:{comfy.port}/")
    page.wait(READY)
    load_workflow(page)
    open_review(page)
    assert page.evaluate(SHOWN) == on_disk(folder) == wanted
    page.click(".vls-review button", "Done")
    page.wait("!document.querySelector('.vls-review')")


def test_a_clip_plays(page: Page, folder: Path):
    open_review(page)
    page.point(card("walk_0", ".vls-screen"))
    video = f"document.querySelector('{card('walk_0', 'video')}')"
    page.wait(f"{video}?.readyState >= 2 && {video}.currentTime > 0.1 && {video}.videoWidth > 0")
    assert page.evaluate(f"[{video}.muted, {video}.controls]") == [True, False]

    page.click(card("face_2", ".vls-play"))
    video = f"document.querySelector('{card('face_2', 'video')}')"
    began = page.wait(f"{video}?.readyState >= 2 && {video}.currentTime")
    page.wait(f"{video}.currentTime > {began} + 0.2")
    assert page.evaluate(f"[{video}.muted, {video}.controls, {video}.error]") == [False, True, None]
    assert page.evaluate("document.querySelectorAll('.vls-screen video').length") == 1
    assert page.evaluate("[...document.querySelectorAll('.vls-screen img')].every((still) => still.naturalWidth > 0)")
    page.press("Escape")
    page.wait("!document.querySelector('.vls-review') && !document.querySelector('video')")


def test_the_keyboard_does_it_all_and_stays_on_the_page(page: Page, folder: Path):
    page.evaluate(f"app.canvas.selectNode({NODE})")
    open_review(page)
    page.click(card("face_2", "textarea"))
    for character in "face":
        page.press(character)
    page.press("Enter", CONTROL)
    page.wait("document.activeElement.ariaLabel === 'Caption of walk_0.mp4'")
    page.press("Tab", SHIFT)
    page.press(" ")
    told(page, "walk_0.mp4 is left out.")
    page.press("Delete")  # would take the chosen node out of the graph
    assert on_disk(folder)["face_2.mp4"] == ["face", True]
    assert on_disk(folder)["walk_0.mp4"] == ["a rabbit looks up", False]
    page.press("Escape")
    page.wait("!document.querySelector('.vls-review')")
    assert page.evaluate("document.activeElement.textContent") == "Review"
    assert page.evaluate("app.graph.nodes.length") == 1


def test_what_was_changed_elsewhere_is_not_written_over(page: Page, folder: Path):
    open_review(page)
    (folder / "walk_0.txt").write_text("written elsewhere", encoding="utf-8")
    page.write(card("walk_0", "textarea"), "mine")
    page.wait(f"document.querySelector('{card('walk_0', '.vls-state')}').textContent === 'Not saved'")
    told(page, "has been changed elsewhere")
    assert on_disk(folder)["walk_0.mp4"] == ["written elsewhere", True]
    page.click(".vls-review button", "Done")
    told(page, "Press Done again")
    page.click(".vls-review button", "Reload")
    page.wait(f"document.querySelector('{card('walk_0', 'textarea')}').value === 'written elsewhere'")
    page.press("Escape")
    page.wait("!document.querySelector('.vls-review')")


def test_files_are_uploaded_and_chosen(page: Page, folder: Path, comfy: ComfyServer):
    target = comfy.input / "new clips"
    shutil.rmtree(target, ignore_errors=True)
    given = [folder / name for name in ("walk_0.mp4", "walk_0.txt")]
    page.choose_files(".vls-clips button", "Files…", given)
    page.wait("document.querySelector('.vls-told').textContent === '1 clip, 1 caption'")
    assert page.evaluate("document.querySelector('.vls-clips input[type=text]').value") == "watched"
    page.write(".vls-clips input[type=text]", "new clips")
    page.press("Enter")
    page.wait("document.querySelector('.vls-told').textContent === '2 files uploaded'")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in given}
    assert page.evaluate(f"{NODE}.widgets.map((widget) => widget.value).slice(0, 2)") == ["input/new clips", "myst1le"]
    queued = page.evaluate("app.graphToPrompt().then(({ output }) => Object.values(output)[0].inputs)")
    assert queued["folder"] == "input/new clips" and queued["trigger"] == "myst1le" and "footage" not in queued
    page.click(".vls-clips button", "Review")
    page.wait("document.querySelectorAll('.vls-card').length === 1")
    assert page.evaluate(SHOWN) == on_disk(target) == {"walk_0.mp4": [CAPTIONS["walk_0"], True]}
    page.press("Escape")
    page.wait("!document.querySelector('.vls-review')")


def test_after_undo_the_strip_is_that_of_the_node(page: Page, folder: Path, comfy: ComfyServer):
    shutil.rmtree(comfy.input / "after undo", ignore_errors=True)
    page.evaluate(f"{NODE}.widgets[1].value = 'other', "
                  "app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.evaluate("document.activeElement.blur()")
    page.press("z", CONTROL)
    page.wait(f"{NODE}?.widgets[1].value === 'myst1le'")
    page.wait(f"{NODE}.widgets.at(-1).element === document.querySelector('.vls-clips')")
    page.choose_files(".vls-clips button", "Files…", [folder / "face_2.mp4"])
    page.write(".vls-clips input[type=text]", "after undo")
    page.press("Enter")
    page.wait("document.querySelector('.vls-told').textContent === '1 file uploaded'")
    queued = page.evaluate("app.graphToPrompt().then(({ output }) => Object.values(output)[0].inputs)")
    assert (queued["folder"], queued["trigger"]) == ("input/after undo", "myst1le")


def test_a_folder_is_dropped(page: Page, folder: Path, comfy: ComfyServer, tmp_path: Path):
    shutil.rmtree(comfy.input / "cats", ignore_errors=True)
    dropped = tmp_path / "cats" / "3_portraits"
    dropped.mkdir(parents=True)
    shutil.copy(folder / "face_2.mp4", dropped / "face.mp4")
    for name, text in (("face.txt", "a face"), ("other.txt", "no clip's"), (".DS_Store", ""), ("notes.pdf", "")):
        (dropped / name).write_text(text, encoding="utf-8")
    page.drop(".vls-clips", [dropped.parent])
    page.wait("document.querySelector('.vls-told').textContent === '1 clip, 2 captions, 1 left out'")
    assert page.evaluate("document.querySelector('.vls-clips input[type=text]').value") == "cats"
    page.click(".vls-clips button", "Upload")
    page.wait("document.querySelector('.vls-told').textContent.startsWith('2 files uploaded')")
    why = page.evaluate("document.querySelector('.vls-told').title")
    assert why.splitlines() == ["3_portraits/notes.pdf: not a clip or caption",
                                "3_portraits/other.txt: no clip has its name"]
    there = comfy.input / "cats" / "3_portraits"
    assert {path.name for path in there.iterdir()} == {"face.mp4", "face.txt"}
    assert page.evaluate(f"{NODE}.widgets[0].value") == "input/cats"
    assert page.evaluate("app.graph.nodes.length") == 1
