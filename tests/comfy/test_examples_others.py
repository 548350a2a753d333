"""The other examples, opened from ComfyUI's templates, queued with Run and finished, in both renderers.

EXAMPLE_PICTURES=folder keeps pictures, as in `test_examples_wan.py`.
"""

from __future__ import annotations

import example_pages as seen
import pytest
from browser import Page
from comfy_server import ComfyServer

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize(("name", "frames", "sound"), [
    ("ltx_video_lora", 9, False),
    ("ltx2_lora", 17, True),
    ("cogvideox_lora", 9, False),
])
def test_clips_become_a_lora_and_a_video(example_page: Page, examples: ComfyServer, name: str, frames: int,
                                         sound: bool):
    seen.train_and_sample(example_page, examples, name, frames=frames, sound=sound)


def test_a_film_becomes_captioned_shots(example_page: Page, examples: ComfyServer):
    name, page = "film_to_captioned_clips", example_page
    seen.open_example(page, name)
    seen.make_small(page)
    shown = seen.run(page, examples)
    assert shown[seen.number_of(name, "PreviewAny")]["text"][0].startswith("3 shots of 1 film")
    shots = sorted((examples.input / "my_shots").glob("*.mp4"))
    assert len(shots) == 3 and all(shot.with_suffix(".txt").read_text(encoding="utf-8").strip() for shot in shots)
    assert "0 failed" in shown[seen.number_of(name, "PreviewAny", 1)]["text"][0]

    page.press("r")  # as the note says, and with Ctrl+M the last group is switched on
    page.wait("app.graph.nodes.find((node) => node.type === 'VLSLoadClips').widgets[0].options.values"
              ".includes('input/my_shots')")
    page.evaluate("app.graph.nodes.forEach((node) => { if (node.mode === 2) { node.mode = 0; } })")
    shown = seen.run(page, examples)
    assert shown[seen.number_of(name, "PreviewAny", 2)]["text"][0].startswith("3 clips used, 0 files left out")
    seen.check_places(page)
    seen.take_portrait(page, name)
