"""Steps at real shapes with random weights on this machine's GPU: seconds, peak memory and the plan's error, one table.

    python tests/bench/gpu_steps.py [--steps 4] [--rows 14B,ltx] [--musubi FOLDER] [--ltx FOLDER] [--site FOLDER]
        [--out FOLDER] [--tiny]

Under ten minutes on an H200. Every row is a run as a user starts it (`training.train`: rank 32, batch 1, bf16, AdamW),
but that weights are drawn on the device as the file would be read. Where a limit is asked for, the run plans for a
card of that size and PyTorch may not take more. GiB: predicted before loading; allocated at most between the first
and the last step; reserved from the card at most. "Of matmul": the operations of forward, recompute and backward, as
PyTorch's own counter has them (attention's way back is 2.5 times its way there), over the rate of an 8192-cubed bf16
product on random numbers.
`--musubi`, `--ltx`: checkouts of musubi-tuner and of Lightricks' trainer, for their steps on a model and clip of ours,
the second with its own low-VRAM settings; `--site` a folder with packages they need. `--tiny`: twins of the models on
the CPU, to prove the script. After each row the table is written to `--out`.
"""

import argparse
import datetime
import gc
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from ltx2_side import STATED, LtxTrainer
from musubi_side import Musubi
from our_side import ours, peak_of_steps
from pairs import StepClock

from video_lora_studio.loaders import module_weights
from video_lora_studio.loaders.safetensors_file import TensorReader, write_tensors
from video_lora_studio.training import BaseModel, MemoryConfig, RunConfig, TrainingSet, open_base_model
from video_lora_studio.training import run as engine
from video_lora_studio.training.families import file_tensors
from video_lora_studio.training.memory import plan as planning

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "comfy")]
from checkpoints import hollow_file, real  # noqa: E402
from ltx2_twin import header_of  # noqa: E402
from prepared_set import set_of  # noqa: E402
from twin_steps import BY_NAME, sample_shapes  # noqa: E402

GIB = 2**30
COMPUTE = torch.bfloat16
MOST_ERROR, LEAST_RATIO = 0.10, 1.10
PREFIX = "model.diffusion_model."
TWINS = {
    "wan2.1_t2v_14B": ("Wan", "T2V"), "wan2.1_t2v_1.3B": ("Wan", "T2V"), "wan2.2_ti2v_5B": ("Wan", "TI2V"),
    "ltx-2_19B": ("LTX-2", "2.0"),
}
TINY_CLIP, TINY_LIMIT = (64, 64, 9), 1.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model, a clip (width, height, frames) and what is asked of a run with them."""

    model: str
    """Of tests/data."""
    clip: tuple[int, int, int]
    limit: float | None = None
    """GiB; without, all weights stay on the card and blocks are recomputed."""
    slower: float | None = None
    """At most so many times the seconds of the first row of the model and clip, which has no limit."""
    share: float | None = None
    """At least this share of the matrix product's rate."""

    @property
    def asked(self) -> str:
        parts = [f"at most {self.limit:g} GiB"] if self.limit else ["resident"]
        parts += [f"{self.slower:g} x resident"] if self.slower else []
        parts += [f"{self.share:g} of matmul"] if self.share else []
        return ", ".join(parts)


ROWS = (
    Row(model="wan2.1_t2v_14B", clip=(832, 480, 81), share=0.55),
    Row(model="wan2.1_t2v_14B", clip=(512, 512, 81)),
    Row(model="wan2.1_t2v_14B", clip=(512, 512, 81), limit=22, slower=1.25),
    Row(model="wan2.1_t2v_14B", clip=(512, 512, 81), limit=15),
    Row(model="ltx-2_19B", clip=(960, 544, 49), limit=22),
    Row(model="wan2.1_t2v_1.3B", clip=(832, 480, 49), limit=10),
    Row(model="wan2.2_ti2v_5B", clip=(1280, 704, 49), limit=15),
)


Outcomes = dict[tuple, tuple[float, int]]
"""Seconds and peak bytes of the first row of a model and clip."""

