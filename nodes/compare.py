"""Compare a LoRA: without and with it, at several strengths, over the copies that were kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import comfy.model_management
import comfy.samplers
import psutil
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from .. import training
from . import places
from .compare_plan import Cell, Checkpoint, Plan, all_checkpoints, parse_strengths, plan_of
from .compare_sampling import (
    Latent,
    Sampler,
    Work,
    check_video,
    decoded,
    expected_shape,
    picture_of,
    sampled,
    stages_of,
)
from .progress import duration, show_text
from .rows import Row
from .sockets import CATEGORY, Stack
from .stack import Stacked, add_row, check_files, low_noise_partner
from .stacked_lora import StackedModel

log = logging.getLogger(__name__)

LAST, ALL = "last only", "all that were kept"
NOT_CONNECTED = object()
NO_LORA = "Compare LoRA has no LoRA: connect the stack of Stack LoRAs, or lora_name from Train LoRA."
SHARE_OF_MEMORY = 0.9
"""Of what is free, the most that the pictures of a grid may take."""


@dataclass(kw_only=True)
class Outcome:
    """What came of one cell: the seconds it took, and what the stack says of its LoRAs."""

    cell: Cell
    latent: Latent
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


class CompareLora(io.ComfyNode):
    """The same video, from the same seed, at several strengths of a LoRA and from its kept copies."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSCompare",
            display_name="Compare LoRA",
            category=CATEGORY,
            description="Samples the same video without and with a LoRA, at several strengths, over the checkpoints "
            "that were kept, and shows all of them side by side.",
            search_aliases=["xy plot", "lora grid", "compare checkpoints", "lora strength test"],
            is_output_node=True,
            inputs=[*_sockets(), *_widgets()],
            outputs=[
                io.Image.Output("grid", tooltip="The whole grid, one picture for each frame of the videos."),
                io.Video.Output("video", tooltip="The same as a video, in which all cells play together."),
                io.String.Output("report", tooltip="What each cell is, the seconds it took, and how many keys of the "
                                 "LoRAs match."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, strengths=None, stack=NOT_CONNECTED, lora_name=NOT_CONNECTED):
        """What is connected comes in as None, what is not does not come in."""
        try:
            if stack is NOT_CONNECTED and lora_name in (NOT_CONNECTED, ""):
                raise ValueError(NO_LORA)
            if strengths is not None:
                parse_strengths(strengths)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, **_):
        return places.stamp(places.lora_file(lora_name)) if lora_name else ""

    @classmethod
    def execute(
        cls, model, positive, negative, latent, vae, strengths, checkpoints, seed, steps, cfg, sampler_name, scheduler,
        model_low=None, stack=None, lora_name=None, low_noise_from=0, fps=16.0, cell_width=512,
    ) -> io.NodeOutput:
        plan = planned(stack, lora_name, strengths, checkpoints, two_models=model_low is not None)
        check_video(latent)
        check_room(plan, expected_shape(latent, vae), cell_width)
        sampler = Sampler(seed=seed, steps=steps, cfg=cfg, name=sampler_name, scheduler=scheduler, positive=positive,
                          negative=negative)
        models = (model,) if model_low is None else (model, model_low)
        outcomes = all_sampled(plan, models, latent, sampler, low_noise_from, cls.hidden.unique_id)
        grid = all_shown(plan, outcomes, vae, f"seed {seed}", cell_width, cls.hidden.unique_id)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=grid, frame_rate=Fraction(fps)))
        report = "\n".join(report_of(outcomes, latent))
        show_text(report, cls.hidden.unique_id)
        shown = preview_of(video) | ui.PreviewText(report).as_dict()
        return io.NodeOutput(grid, video, report, ui=shown)


def _sockets() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model without the LoRA; of models that come in two the high-noise one."),
        io.Conditioning.Input("positive", tooltip="The prompt. Put the LoRA's trigger words in."),
        io.Conditioning.Input("negative", tooltip="What the video should not show."),
        io.Latent.Input("latent", tooltip="An empty video latent, or what an image-to-video node gives."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model, to decode the videos."),
        io.Model.Input(
            "model_low",
            optional=True,
            display_name="model (low noise)",
            tooltip="The second, low-noise model of models that come in two: it makes the later steps.",
        ),
        Stack.Input(
            "stack",
            optional=True,
            tooltip="The LoRAs to compare, from Stack LoRAs, which needs no model for that.",
        ),
        io.String.Input(
            "lora_name",
            optional=True,
            force_input=True,
            tooltip="The name of a LoRA trained in this graph, from Train LoRA.",
        ),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.String.Input(
            "strengths",
            default="0, 1",
            tooltip="One column each, separated by commas; 0 is without the LoRA. The strengths of a stack's rows are "
            "multiplied by it.",
        ),
        io.Combo.Input(
            "checkpoints",
            options=[LAST, ALL],
            default=LAST,
            tooltip="All that were kept: one row of the grid for each copy that Train LoRA kept on its way, oldest "
            "first, and last the LoRA itself.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="The same noise for every cell.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampling steps of every cell."),
        io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
                       tooltip="How closely the prompt is followed, as in KSampler."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler", advanced=True,
                       tooltip="The sampler, as in KSampler."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="simple", advanced=True,
                       tooltip="How noise is taken away step by step, as in KSampler."),
        io.Int.Input(
            "low_noise_from",
            default=0,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="The step from which the low-noise model samples, where one is connected. 0: after half of them.",
        ),
        io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=1.0, optional=True, advanced=True,
                       tooltip="Frames per second of the video: 16 for Wan, 24 for LTX."),
        io.Int.Input(
            "cell_width",
            default=512,
            min=0,
            max=8192,
            step=16,
            optional=True,
            advanced=True,
            tooltip="Videos wider than so many pixels are scaled down in the grid. 0: none is.",
        ),
    ]


