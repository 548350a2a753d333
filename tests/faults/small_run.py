"""A whole small run, clips to LoRA, in a process of its own that stands still at a chosen moment to be killed there."""

import collections
import contextlib
import dataclasses
import json
import os
import time
import types
from pathlib import Path

import torch
from family_studio import BY_NAME, StandInAudioVae
from footage import write_video
from ltx2_twin import write_ltx2_twin
from tiny import StandInImageEncoder, write_twin

from video_lora_studio.loaders.feature_cache import CHECKSUM, FeatureCache
from video_lora_studio.loaders.lora_file import read_lora
from video_lora_studio.loaders.safetensors_file import checksum, read_tensors
from video_lora_studio.training import run as run_module
from video_lora_studio.training import run_output
from video_lora_studio.training.config import AdapterConfig, RecipeConfig, RunConfig
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.demo import stand_ins
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.optimizers import Stepper
from video_lora_studio.training.resume import ResumePoint
from video_lora_studio.training.run import train
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")
FAMILIES = {"Wan 2.2 pair": ("Wan", "T2V"), "LTX-2 with sound": ("LTX-2", "2.3"), "CogVideoX": ("CogVideoX", "1.5")}
SETTINGS = RunConfig(
    name="small", steps=6, rank=4, learning_rate=1e-3,
    recipe=RecipeConfig(
        warmup_steps=2, resume_every=0.0, save_every=2, gradient_accumulation=2, ema=0.9, schedule="cosine",
        caption_dropout=0.3,
    ),
    adapter=AdapterConfig(save_as="fp32", dropout=0.2),
)
"""A resume point after every step, and everything on that a run has to remember or to draw."""

PLAN = types.SimpleNamespace(level=Level(), blocks=2, lines=["Memory: not planned."])
"""Planning takes longer than such a run, and writes nothing."""

STAY = 600.0
"""Seconds that a process stands still before it gives up to be killed."""


def write_sources(family, folder):
    """A family's twin and two clips, of which one has sound, in an empty folder."""
    name, kind = FAMILIES[family]
    files = ["high.safetensors", "low.safetensors"] if "pair" in family else ["model.safetensors"]
    for seed, file in enumerate(files):
        if name == "LTX-2":
            write_ltx2_twin(folder / file, kind)
        else:
            torch.manual_seed(seed)
            write_twin(folder / file, family=BY_NAME[name], kind=kind)
    for clip, more in (("loud", {"sound": True}), ("silent", {})):
        (folder / "clips").mkdir(exist_ok=True)
        write_video(folder / "clips" / f"{clip}.mp4", frames=60, fps=24, size=(64, 64), **more)
        (folder / "clips" / f"{clip}.txt").write_text(f"a {clip} clip", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class SmallRun:
    """From the files in `sources`, writing into `folder` only."""

    sources: Path
    folder: Path

    @property
    def places(self):
        return Places(lora_folder=self.folder / "loras", run_folder=self.folder / "run")

    @property
    def cache(self):
        return FeatureCache(self.folder / "cache")

    def base(self):
        return open_base_model(*sorted(self.sources.glob("*.safetensors")))

    def prepare(self, base):
        width, height = (base.grid.width, base.grid.height) if hasattr(base.grid, "width") else (64, 64)
        encoders = dataclasses.replace(stand_ins(base), image=StandInImageEncoder(), sound=StandInAudioVae())
        return prepare(
            scan(self.sources / "clips"), base, encoders, width=width, height=height,
            frames=base.grid.frames_within(9), cache=self.cache,
        ).training_set

    def train(self, data, base, config=SETTINGS, places=None, **more):
        return train(data, base, config, places=places or self.places, device=CPU, **more)


class Moments:
    """Counts the moments of a process by what it does then; at the chosen one says so and stands still."""

    def __init__(self, connection, chosen=None):
        self.phase, self.counts = "caching", collections.Counter()
        self._connection, self._chosen = connection, chosen

    def now(self, what):
        place = f"{self.phase}: {what}"
        self.counts[place] += 1
        if (place, self.counts[place]) == self._chosen:
            self._connection.send("now")
            time.sleep(STAY)
            os._exit(1)


class InTwoHalves:
    """A file whose writes are on the disk by half for a moment."""

    def __init__(self, file, moments):
        self._file, self._moments = file, moments

    def write(self, data):
        data = memoryview(data).cast("B")
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._moments.now("in a write")
        return half + self._file.write(data[half:])

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def watch(moments, family):
    """Have everything that a run does to the disk, and its steps, tell `moments`. For the rest of the process."""
    open_file, replace, unlink, step, predict = Path.open, os.replace, Path.unlink, Stepper.step, type(family).predict

    def opened(path, mode="r", *args, **more):
        file = open_file(path, mode, *args, **more)
        return InTwoHalves(file, moments) if mode in ("xb", "ab") else file

    def replaced(source, target, **more):
        moments.now("just before a rename")
        replace(source, target, **more)
        moments.now("just after a rename")

    def removed(path, missing_ok=False):
        if path.suffix != ".part":
            moments.now("before a removal")
        unlink(path, missing_ok=missing_ok)

    def stepped(self, done):
        moments.now("in a step")
        step(self, done)
        moments.now("in a step")

    def predicted(self, *given):
        answer = predict(self, *given)
        moments.now("in a step")
        for stream in answer.values():
            if stream.requires_grad:
                stream.register_hook(lambda gradient: moments.now("in a step"))
        return answer

    Path.open, os.replace, Path.unlink, Stepper.step = opened, replaced, removed, stepped
    type(family).predict = predicted
    run_module.plan_memory = lambda *given, **more: PLAN
    run_output.SECONDS_BETWEEN_WRITES = 0.0


def work(run, connection, chosen):
    """The process: say that it begins, do the whole run, say how often what happened."""
    torch.set_num_threads(1)
    base, moments = run.base(), Moments(connection, chosen)
    watch(moments, base.family)
    connection.send("begun")
    data = run.prepare(base)
    moments.phase = "training"
    result = run.train(data, base)
    connection.send((result.report, dict(moments.counts)))


def half_written(run):
    """What of a run's files cannot be read whole, as the programs that read them would see it."""
    found = []
    for path in sorted(run.folder.rglob("*.safetensors")):
        try:
            if "resume" in path.parts:
                ResumePoint.read(path)
            elif path.is_relative_to(run.cache.folder):
                tensors, metadata = read_tensors(path)
                if metadata[CHECKSUM] != checksum(tensors):
                    found.append(f"{path}: checksum")
            elif not all(tensor.isfinite().all() for tensor in read_lora(path)[0].values()):
                found.append(f"{path}: not finite")
        except (ValueError, KeyError) as error:
            found.append(f"{path}: {error}")
    for path in run.folder.rglob("*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            found.append(f"{path}: {error}")
    with contextlib.suppress(FileNotFoundError):  # the last line may be on its way; the next start writes it anew
        for line in (run.places.run_folder / "progress.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
            json.loads(line)
    return found


def outcome(run):
    """Everything that a finished run leaves and that must be the same however it came about, by name."""
    files = [*run.places.lora_folder.iterdir(), *(run.places.run_folder / "checkpoints").iterdir(),
             *run.cache.folder.glob("*/*.safetensors"), *(run.places.run_folder / "resume").glob("*/*.safetensors"),
             run.places.run_folder / "progress.jsonl", *(run.places.run_folder / "replaced").glob("*")]
    return {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in files if path.suffix != ".part"}
