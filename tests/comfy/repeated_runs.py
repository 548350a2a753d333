"""Runs of one server again and again: graphs in which nothing comes from ComfyUI's own cache, and runs broken off."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comfy_server import ComfyServer, Result
from graphs import Graph, natively, node, only, row, stacked, training

from video_lora_studio.loaders.safetensors_file import read_tensors


def training_anew(folder: str, *, name: str, how: str = "", **settings) -> Graph:
    """`training`, in which the train node runs at every queue; `how`: the failure to put in, of `TinyPartsBreak`."""
    graph = only(training(folder, name=name, **settings), "train_report", "lora_name")
    graph["fresh"] = node("TinyPartsFresh", value=("prepare", 0))
    source = ("fresh", 0)
    if how:
        graph["break"] = node("TinyPartsBreak", training_set=source, how=how)
        source = ("break", 0)
    graph["train"]["inputs"]["training_set"] = list(source)
    return graph


def sampling_anew(name: str, *loras: str) -> Graph:
    """`natively`, in which the sampler runs at every queue, and the picture as well, as output/`name`_image."""
    graph = natively([(lora, 1.0) for lora in loras], name=name)
    graph["fresh"] = node("TinyPartsFresh", value=("noise", 0))
    graph["sampler"]["inputs"]["latent_image"] = ["fresh", 0]
    graph["vae_file"] = node("VAELoader", vae_name="tiny_wan_vae.safetensors")
    graph["decoded"] = node("VAEDecode", samples=("sampler", 0), vae=("vae_file", 0))
    graph["image"] = node("TinyPartsWrite", value=("decoded", 0), name=f"{name}_image")
    return graph


def sampled(server: ComfyServer, name: str = "watch") -> bytes:
    """Bytes of the latents and the picture that the model without LoRA gives at a fixed seed."""
    result = server.queue(sampling_anew(name))
    assert result.status == "success", result.error
    return b"".join((server.output / f"{name}{part}.safetensors").read_bytes() for part in ("", "_image"))


def probed(server: ComfyServer) -> dict:
    """What `TinyPartsProbe` says of the server's process."""
    return json.loads(server.queue({"probe": node("TinyPartsProbe")}).text("probe"))


def lora_file(server: ComfyServer, name: str) -> Path:
    return server.models / "loras" / f"{name}.safetensors"


def run_folder(server: ComfyServer, name: str) -> Path:
    return server.output / "video_lora" / name


def forget_run(server: ComfyServer, name: str) -> None:
    """Remove the LoRA of a run and everything it left."""
    lora_file(server, name).unlink(missing_ok=True)
    shutil.rmtree(run_folder(server, name), ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to cancel: so many seconds after the train node began, or after it showed that it had made a step."""

    step: int
    seconds: float

    @classmethod
    def drawn(cls, source: random.Random, steps: int) -> Moment:
        """Anywhere in a run of so many steps: in one of seven while it is set up, else up to the last fifth."""
        step = max(0, round(source.uniform(-0.13, 0.8) * steps))
        return cls(step=step, seconds=source.uniform(0, 0.3 if step else 2))


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """A training that was cancelled."""

    latency: float
    """Seconds from before the request to the message that says it was obeyed; NaN where it came too late."""
    busy: float
    """The same by the clock that was given."""
    at: str
    """The last line that the node had shown."""
    kept: int
    """Steps in the LoRA that was left, 0 where there was none yet."""
    result: Result


def cancel(
    server: ComfyServer, graph: Graph, moment: Moment, *, name: str, clock: Callable[[], float] = time.monotonic
) -> Cancelled:
    """Queue a training, post /interrupt at a moment, and look at what is left. `clock`: another one to read."""
    times: dict[str, tuple[float, float]] = {}
    lines = [""]

    def interrupt() -> None:
        times["asked"] = time.monotonic(), clock()
        server.interrupt()

    timer = threading.Timer(moment.seconds, interrupt)

    def watch(message: dict) -> None:
        data = message["data"] if message["type"] in ("executing", "progress_text") else {}
        if message["type"] == "progress_text" and "asked" not in times:
            lines.append(data["text"])
        made = re.match(r"Training (\d+) of", lines[-1])
        here = data.get("node") == "train" if not moment.step else made and int(made[1]) >= moment.step
        if here and not times:
            times["begun"] = time.monotonic(), clock()
            timer.start()
        if message["type"] == "execution_interrupted":
            times["obeyed"] = time.monotonic(), clock()

    result = server.queue(graph, on_message=watch)
    timer.cancel()
    ends, starts = (times.get(name, (math.nan, math.nan)) for name in ("obeyed", "asked"))
    latency, busy = (end - start for end, start in zip(ends, starts, strict=True))
    return Cancelled(latency=latency, busy=busy, at=lines[-1], kept=usable_steps(server, name), result=result)


def cancel_and_go_on(
    server: ComfyServer, graph: Graph, moment: Moment, *, name: str, image: bytes,
    clock: Callable[[], float] = time.monotonic,
) -> Cancelled:
    """Cancel a run, see that the server is as it was, and let the run go on to its end.

    `image`: what `sampled` gave before. Fails where the node is not reported as interrupted, the LoRA cannot be used,
    the picture is another one, or the run does not go on where it was.
    """
    forget_run(server, name)
    cancelled = cancel(server, graph, moment, name=name, clock=clock)
    assert (cancelled.result.status, cancelled.result.error_node) == ("interrupted", "train"), cancelled.result
    assert sampled(server) == image, "another picture after the cancel"
    result = server.queue(graph)
    assert result.status == "success", result.error
    went_on = re.search(r"Went on from step (\d+)", result.text("train_report"))
    assert (int(went_on[1]) if went_on else 0) == cancelled.kept, result.text("train_report")
    return cancelled


def usable_steps(server: ComfyServer, name: str) -> int:
    """How many steps the LoRA of a run has that every key of is loaded by ComfyUI; 0 where there is none."""
    file = lora_file(server, name)
    assert not list(file.parent.glob(f"{name}*.part"))
    if not file.is_file():
        assert not list(run_folder(server, name).glob("resume/*/*-0*[1-9]*.safetensors")), "steps, but no LoRA"
        return 0
    tensors, header = read_tensors(file)
    assert any(tensor.any() for key, tensor in tensors.items() if ".lora_B." in key)
    said_before = len(server.log())
    report = server.queue(only(stacked([row(file.name)], name="unused"), "stack_report")).text("stack_report")
    assert f"{len(tensors)} of {len(tensors)} keys match" in report, report
    native = server.queue(sampling_anew("native", file.name))
    assert native.status == "success", native.error
    assert "lora key not loaded" not in server.log()[said_before:]
    return int(header["ss_steps"])
