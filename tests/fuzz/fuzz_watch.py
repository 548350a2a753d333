"""What an attempt may do: end well or with one clear sentence, soon, in little memory, and within its folders."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

SLOWEST = 2.0
"""Seconds of computing for one input."""
LARGEST = 500 << 20
"""Bytes of memory for one input."""
WRITES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.utime",
    "shutil.rmtree",
    "shutil.move",
}
READS = {"os.listdir", "os.scandir", "shutil.copyfile"}
NEVER = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "pickle.find_class",
}
RAW = re.compile(
    r"Exceeds the limit|invalid literal|could not convert|codec can't|embedded null|not enough values|too many values|"
    r"object is not|must be str|argument of type|surrogates not allowed|out of range|unpack|"
    r"NoneType|object has no attribute|unhashable|Errno|Traceback|maximum recursion"
)
"""Python's own words, which tell nobody what to do."""


class Watch:
    """Records every file touched outside `roots` while an attempt runs, by Python's audit events."""

    def __init__(self, *roots: Path):
        self.outside: list[str] = []
        self._roots = tuple(os.path.realpath(root) for root in roots)
        libraries = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[2])}
        self._readable = tuple(os.path.realpath(place) for place in libraries) + ("/proc/self", "/dev/null", "/usr/lib")
        self._watching = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> Watch:
        self._watching = True
        return self

    def __exit__(self, *_) -> None:
        self._watching = False

    def _hear(self, event: str, args: tuple) -> None:
        if not self._watching or event not in WRITES and event not in READS and event not in NEVER and event != "open":
            return
        self._watching = False  # what follows may itself be audited
        try:
            self._judge(event, args)
        finally:
            self._watching = True

    def _judge(self, event: str, args: tuple) -> None:
        if event in NEVER:
            self.outside.append(f"{event} {str(args)[:200]}")
            return
        writes = event in WRITES or event == "open" and _opens_to_write(*args[1:3])
        paths = (
            args[:2] if event in ("os.rename", "os.symlink", "os.link", "shutil.move", "shutil.copyfile") else args[:1]
        )
        for path in paths:
            if not isinstance(path, (str, bytes, os.PathLike)):
                continue  # a file that is open already
            real = os.path.realpath(os.fsdecode(path))
            if not _within(real, self._roots) and (writes or not _within(real, self._readable)):
                self.outside.append(f"{event} {real}")


def _opens_to_write(mode: str | None, flags: int) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place.rstrip(os.sep) + os.sep) for place in places)


def attempt(watch: Watch, work: Callable[[], object]) -> str:
    """`accepted`, `refused` where a clear ValueError said so, or what went wrong in one line."""
    before, memory = time.process_time(), most_memory()  # other processes do not count
    try:
        with watch:
            work()
        outcome = "accepted"
    except ValueError as error:
        outcome = wrong_words(str(error)) or "refused"
    except Exception as error:  # whatever else it is, is what is looked for
        outcome = f"{type(error).__name__}: {str(error)[:160]!r} at {_where(error)}"
    seconds, grown = time.process_time() - before, most_memory() - memory
    if seconds > SLOWEST:
        return f"slow: {seconds:.1f} s ({outcome[:80]})"
    if grown > LARGEST:
        return f"large: {grown >> 20} MB ({outcome[:80]})"
    if watch.outside:
        told, watch.outside[:] = watch.outside[0], []
        return f"outside: {told}"
    return outcome


def wrong_words(message: str) -> str:
    """What is wrong with an error's words; empty where they are one sentence for people."""
    if found := RAW.search(message):
        return f"unclear: {found[0]!r} in {message[:160]!r}"
    if not message.endswith(".") or "\n" in message or len(message) > 1500:
        return f"unclear: no short sentence but {len(message)} characters, {message[:120]!r}...{message[-40:]!r}"
    if message.encode("utf-8", errors="ignore").decode() != message:
        return f"unclear: half letters in {message[:160]!r}"
    return ""


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"


def most_memory() -> int:
    """Bytes of memory that this process has had at most, as far as the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
