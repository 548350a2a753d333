"""What a stranger's workflow, file or web page may try on a real ComfyUI: each refused, by what, and nothing touched.

python tests/comfy/test_attacks.py        # prints the table
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from comfy_server import PROJECT, ComfyServer
from graphs import Graph, node, only, preparing, stacked, training

pytestmark = pytest.mark.comfy

JSON = {"Content-Type": "application/json"}
SECRET = "sk-attack-0123456789abcdef"


@dataclass(frozen=True)
class Attack:
    """One attempt. `words`: what the refusal must say."""

    name: str
    attempt: Callable[[ComfyServer], str]
    """Makes it, and gives the refusal in words; AssertionError where it got through."""
    words: tuple[str, ...]


def queued(graph: Graph, *wanted: str) -> Callable[[ComfyServer], str]:
    """A prompt that must fail."""

    def attempt(server: ComfyServer) -> str:
        result = server.queue(only(graph, *wanted) if wanted else graph)
        assert result.status in ("refused", "error"), f"it was accepted: {result.outputs}"
        by = "validation" if result.status == "refused" else f"{graph[result.error_node]['class_type']}"
        return f"{by}: {result.error}"

    return attempt


def asked(method: str, path: str, body: bytes = b"", headers: dict | None = None) -> Callable[[ComfyServer], str]:
    """A request that must be turned away."""

    def attempt(server: ComfyServer) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        finally:
            connection.close()
        assert answer.status >= 400, f"{answer.status}: {text[:200]}"
        assert SECRET not in text
        with contextlib.suppress(ValueError):
            text = json.loads(text).get("error", text)
        return f"HTTP {answer.status}: {text or 'no body (ComfyUI)'}"

    return attempt


def changed(name: str, *, folder: str = "input/attacked") -> Callable[[ComfyServer], str]:
    """A caption for a clip of this name, which must fail for that clip."""

    def attempt(server: ComfyServer) -> str:
        change = {"name": name, "seen": "", "caption": "mine"}
        status, told = server.post("/api/video_lora/captions", {"folder": folder, "changes": [change]})
        assert status >= 400 or told["changes"] == [], told
        return f"HTTP {status}: {told.get('error') or told['failed'][name]}"

    return attempt


def clips_of(folder: str) -> Graph:
    return {"clips": node("VLSLoadClips", folder=folder, trigger=""), "report": node("PreviewAny", source=("clips", 1))}


def run_named(name: str) -> Callable[[ComfyServer], str]:
    return queued(training("input/attacked", name=name, steps=1, rank=1), "train")


def rows_of(text: str) -> Callable[[ComfyServer], str]:
    graph = stacked([], name="never")
    graph["stack"]["inputs"]["loras"] = text
    return queued(graph, "stack_report")


def row(lora: object, **more: object) -> str:
    return json.dumps([{"on": True, "lora": lora, "strength": 1.0, **more}])


def captioner(address: str, model: str = "m", service: str = "OpenAI-compatible") -> Callable[[ComfyServer], str]:
    return queued(
        {
            "clips": node("VLSLoadClips", folder="input/attacked", trigger=""),
            "service": node("VLSCaptionerService", service=service, model=model, address=address),
            "caption": node("VLSCaptionClips", clips=("clips", 0), captioner=("service", 0), overwrite=True),
            "report": node("PreviewAny", source=("caption", 1)),
        }
    )


def redirected(server: ComfyServer) -> str:
    """A service on this machine that sends on to another host."""
    from caption_server import Answer, caption_server

    with caption_server(Answer(302, "", {"Location": "http://evil.example/v1"})) as service:
        told = captioner(service.url)(server)
        assert len(service.requests) == 1
    return told


def based_on(file: str) -> Callable[[ComfyServer], str]:
    return queued(preparing("input/attacked", model_file=file), "prepare_report")


TRIGGER = json.dumps({"folder": "input/attacked", "trigger": "evil", "insert": True}).encode()
PLACE = "folder=input/attacked&name="

ATTACKS = (
    Attack("dataset folder `../..`", queued(clips_of("../../secrets")), ("'..'",)),
    Attack("dataset folder, absolute", queued(clips_of("/etc")), ("leading slash",)),
    Attack("dataset folder, drive letter", queued(clips_of("C:\\Users")), ("drive",)),
    Attack("dataset folder, UNC", queued(clips_of("\\\\evil.example\\share")), ("leading slash",)),
    Attack("dataset folder with NUL", queued(clips_of("input/attacked\0/../../secrets")), ("not a usable path",)),
    Attack(
        "dataset folder, fullwidth dots and slash",
        queued(clips_of("input/\uff0e\uff0e\uff0f\uff0e\uff0e\uff0fsecrets")),
        ("no folder",),
    ),
    Attack(
        "dataset folder, one-dot leaders (NFKC)",
        queued(clips_of("input/\u2024\u2024/\u2024\u2024/secrets")),
        ("no folder",),
    ),
    Attack("dataset folder, combining and RTL marks", queued(clips_of("input/\u202e\u0301attacked")), ("no folder",)),
    Attack("dataset folder, a link that leads out", queued(clips_of("input/way_out")), ("leads outside",)),
    Attack("dataset folder, 1 MB long", queued(clips_of("input/" + "a" * 1_000_000)), ("not a usable path",)),
    Attack(
        "shots written to `../`",
        queued(
            {
                "cut": node("VLSSplitScenes", video="attacked/clip.mp4", folder="../secrets", trigger=""),
                "report": node("PreviewAny", source=("cut", 1)),
            }
        ),
        ("'..'",),
    ),
    Attack("run name `../escape`", run_named("../escape"), ("Name", "../escape")),
    Attack("run name, Windows device", run_named("COM\u00b9"), ("reserved",)),
    Attack("run name, 400 bytes in 100 letters", run_named("\U00020000" * 100), ("at most 100",)),
    Attack("run name, RTL override", run_named("a\u202etensors.efas"), ("cannot be a file name",)),
    Attack("run name of a link out of output/video_lora", run_named("linked"), ("link", "linked")),
    Attack("run name of a LoRA of somebody else's", run_named("theirs"), ("theirs.safetensors", "another name")),
    Attack("LoRA row `../../`", rows_of(row("../../secrets/a.safetensors")), ("secrets/a.safetensors", "not found")),
    Attack("LoRA row, a pickle by that name", rows_of(row("pickle.safetensors")), ("pickle",)),
    Attack("LoRA row, a header of 2^60 bytes", rows_of(row("giant.safetensors")), ("not a safetensors file",)),
    Attack("LoRA row, 200,000 dimensions", rows_of(row("dimensions.safetensors")), ("broken header",)),
    Attack("LoRA row, tensors that are no LoRA's", rows_of(row("crooked.safetensors")), ("crooked.safetensors",)),
    Attack("10,000 rows", rows_of(json.dumps([{"on": False}] * 10_000)), ("characters",)),
    Attack("rows nested 40,000 deep", rows_of("[" * 40_000), ("nested",)),
    Attack("rows, a number of 50,000 digits", rows_of('[{"strength": 1' + "0" * 50_000 + "}]"), ("too long",)),
    Attack("rows, a curve of 100,000 points", rows_of(row("a", curve="0:1," * 100_000)), ("characters",)),
    Attack("rows, a curve of 99 points", rows_of(row("a", curve=",".join(["0:1"] * 99))), ("row 1 (a)", "99 points")),
    Attack("rows, a curve that is code", rows_of(row("a", curve="__import__('os')")), ("curve", "cannot be read")),
    Attack("rows, a curve to infinity", rows_of(row("a", curve="0:1e999")), ("curve", "between -10 and 10")),
    Attack("rows, a strength that is a list", rows_of(row("a", strength=[1] * 5_000)), ("number",)),
    Attack("model file, a pickle", based_on("pickle.safetensors"), ("pickle",)),
    Attack("model file `../loras/`", based_on("../loras/giant.safetensors"), ("'..'",)),
    Attack("model file, a description nested 9,000 deep", based_on("deep.safetensors"), ("deep.safetensors",)),
    Attack("captions sent to a foreign host", captioner("https://evil.example/v1"), ("no footage is sent",)),
    Attack("captions, cloud metadata address", captioner("http://169.254.169.254/latest"), ("no footage is sent",)),
    Attack(
        "captions, a name that looks like this machine", captioner("http://127.0.0.1.evil.example"), ("no footage",)
    ),
    Attack("captions, a service that sends on", redirected, ("sends on", "not followed")),
    Attack(
        "captions, the key asked for in the address",
        captioner("http://x:$VIDEO_LORA_API_KEY@127.0.0.1/v1"),
        ("environment variables only",),
    ),
    Attack(
        "captions, the key asked for in the model's name",
        captioner("https://generativelanguage.googleapis.com/v1beta", "$VIDEO_LORA_API_KEY", "Gemini"),
        ("not a name",),
    ),
    Attack(
        "route, another site's page",
        asked("POST", "/api/video_lora/trigger", TRIGGER, {**JSON, "Origin": "http://evil.example"}),
        ("403",),
    ),
    Attack(
        "route, another Host beside the Origin",
        asked("POST", "/api/video_lora/trigger", TRIGGER, {**JSON, "Origin": "http://evil.example", "Host": "pc:8188"}),
        ("403", "another site"),
    ),
    Attack(
        "route, another scheme than JSON",
        asked("POST", "/api/video_lora/trigger", TRIGGER, {"Content-Type": "text/plain"}),
        ("415", "JSON"),
    ),
    Attack("route, 9 MB", asked("POST", "/api/video_lora/captions", b" " * (9 << 20), JSON), ("413", "8 MB")),
    Attack(
        "route, JSON 100,000 deep", asked("POST", "/api/video_lora/captions", b"[" * 100_000, JSON), ("cannot be read",)
    ),
    Attack(
        "route, a replacement of 1 MB",
        asked(
            "POST",
            "/api/video_lora/replace",
            json.dumps(
                {
                    "folder": "input/attacked",
                    "find": "a",
                    "put": "a" * (1 << 20),
                    "match_case": False,
                    "whole_words": False,
                }
            ).encode(),
            JSON,
        ),
        ("longer than",),
    ),
    Attack(
        "route, clip `../../secrets/clip.mp4`",
        asked("GET", f"/api/video_lora/clip?{PLACE}../../secrets/clip.mp4"),
        ("not the name of a clip",),
    ),
    Attack("route, clip that is a link out", asked("GET", f"/api/video_lora/clip?{PLACE}out.mp4"), ("no clip",)),
    Attack(
        "route, clip by fullwidth path",
        asked("GET", f"/api/video_lora/still?{PLACE}" + quote("\uff0e\uff0e\uff0fclip.mp4")),
        ("no clip",),
    ),
    Attack("route, the folder of all output", asked("GET", "/api/video_lora/review?folder=../output"), ("'..'",)),
    Attack("caption through a link out", changed("linked.mp4"), ("link",)),
    Attack("caption for a file that is no clip", changed("_excluded.txt"), ("not a video",)),
)


@pytest.fixture(scope="module")
def victim(comfyui_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with hostile files in its folders, a secret beside it, and a key in its environment."""
    from footage import write_video
    from nasty_files import scene
    from server_parts import write_parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEO_LORA_API_KEY", SECRET)
        patch.setenv("GEMINI_API_KEY", SECRET)
        server = ComfyServer(tmp_path_factory.mktemp("victim"))
        write_parts(server)
        folder = server.input / "attacked"
        folder.mkdir()
        for number, name in enumerate(("clip", "linked")):
            write_video(folder / f"{name}.mp4", frames=30, draw=scene(number))
        (folder / "clip.txt").write_text("a clip", encoding="utf-8")
        put_secrets(server)
        put_hostile_files(server)
        server.start()
    yield server
    server.stop()


