"""Captions by a service in a real ComfyUI: what is asked, what is kept, and that the key stays where it is."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from caption_server import Answer, caption_server, chat, fails
from comfy_server import ComfyServer
from footage import counter_frame, write_video
from graphs import node

pytestmark = pytest.mark.comfy

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def keyed(comfyui_here, tmp_path_factory):
    """A server of its own, whose environment has a key and the host that it belongs to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEO_LORA_API_KEY", KEY)
        patch.setenv("VIDEO_LORA_CAPTION_HOSTS", "127.0.0.1")
        server = ComfyServer(tmp_path_factory.mktemp("keyed"))
        server.start("--verbose", "DEBUG")
    yield server
    server.stop()


def footage(server: ComfyServer, name: str, count: int = 3) -> str:
    """Clips that differ, without captions."""
    folder = server.input / name
    folder.mkdir()
    for number in range(count):
        write_video(
            folder / f"{number}.mp4", frames=12, fps=12, size=(160, 96),
            draw=lambda frame, *size, first=300 * number: counter_frame(first + frame, *size),
        )
    return f"input/{name}"


def captioning(folder: str, address: str, **more) -> dict:
    return {
        "clips": node("VLSLoadClips", folder=folder, trigger="ohwx"),
        "service": node("VLSCaptionerService", service="OpenAI-compatible", model="m", address=address),
        "caption": node("VLSCaptionClips", clips=("clips", 0), captioner=("service", 0), **more),
        "report": node("PreviewAny", source=("caption", 1)),
    }


def slow(answer: Answer) -> Answer:
    """Slow enough for the node to show how far it is."""
    return replace(answer, delay=0.6)


def told(server: ComfyServer, result) -> str:
    """Everything that ComfyUI says, shows, keeps and logs of a prompt, and every small file it can reach."""
    kept = json.dumps(server.history(result.prompt_id)) if result.prompt_id else ""
    files = [path for place in (server.input, server.output, server.folder / "user") for path in place.rglob("*")]
    texts = [path.read_bytes().decode("utf-8", "replace") for path in files if path.is_file()]
    return "\n".join([kept, json.dumps(result.messages), *result.lines, result.error, server.log(), *texts])


def test_clips_are_captioned_once_and_the_key_goes_nowhere_else(keyed: ComfyServer):
    folder = footage(keyed, "served")
    answers = slow(chat("Here is a caption: A grey wall.")), fails(400, f"key {KEY}"), chat("A wall moves.")
    with caption_server(*answers) as service:
        graph = captioning(folder, f"{service.url}/v1")
        first = keyed.queue(graph)
        assert first.status == "success", first.error
        assert [request["headers"]["authorization"] for request in service.requests] == [f"Bearer {KEY}"] * 3
        report = first.text("report")
        assert report.startswith("2 captions written, 0 kept, 1 failed")
        assert '0.mp4: written, "A grey wall."' in report and "1.mp4: no caption, 127.0.0.1" in report
        assert (keyed.input / "served" / "0.txt").read_text() == "A grey wall.\n"
        assert any(line.startswith("caption: Writing captions 1 of 3") for line in first.lines)
        second = keyed.queue(graph)
        assert second.status == "success" and len(service.requests) == 4
        assert second.text("report").startswith("1 captions written, 2 kept, 0 failed")
        third = keyed.queue(graph)
        assert third.status == "success" and len(service.requests) == 4 and "service" not in third.executed
    assert KEY not in told(keyed, first) + told(keyed, second) + json.dumps(graph)


@pytest.mark.parametrize("address", ["http://captions.example/v1", "https://8.8.8.8/v1", f"http://x:{KEY}@127.0.0.1/v1"])
def test_other_hosts_are_refused_before_anything_runs(keyed: ComfyServer, address):
    folder = footage(keyed, f"refused{abs(hash(address))}", count=1)
    result = keyed.queue(captioning(folder, address))
    assert (result.status, result.error_node) == ("refused", "service") and "Address" in result.error


@pytest.mark.parametrize("answer", [
    fails(401, f"Incorrect API key provided: {KEY}"), Answer(302, "", {"Location": "http://127.0.0.1:9/"}),
    Answer(body=KEY),
], ids=["401", "redirect", "malformed"])
def test_an_error_is_told_without_the_key(keyed: ComfyServer, answer):
    folder = footage(keyed, f"errors{answer.status}", count=2)
    with caption_server(answer) as service:
        result = keyed.queue(captioning(folder, service.url))
    assert (result.status, result.error_node) == ("error", "caption")
    assert "127.0.0.1" in result.error
    assert KEY not in told(keyed, result)


def test_cancel_while_a_service_thinks_is_obeyed_and_keeps_what_was_written(keyed: ComfyServer):
    folder = footage(keyed, "slow")
    asked = []

    def cancel(message):
        if message["type"] == "progress_text" and "1 of 3" in message["data"]["text"] and not asked:
            asked.append(time.monotonic())
            keyed.interrupt()

    with caption_server(slow(chat("A wall.")), Answer(delay=20)) as service:
        result = keyed.queue(captioning(folder, service.url), on_message=cancel)
    assert (result.status, result.error_node) == ("interrupted", "caption")
    assert time.monotonic() - asked[0] < 5
    assert sorted(path.name for path in (keyed.input / "slow").glob("*.txt")) == ["0.txt"]
