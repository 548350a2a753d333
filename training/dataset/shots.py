"""Cut long footage into shots: find the cuts, plan the shots, write each as a clip of its own."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...loaders.caption_file import caption_path
from ...loaders.video_file import VIDEO_ENDINGS, Footage, FootageError, probe
from ...loaders.video_writer import Written, check_encoder, small_frames, write_stretches
from ..config import check, setting
from ..listener import Listener, Progress, SilentListener
from .clip_set import LeftOut, files, left_out_line
from .scan import natural
from .shot_record import FilmRecord, identity, read_record, stem_for, write_record

log = logging.getLogger(__name__)

SIDE = 256
"""Longest side, in pixels, of the frames in which cuts are looked for: what PySceneDetect scales to by itself."""
SECONDS_BETWEEN_REPORTS = 0.2
ABANDONED = 600  # seconds since anything was written to a file
UNFINISHED = re.compile(r"(_\d{3,}_\d+\.\d\d-\d+\.\d\ds\.mp4|^_shots\.json)\.[0-9a-f]{8}\.part$")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Where films are cut, and how long shots may be."""

    shortest: float = setting(
        1.0, "Shortest shot", "Seconds. Shots that are shorter are not written; the report names them.",
        low=0.1, high=300.0, step=0.1,
    )
    longest: float = setting(
        10.0, "Longest shot", "Seconds. Longer shots are cut into equal parts.", low=0.2, high=300.0, step=0.5,
    )
    sensitivity: float = setting(
        1.0, "Sensitivity", "How small a change of the picture counts as a cut. 1 is PySceneDetect's own measure, 2 "
        "finds cuts half as strong, 0.5 only those twice as strong.", low=0.1, high=10.0, step=0.1,
    )
    detector: str = setting(
        "adaptive", "Detector", "How PySceneDetect looks for cuts. adaptive: a change that stands out from the frames "
        "around it, so fast movement is no cut. content: any change that is strong enough. threshold: fades to black.",
        choices=("adaptive", "content", "threshold"),
    )

    def __post_init__(self):
        check(self)
        if self.shortest > self.longest:
            raise ValueError(
                f"Shortest shot ({self.shortest:g} s) is longer than Longest shot ({self.longest:g} s): "
                "lower the one or raise the other."
            )


@dataclass(frozen=True, kw_only=True)
class Split:
    """What became of the films."""

    folder: Path
    films: int
    written: tuple[str, ...]
    """Files written now, in order."""
    kept: tuple[str, ...]
    """Files that an earlier run had written."""
    lines: tuple[str, ...]
    """One for each film, shot and stretch that was left out."""

    def report(self) -> str:
        """For people."""
        count = len(self.written) + len(self.kept)
        shots = f"{count} shot{'' if count == 1 else 's'} of {self.films} film{'' if self.films == 1 else 's'}"
        head = f"{shots}: {len(self.written)} written now, {len(self.kept)} there already"
        return "\n".join([head, f"Folder: {self.folder}", "", *self.lines])


