"""One run from set-up to clean-up."""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..loaders.lora_file import written_by_run
from ..loaders.module_weights import AS_STORED, Storage
from .adapter import Adapter, count_numbers
from .batches import Batches, check_captions, trained_streams
from .config import BY_HAND, PRECISIONS, MemoryConfig, RunConfig
from .dataset.training_set import TrainingSet
from .disk import check_room
from .evaluate import judging
from .families.model_family import BaseModel, ClipDecoder
from .listener import Listener, Progress, SilentListener
from .loop import RunState, StepContext, micro_step_loss, persist, run_steps
from .memory.block_swap import swapped_blocks
from .memory.fitting import Fitting
from .memory.footprint import Footprints
from .memory.level import Level
from .memory.live_bytes import peak_bytes
from .memory.out_of_memory import is_out_of_memory
from .memory.plan import Plan, Room, Speed, choose
from .memory.workload import Workload, largest_sample
from .optimizers import Stepper, build_optimizer, check_optimizer, state_bytes
from .preview import previewing
from .resume import ResumeFolder
from .run_facts import facts_of, run_key
from .run_folder import RunFolder
from .run_output import SAVED_DTYPES, KeyMatch, Part, Places, RunOutput, Training
from .train_result import TrainResult, earlier_result, paused_result

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
    decoder: ClipDecoder | None = None,
) -> TrainResult:
    """Train a LoRA of `base` on `training_set` and write `<name>.safetensors`; or return the one already there.

    Two experts give two files, `<name>_high_noise` and `<name>_low_noise`, trained one after the other. A run with the
    same settings, data and base that has finished is not run again; one that has not goes on where it was, and so does
    one of fewer steps. Whatever stops a run after its first step (the listener, an error, memory) leaves the LoRA of
    the last good step in the file, and a resume point, before it is raised on. `check_file` says how many of the
    written keys the host loads; fewer than all is a ValueError, and so is another run of this name at the same time.
    With a `decoder` previews are made in the run's folder.
    """
    listener = listener or SilentListener()
    compute = compute_dtype(precision, device)
    facts = facts_of(training_set, base, config, compute)
    folder = RunFolder(places.run_folder)
    parts = parts_of(base, config, places.lora_folder)
    check_before_start(training_set, parts, folder, device)
    streams = trained_streams(training_set, base, config.recipe)
    trained, held_out = training_set.split(config.recipe.held_out, config.seed, streams)
    with folder.alone():
        steps = sum(part.config.last_step for part in parts)
        if record := folder.finished(run_key(facts), steps, [part.lora_file for part in parts]):
            return earlier_result(record, folder, parts)
        if paused := paused_result(folder, run_key(facts), parts):
            return paused
        check_room(disk_needs(parts, training_set, folder))
        output = RunOutput(training_set, held_out, base, config, facts, places, listener)
        output.begin(parts)
        job = Job(training_set, trained, held_out, device, compute, listener, output, decoder)
        loras, devices = [], [device] if device.type == "cuda" else []
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            for part in parts:
                kept = output.kept(part)
                loras.append(kept or _train_part(part, job))
        for part in parts:
            output.check(part, check_file(part.lora_file, part.base) if check_file else None)
        return TrainResult(
            loras=tuple(loras),
            lora_files=tuple(part.lora_file for part in parts),
            losses=output.losses,
            report=output.finish(),
            reused=False,
        )


class Job(NamedTuple):
    """What all parts of a run share."""

    training_set: TrainingSet
    """All of it, of which `trained` is shown and `held_out` is judged by."""
    trained: TrainingSet
    held_out: TrainingSet
    device: torch.device
    compute: torch.dtype
    listener: Listener
    output: RunOutput
    decoder: ClipDecoder | None


def _train_part(part: Part, job: Job) -> dict[str, Tensor]:
    """Train one LoRA, with its model on the device meanwhile; the LoRA's tensors."""
    base, config = part.base, part.config
    device, compute, listener, output = job.device, job.compute, job.listener, job.output
    points = output.points(part)
    point, damaged = points.newest(config.steps)
    output.note(damaged)
    listener.report(Progress(phase="Planning memory", done=0, total=config.steps))
    plan = plan_memory(job.training_set, base, config, device, compute, weights=point.weights if point else None)
    swapped = frozenset(swapped_blocks(plan.level.swapped, plan.blocks))
    storage = Storage(weights=plan.level.weights, on_host=swapped, check=listener.check)
    context = set_up(job.trained, base, config, device, compute, listener, storage)
    state, adapter = RunState(), attach_adapter(context, config)
    fitting = fit(context, config, plan.level)
    optimizer = build_optimizer(adapter.parameters(), config)
    judge = judging(context, job.held_out, config, optimizer, listener, fitting.recovery)
    preview = previewing(
        context, job.training_set, config, job.decoder, optimizer, listener, fitting.recovery,
        partial(output.preview, part), output.note,
    )
    if point:
        point.put_back(state, adapter, optimizer)
    output.note(went_on(state, points.last_step(), config))

    rewind = partial(_go_back, points, config, state, adapter, optimizer)

    def recovery_of_a_step(error: BaseException) -> Callable[[], None] | None:
        """What `run_steps` does not meet: memory ran out in a step of the optimizer, which may be half made."""
        recover = fitting.recovery(error)
        return recover and (lambda: (recover(), rewind()))

    def after_step(state: RunState) -> None:
        judge(state)
        output.after_step(state)
        preview(state)

    try:
        output.begin_part(
            Training(part=part, adapter=adapter, optimizer=optimizer, state=state, weights=plan.level.weights)
        )
        if device.type != "cpu":
            plan = dry_run(context, adapter, fitting, plan)
        output.note(plan.lines)
        judge(state)
        output.keep_best()
        preview(state, goes_on=state.step > 0)
        steps = partial(
            run_steps, context, config, parameters=list(adapter.parameters()), optimizer=optimizer, state=state,
            listener=listener, after_step=after_step, recovery=fitting.recovery,
        )
        persist(steps, recovery_of_a_step)
        output.note(fitting.notes)
        return output.save()
    except BaseException as stop:
        output.stopped(stop, rewind)
        if is_out_of_memory(stop, device):
            raise RuntimeError(
                f"Memory ran out and nothing is left that would save it: lower Width, Height, Frames or Batch size, or "
                f"close other programs. What was learnt until then is kept. ({stop})"
            ) from stop
        raise
    finally:
        output.end_part()
        fitting.close()
        context.transformer.to("meta")
        gc.collect()


