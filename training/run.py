"""One run from set-up to clean-up."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..loaders.lora_file import read_lora, written_by_run
from .adapter import Adapter, adapted_layers, linear_layers
from .batches import Batches
from .config import PRECISIONS, RunConfig
from .dataset.training_set import TrainingSet
from .families.model_family import BaseModel
from .listener import Listener, Progress, SilentListener
from .loop import RunState, StepContext, run_steps
from .memory.recompute import recompute_blocks
from .objective import FlowMatching
from .optimizers import build_optimizer
from .run_folder import RunFolder, settings_key
from .run_output import KeyMatch, RunOutput

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ENGINE_VERSION = 1
"""Raised when the same settings would give another LoRA than before."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run writes."""

    lora_folder: Path
    run_folder: Path


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves. `lora` is the file's content; `losses` one number a step; `reused` where nothing ran."""

    lora: dict[str, Tensor]
    losses: list[float]
    lora_file: Path
    report: str
    steps_done: int
    reused: bool


def train(
    training_set: TrainingSet,
    base: BaseModel,
    config: RunConfig,
    *,
    places: Places,
    device: torch.device,
    precision: str = "auto",
    listener: Listener | None = None,
    check_file: Callable[[Path], KeyMatch] | None = None,
) -> TrainResult:
    """Train a LoRA of `base` on `training_set` and write `<name>.safetensors`; or return the one already there.

    A run with the same settings, data and base that has finished is not run again. Whatever stops a run after its
    first step (the listener, an error, memory) leaves the LoRA of the last good step in the file before it is raised
    on. `check_file` says how many of the written keys the host loads; fewer than all is a ValueError.
    """
    listener = listener or SilentListener()
    compute = compute_dtype(precision, device)
    key = run_key(training_set, base, config, compute)
    lora_file = places.lora_folder / f"{config.name}.safetensors"
    folder = RunFolder(places.run_folder)
    check_before_start(training_set, base, config, lora_file, folder)
    if record := folder.finished(key, lora_file):
        return _earlier_result(record, folder, lora_file)

    started = time.monotonic()
    output = RunOutput(training_set, base, config, key, lora_file, folder)
    output.begin()
    with torch.inference_mode(False), torch.enable_grad():
        context = set_up(training_set, base, config, device, compute, listener)
        state, adapter = RunState(), attach_adapter(context, config)
        try:
            parameters = list(adapter.parameters())
            run_steps(
                context,
                config,
                parameters=parameters,
                optimizer=build_optimizer(parameters, config),
                state=state,
                listener=listener,
                after_step=lambda state: output.after_step(state, adapter),
            )
            tensors = output.save(state, adapter)
        except BaseException as stop:
            output.stopped(state, adapter, stop)
            raise
        finally:
            context.transformer.to("meta")
            gc.collect()
    match = check_file(lora_file) if check_file else None
    report = output.finished(state, adapter, match, time.monotonic() - started)
    return TrainResult(
        lora=tensors, losses=state.losses, lora_file=lora_file, report=report, steps_done=state.step, reused=False
    )


def set_up(
    training_set: TrainingSet,
    base: BaseModel,
    config: RunConfig,
    device: torch.device,
    compute: torch.dtype,
    listener: Listener,
) -> StepContext:
    """The frozen transformer on the device, and everything else a step needs."""
    listener.report(Progress(phase=f"Loading {base.path.name}", done=0, total=config.steps))
    transformer = base.family.load_transformer(base, dtype=compute, device=device)
    recipe = config.recipe
    return StepContext(
        transformer=transformer,
        family=base.family,
        objective=FlowMatching(
            timesteps=recipe.timesteps,
            logit_mean=recipe.logit_mean,
            logit_std=recipe.logit_std,
            shift=recipe.shift or base.defaults.shift,
        ),
        batches=Batches(training_set, base, batch_size=recipe.batch_size, seed=config.seed),
        device=device,
        autocast=lambda: torch.autocast(device.type, dtype=compute, enabled=compute != torch.float32),
        seed=config.seed,
    )


def attach_adapter(context: StepContext, config: RunConfig) -> Adapter:
    """A fresh adapter on the context's transformer, which trains as the memory settings say."""
    if config.memory.recompute:
        recompute_blocks(context.transformer, keep_random_state=config.adapter.dropout > 0)
    return Adapter(context.transformer, context.family, config.adapter, rank=config.rank, seed=config.seed)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the transformer computes in: `auto` is float32 on a CPU and bfloat16 elsewhere."""
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16"
    if precision not in COMPUTE_DTYPES:
        raise ValueError(f"Precision is {precision!r}; choose one of: {', '.join(PRECISIONS)}.")
    return COMPUTE_DTYPES[precision]


def run_key(training_set: TrainingSet, base: BaseModel, config: RunConfig, compute: torch.dtype) -> str:
    """Hash of everything that decides the LoRA's numbers."""
    settings = config.as_dict()
    del settings["name"], settings["memory"], settings["recipe"]["save_every"]
    return settings_key([ENGINE_VERSION, base.identity, training_set.data_hash, str(compute), settings])


def check_before_start(
    training_set: TrainingSet, base: BaseModel, config: RunConfig, lora_file: Path, folder: RunFolder
) -> None:
    """ValueError or OSError for what would otherwise fail after the heavy part."""
    if not training_set.samples:
        raise ValueError("The training set holds no clip.")
    if training_set.family != base.family.name:
        raise ValueError(
            f"The training set was prepared for {training_set.family} and the base model is {base.title}: connect the "
            "same base model to Prepare and Train."
        )
    channels = {sample.latent_shape[0] for sample in training_set.samples}
    if channels != {base.grid.channels}:
        raise ValueError(
            f"The training set has {sorted(channels)} latent channels and {base.title} takes {base.grid.channels}: "
            "connect the same base model to Prepare and Train."
        )
    adapted_layers(linear_layers(base), base.family, config.adapter.targets)
    if lora_file.is_file() and written_by_run(lora_file) is None:
        raise ValueError(
            f"{lora_file.name} is already in the LoRA folder and was not made by this pack: choose another name."
        )
    for place in (lora_file.parent, folder.folder):
        check_writable(place)


def check_writable(folder: Path) -> None:
    """OSError in one sentence unless a file can be written in `folder`; creates it where it is missing."""
    probe = folder / f".video_lora_{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"Cannot write in {folder}: {reason}. Free it or choose another folder.") from error


def _earlier_result(record: dict, folder: RunFolder, lora_file: Path) -> TrainResult:
    report = f"Nothing to do: this run has finished before.\n{record.get('report', '')}"
    return TrainResult(
        lora=read_lora(lora_file)[0],
        losses=folder.losses(),
        lora_file=lora_file,
        report=report,
        steps_done=int(record["steps"]),
        reused=True,
    )
