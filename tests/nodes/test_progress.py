"""What a node shows while the engine works."""

import sys
import types

import pytest

from video_lora_studio.training import Progress


class Bar:
    def __init__(self, total, node_id=None):
        self.moves, self.node_id = [], node_id

    def update_absolute(self, value, total):
        self.moves.append((value, total))


class Cancelled(BaseException):
    pass


@pytest.fixture
def progress(load, monkeypatch):
    """nodes/progress over a ComfyUI of which the bar, the server and Cancel are stand-ins; `said` is what was shown."""
    def cancel():
        raise Cancelled

    comfy = types.ModuleType("comfy")
    comfy.utils, comfy.model_management = types.ModuleType("comfy.utils"), types.ModuleType("comfy.model_management")
    comfy.utils.ProgressBar = Bar
    comfy.model_management.throw_exception_if_processing_interrupted = cancel
    said = []
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(
        instance=types.SimpleNamespace(send_progress_text=lambda text, node: said.append((node, text)))
    )
    for module in (comfy, comfy.utils, comfy.model_management, server):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module = load("progress")
    module.said = said
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


def test_lines_are_few_and_the_bar_is_exact(progress):
    listener = progress.NodeListener("7")
    for done in range(1, 501):
        listener.report(Progress(phase="Training", done=done, total=500))
    assert listener._bar.moves == [(done, 500) for done in range(1, 501)]
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
        instance = None if broken == "no instance" else types.SimpleNamespace(send_progress_text=fail)
        sys.modules["server"].PromptServer.instance = instance
    progress.NodeListener("7").report(Progress(phase="Training", done=1, total=2))
    progress.NodeListener(None).report(Progress(phase="Training", done=1, total=2))
    assert progress.said == []