@dataclass(kw_only=True)
class _Film:
    """One film on its way."""

    key: str
    """Its identity in the record."""
    footage: Footage
    record: FilmRecord
    bounds: list[int] = field(default_factory=list)
    todo: list[tuple[int, int, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def moment(self, number: int) -> float:
        """When a frame is shown, in seconds; the end for the one behind the last."""
        times = self.footage.times
        return times[number] if number < len(times) else self.footage.seconds

    def span(self, first: int, last: int) -> str:
        return f"{self.moment(first):.2f}-{self.moment(last):.2f} s"


def films_in(path: Path) -> list[Path]:
    """The video itself, or the videos directly in a folder, in natural order. Raises ValueError where there is none."""
    if path.is_file():
        return [path]
    found = [
        entry for entry in path.iterdir()
        if entry.suffix.lower() in VIDEO_ENDINGS and entry.is_file() and not entry.name.startswith(".")
    ]
    if not found:
        raise ValueError(f"There is no video in {path}: put the footage that is to be cut in it.")
    return sorted(found, key=lambda entry: natural(entry.name))


def split_scenes(
    films: Sequence[Path], folder: Path, config: SplitConfig | None = None, listener: Listener | None = None, *,
    again: bool = False,
) -> Split:
    """Cut the films at their cuts and write the shots into `folder` as `<film>_<scene>_<from>-<to>s.mp4`.

    A shot that an earlier run has written is not written again, nor one that was since removed by hand, unless
    `again`. Shots of an earlier run that these settings do not give are removed where they have no caption. The films
    are only read. A film that cannot be used does not stop the others.
    Raises ValueError where no film can be used, a film lies in `folder`, or PySceneDetect or the encoder is missing,
    OSError where the disk cannot be written. Whatever is raised, shots written until then stay.
    """
    config, listener = config or SplitConfig(), listener or SilentListener()
    for film in films:
        if film.resolve().parent == folder.resolve():
            raise ValueError(f"{film.name} lies in {folder}, which is to be filled with shots: choose another folder.")
    check_encoder()
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    records = read_record(folder)
    jobs, left_out = _open(films, records, listener)
    _find_cuts(jobs, config, left_out, listener)
    jobs = [job for job in jobs if job.bounds]
    if not jobs:
        raise ValueError("No film can be cut. " + " ".join(f"{item.name}: {item.reason}." for item in left_out))
    kept = [name for job in jobs for name in _plan(job, folder, config, again)]
    _note(jobs, folder)
    written = _write(jobs, folder, listener)
    lines = [line for job in jobs for line in job.lines]
    log.info("%s: %d shots written, %d there already", folder, len(written), len(kept))
    return Split(
        folder=folder, films=len(jobs), written=tuple(written), kept=tuple(kept),
        lines=(*lines, *map(left_out_line, left_out)),
    )


def _clear(folder: Path) -> None:
    """Remove what a run that was ended by force has left half written, not what another is writing."""
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if UNFINISHED.search(path.name) and path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()


def _open(
    films: Sequence[Path], records: dict[str, FilmRecord], listener: Listener
) -> tuple[list[_Film], list[LeftOut]]:
    """The films that can be read, each with its place in the record, and those that cannot."""
    jobs: dict[str, _Film] = {}
    left_out = []
    pace = _Pace(listener, "Looking at films", len(films))
    for number, path in enumerate(films):
        pace.step(int(number > 0), path.name)  # a long film takes a while
        try:
            footage = probe(path)
            if footage.kind != "video":
                raise FootageError(path, "a picture, nothing to cut")
        except FootageError as error:
            left_out.append(LeftOut(name=path.name, reason=error.reason))
            continue
        key = identity(path)
        if key in jobs:
            left_out.append(LeftOut(name=path.name, reason=f"the same film as {jobs[key].footage.path.name}"))
            continue
        stems = [record.stem for record in records.values()]
        record = records.setdefault(key, FilmRecord(film=path.name, stem=stem_for(path, stems)))
        jobs[key] = _Film(key=key, footage=footage, record=record)
    return list(jobs.values()), left_out


def _find_cuts(jobs: Sequence[_Film], config: SplitConfig, left_out: list[LeftOut], listener: Listener) -> None:
    """Fill in where scenes begin, from the record or by looking through the film."""
    how = f"{config.detector} {config.sensitivity:g}"
    new = [job for job in jobs if how not in job.record.bounds]
    pace = _Pace(listener, "Finding cuts", sum(len(job.footage.times) for job in new))
    for job in new:
        bounds = _bounds(job.footage, config, pace)
        if bounds:
            job.record.bounds[how] = bounds
        else:
            left_out.append(LeftOut(name=job.footage.path.name, reason="no frame of it can be decoded"))
    for job in jobs:
        job.bounds = job.record.bounds.get(how, [])


def _bounds(footage: Footage, config: SplitConfig, pace: _Pace) -> list[int]:
    """Frame numbers where scenes begin, and behind the last one that decodes. Empty where none does."""
    detector, moment = _detector(config)
    cuts, first, last = set(), None, -1
    for number, picture in small_frames(footage, SIDE):
        first = number if first is None else first
        cuts.update(cut.frame_num for cut in detector.process_frame(moment(number), picture))
        pace.step(number - last, footage.path.name)
        last = number
    pace.step(len(footage.times) - 1 - last, footage.path.name)
    return [] if first is None else [first, *sorted(cut for cut in cuts if first < cut <= last), last + 1]


def _detector(config: SplitConfig):
    """PySceneDetect's detector, which takes frames one by one, and what makes its times of frame numbers.

    Every cut counts (no shortest scene): merged scenes would be shots with a cut in them. Thresholds at sensitivity 1
    are PySceneDetect's defaults.
    """
    try:
        from scenedetect.common import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector, ContentDetector, ThresholdDetector
    except ImportError as error:
        raise ValueError(
            "Cutting footage needs PySceneDetect 0.7 or newer: run `pip install scenedetect-headless` "
            f"in ComfyUI's Python and start ComfyUI again ({error})."
        ) from error
    weaker = 1 / config.sensitivity
    if config.detector == "content":
        detector = ContentDetector(threshold=27.0 * weaker, min_scene_len=0)
    elif config.detector == "adaptive":
        detector = AdaptiveDetector(adaptive_threshold=3.0 * weaker, min_content_val=15.0 * weaker, min_scene_len=0)
    else:
        detector = ThresholdDetector(threshold=12.0 * config.sensitivity, min_scene_len=0)
    return detector, lambda number: FrameTimecode(number, fps=25.0)  # only the number is used


def _plan(job: _Film, folder: Path, config: SplitConfig, again: bool) -> list[str]:
    """Say which shots are to be written; give the names of those that are there."""
    film, before = job.footage.path.name, job.record.shots
    names = {(first, last): name for name, (first, last, _) in before.items()}
    shots, too_short = [], []
    for scene, (first, last) in enumerate(zip(job.bounds, job.bounds[1:], strict=False), 1):
        for start, end in _parts(job, first, last, config):
            if job.moment(end) - job.moment(start) < config.shortest - 0.5 / job.footage.fps:
                too_short.append(f"{film}: {job.span(start, end)} left out, shorter than {config.shortest:g} s")
                continue
            new = f"{job.record.stem}_{scene:03d}_{job.span(start, end).replace(' ', '')}.mp4"
            shots.append((start, end, names.get((start, end), new)))
    stale = _remove_stale(job, folder, {name for *_, name in shots})
    kept, removed = [], []
    for first, last, name in shots:
        if not again and (folder / name).is_file():  # one that is not on record may be anybody's
            kept.append(name)
        elif not again and name in before:
            removed.append(name)
        else:
            job.todo.append((first, last, name))
    job.lines.append(f"{film}: {len(job.bounds) - 1} scenes, {len(shots)} shots")
    job.lines += [f"{film}: {note}" for note in job.footage.notes]
    job.lines += [f"{name}: removed by hand, not written again" for name in removed]
    job.lines += stale + too_short
    return kept


def _parts(job: _Film, first: int, last: int, config: SplitConfig) -> list[tuple[int, int]]:
    """A scene in equal parts none of which is longer than allowed; the scene itself where it is short enough.

    Where equal parts would be too short, as many of full length as there is room for, and what is left.
    """
    start, end = job.moment(first), job.moment(last)
    seconds, slack = end - start, 0.5 / job.footage.fps
    count = max(1, math.ceil((seconds - slack) / config.longest))
    if count > 1 and seconds / count < config.shortest:
        edges = [start + number * config.longest for number in range(count)]
    else:
        edges = [start + number * seconds / count for number in range(count)]
    numbers = [first, *(bisect_left(job.footage.times, edge - slack) for edge in edges[1:]), last]
    return [(one, other) for one, other in zip(numbers, numbers[1:], strict=False) if one < other]


def _remove_stale(job: _Film, folder: Path, wanted: set[str]) -> list[str]:
    """Forget shots that are not wanted any more; their files go unless they have a caption or were changed."""
    lines = []
    for name in [name for name in job.record.shots if name not in wanted]:
        path, (*_, size) = folder / name, job.record.shots.pop(name)
        if not path.is_file():
            continue
        if caption_path(path).exists() or path.stat().st_size != size:
            what = "has a caption" if caption_path(path).exists() else "was changed"
            lines.append(f"{name}: of an earlier cut, kept because it {what}")
        else:
            path.unlink()
            lines.append(f"{name}: of an earlier cut, removed")
    return lines


def _note(jobs: Sequence[_Film], folder: Path) -> None:
    """Bring the record up to date on these films; what another run has noted of others meanwhile stays."""
    write_record(folder, read_record(folder) | {job.key: job.record for job in jobs})


def _write(jobs: Sequence[_Film], folder: Path, listener: Listener) -> list[str]:
    """Write what is to be written; give the names."""
    pace = _Pace(listener, "Writing shots", sum(last - first for job in jobs for first, last, _ in job.todo))
    written = []
    for job in jobs:
        shots = {name: (first, last) for first, last, name in job.todo}
        stretches = [(first, last, folder / name) for first, last, name in job.todo]
        with contextlib.closing(write_stretches(job.footage, stretches)) as steps:
            try:
                for frames, path, result in steps:
                    pace.step(frames, path.name)
                    if result:
                        job.record.shots[path.name] = (*shots[path.name], path.stat().st_size)
                        _note(jobs, folder)
                        written.append(path.name)
                        job.lines.append(_shot_line(job, path.name, *shots[path.name], result))
            except FootageError as error:
                job.lines.append(f"{job.footage.path.name}: the rest is not written, {error.reason}")
    pace.step(0, files(len(written)))
    return written


def _shot_line(job: _Film, name: str, first: int, last: int, result: Written) -> str:
    seconds = job.moment(last) - job.moment(first)
    return ", ".join([f"{name}: {seconds:.2f} s", f"{result.frames} frames", *result.notes])


class _Pace:
    """How far one kind of work is, and how long it will still take."""

    def __init__(self, listener: Listener, phase: str, total: int):
        self._listener, self._phase, self._total = listener, phase, total
        self._done, self._start, self._told = 0, time.monotonic(), -math.inf

    def step(self, frames: int, detail: str) -> None:
        """So many more frames are done. Raises where the listener wants to stop."""
        self._listener.check()
        self._done += frames
        now = time.monotonic()
        if self._total and (now - self._told >= SECONDS_BETWEEN_REPORTS or self._done >= self._total):
            self._told = now
            left = (now - self._start) / self._done * (self._total - self._done) if self._done else None
            self._listener.report(Progress(
                phase=self._phase, done=self._done, total=self._total, seconds_left=left, detail=detail
            ))
