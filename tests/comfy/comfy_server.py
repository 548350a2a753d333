"""A real ComfyUI as a subprocess on a folder of its own, and a client that queues prompts and keeps what came back."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "torchsde", "torchvision", "aiohttp", "diffusers", "peft", "accelerate", "av", "sentencepiece",
          "safetensors")
FOLDERS = ("models/diffusion_models", "models/vae", "models/loras", "models/text_encoders", "input", "output",
           "custom_nodes")

# The Zluda fork of ComfyUI installs packages with pip when `comfy.zluda` is imported: tests must never install.
SITE = """import sys, types
sys.modules.setdefault("comfy.zluda", types.ModuleType("comfy.zluda"))
"""


def comfyui_folder() -> Path:
    return Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI").expanduser()


def comfyui_python() -> str:
    if os.environ.get("COMFYUI_PYTHON"):
        return os.environ["COMFYUI_PYTHON"]
    for name in ("bin/python", "Scripts/python.exe"):
        candidate = Path.home() / "comfy-venv" / name
        if candidate.exists():
            return str(candidate)
    return sys.executable


def why_not() -> str:
    """The one plain reason why no ComfyUI can be started here; empty where it can."""
    if not (comfyui_folder() / "main.py").is_file():
        return f"no ComfyUI at {comfyui_folder()}: set COMFYUI_PATH to a checkout"
    if not shutil.which(comfyui_python()):
        return f"no Python at {comfyui_python()}: set COMFYUI_PYTHON to the one that ComfyUI runs with"
    try:
        import websocket  # noqa: F401
    except ImportError:
        return "websocket-client is not installed here: pip install 'video-lora-studio[test]'"
    code = ("import importlib.util as u, sys; "
            "print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])")
    found = subprocess.run([comfyui_python(), "-c", code, *NEEDED],
                           capture_output=True, text=True, timeout=120)
    missing = found.stdout.split()
    if found.returncode or missing:
        return f"ComfyUI's Python ({comfyui_python()}) lacks {', '.join(missing) or 'a working interpreter'}"
    return ""


def environment(folder: Path) -> dict[str, str]:
    """What ComfyUI's Python runs with: the pack importable by its name, no pip on import, no hub."""
    site = folder / "site"
    if not site.exists():
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        link(PROJECT, site / "video_lora_studio")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8"}


def run_script(script: Path, *arguments: object, folder: Path, timeout: float = 300) -> str:
    """Run a test script with ComfyUI's Python; what it printed. AssertionError with the end of its log if it failed."""
    done = subprocess.run([comfyui_python(), str(script), *map(str, arguments)], env=environment(folder), cwd=folder,
                          capture_output=True, text=True, encoding="utf-8", timeout=timeout)
    assert done.returncode == 0, f"{script.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def link(target: Path, place: Path) -> None:
    """A symlink; a copy where the system allows none."""
    try:
        place.symlink_to(target, target_is_directory=True)
    except OSError:
        shutil.copytree(target, place, ignore=shutil.ignore_patterns(".git", "__pycache__", "tests"))


@dataclass
class Result:
    """What one queued prompt came to."""

    prompt_id: str
    status: str
    """`success`, `error`, `interrupted`, or `refused` where validation turned the prompt down."""
    error: str = ""
    """The message a user sees."""
    error_node: str = ""
    outputs: dict[str, dict] = field(default_factory=dict)
    messages: list[dict] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Texts shown on nodes while they worked, as `node: text`."""
    seconds: float = 0.0

    @property
    def executed(self) -> list[str]:
        """Ids of the nodes that ran, in order; what came from ComfyUI's cache is not among them."""
        nodes = [m["data"].get("node") for m in self.messages if m["type"] == "executing"]
        return [node for node in nodes if node is not None]

    def text(self, node: str) -> str:
        """What a node shows as text."""
        return "".join(map(str, self.outputs.get(node, {}).get("text", ())))

    def progress(self, node: str) -> list[tuple[float, float]]:
        """(value, max) of each progress message of a node."""
        return [(m["data"]["value"], m["data"]["max"]) for m in self.messages
                if m["type"] == "progress" and m["data"].get("node") == node]


