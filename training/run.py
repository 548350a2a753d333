"""One run from set-up to clean-up."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..loaders.lora_file import read_lora, written_by_run
from ..loaders.module_weights import AS_STORED, Storage
from .adapter import Adapter, adapted_layers, linear_layers
from .batches import Batches, check_captions, trained_streams
from .config import BY_HAND, PRECISIONS, MemoryConfig, RunConfig
from .dataset.training_set import TrainingSet
from .families.model_family import BaseModel
from .listener import Listener, Progress, SilentListener
from .loop import RunState, StepContext, micro_step_loss, persist, run_steps
from .memory.block_swap import swapped_blocks
from .memory.fitting import Fitting
from .memory.footprint import Footprints, Workload, largest_sample
from .memory.level import Level
from .memory.live_bytes import peak_bytes
from .memory.plan import Plan, Room, Speed, choose
from .optimizers import build_optimizer, check_optimizer
from .run_folder import RunFolder, settings_key
from .run_output import KeyMatch, Part, RunOutput

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
    """What a run leaves: for each file its tensors, the loss of every step, what to tell people."""

    loras: tuple[dict[str, Tensor], ...]
    """One for each of `lora_files`: of two experts the high-noise one comes first."""
    lora_files: tuple[Path, ...]
    losses: list[float]
    report: str
    reused: bool
    """Whether this was an earlier run's result, and nothing was trained."""


def train(
    training_set: TrainingSet,
    base: BaseModel,
    config: RunConfig,
    *,
    places: Places,
    device: torch.device,
    precision: str = "auto",
    listener: Listener | None = None,
    check_file: Callable[[Path, BaseModel], KeyMatch] | None = None,
) -> TrainResult:
    """Train a LoRA of `base` on `training_set` and write `<name>.safetensors`; or return the one already there.

    Two experts give two files, `<name>_high_noise` and `<name>_low_noise`, trained one after the other. A run with the
    same settings, data and base that has finished is not run again. Whatever stops a run after its first step (the
    listener, an error, memory) leaves the LoRA of the last good step in the file before it is raised on. `check_file`
    says how many of the written keys the host loads; fewer than all is a ValueError.
    """
    listener = listener or SilentListener()
    compute = compute_dtype(precision, device)
    key = run_key(training_set, base, config, compute)
    folder = RunFolder(places.run_folder)
    parts = parts_of(base, config, places.lora_folder)
    check_before_start(training_set, parts, folder, device)
    if record := folder.finished(key, [part.lora_file for part in parts]):
        return _earlier_result(record, folder, parts)

    output = RunOutput(training_set, base, config, key, folder)
    output.begin()
    with torch.inference_mode(False), torch.enable_grad():
        loras = tuple(_train_part(part, training_set, device, compute, listener, output) for part in parts)
    for part in parts:
        output.check(part, check_file(part.lora_file, part.base) if check_file else None)
    return TrainResult(
        loras=loras,
        lora_files=tuple(part.lora_file for part in parts),
        losses=output.losses,
        report=output.finish(),
        reused=False,
    )


def _train_part(
    part: Part,
    training_set: TrainingSet,
    device: torch.device,
    compute: torch.dtype,
    listener: Listener,
    output: RunOutput,
) -> dict[str, Tensor]:
    """Train one LoRA, with its model on the device meanwhile; the LoRA's tensors."""
    base, config = part.base, part.config
    listener.report(Progress(phase="Planning memory", done=0, total=config.steps))
    plan = plan_memory(training_set, base, config, device, compute)
    swapped = frozenset(swapped_blocks(plan.level.swapped, plan.blocks))
    storage = Storage(weights=plan.level.weights, on_host=swapped)
    context = set_up(training_set, base, config, device, compute, listener, storage)
    state, adapter = RunState(), attach_adapter(context, config)
    fitting = fit(context, config, plan.level)
    optimizer = build_optimizer(adapter.parameters(), config)
    output.begin_part(part, adapter, optimizer)
    try:
        if device.type != "cpu":
            plan = dry_run(context, adapter, fitting, plan)
        output.note(plan.lines)
        run_steps(
            context,
            config,
            parameters=list(adapter.parameters()),
            optimizer=optimizer,
            state=state,
            listener=listener,
            after_step=output.after_step,
            recovery=fitting.recovery,
        )
        output.note(fitting.notes)
        return output.save(state)
    except BaseException as stop:
        output.stopped(state, stop)
        raise
    finally:
        output.end_part()
        fitting.close()
        context.transformer.to("meta")
        gc.collect()


def plan_memory(
    training_set: TrainingSet, base: BaseModel, config: RunConfig, device: torch.device, compute: torch.dtype
) -> Plan:
    """How the run is fitted into memory, from headers and shapes alone. ValueError where it cannot be."""
    memory = config.memory
    streams = trained_streams(training_set, base, config.recipe)
    workload = Workload.of(base, config, largest_sample(training_set, streams), streams, device, compute)
    room = Room.of(device, memory.level)
    by_hand = level_by_hand(memory) if memory.level == BY_HAND else None
    return choose(Footprints(workload), room, Speed.of(device, compute), by_hand=by_hand)


