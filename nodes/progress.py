"""What a node shows while the engine works: its bar, a line of text, the figures of a run, and obedience to Cancel."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from .. import training

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 0.25
SECONDS_BETWEEN_LOOKS = 1.0
"""At memory, which costs more to ask for than the rest."""
STEPS_TIMED = 20
"""Speed is that of the steps between so many events: of the last five seconds, or of 20 long steps."""
RUN_EVENT = "video_lora.run"
"""What browsers hear of a run: see RunListener."""


class NodeListener:
    """The engine's Listener over one ComfyUI node."""

    def __init__(self, node_id: str | None):
        self.node_id = node_id
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._phase = ""
        self._last_line = 0.0

    def check(self) -> None:
        """Raises ComfyUI's interrupt where the user has cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def report(self, progress: training.Progress) -> None:
        """Move the bar; show the line at most four times a second, and always at the start and end of a phase."""
        self._bar.update_absolute(progress.done, max(progress.total, 1))
        now = time.monotonic()
        turning = progress.phase != self._phase or progress.done >= progress.total
        if turning or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._phase, self._last_line = progress.phase, now
            self._show(progress)

    def _show(self, progress: training.Progress) -> None:
        show_text(line_of(progress), self.node_id)


class RunListener(NodeListener):
    """The same for a run, which every browser may watch: `with RunListener(...)` it is among `running()`.

    Whoever opens a page meanwhile asks for the curve so far (`losses`, from step `first` on; the rest is on disk), and
    whoever has it is told the steps since: `{"run", "node", "phase", "step", "total", "expert", "first", "losses",
    "seconds_left", "seconds_per_step", "memory"}`, at the end `{"run", "node", "ended"}`.
    """

    def __init__(self, node_id: str | None, config: training.RunConfig):
        super().__init__(node_id)
        self.name, self.first = config.name, 1
        self.losses: list[float] = []
        self.now: dict[str, Any] = {"run": config.name, "node": node_id, "phase": "Starting", "step": 0,
                                    "total": config.steps, "expert": ""}
        self._told = self._looked = 0.0
        self._times: deque[tuple[float, int]] = deque(maxlen=STEPS_TIMED)

    def __enter__(self) -> RunListener:
        _running[self.name] = self
        return self

    def __exit__(self, *reason: object) -> None:
        del _running[self.name]
        send_event(RUN_EVENT, {"run": self.name, "node": self.node_id, "ended": True})

    def report(self, progress: training.Progress) -> None:
        """As of every node; a loss is kept whether it is shown now or not."""
        if progress.loss is not None:
            self._keep(progress)
        super().report(progress)

    def _keep(self, progress: training.Progress) -> None:
        """Add a loss to the curve, which begins anew where steps are missing and goes back where a run does."""
        before = 0 if progress.expert == "high_noise" else self.now["total"] - progress.total
        step = before + progress.done
        if not 0 <= step - self.first <= len(self.losses):
            self.first, self.losses = step, []
        place = step - self.first
        del self.losses[place:]
        self.losses.append(progress.loss)
        self._told = min(self._told, place)
        self.now["step"], self.now["expert"] = step, progress.expert

def line_of(progress: training.Progress) -> str:
    """One report as people read it: `Training 120 of 2000, loss 0.0812, 14 min left`."""
    parts = [f"{progress.phase} {progress.done} of {progress.total}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.seconds_left is not None and progress.done < progress.total:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.detail:
        parts.append(progress.detail)
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `14 min` or `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def show_text(text: str, node_id: str | None) -> None:
    """Show a text on the node. Without a server or a browser nothing happens."""
    if node_id is None:
        return
    try:
        from server import PromptServer

        if (server := getattr(PromptServer, "instance", None)) is not None:
            server.send_progress_text(text, node_id)
    except Exception as error:  # what is only shown must never stop a run
        log.debug("Cannot show progress: %s", error)
