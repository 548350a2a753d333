"""Queueing a training again: finished, with more steps, with other settings, after the server was killed, and twice."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from comfy_server import ComfyServer, Result
from graphs import node
from repeated_runs import forget_run, lora_file, run_folder, training_anew

from video_lora_studio.training.run_folder import RunFolder

pytestmark = pytest.mark.comfy
NAME = "resumed"


def queued(server: ComfyServer, clips: str, **settings) -> tuple[Result, str]:
    """A training that ends well; what came of it and its report."""
    result = server.queue(training_anew(clips, name=NAME, **settings))
    assert result.status == "success", result.error
    return result, result.text("train_report")


def first_step_made(result: Result) -> int | None:
    """The first step that the node showed; None where it trained nothing."""
    made = (re.match(r"train: Training (\d+) of", line) for line in result.lines)
    return next((int(step[1]) for step in made if step), None)


def at_step(step: int, act: Callable[[], None]) -> Callable[[dict], None]:
    """A listener to a server's messages that acts once, when a training shows that step or a later one."""
    acted: list[bool] = []

    def watch(message: dict) -> None:
        made = re.match(r"Training (\d+) of", message["data"]["text"]) if message["type"] == "progress_text" else None
        if made and int(made[1]) >= step and not acted:
            acted.append(True)
            act()

    return watch


def test_queueing_again_returns_goes_on_or_begins_anew(comfy: ComfyServer, clips: str):
    forget_run(comfy, NAME)
    queued(comfy, clips, steps=9)
    whole = lora_file(comfy, NAME).read_bytes()
    forget_run(comfy, NAME)

    queued(comfy, clips, steps=4)
    result, report = queued(comfy, clips, steps=4)
    assert "Nothing to do: this run has finished before" in report and first_step_made(result) is None

    result, report = queued(comfy, clips, steps=9)
    assert "Went on from step 4" in report and first_step_made(result) == 5
    assert lora_file(comfy, NAME).read_bytes() == whole
    assert len((run_folder(comfy, NAME) / "progress.jsonl").read_text().splitlines()) == 9

    result, report = queued(comfy, clips, steps=9, learning_rate=2e-3, rank=8)
    assert first_step_made(result) == 1
    assert "A new run, other than the last one of this name: " in report
    assert "Rank 4 → 8" in report and "Learning rate 0.001 → 0.002" in report
    [replaced] = (run_folder(comfy, NAME) / "replaced").iterdir()
    assert replaced.read_bytes() == whole

    result, report = queued(comfy, clips, steps=9)
    assert first_step_made(result) is None or "Went on from step 9" in report
    assert lora_file(comfy, NAME).read_bytes() == whole


def test_run_of_a_killed_server_goes_on(comfy: ComfyServer, clips: str):
    graph = training_anew(clips, name=NAME, steps=30)
    graph["recipe"] = node("VLSRecipe", resume_every=0)
    graph["train"]["inputs"]["recipe"] = ["recipe", 0]
    forget_run(comfy, NAME)
    assert comfy.queue(graph).status == "success"
    whole = lora_file(comfy, NAME).read_bytes()
    forget_run(comfy, NAME)

    killed = comfy.process
    with pytest.raises(Exception):  # noqa: B017 - the connection's own error, which depends on how it ended
        comfy.queue(graph, on_message=at_step(10, killed.kill))
    killed.wait(30)
    assert not lora_file(comfy, NAME).exists()
    comfy.restart()
    result = comfy.queue(graph)
    assert result.status == "success", result.error
    report = result.text("train_report")
    went_on = re.search(r"Went on from step (\d+)", report)
    assert went_on and 9 <= int(went_on[1]) <= 30, report
    assert lora_file(comfy, NAME).read_bytes() == whole
    left = [*lora_file(comfy, NAME).parent.glob("*.part"), *run_folder(comfy, NAME).rglob("*.part")]
    assert not left


def test_second_run_of_a_name_is_refused_while_the_first_goes_on(comfy: ComfyServer, clips: str):
    forget_run(comfy, NAME)
    folder, graph = RunFolder(run_folder(comfy, NAME)), training_anew(clips, name=NAME, steps=15)
    with folder.alone():
        refused = comfy.queue(graph)
    assert (refused.status, refused.error_node) == ("error", "train")
    assert f"A run named '{NAME}' is being trained at this moment" in refused.error
    assert not lora_file(comfy, NAME).exists()

    said: list[str] = []

    def try_it_here() -> None:
        with pytest.raises(ValueError, match="is being trained at this moment") as caught, folder.alone():
            pass
        said.append(str(caught.value))

    first = comfy.queue(graph, on_message=at_step(2, try_it_here))
    assert first.status == "success", first.error
    assert said and NAME in said[0]
    with folder.alone():
        pass
