"""VLSStack beside its rows: stacks one after the other, and the routes that its rows ask, on a real server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest
import torch
from comfy_server import ComfyServer
from graphs import node, row, wan
from safetensors.torch import save_file

pytestmark = pytest.mark.comfy
FILES = ("chain/one.safetensors", "chain/two_high_noise.safetensors", "chain/two_low_noise.safetensors")


@pytest.fixture(scope="module")
def server(comfy: ComfyServer) -> ComfyServer:
    """The server with three LoRAs of the tiny Wan, the first with a trigger word and a picture."""
    from PIL import Image

    folder = comfy.models / "loras" / "chain"
    folder.mkdir()
    for name in FILES:
        tensors = {f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": torch.ones(shape)
                   for side, shape in (("A", (4, 128)), ("B", (128, 4)))}
        save_file(tensors, comfy.models / "loras" / name,
                  {"modelspec.trigger_phrase": "zoe", "ss_steps": "9"} if name == FILES[0] else None)
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    (comfy.models / "secret.safetensors").write_bytes((comfy.models / "loras" / FILES[0]).read_bytes())
    return comfy


def chained(**second) -> dict:
    """Two stacks: the first without a model hands its rows to the second; what both say is shown."""
    return {
        **wan(),
        "first": node("VLSStack", loras=json.dumps([row(FILES[0], 0.5)])),
        "second": node("VLSStack", stack=("first", 4), loras=json.dumps([row(FILES[1]), row(FILES[0], 1, on=False)]),
                       **second),
        "report": node("PreviewAny", source=("second", 3)),
        "triggers": node("PreviewAny", source=("second", 2)),
    }


def test_rows_of_another_stack_go_on_first(server: ComfyServer):
    result = server.queue(chained(model=("unet", 0), model_low=("unet", 0)))
    assert result.status == "success", result.error
    lines = result.text("report").splitlines()
    assert [line.split(":")[0] for line in lines] == [FILES[0], FILES[1], FILES[0]]
    assert "strength 0.5, 2 of 2 keys match" in lines[0] and f"low noise: {FILES[2]}, strength 1, 2 of 2" in lines[1]
    assert result.text("triggers") == "zoe"
    assert result.outputs["second"]["stack_rows"] == [
        {"lora": FILES[1], "matched": 2, "total": 2, "low": {"lora": FILES[2], "matched": 2, "total": 2}},
        {"lora": FILES[0]},
    ]


def test_without_a_model_only_the_rows_go_out(server: ComfyServer):
    result = server.queue(chained())
    assert result.status == "success", result.error
    assert result.text("report") == "No model is connected: 3 rows go out by stack."
    assert result.text("triggers") == "zoe"
    used = {**chained(), "sampling": node("ModelSamplingSD3", model=("second", 0), shift=5.0),
            "shown": node("PreviewAny", source=("sampling", 0))}
    result = server.queue(used)
    assert result.status == "error" and "Stack LoRAs has no model" in result.error
    result = server.queue(chained(model_low=("unet", 0)))
    assert result.status == "error" and "low-noise model alone" in result.error


def test_a_file_that_is_elsewhere_is_named(server: ComfyServer):
    rows = json.dumps([row("two_high_noise.safetensors")])
    result = server.queue({**wan(), "stack": node("VLSStack", model=("unet", 0), loras=rows),
                           "report": node("PreviewAny", source=("stack", 3))})
    assert result.status == "refused"
    assert "row 1: two_high_noise.safetensors was not found" in result.error and FILES[1] in result.error


def asked(server: ComfyServer, route: str, **headers: str) -> tuple[int, str, bytes]:
    """Status, kind and body of what a route answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/api/video_lora/{route}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_routes_tell_of_loras(server: ComfyServer):
    listed = {one["name"].replace("\\", "/"): one["low"] for one in json.loads(asked(server, "loras")[2])["loras"]}
    assert listed[FILES[0]] is None and listed[FILES[1]].replace("\\", "/") == FILES[2]
    told = json.loads(asked(server, f"lora?name={quote(FILES[0])}")[2])
    assert (told["steps"], told["rank"], told["triggers"], told["keys"]) == (9, "4", ["zoe"], 2)
    assert told["preview"]["kind"] == "image/png"
    status, kind, body = asked(server, f"lora_preview?name={quote(FILES[0])}")
    assert (status, kind) == (200, "image/png") and body.startswith(b"\x89PNG")


@pytest.mark.parametrize(("route", "status", "words"), [
    ("lora?name=../secret.safetensors", 400, "must not hold"),
    ("lora?name=" + quote("..\\secret.safetensors"), 400, "must not hold"),
    ("lora?name=/etc/passwd", 400, "without a drive or leading slash"),
    ("lora?name=gone.safetensors", 400, "was not found"),
    ("lora", 400, "is empty"),
    ("lora_preview?name=../secret.safetensors", 400, "must not hold"),
    ("lora_preview?name=" + quote(FILES[1]), 400, "No preview"),
])
def test_routes_refuse_what_they_must(server: ComfyServer, route: str, status: int, words: str):
    answered, kind, body = asked(server, route)
    assert answered == status and words in json.loads(body)["error"]


@pytest.mark.parametrize("route", ["loras", f"lora?name={quote(FILES[0])}", f"lora_preview?name={quote(FILES[0])}"])
def test_routes_refuse_other_sites(server: ComfyServer, route: str):
    assert asked(server, route)[0] == 200
    assert asked(server, route, Origin="http://evil.example")[0] == 403
