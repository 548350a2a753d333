"""What a node shows while the engine works: its bar, a line of text, and obedience to Cancel."""

from __future__ import annotations

import logging
import time

import comfy.model_management
import comfy.utils

from .. import training

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 0.25


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
            show_text(line_of(progress), self.node_id)


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
