"""A hundred short trainings in one ComfyUI: does memory grow, do handles or threads stay behind?

    python tests/bench/soak.py [--runs 100] [--steps 2] [--gpu] [--control]

Each run has another seed, and one of ten names. After each: resident memory of the server's process, open handles,
threads, and where there is a GPU what torch has taken of its memory. Prints a line for every tenth run, then each
figure's slope per run by least squares over the last four fifths, with its standard error. `--control` queues prompts
that load clips and show a text but train nothing, for what ComfyUI itself takes with each. Needs psutil.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "comfy")]

import psutil
from comfy_server import ComfyServer, why_not
from graphs import Graph, node
from repeated_runs import training_anew
from server_parts import put_clips, write_parts

NAMES = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use the GPU")
    parser.add_argument("--control", action="store_true", help="prompts that train nothing")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="last: more words for ComfyUI's command")
    wanted = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(Path(folder), cpu=not wanted.gpu)
        write_parts(server)
        server.start(*wanted.server)
        try:
            soak(server, wanted)
        finally:
            server.stop()


def soak(server: ComfyServer, wanted: argparse.Namespace) -> None:
    clips, process, began = put_clips(server, "clips"), psutil.Process(server.process.pid), time.monotonic()
    rows: list[dict[str, float]] = []
    for number in range(wanted.runs):
        graph = idle() if wanted.control else short_run(clips, number, wanted.steps)
        result = server.queue(graph)
        assert result.status == "success", result.error
        rows.append(figures(server, process))
        if number % 10 == 9 or not number:
            told = ", ".join(f"{name} {value:.1f}" for name, value in rows[-1].items())
            print(f"{number + 1:4} {told}  {(time.monotonic() - began) / (number + 1):.1f} s a run", flush=True)
    last = rows[len(rows) // 5 :]
    for name in rows[0]:
        per_run, error = slope([row[name] for row in last])
        print(f"{name}: {per_run:+.4f} a run, standard error {error:.4f}, over the last {len(last)} runs; "
              f"{rows[0][name]:.1f} after the first, {rows[-1][name]:.1f} after the last")


def short_run(clips: str, number: int, steps: int) -> Graph:
    return training_anew(clips, name=f"soak_{number % NAMES}", steps=steps, seed=number)


def idle() -> Graph:
    return {"text": node("PrimitiveString", value="nothing"), "fresh": node("TinyPartsFresh", value=("text", 0)),
            "shown": node("PreviewAny", source=("fresh", 0))}


def figures(server: ComfyServer, process: psutil.Process) -> dict[str, float]:
    handles = process.num_handles() if psutil.WINDOWS else process.num_fds()
    found = {"RSS MB": process.memory_info().rss / 2**20, "handles": handles, "threads": process.num_threads()}
    for device in server.get("/system_stats")["devices"]:
        if device["type"] != "cpu":
            found["VRAM of torch MB"] = device["torch_vram_total"] / 2**20
            found["VRAM in use MB"] = (device["torch_vram_total"] - device["torch_vram_free"]) / 2**20
    return found


def slope(values: list[float]) -> tuple[float, float]:
    """Least squares over 0, 1, 2 ...; the slope and its standard error."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((place - middle) ** 2 for place in range(count))
    per_run = sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    left = sum((value - mean - per_run * (place - middle)) ** 2 for place, value in enumerate(values))
    return per_run, (left / (count - 2) / spread) ** 0.5


if __name__ == "__main__":
    main()