PEERS = {
    "musubi": (Musubi, "musubi-tuner", "wan2.1_t2v_14B", 32), "ltx": (LtxTrainer, "its own trainer", "ltx-2_19B", 16),
}
"""By option: the side, what it is called, the model of the row that it is held against, its rank."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    device: torch.device
    steps: int
    tiny: bool
    rate: float
    """Operations a second of the matrix product."""
    clock: StepClock


def drawn(name: str, shape: tuple[int, ...], device: torch.device | str) -> torch.Tensor:
    """Random weights through which a signal keeps its size."""
    noise = torch.randn(shape, device=device, dtype=COMPUTE)
    if len(shape) < 2:
        return 0.1 * noise + ("norm" in name and name.endswith("weight"))
    return noise * (noise[0].numel() ** -0.5 if name.endswith("weight") else 0.1)


def reader_on(device: torch.device) -> type[TensorReader]:
    """A reader that draws what the file would hold."""

    class Drawing(TensorReader):
        def __init__(self, header, *, bodies=True):
            super().__init__(header, bodies=bodies)
            self._place = device if bodies else "meta"

        def read(self, name):
            return drawn(name, self.header.tensors[name].shape, self._place)

    return Drawing


def model_of(name: str, folder: Path, tiny: bool) -> BaseModel:
    """A model whose file has a header and no body; a twin's has both, for other trainers to read."""
    path, of_ltx2 = folder / f"{name}.safetensors", name.startswith("ltx-2")
    if tiny:
        family, kind = TWINS[name]
        config, twin = BY_NAME[family].twin(kind)
        tensors = {f"{PREFIX}{key}": tensor for key, tensor in file_tensors(BY_NAME[family], twin).items()}
        write_tensors(path, tensors, header_of(config, **STATED) if of_ltx2 else {})
    else:
        shapes, config = real(name)
        hollow_file(path, shapes, PREFIX, header_of(config, **STATED) if of_ltx2 else None)
    return open_base_model(path)


def data_for(base: BaseModel, clip: tuple[int, int, int], folder: Path) -> TrainingSet:
    features = {name: torch.randn(shape) for name, shape in sample_shapes(base, clip).items()}
    caption = {name: tensor for name, tensor in features.items() if name.startswith("text")}
    return set_of(folder, base, [{name: features[name] for name in features.keys() - caption.keys()}], [caption])