def dry_run(context: StepContext, adapter: Adapter, fitting: Fitting, plan: Plan) -> Plan:
    """Gradients of the largest batch once, before any step: the plan, corrected by the memory that they took.

    Where memory runs out the fitting goes on to its next levels, and the plan stays the estimate that it was.
    """
    batches, transformer = context.batches, context.transformer
    position = max(range(len(batches)), key=lambda place: batches.size(place))
    held, device = [*transformer.parameters(), *transformer.buffers()], context.device

    def once() -> int:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return peak_bytes(lambda: micro_step_loss(context, position).backward(), device, held)

    try:
        peak = persist(once, fitting.recovery)
    finally:
        for parameter in adapter.parameters():
            parameter.grad = None
    return plan if fitting.notes else plan.corrected(peak)


def level_by_hand(memory: MemoryConfig) -> Level:
    """What the settings for `by hand` say."""
    return Level(
        weights=memory.weights, recompute=memory.recompute, offload_activations=memory.offload_activations,
        swapped=memory.blocks_to_swap,
    )


def parts_of(base: BaseModel, config: RunConfig, lora_folder: Path) -> list[Part]:
    """The LoRAs of a run: one, or one for each of two experts, with the steps that each gets."""
    experts = [base] if base.low_noise is None else [base, base.low_noise]
    high = round(config.steps * config.recipe.high_noise_share) if len(experts) > 1 else config.steps
    shares = [high, config.steps - high][: len(experts)]
    if min(shares) < 1:
        raise ValueError(f"Steps is {config.steps}, of which one expert gets none: raise Steps or change its share.")
    return [
        Part(
            base=expert,
            config=dataclasses.replace(config, steps=steps),
            lora_file=lora_folder / f"{'_'.join(filter(None, (config.name, expert.expert)))}.safetensors",
        )
        for expert, steps in zip(experts, shares, strict=True)
    ]


def set_up(
    training_set: TrainingSet,
    base: BaseModel,
    config: RunConfig,
    device: torch.device,
    compute: torch.dtype,
    listener: Listener,
    storage: Storage = AS_STORED,
) -> StepContext:
    """The frozen transformer, its weights kept as `storage` says, and everything else a step needs."""
    listener.report(Progress(phase=f"Loading {base.path.name}", done=0, total=config.steps))
    recipe = config.recipe
    seed = f"{config.seed}/{base.expert}" if base.expert else str(config.seed)
    return StepContext(
        transformer=base.family.load_transformer(base, dtype=compute, device=device, storage=storage),
        base=base,
        objective=base.family.objective(base, recipe),
        batches=Batches(training_set, base, recipe, seed=seed),
        device=device,
        autocast=lambda: torch.autocast(device.type, dtype=compute, enabled=compute != torch.float32),
        seed=seed,
        first_frame=base.defaults.first_frame if recipe.first_frame < 0 else recipe.first_frame,
    )


def attach_adapter(context: StepContext, config: RunConfig) -> Adapter:
    """A fresh adapter on the context's transformer."""
    return Adapter(
        context.transformer, context.base, config.adapter, rank=config.rank, seed=context.seed,
        streams=context.batches.streams,
    )


def fit(context: StepContext, config: RunConfig, level: Level) -> Fitting:
    """Recompute, offloading and swapping as the level says, on a transformer that has its adapter."""
    blocks = context.family.blocks(context.transformer)
    keep_random_state = config.adapter.dropout > 0
    return Fitting(context.transformer, blocks, context.device, level, keep_random_state=keep_random_state)


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
    memory = settings.pop("memory")
    if memory["level"] == BY_HAND and memory["weights"] not in ("as stored", "full"):  # fewer bits are other numbers
        settings["weights"] = memory["weights"]
    del settings["name"], settings["recipe"]["save_every"]
    files = [(expert.identity, expert.expert) for expert in (base, base.low_noise) if expert]
    return settings_key([ENGINE_VERSION, files, training_set.data_hash, str(compute), settings])


def check_before_start(training_set: TrainingSet, parts: list[Part], folder: RunFolder, device: torch.device) -> None:
    """ValueError or OSError for what would otherwise fail after the heavy part."""
    base = parts[0].base
    if not training_set.samples:
        raise ValueError("The training set holds no clip.")
    if training_set.family != base.family.name:
        raise ValueError(
            f"The training set was prepared for {training_set.family} and the base model is {base.title}: connect the "
            "same base model to Prepare and Train."
        )
    if (training_set.form, training_set.caption_form) != (base.form, base.caption_form):
        raise ValueError(
            f"The training set was prepared for another {base.family.name} model than {base.title}: connect the same "
            "base model to Prepare and Train."
        )
    check_captions(training_set, parts[0].config.recipe)
    check_optimizer(parts[0].config, device)
    for place in (parts[0].lora_file.parent, folder.folder):
        check_writable(place)
    for part in parts:
        streams = trained_streams(training_set, part.base, part.config.recipe)
        presets = part.base.family.adapter_targets(part.base, streams)
        adapted_layers(linear_layers(part.base), presets, part.config.adapter.targets)
        if part.lora_file.is_file() and written_by_run(part.lora_file) is None:
            raise ValueError(
                f"{part.lora_file.name} is already in the LoRA folder and was not made by this pack: choose another "
                "name."
            )


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


def _earlier_result(record: dict, folder: RunFolder, parts: list[Part]) -> TrainResult:
    files = tuple(part.lora_file for part in parts)
    return TrainResult(
        loras=tuple(read_lora(file)[0] for file in files),
        lora_files=files,
        losses=folder.losses(),
        report=f"Nothing to do: this run has finished before.\n{record.get('report', '')}",
        reused=True,
    )
