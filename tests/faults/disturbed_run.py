"""A small run that is disturbed once, and started again: what was lost, what was said, what came of it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from small_run import PLAN, SmallRun, half_written, outcome, write_sources

from video_lora_studio.training import disk
from video_lora_studio.training import run as run_module
from video_lora_studio.training.listener import SilentListener

AT = 3
"""Steps that are made before the fault."""


class Cancelled(BaseException):
    """As a host asks to stop: no ordinary Exception."""


class CannotMount(Exception):
    """This user may not mount a file system here."""


@dataclass
class Told(SilentListener):
    """Hears a run, and does something after `AT` steps, or when it waits."""

    act: object = None
    when_waiting: object = None
    done: list = field(default_factory=list)
    """Each step that was reported."""
    heard: list = field(default_factory=list)
    """What was shown beside steps."""
    cancel: bool = False

    def check(self):
        if self.cancel:
            raise Cancelled

    def report(self, progress):
        if progress.phase == "Training":
            self.done.append(progress.done)
            if self.act and progress.done == AT:
                act, self.act = self.act, None
                act()
        elif not progress.phase.startswith(("Loading", "Planning")):
            self.heard.append(f"{progress.phase}: {progress.detail}" if progress.detail else progress.phase)
            if self.when_waiting and len(self.heard) == 3:
                self.when_waiting()


@dataclass(frozen=True)
class Seen:
    """What came of a fault."""

    lost: int
    """Steps that were made twice."""
    said: tuple[str, ...]
    next_run: str
    same: bool
    """Whether everything is as the undisturbed run left it, at the end."""


class Bench:
    """Runs to be disturbed, and one that was not. `folder` is empty or not there."""

    def __init__(self, folder):
        self.folder, self._count = folder, 0
        sources = folder / "sources"
        sources.mkdir(parents=True)
        write_sources("CogVideoX", sources)
        self._sources, self.base = sources, SmallRun(sources, folder).base()
        whole = SmallRun(sources, folder / "whole")
        with quick():
            whole.train(whole.prepare(self.base), self.base)
        self.whole = outcome(whole)

    def fresh(self, folder=None):
        """Another run, prepared."""
        self._count += 1
        return Disturbed(self, SmallRun(self._sources, folder or self.folder / f"run_{self._count}"))

    @contextlib.contextmanager
    def small_disk(self, size="96m"):
        """A folder on a small file system of its own."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
            ).returncode:
                raise CannotMount("only root may mount a small file system, on Linux")
            try:
                yield Path(folder)
            finally:
                subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def quick():
    """Without planning memory, and with short waits for room."""
    with mock.patch.object(run_module, "plan_memory", lambda *given, **more: PLAN), \
            mock.patch.object(disk, "BETWEEN_LOOKS", 0.02):
        yield


class Disturbed:
    """One run, started once and then once more."""

    def __init__(self, bench, run):
        self.bench, self.run, self.said = bench, run, []
        self.data = run.prepare(bench.base)
        self.steps = []
        """Those that the last start made."""

    def go(self, told=None, **more):
        """Start it; whatever it raises is noted. Whether it came to its end."""
        told = told or Told()
        try:
            with quick():
                result = self.run.train(self.data, self.bench.base, listener=told, **more)
        except (Exception, Cancelled) as error:
            self.said += [*told.heard[:1], *told.heard[3:], *([str(error)] if str(error) else [])]
            ended = False
        else:
            self.said += told.heard[:1]
            self.said += [line for line in result.report.splitlines() if "damaged" in line or "ran out" in line]
            ended = True
        self.steps = told.done
        return ended

    def again(self, words="", **more):
        """Prepare and start it once more, undisturbed: what came of it all."""
        before = self.steps[-1] if self.steps else 0
        self.data = self.run.prepare(self.bench.base)
        ended = self.go(**more)
        lost = before - (self.steps[0] - 1 if self.steps else before)
        return self.seen(words or ("goes on" if before else "works") if ended else "FAILS", lost)

    def seen(self, next_run="not needed", lost=None):
        """What came of it, where it ended."""
        if lost is None:
            lost = len(self.steps) - len(set(self.steps))
        same = outcome(self.run) == self.bench.whole and not half_written(self.run)
        return Seen(lost, tuple(dict.fromkeys(self.said)), next_run, same)

    def points(self):
        return sorted((self.run.places.run_folder / "resume").glob("*/*.safetensors"))

    def features(self):
        """The cached features of the clip that is read after the fault and of no caption."""
        return sorted({sample.clip_features for sample in self.data.samples})


def fill(folder, leave=0):
    """Fill the disk of a folder but for so many bytes; the file that does it."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - leave))
    return ballast