@contextmanager
def card_of(limit: float | None, device: torch.device) -> Iterator[None]:
    """A card of so many GiB, as the plan sees it and as PyTorch may use it."""
    if limit is None:
        yield
        return
    capped = device.type == "cuda"
    if capped:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit * GIB / total, device)
    try:
        with mock.patch.dict(planning.PRESETS, auto=round(limit * GIB)):
            yield
    finally:
        if capped:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def matmul_rate(device: torch.device) -> float:
    """Operations a second of a large matrix product on random numbers."""
    side, count = (8192, 20) if device.type == "cuda" else (512, 3)
    a, b = (torch.randn(side, side, device=device, dtype=COMPUTE) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        a @ b
    wait(device)
    return count * 2 * side**3 / (time.perf_counter() - started)


def measured(row: Row, machine: Machine, first: Outcomes) -> str:
    """One row of the table."""
    device, choices = machine.device, []

    def noted(footprints, *arguments, **named):
        choices.append((footprints, planning.choose(footprints, *arguments, **named)))
        return choices[-1][1]

    memory = MemoryConfig(level="auto") if row.limit else MemoryConfig(level="by hand", recompute=True)
    config = RunConfig(name="bench", steps=machine.steps, rank=32, memory=memory)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = model_of(row.model, folder, machine.tiny)
        data = data_for(base, row.clip, folder)
        run, seconds = ours(base, data, folder, config, device, "bf16"), []
        with (
            card_of(row.limit, device),
            mock.patch.object(module_weights, "TensorReader", reader_on(device)),
            mock.patch.object(engine, "choose", noted),
        ):
            peak = peak_of_steps(lambda: seconds.extend(machine.clock.steps(run)), device)
        footprints, plan = choices[0]
        work = footprints.of(plan.level).operations
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak
    median, predicted = statistics.median(seconds), plan.chosen.device
    first.setdefault((row.model, row.clip), (median, peak))
    error, share, slower = predicted / peak - 1, work / median / machine.rate, median / first[row.model, row.clip][0]
    met = (
        abs(error) <= MOST_ERROR and (row.limit is None or reserved <= row.limit * GIB)
        and (row.slower is None or slower <= row.slower) and (row.share is None or share >= row.share)
    )
    return line(
        base.title, row.clip, row.asked, planning.describe(plan.level, plan.blocks), seconds, f"{slower:.2f}",
        f"{share:.2f}", f"{predicted / GIB:.2f}", f"{peak / GIB:.2f}", f"{error:+.1%}", f"{reserved / GIB:.2f}",
        "yes" if met else "NO",
    )


def against(
    peer: type, checkout: Path, title: str, row: Row, rank: int, machine: Machine, first: Outcomes
) -> str:
    """The row of another trainer's steps on the model and clip of `row`."""

    def fill(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.data = drawn(name, parameter.shape, machine.device).to(parameter)

    memory = MemoryConfig(level="by hand", recompute=True)
    config = RunConfig(name="bench", steps=machine.steps, rank=rank, memory=memory)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = model_of(row.model, folder, machine.tiny)
        data, seconds = data_for(base, row.clip, folder), []
        precision = "no" if machine.tiny else "bf16"  # what musubi-tuner keeps in float32 it keeps so on CUDA alone
        run = peer(checkout).theirs(base, data, folder / "theirs", config, precision, fill)
        peak = peak_of_steps(lambda: seconds.extend(machine.clock.steps(run)), machine.device)
    (our_seconds, our_peak), median = first[row.model, row.clip], statistics.median(seconds)
    ratio, least = median / our_seconds, 1.0 if row.limit else LEAST_RATIO
    met = ratio >= least and (row.limit is None or our_peak < peak)
    return line(
        f"{base.title}, {title}", row.clip, f"ours {least:g} x its steps a second{', and smaller' * bool(row.limit)}",
        f"its own, rank {rank}", seconds, f"{ratio:.2f}", "", "", f"{peak / GIB:.2f}", "", "", "yes" if met else "NO",
    )


def line(model: str, clip: tuple[int, ...], asked: str, memory: str, seconds: list[float], *figures: str) -> str:
    times = f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
    return f"| {' | '.join((model, 'x'.join(map(str, clip)), asked, memory, times, *figures))} |"


def heading(machine: Machine) -> list[str]:
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else f"CPU, {platform.machine()}"
    kind = "Twins of the models, to prove the script: no figure means anything." if machine.tiny else "Random weights."
    return [
        f"# Steps at real shapes, {datetime.date.today()}", "",
        f"{name}; torch {torch.__version__}, Python {platform.python_version()}; bf16 matrix product "
        f"{machine.rate / 1e12:.3g} TFLOP/s; {machine.steps} steps a run, the first not timed. {kind}", "",
        "| model | clip | asked | memory | s/step (range) | x first row | of matmul | predicted GiB | allocated GiB | "
        "error | reserved GiB | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def tried(what: str, measure: Callable[[], str]) -> str:
    """A row, or what went wrong with it."""
    try:
        return measure()
    except Exception as error:  # one row must not cost the others
        reason = " ".join(str(error).split()).replace("|", "/")[:300]
        return f"| {what} | failed: {type(error).__name__}: {reason} | | | | | | | | | | NO |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", default="", help="only models whose name in tests/data has one of these in it")
    parser.add_argument("--musubi", type=Path)
    parser.add_argument("--ltx", type=Path)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    device = torch.device("cpu" if given.tiny else "cuda:0")
    machine = Machine(device=device, steps=given.steps, tiny=given.tiny, rate=matmul_rate(device),
                      clock=StepClock(time.perf_counter))
    rows = [row for row in ROWS if any(part in row.model for part in given.rows.split(","))]
    if given.tiny:
        rows = [Row(**{**vars(row), "clip": TINY_CLIP, "limit": row.limit and TINY_LIMIT}) for row in rows]
    first: Outcomes = {}
    measures = [(row.model, partial(measured, row, machine, first)) for row in rows]
    if given.site:
        sys.path.append(str(given.site))
    for name, (peer, title, model, rank) in PEERS.items():
        row, checkout = next((row for row in rows if row.model == model), None), getattr(given, name)
        if row and checkout:
            measures.append((title, partial(against, peer, checkout, title, row, rank, machine, first)))
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"{datetime.date.today()}_steps_{'tiny' if given.tiny else 'gpu'}.md"
    lines = heading(machine)
    print("\n".join(lines), flush=True)
    for what, measure in measures:
        lines.append(tried(what, measure))
        print(lines[-1], flush=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        give_back(device)


if __name__ == "__main__":
    main()