def _go_back(
    points: ResumeFolder, config: RunConfig, state: RunState, adapter: Adapter, optimizer: Stepper
) -> None:
    """Be as far as the last whole resume point. ValueError where none is left."""
    found, _ = points.newest(config.steps)
    if found is None:
        raise ValueError("No whole resume point is left to go back to: queue again to begin anew.")
    found.put_back(state, adapter, optimizer)


def went_on(state: RunState, last: int, config: RunConfig) -> list[str]:
    """What the report says of a run that did not begin at its beginning, or that did again; `last`: its last point."""
    if not state.step:
        return [f"Begun anew: the last run of these settings had {last} steps."] if last else []
    if state.step >= config.last_step:
        return [f"Of this run {state.step} steps were done before: nothing was trained."]
    lines = [f"Went on from step {state.step}."]
    if config.recipe.schedule != "constant":
        lines.append(
            f"The schedule ({config.recipe.schedule}) is that of {config.steps} steps; if the steps before were made "
            "for another number of them, their learning rate was another."
        )
    return lines


def plan_memory(
    training_set: TrainingSet,
    base: BaseModel,
    config: RunConfig,
    device: torch.device,
    compute: torch.dtype,
    weights: str | None = None,
) -> Plan:
    """How the run is fitted into memory, from headers and shapes alone. ValueError where it cannot be.

    `weights`: how the model's own were kept when the run began, and must be again.
    """
    memory = config.memory
    streams = trained_streams(training_set, base, config.recipe)
    workload = Workload.of(base, config, largest_sample(training_set, streams), streams, device, compute)
    room = Room.of(device, memory.level)
    by_hand = level_by_hand(memory) if memory.level == BY_HAND else None
    return choose(Footprints(workload), room, Speed.of(device, compute), by_hand=by_hand, weights=weights)


def dry_run(context: StepContext, adapter: Adapter, fitting: Fitting, plan: Plan) -> Plan:
    """Gradients of the largest batch once, before any step: the plan, corrected by the memory that they took.

    Where memory runs out the fitting goes on to its next levels, and the plan stays the estimate that it was.
    """
    batches, transformer = context.batches, context.transformer
    position = max(range(len(batches)), key=lambda place: batches.size(place))
    held, device = [*transformer.parameters(), *transformer.buffers()], context.device

    def once() -> int:
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
        weights=memory.weights, recompute=memory.recompute, keep_attention=memory.keep_attention,
        offload_activations=memory.offload_activations, swapped=memory.blocks_to_swap, compiled=memory.compile,
    )


def parts_of(base: BaseModel, config: RunConfig, lora_folder: Path) -> list[Part]:
    """The LoRAs of a run: one, or one for each of two experts, with the steps that each gets."""
    experts = [base] if base.low_noise is None else [base, base.low_noise]
    high = round(config.steps * config.recipe.high_noise_share)
    shares = [high, config.steps - high] if len(experts) > 1 else [config.steps]
    if min(shares) < 1:
        raise ValueError(f"Steps is {config.steps}, of which one expert gets none: raise Steps or change its share.")
    # Of a pause each expert gets its share, rounded up, so that both can be tried.
    pauses = [math.ceil(config.pause_at * share / config.steps) for share in shares]
    return [
        Part(
            base=expert, config=dataclasses.replace(config, steps=steps, pause_at=pause), lora_folder=lora_folder,
            before=sum(shares[:place]),
        )
        for place, (expert, steps, pause) in enumerate(zip(experts, shares, pauses, strict=True))
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
        for file in (part.lora_file, part.best_file):
            if file.exists() and (not file.is_file() or written_by_run(file) is None):
                raise ValueError(
                    f"{file.name} is already in the LoRA folder and was not made by this pack: choose another name."
                )


def disk_needs(parts: list[Part], training_set: TrainingSet, folder: RunFolder) -> dict[Path, int]:
    """Bytes that a run will write at most, by folder: LoRAs, copies of them, and resume points.

    Of the points two are kept while a third is written. What lies there from an earlier start is replaced. Raises
    ValueError where the adapter would have no layer.
    """
    needs = {parts[0].lora_file.parent: 0, folder.folder: -folder.replaceable_bytes()}
    for part in parts:
        config, recipe = part.config, part.config.recipe
        streams = trained_streams(training_set, part.base, recipe)
        numbers = count_numbers(part.base, config.adapter, rank=config.rank, streams=streams)
        lora = numbers * SAVED_DTYPES[config.adapter.save_as].itemsize
        copies = config.steps // recipe.save_every if recipe.save_every else 0
        needs[part.lora_file.parent] += lora
        needs[folder.folder] += copies * lora + 3 * round(numbers * (4 + state_bytes(config)))
    return {place: max(0, need) for place, need in needs.items()}


def check_writable(folder: Path) -> None:
    """OSError in one sentence unless a file can be written in `folder`; creates it where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # which leaves nothing behind, whatever happens meanwhile
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"Cannot write in {folder}: {reason}. Free it or choose another folder.") from error