class ComfyServer:
    """ComfyUI on `folder`: `start`, `queue` prompts, `stop`. The log of every start is in `log_file`."""

    def __init__(self, folder: Path, *, cpu: bool = True):
        self.folder = folder
        self.cpu = cpu
        self.log_file = folder / "server.log"
        self.process: subprocess.Popen | None = None
        self.port = 0
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        link(PROJECT, folder / "custom_nodes" / "video_lora_studio")
        link(HERE / "tiny_parts_pack", folder / "custom_nodes" / "tiny_parts_pack")

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def counts_file(self) -> Path:
        return self.output / "tiny_parts_counts.json"

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def start(self, *arguments: str, timeout: float = 180) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [comfyui_python(), str(comfyui_folder() / "main.py"), *(["--cpu"] if self.cpu else []),
                   "--disable-api-nodes", "--listen", "127.0.0.1", "--port", str(self.port),
                   "--base-directory", str(self.folder), "--database-url", "sqlite:///:memory:", *arguments]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder,
                                            env=environment(self.folder), stdin=subprocess.DEVNULL)
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        self.stop()
        raise AssertionError(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        self.stop()
        self.counts_file.unlink(missing_ok=True)
        self.start()

    def log(self) -> str:
        """Everything the server has said so far, without colours."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, body: dict) -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=json.dumps(body).encode(),
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def object_info(self, node: str) -> dict:
        return self.get(f"/object_info/{node}").get(node, {})

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def forget(self) -> None:
        """Empty ComfyUI's own caches: the next prompt runs every node."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.5)

    def counts(self) -> dict[str, int]:
        """How often the VAE and the text encoder of the test-only pack have encoded since the server was started."""
        return json.loads(self.counts_file.read_text()) if self.counts_file.exists() else {"vae": 0, "clip": 0}

    def import_seconds(self, pack: str) -> list[float]:
        """ComfyUI's own figures of how long importing a pack took, one for each start. A failed import is none."""
        lines = re.findall(r"([\d.]+) seconds( \(IMPORT FAILED\))?: (.*)$", self.log(), re.MULTILINE)
        return [float(seconds) for seconds, note, path in lines if Path(path.strip()).name == pack and not note]

    def queue(self, prompt: dict[str, dict], *, on_message: Callable[[dict], None] | None = None,
              timeout: float = 240) -> Result:
        """Queue a prompt and wait for its end. `on_message` sees every websocket message as it comes."""
        import websocket

        client = uuid.uuid4().hex
        began = time.monotonic()
        stream = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=timeout)
        try:
            code, answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            if code != 200:
                return refused(answer)
            result = Result(answer["prompt_id"], "error")
            if answer.get("node_errors"):
                result.error = refused(answer).error
            try:
                self.follow(stream, result, on_message, began + timeout)
            except BaseException:
                self.interrupt()
                raise
        finally:
            stream.close()
        result.seconds = time.monotonic() - began
        result.outputs = self.history(result.prompt_id).get("outputs", {})
        return result

    def follow(self, stream, result: Result, on_message, ends: float) -> None:
        while True:
            assert time.monotonic() < ends, f"the prompt did not end in time:\n{self.log()[-3000:]}"
            raw = stream.recv()
            message = progress_text(raw) if isinstance(raw, bytes) else json.loads(raw)
            data = message.get("data") or {}
            if data.get("prompt_id", result.prompt_id) != result.prompt_id:
                continue
            if message["type"] == "progress_text":
                result.lines.append(f"{data['node']}: {data['text']}")
            result.messages.append(message)
            if on_message is not None:
                on_message(message)
            if message["type"] == "execution_success":
                result.status = "success"
                return
            if message["type"] == "execution_interrupted":
                result.status, result.error_node = "interrupted", str(data.get("node_id", ""))
                return
            if message["type"] == "execution_error":
                result.status, result.error_node = "error", str(data.get("node_id", ""))
                result.error = data.get("exception_message", "").strip()
                return

    def history(self, prompt_id: str) -> dict:
        """The entry of a finished prompt; ComfyUI writes it a moment after the last message."""
        for _ in range(100):
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.05)
        raise AssertionError(f"no history of prompt {prompt_id}")


def progress_text(raw: bytes) -> dict:
    """A binary message in the form of the others. Kind 3 is u32 kind, u32 length of the node's id, id, text."""
    kind, length = struct.unpack(">II", raw[:8])
    if kind != 3:
        return {"type": f"binary_{kind}"}
    data = {"node": raw[8 : 8 + length].decode(), "text": raw[8 + length :].decode()}
    return {"type": "progress_text", "data": data}


def refused(answer: dict) -> Result:
    """A prompt that ComfyUI's validation turned down, with the details of each node."""
    found = answer.get("node_errors") or {}
    errors = [error for node in found.values() for error in node["errors"]]
    details = [f"{error['message']}: {error['details']}".strip(": ") for error in errors]
    error = answer.get("error") or {}
    return Result("", "refused", "; ".join(details) or f"{error.get('message')}: {error.get('details')}",
                  next(iter(found), ""))
