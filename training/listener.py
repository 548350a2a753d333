"""How a run tells its surroundings what it does, and hears that it should stop."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report: `done` of `total` in `phase`. `loss` and `seconds_left` where they are known."""

    phase: str
    done: int
    total: int
    loss: float | None = None
    seconds_left: float | None = None
    expert: str = ""
    """Which of two experts the steps are of; empty for models in one file."""
    detail: str = ""
    preview: Path | None = None
    """A clip that was just made to look at."""


class Listener(Protocol):
    """What the engine calls while it works. Both may raise to stop the run; what was learnt is then kept."""

    def check(self) -> None:
        """Called often (every micro-step, clip and caption); raises where the host asked to stop."""

    def report(self, progress: Progress) -> None:
        """Called when there is something to show; must be cheap."""


class SilentListener:
    """Never stops, shows nothing."""

    def check(self) -> None: ...

    def report(self, progress: Progress) -> None: ...
