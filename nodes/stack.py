"""Stack any number of LoRAs on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from .. import training
from . import places
from .key_check import fit, read_for
from .lora_names import elsewhere, listed, low_noise_name
from .rows import STRONGEST, BlockWeights, Row, parse_rows
from .sockets import CATEGORY, Stack
from .stacked_lora import Placed, StackedModel

TRIGGER_KEY = "modelspec.trigger_phrase"
LONGEST_TRIGGER = 1000
"""Characters of a header's trigger words: a prompt holds no more."""
NO_MODEL = "Stack LoRAs has no model: connect one to its model input, or use its stack output only."


@dataclass
class Stacked:
    """What the stack is on its way through the rows."""

    model: StackedModel
    model_low: StackedModel | None
    triggers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Of each row, what the browser shows: the file, and how many keys of it and of its low-noise partner fit."""


class StackLoras(io.ComfyNode):
    """Rows of LoRAs onto a model: merged into its weights, or beside weights that are stored in few bits."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSStack",
            display_name="Stack LoRAs",
            category=CATEGORY,
            description="Puts any number of LoRAs on the model, each at its own strength, and says what of each fits.",
            search_aliases=["lora loader", "lora stack", "multi lora"],
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model to put the LoRAs on. Without one the rows only go out by stack.",
                ),
                io.Model.Input(
                    "model_low",
                    optional=True,
                    display_name="model (low noise)",
                    tooltip="The second, low-noise model of models that come in two. It gets the same LoRAs, or "
                    "of a pair (..._high_noise, ..._low_noise) the low-noise one.",
                ),
                io.String.Input(
                    "loras",
                    default="[]",
                    multiline=True,
                    display_name="LoRAs",
                    tooltip='One row per LoRA: [{"on": true, "lora": "name.safetensors", "strength": 0.8}]. Strength '
                    "may be negative or above 1; strength_low sets that of the low-noise model, audio that of the "
                    'sound, blocks weights of blocks ("0-9:0.5, 31-35:1"), start and end a part of the steps (0 to 1), '
                    'curve factors over the steps ("0:0, 0.3:1, 1:0.4").',
                ),
                io.String.Input(
                    "lora_name",
                    optional=True,
                    force_input=True,
                    tooltip="The name of a LoRA trained in this graph, from Train LoRA. It goes on first.",
                ),
                io.Float.Input(
                    "lora_strength",
                    optional=True,
                    default=1.0,
                    min=-STRONGEST,
                    max=STRONGEST,
                    step=0.05,
                    display_name="lora_name strength",
                    tooltip="Strength of the LoRA that comes in by lora_name. 0 leaves it out.",
                ),
                Stack.Input(
                    "stack",
                    optional=True,
                    tooltip="The rows of another Stack LoRAs. They go on before the rows of this one.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the LoRAs on it."),
                io.Model.Output("model_low", tooltip="The low-noise model with the LoRAs on it."),
                io.String.Output("triggers", tooltip="The trigger words of the LoRAs, for the prompt."),
                io.String.Output("report", tooltip="Strength and matched keys of every LoRA, one line each."),
                Stack.Output("stack", tooltip="All rows of this stack, for the stack input of another Stack LoRAs."),
            ],
        )

    @classmethod
    def validate_inputs(cls, loras):
        try:
            check_files(parse_rows(loras or "[]"))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, loras, model=None, model_low=None, lora_name=None, lora_strength=1.0, stack=None):
        used = [row.lora for row in parse_rows(loras or "[]") if row.applies]
        return [places.stamp(places.lora_file(name)) for own in used for name in (own, low_noise_partner(own))]

    @classmethod
    def execute(
        cls, loras, model=None, model_low=None, lora_name=None, lora_strength=1.0, stack=None
    ) -> io.NodeOutput:
        own = parse_rows(loras)
        new = (_row_of(lora_name, lora_strength),) if lora_name else ()
        rows = (*(stack or ()), *new, *own)
        if model is None:
            if model_low is not None:
                raise ValueError("Stack LoRAs has a low-noise model alone: connect the other one to model.")
            told = f"No model is connected: {len(rows)} rows go out by stack."
            blocked = ExecutionBlocker(NO_MODEL)
            return io.NodeOutput(blocked, blocked, ", ".join(triggers_of(rows)), told, rows)
        stacked = Stacked(StackedModel(model), StackedModel(model_low) if model_low is not None else None)
        for row in rows:
            add_row(stacked, row)
        triggers = ", ".join(dict.fromkeys(stacked.triggers))
        report = "\n".join(stacked.lines) or "No LoRA in the list: the model is unchanged."
        shown = {"stack_rows": stacked.shown[len(rows) - len(own) :]}
        low = stacked.model_low and stacked.model_low.finished()
        return io.NodeOutput(stacked.model.finished(), low, triggers, report, rows, ui=shown)


