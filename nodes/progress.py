"""What a node shows while the engine works: its bar, a line of text, the figures of a run, and obedience to Cancel."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from .. import training

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 0.25
SECONDS_BETWEEN_LOOKS = 1.0
"""At memory, which takes longer to ask for than all the rest."""
STEPS_TIMED = 20
"""Speed is that of the steps between so many events: of the last five seconds, or of as many long steps."""
RUN_EVENT = "video_lora.run"
"""The name under which browsers hear of a run."""


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
        """Show the bar and the line at most four times a second, and always at the start and end of a phase."""
        now = time.monotonic()
        turning = progress.phase != self._phase or progress.done >= progress.total
        if turning or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._phase, self._last_line = progress.phase, now
            self._show(progress)

    def _show(self, progress: training.Progress) -> None:
        self._bar.update_absolute(progress.done, max(progress.total, 1))
        show_text(line_of(progress), self.node_id)


class RunListener(NodeListener):
    """The same for a run, which every browser may watch; it is among `running` within `with`.

    Browsers are told the steps since they were told last: `{"run", "node", "phase", "step", "total", "expert", "first",
    "losses", "seconds_left", "seconds_per_step", "memory", "preview"}`, and at the end `{"run", "node", "ended"}`. Who
    comes later asks for the curve: from step `first` on it is in `losses`, the rest is on disk.
    """

    def __init__(self, node_id: str | None, config: training.RunConfig):
        super().__init__(node_id)
        self.name, self.total = config.name, config.steps
        self.first, self.losses = 1, []
        self._told = 0
        """How many of the losses were told."""
        self._times: deque[tuple[float, int]] = deque(maxlen=STEPS_TIMED)
        self._memory: dict[str, Any] | None = None
        self._looked = -SECONDS_BETWEEN_LOOKS
        self._expert, self._seconds_left, self._pace = "", None, None
        self._preview = ""
        """File name of the last clip that was made."""
        self.now = self._figures("Starting")

    def __enter__(self) -> RunListener:
        running[self.name] = self
        return self

    def __exit__(self, *reason: object) -> None:
        del running[self.name]
        send_event({"run": self.name, "node": self.node_id, "ended": True})

    @property
    def step(self) -> int:
        """The last step, counted through all parts of the run."""
        return self.first + len(self.losses) - 1

    def report(self, progress: training.Progress) -> None:
        """Keep the loss, which is told sooner or later; the rest as on every node."""
        if progress.loss is not None:
            self._keep(progress.loss, progress)
        if progress.preview is not None:
            self._preview, self._phase = progress.preview.name, ""  # and tell it at once
        super().report(progress)

    def _keep(self, loss: float, progress: training.Progress) -> None:
        """Add to the curve, which goes back where a run does; what is missing in between is on disk."""
        self._expert = progress.expert
        before = 0 if progress.expert == "high_noise" else self.total - progress.total
        place = before + progress.done - self.first
        if not 0 <= place <= len(self.losses):
            self.first, self.losses, place = before + progress.done, [], 0
        del self.losses[place:]
        self.losses.append(loss)
        self._told = min(self._told, place)

    def _show(self, progress: training.Progress) -> None:
        super()._show(progress)
        if progress.loss is None:
            self._times.clear()  # what comes between steps is not part of one
        else:
            self._times.append((time.monotonic(), self.step))
            self._seconds_left, self._pace = progress.seconds_left, self._timed() or self._pace
        self.now = self._figures(progress.phase)
        told, self._told = self._told, len(self.losses)
        send_event({**self.now, "first": self.first + told, "losses": self.losses[told:]})

    def _figures(self, phase: str) -> dict[str, Any]:
        if time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._memory, self._looked = memory_in_use(), time.monotonic()
        return {
            "run": self.name, "node": self.node_id, "phase": phase, "step": self.step, "total": self.total,
            "expert": self._expert, "seconds_left": self._seconds_left, "seconds_per_step": self._pace,
            "memory": self._memory, "preview": self._preview,
        }

    def _timed(self) -> float | None:
        """Seconds of one of the last steps, None where too few were made."""
        if len(self._times) < 2:
            return None
        (began, first), (ended, last) = self._times[0], self._times[-1]
        return (ended - began) / (last - first) if last > first else None


running: dict[str, RunListener] = {}
"""The runs of this process at this moment, by name."""


def memory_in_use() -> dict[str, Any] | None:
    """`kind`, bytes `used` and `total`: of the CUDA device, whoever uses it; otherwise of this process and its system.

    None where neither can be asked.
    """
    try:
        device = comfy.model_management.get_torch_device()
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            return {"kind": "GPU", "used": total - free, "total": total}
        import psutil

        used, total = psutil.Process().memory_info().rss, psutil.virtual_memory().total
        return {"kind": "RAM", "used": used, "total": total}
    except Exception as error:  # what is only shown must never stop a run
        log.debug("Cannot see memory: %s", error)
        return None


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
    if node_id is not None:
        _through_server(lambda server: server.send_progress_text(text, node_id))


def send_event(fields: dict[str, Any]) -> None:
    """Tell every browser of a run. Without a server or a browser nothing happens."""
    _through_server(lambda server: server.send_sync(RUN_EVENT, fields))


def _through_server(tell: Callable[[Any], None]) -> None:
    try:
        from server import PromptServer

        if (server := getattr(PromptServer, "instance", None)) is not None:
            tell(server)
    except Exception as error:  # what is only shown must never stop a run
        log.debug("Cannot show progress: %s", error)
