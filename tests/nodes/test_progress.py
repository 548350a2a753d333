"""What a node shows while the engine works."""

import sys
import types

import pytest
import torch

from video_lora_studio.training import Progress, RunConfig


class Bar:
    def __init__(self, total, node_id=None):
        self.moves, self.node_id = [], node_id

    def update_absolute(self, value, total):
        self.moves.append((value, total))


class Cancelled(BaseException):
    pass


@pytest.fixture
def progress(load, monkeypatch):
    """nodes/progress over a ComfyUI of which the bar, the server and Cancel are stand-ins.

    `said` is what was shown on nodes, `told` what every browser was told.
    """
    def cancel():
        raise Cancelled

    comfy = types.ModuleType("comfy")
    comfy.utils, comfy.model_management = types.ModuleType("comfy.utils"), types.ModuleType("comfy.model_management")
    comfy.utils.ProgressBar = Bar
    comfy.model_management.throw_exception_if_processing_interrupted = cancel
    comfy.model_management.get_torch_device = lambda: torch.device("cpu")
    said, told = [], []
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(
        instance=types.SimpleNamespace(
            send_progress_text=lambda text, node: said.append((node, text)),
            send_sync=lambda event, data, sid=None: told.append((event, data, sid)),
        )
    )
    for module in (comfy, comfy.utils, comfy.model_management, server):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module = load("progress")
    module.said, module.told = said, told
    return module


@pytest.mark.parametrize(("report", "line"), [
    (Progress(phase="Encoding clips", done=2, total=9, detail="a.mp4"), "Encoding clips 2 of 9, a.mp4"),
    (Progress(phase="Training", done=7, total=90, loss=0.08123, seconds_left=65),
     "Training 7 of 90, loss 0.0812, 65 s left"),
    (Progress(phase="Training", done=7, total=90, seconds_left=845), "Training 7 of 90, 14 min left"),
    (Progress(phase="Training", done=7, total=90, seconds_left=7500), "Training 7 of 90, 2 h 05 min left"),
    (Progress(phase="Training", done=90, total=90, loss=0.5, seconds_left=0), "Training 90 of 90, loss 0.5000"),
])
def test_a_report_reads_as_people_speak(progress, report, line):
    assert progress.line_of(report) == line


def test_lines_are_few_and_the_bar_ends_where_the_phase_does(progress):
    listener = progress.NodeListener("7")
    for done in range(1, 501):
        listener.report(Progress(phase="Training", done=done, total=500))
    assert listener._bar.moves[0] == (1, 500) and listener._bar.moves[-1] == (500, 500)
    assert len(listener._bar.moves) == len(progress.said)
    assert {node for node, _ in progress.said} == {"7"}
    assert progress.said[0][1].startswith("Training 1 of") and progress.said[-1][1] == "Training 500 of 500"
    assert len(progress.said) < 50


def test_every_phase_is_said(progress):
    listener = progress.NodeListener("7")
    for phase in ("Loading", "Training"):
        listener.report(Progress(phase=phase, done=0, total=9))
    assert [text for _, text in progress.said] == ["Loading 0 of 9", "Training 0 of 9"]


def test_cancel_passes_through(progress):
    with pytest.raises(Cancelled):
        progress.NodeListener("7").check()


def test_a_total_of_nothing_is_no_error(progress):
    progress.NodeListener("7").report(Progress(phase="Encoding captions", done=0, total=0))


@pytest.mark.parametrize("broken", ["no instance", "no module", "raises"])
def test_without_a_server_nothing_is_shown_and_nothing_fails(progress, monkeypatch, broken):
    def fail(*_):
        raise ConnectionError

    if broken == "no module":
        monkeypatch.setitem(sys.modules, "server", None)
    else:
        broken_server = types.SimpleNamespace(send_progress_text=fail, send_sync=fail)
        instance = None if broken == "no instance" else broken_server
        sys.modules["server"].PromptServer.instance = instance
    progress.NodeListener("7").report(Progress(phase="Training", done=1, total=2))
    progress.NodeListener(None).report(Progress(phase="Training", done=1, total=2))
    with watched(progress, 2) as listener:
        step(listener, 1, 2)
    assert progress.said == progress.told == []


def watched(progress, steps):
    return progress.RunListener("7", RunConfig(name="cats", steps=steps))


def step(listener, done, total, expert="", loss=None):
    listener.report(Progress(phase="Training", done=done, total=total, loss=loss or done / 1000, seconds_left=60.0,
                             expert=expert))


def test_every_loss_is_told_once_in_few_events(progress):
    with watched(progress, 2000) as listener:
        assert progress.running == {"cats": listener}
        for done in range(1, 2001):
            step(listener, done, 2000)
        assert (listener.first, listener.losses) == (1, [done / 1000 for done in range(1, 2001)])
    assert progress.running == {}
    assert {(event, sid) for event, _, sid in progress.told} == {("video_lora.run", None)}
    *events, end = [data for _, data, _ in progress.told]
    assert [loss for event in events for loss in event["losses"]] == listener.losses
    assert [event["first"] for event in events[1:]] == [event["step"] + 1 for event in events[:-1]]
    assert len(events) < 40 and end == {"run": "cats", "node": "7", "ended": True}
    last = events[-1]
    assert (last["run"], last["phase"], last["step"], last["total"]) == ("cats", "Training", 2000, 2000)
    assert last["seconds_left"] == 60 and last["memory"]["kind"] == "RAM"
    assert 0 < last["memory"]["used"] < last["memory"]["total"]


def test_steps_of_two_experts_are_counted_through(progress):
    with watched(progress, 10) as listener:
        for done in range(1, 5):
            step(listener, done, 4, "high_noise")
        listener.report(Progress(phase="Loading low.safetensors", done=0, total=6))
        assert listener.now["step"] == 4
        for done in range(1, 7):
            step(listener, done, 6, "low_noise")
        assert (listener.step, len(listener.losses), listener.now["expert"]) == (10, 10, "low_noise")


@pytest.mark.parametrize(("steps", "first", "losses"), [
    ([(1, 0.1), (2, 0.2), (3, 0.3)], 1, [0.1, 0.2, 0.3]),
    ([(41, 0.1), (42, 0.2)], 41, [0.1, 0.2]),
    ([(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.4)], 1, [0.1, 0.4]),
    ([(41, 0.1), (42, 0.2), (31, 0.3)], 31, [0.3]),
    ([(1, 0.1), (2, 0.2), (90, 0.3)], 90, [0.3]),
], ids=["new", "goes_on", "goes_back", "goes_back_further", "was_elsewhere"])
def test_the_curve_goes_on_and_back_as_the_run_does(progress, steps, first, losses):
    with watched(progress, 100) as listener:
        for done, loss in steps:
            step(listener, done, 100, loss=loss)
        assert (listener.first, listener.losses) == (first, losses)