def _row_of(name: str, strength: float) -> Row:
    return Row(on=True, lora=name, strength=strength, strength_low=strength, audio=strength)


def check_files(rows: Iterable[Row]) -> None:
    """ValueError, naming the row and a file of the same name elsewhere, where the LoRA of a row is missing."""
    names = places.lora_names()
    for number, row in enumerate(rows, 1):
        if row.applies and listed(row.lora, names) is None:
            found = elsewhere(row.lora, names)
            other = f"{found[0]} has the same name: choose it" if found else "put it there, choose another"
            raise ValueError(
                f"LoRAs, row {number}: {row.lora[:200]} was not found in ComfyUI's LoRA folders; {other} or switch "
                "the row off."
            )


def triggers_of(rows: Iterable[Row]) -> list[str]:
    """The trigger words that the files of the rows name, each once."""
    headers = [training.read_lora_header(places.lora_file(row.lora)) for row in rows if row.applies]
    return list(dict.fromkeys(filter(None, (trigger_of(header) for header in headers))))


def add_row(stacked: Stacked, row: Row, file_of: Callable[[str], Path] = places.lora_file) -> None:
    """Put one LoRA on the model and on the low-noise model where there is one.

    `file_of` gives the file of a name. It is read anew each time, so that a LoRA trained again under its name is never
    stale.
    """
    if not row.applies:
        stacked.lines.append(f"{row.lora or 'Empty row'}: {'strength 0' if row.on else 'off'}, left out")
        stacked.shown.append({"lora": row.lora})
        return
    placed, trigger = placed_on(stacked.model, row, row.lora, row.strength, file_of)
    told, shown = told_of(placed, row, row.strength), {"lora": row.lora} | keys_of(placed)
    if stacked.model_low is not None:
        low = low_noise_partner(row.lora)
        placed, _ = placed_on(stacked.model_low, row, low, row.strength_low, file_of)
        told += f"; low noise: {'' if low == row.lora else f'{low}, '}{told_of(placed, row, row.strength_low)}"
        shown |= {"low": {"lora": low} | keys_of(placed)}
    stacked.triggers += [trigger] if trigger else []
    stacked.lines.append(f"{row.lora}: {told}" + (f"; trigger: {trigger}" if trigger else ""))
    stacked.shown.append(shown)


def low_noise_partner(name: str) -> str:
    """The low-noise LoRA that belongs to a high-noise one by its name, where there is one; otherwise the same file."""
    return low_noise_name(name, places.lora_names()) or name


def placed_on(
    model: StackedModel, row: Row, name: str, strength: float, file_of: Callable[[str], Path]
) -> tuple[Placed, str]:
    """Put the LoRA `name` on a model as its row says: what came of it, and its trigger words.

    Raises ValueError where no key of the LoRA fits the model, or it cannot act as the row says.
    """
    lora = read_for(file_of(name), model.keys)
    try:
        found = fit(lora.tensors, model.keys)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used, {error}") from error
    if not found.patches:
        raise ValueError(
            f"{name} fits none of this model's layers ({found.total} keys in the file): it was made for another model."
        )
    return model.add(found, row, strength, name), trigger_of(lora.metadata)


def trigger_of(header: Mapping[str, str]) -> str:
    """The trigger words in a LoRA's header."""
    return header.get(TRIGGER_KEY, "").strip()[:LONGEST_TRIGGER]


def keys_of(placed: Placed) -> dict[str, int]:
    return {"matched": placed.matched, "total": placed.total}


def told_of(placed: Placed, row: Row, strength: float) -> str:
    """What the report says of one LoRA on one model."""
    parts = [f"strength {strength:g}"]
    if placed.sound and row.audio != strength:
        parts.append(f"sound {row.audio:g}")
    parts += [f"{placed.matched} of {placed.total} keys match"]
    if row.blocks != BlockWeights():
        parts.append("weighted by blocks")
    if (row.start, row.end) != (0, 1):
        parts.append(f"from {row.start:g} to {row.end:g} of the steps")
    if row.curve.points:
        parts.append("by a curve")
    return ", ".join((*parts, placed.how))