def put_secrets(server: ComfyServer) -> None:
    """What nobody may read or change, and links to it."""
    secrets = server.folder / "secrets"
    secrets.mkdir()
    for name in ("clip.mp4", "linked.txt", "a.safetensors"):
        (secrets / name).write_text(SECRET, encoding="utf-8")
    runs = server.output / "video_lora"
    runs.mkdir(parents=True, exist_ok=True)
    links = {
        server.input / "way_out": secrets,
        server.input / "attacked" / "out.mp4": secrets / "clip.mp4",
        server.input / "attacked" / "linked.txt": secrets / "linked.txt",
        runs / "linked": secrets,
    }
    for place, target in links.items():
        try:
            place.symlink_to(target, target_is_directory=target.is_dir())
        except OSError:
            pytest.skip("this system allows no symbolic links")


def put_hostile_files(server: ComfyServer) -> None:
    import torch
    from safetensors.torch import save_file

    loras, models = server.models / "loras", server.models / "diffusion_models"
    dimensions = (
        '{"a.lora_A.weight":{"dtype":"F32","shape":[' + ",".join(["9"] * 200_000) + '],"data_offsets":[0,4]}}'
    ).encode()
    for folder in (loras, models):
        (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95cposix\nsystem\n" + bytes(2000))
        (folder / "giant.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + bytes(100))
        (folder / "dimensions.safetensors").write_bytes(struct.pack("<Q", len(dimensions)) + dimensions + bytes(4))
    module = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {
            f"{module}.lora_A.weight": torch.zeros(()),
            f"{module}.lora_B.weight": torch.zeros(3, 0),
            f"{module}.alpha": torch.zeros(7),
        },
        loras / "crooked.safetensors",
    )
    save_file({"diffusion_model.x": torch.ones(1)}, loras / "theirs.safetensors")
    save_file(
        {"audio_patchify_proj.weight": torch.zeros(2, 2), "a.weight": torch.zeros(2, 2)},
        models / "deep.safetensors",
        {"config": "[" * 9_000, "_quantization_metadata": "[" * 9_000},
    )


def state(server: ComfyServer) -> dict[str, str]:
    """Every file of the server but its log, its cache of features and its database, with a digest; links as links."""
    found = {}
    for folder, names, files in os.walk(server.folder):
        names[:] = [
            name for name in names if name not in ("site", "custom_nodes", "user", "temp", "_features", "__pycache__")
        ]
        for name in files:
            path = Path(folder, name)
            if path != server.log_file and path != server.counts_file:
                found[str(path.relative_to(server.folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: re.sub(r"\W+", "-", attack.name))
def test_it_is_refused_and_nothing_is_touched(victim: ComfyServer, attack: Attack, record_property):
    before = state(victim)
    told = attack.attempt(victim)
    record_property("row", (attack.name, told))
    assert all(word.lower() in told.lower() for word in attack.words), told
    assert len(told) < 1500 and SECRET not in told and "Traceback" not in told
    assert state(victim) == before
    assert SECRET not in victim.log()


def test_markup_in_names_and_captions_is_data(victim: ComfyServer, record_property):
    """The routes answer JSON, so that nothing in it is run; the page puts it in as text (`test_review_page`)."""
    script = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    change = {"name": "clip.mp4", "seen": "a clip", "caption": script}
    assert victim.post("/api/video_lora/captions", {"folder": "input/attacked", "changes": [change]})[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", victim.port, timeout=60)
    connection.request("GET", "/api/video_lora/review?folder=input/attacked")
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    assert answer.getheader("Content-Type").startswith("application/json")
    assert [clip["caption"] for clip in told["clips"] if clip["name"] == "clip.mp4"] == [script]
    record_property("row", ("script in a caption", "not run: kept as text, given as application/json"))


def test_a_prompt_still_runs(victim: ComfyServer):
    """After all of it."""
    result = victim.queue(clips_of("input/attacked"))
    assert result.status == "success", result.error
    assert SECRET not in result.text("report") and "linked.txt" in result.text("report")


class Table:
    """Collects what the tests record."""

    def __init__(self):
        self.rows: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "row"]


def main() -> int:
    table = Table()
    ended = pytest.main([__file__, "-q", "-p", "no:cacheprovider", f"--rootdir={PROJECT}"], plugins=[table])
    print("\n| | attempt | refused by |\n|--:|---|---|")
    for number, (name, told) in enumerate(table.rows, 1):
        words = re.sub(r"(?:Value not in list|Custom validation failed for node): ", "", " ".join(told.split()))
        print(f"| {number} | {name} | {words[:240].replace('|', '/')} |")
    return ended


if __name__ == "__main__":
    sys.exit(main())
