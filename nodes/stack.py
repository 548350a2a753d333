"""Stack any number of LoRAs on a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from .. import training
from . import places
from .key_check import fit
from .rows import STRONGEST, Row, parse_rows
from .sockets import CATEGORY

TRIGGER_KEY = "modelspec.trigger_phrase"


@dataclass
class Stacked:
    """What the stack is on its way through the rows."""

    model: Any
    model_low: Any
    triggers: list[str]
    lines: list[str]


class StackLoras(io.ComfyNode):
    """Rows of LoRAs onto a model, applied the way ComfyUI applies them."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSStack",
            display_name="Stack LoRAs",
            category=CATEGORY,
            description="Puts any number of LoRAs on the model, each at its own strength, and says what of each fits.",
            search_aliases=["lora loader", "lora stack", "multi lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model to put the LoRAs on."),
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
                    "may be negative or above 1; strength_low sets that of the low-noise model.",
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
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the LoRAs on it."),
                io.Model.Output("model_low", tooltip="The low-noise model with the LoRAs on it."),
                io.String.Output("triggers", tooltip="The trigger words of the LoRAs, for the prompt."),
                io.String.Output("report", tooltip="Strength and matched keys of every LoRA, one line each."),
            ],
        )

    @classmethod
    def validate_inputs(cls, loras):
        try:
            for row in parse_rows(loras or "[]"):
                if row.applies:
                    places.lora_file(row.lora)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model, loras, model_low=None, lora_name=None, lora_strength=1.0):
        return [places.stamp(places.lora_file(row.lora)) for row in parse_rows(loras or "[]") if row.applies]

    @classmethod
    def execute(cls, model, loras, model_low=None, lora_name=None, lora_strength=1.0) -> io.NodeOutput:
        rows = parse_rows(loras)
        if lora_name:
            rows = (Row(on=True, lora=lora_name, strength=lora_strength, strength_low=lora_strength), *rows)
        stacked = Stacked(model, model_low, [], [])
        for row in rows:
            add_row(stacked, row)
        triggers = ", ".join(dict.fromkeys(stacked.triggers))
        report = "\n".join(stacked.lines) or "No LoRA in the list: the model is unchanged."
        return io.NodeOutput(stacked.model, stacked.model_low, triggers, report)


def add_row(stacked: Stacked, row: Row) -> None:
    """Put one LoRA on the model and on the low-noise model where there is one.

    The file is read anew each time, so that a LoRA trained again under its name is never stale.
    """
    if not row.applies:
        stacked.lines.append(f"{row.lora or 'Empty row'}: {'strength 0' if row.on else 'off'}, left out")
        return
    tensors, header = training.read_lora(places.lora_file(row.lora))
    stacked.model, told = patched(stacked.model, tensors, row.strength, row.lora)
    if stacked.model_low is not None:
        low = low_noise_partner(row.lora)
        if low != row.lora:
            tensors, _ = training.read_lora(places.lora_file(low))
        stacked.model_low, told_low = patched(stacked.model_low, tensors, row.strength_low, low)
        told += f"; low noise: {'' if low == row.lora else f'{low}, '}{told_low}"
    trigger = header.get(TRIGGER_KEY, "").strip()
    stacked.triggers += [trigger] if trigger else []
    stacked.lines.append(f"{row.lora}: {told}" + (f"; trigger: {trigger}" if trigger else ""))


def low_noise_partner(name: str) -> str:
    """The low-noise LoRA that belongs to a high-noise one by its name, where there is one; otherwise the same file."""
    partner = re.sub(r"(?i)high([ _-]?noise)", r"low\1", name)
    try:
        places.lora_file(partner)
    except ValueError:
        return name
    return partner


def patched(model: Any, tensors: dict, strength: float, name: str) -> tuple[Any, str]:
    """The model with a LoRA on it, and a report of it; the model itself at strength 0.

    Raises ValueError where no key of the LoRA fits the model.
    """
    found = fit(tensors, model.model)
    if not found.patches:
        raise ValueError(
            f"{name} fits none of this model's layers ({found.total} keys in the file): it was made for another model."
        )
    told = f"strength {strength:g}, {found.matched} of {found.total} keys match"
    if not strength:
        return model, told
    model = model.clone()
    model.add_patches(found.patches, strength)
    return model, told