def planned(
    stack: Sequence[Row] | None, lora_name: str | None, strengths: str, checkpoints: str, *, two_models: bool
) -> Plan:
    """The cells of the grid. Raises ValueError where they cannot be compared so."""
    new = (Row(on=True, lora=lora_name, strength=1.0, strength_low=1.0, audio=1.0),) if lora_name else ()
    loras = (*(stack or ()), *new)
    if not loras and stack is None:
        raise ValueError(NO_LORA)
    if not any(row.applies for row in loras):
        raise ValueError("No LoRA of the stack is on at a strength other than 0: switch one on.")
    check_files(loras)
    rows = (Checkpoint(),)
    if checkpoints == ALL:
        rows = all_checkpoints(loras, lora_name, low_noise_partner if two_models else None)
    return plan_of(loras, parse_strengths(strengths), rows)


def check_room(plan: Plan, shape: tuple[int, int, int], cell_width: int) -> None:
    """ValueError where the grid's pictures would not fit into the memory that is free."""
    needed = training.grid_bytes(len(plan.rows), len(plan.columns), shape, cell_width)
    free = psutil.virtual_memory().available
    if needed > SHARE_OF_MEMORY * free:
        raise ValueError(
            f"A grid of {len(plan.rows)} × {len(plan.columns)} cells takes {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: compare fewer cells, or lower cell_width."
        )


def stacked_on(models: Sequence[Any], cell: Cell) -> Stacked:
    """The models with the LoRAs of a cell, as Stack LoRAs puts them on."""
    stacked = Stacked(*[*map(StackedModel, models), None][:2])
    for row in cell.loras:
        add_row(stacked, row, cell.checkpoint.file_of)
    return stacked


def all_sampled(
    plan: Plan, models: Sequence[Any], latent: Latent, sampler: Sampler, low_noise_from: int, node_id: str | None
) -> list[Outcome]:
    """Every cell sampled once: all with the first model, then all with the second, so that they are loaded once.

    Raises ValueError, before anything is sampled, where the LoRAs do not fit.
    """
    stages = stages_of(len(models) > 1, sampler.steps, low_noise_from)
    if acting := next((cell for cell in plan.cells if any(row.applies for row in cell.loras)), None):
        stacked_on(models, acting)
    outcomes = [Outcome(cell=cell, latent=latent) for cell in plan.cells]
    work = Work(steps=len(outcomes) * sampler.steps, node_id=node_id)
    for number, stage in enumerate(stages):
        expert = ("", ", low noise")[number] if len(stages) > 1 else ""
        for place, outcome in enumerate(outcomes, 1):
            work.begin(f"Sampling {place} of {len(outcomes)}: {outcome.cell.label}{expert}")
            started = time.monotonic()
            stacked = stacked_on(models, outcome.cell)
            model = (stacked.model, stacked.model_low)[number].finished()
            outcome.lines = stacked.lines
            outcome.latent = sampled(model, outcome.latent, sampler, stage, work)
            outcome.seconds += time.monotonic() - started
    return outcomes


def all_shown(
    plan: Plan, outcomes: Sequence[Outcome], vae: Any, note: str, cell_width: int, node_id: str | None
) -> Tensor:
    """The grid of all cells (T, P, Q, 3), each decoded, put in its places and let go of."""
    grid = None
    for place, outcome in enumerate(outcomes, 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        show_text(f"Decoding {place} of {len(outcomes)}: {outcome.cell.label}", node_id)
        started = time.monotonic()
        frames = decoded(outcome.latent, vae)
        grid = grid or training.ComparisonGrid(
            title=plan.title, note=note, columns=plan.columns, rows=plan.rows, shape=tuple(frames.shape[:3]),
            cell_width=cell_width,
        )
        grid.put(frames, outcome.cell.shown_at)
        outcome.seconds += time.monotonic() - started
    return grid.images


def report_of(outcomes: Sequence[Outcome], latent: Latent) -> list[str]:
    """One line a cell, and what is to be known of all."""
    lines = []
    for outcome in outcomes:
        cell = outcome.cell
        again = f", shown {len(cell.shown_at)} times" if len(cell.shown_at) > 1 else ""
        acting = "; ".join(outcome.lines) if any(row.applies for row in cell.loras) else "no LoRA"
        lines.append(f"{cell.label}{again}, {duration(outcome.seconds)}: {acting}")
    if picture_of(latent) is not latent["samples"]:
        lines.append("The sound was sampled with the picture; it is not compared.")
    return lines


def preview_of(video: Any) -> dict[str, Any]:
    """What the node shows: the video, from a temporary file; nothing where it cannot be written."""
    path = places.temporary_video()
    try:
        video.save_to(str(path))
    except Exception as error:  # what is only shown must not cost the hours it took to sample
        log.warning("Compare LoRA shows no preview: %s", error)
        return {}
    return ui.PreviewVideo([ui.SavedResult(path.name, "", io.FolderType.temp)]).as_dict()
