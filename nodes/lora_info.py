"""What a LoRA file is: its form, what it fits, how it was trained, how much it changes where."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .. import training
from ..loaders.safetensors_file import read_header
from . import places
from .key_check import fit, read_for
from .lora_facts import lora_facts
from .lora_report import lora_report, match_text
from .sockets import CATEGORY

NONE = "none"


class InspectLora(io.ComfyNode):
    """A LoRA file to a report and a picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSLoraInfo",
            display_name="Inspect LoRA",
            category=CATEGORY,
            description="Says of any LoRA in which form it is written, which model it fits, how it was trained and "
            "how much it changes each block.",
            search_aliases=["lora info", "lora metadata", "trigger words", "lora keys", "lora format"],
            inputs=[
                io.Combo.Input(
                    "lora",
                    options=[NONE, *places.lora_names()],
                    default=NONE,
                    optional=True,
                    display_name="LoRA",
                    tooltip="The LoRA to look at. Not used while lora_name is connected.",
                ),
                io.String.Input(
                    "lora_name",
                    optional=True,
                    force_input=True,
                    tooltip="The name of a LoRA trained in this graph, from Train LoRA.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model to hold the LoRA against: the report then says which of its keys match. The "
                    "model is not changed.",
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="Form, base, rank, layers, training and trigger words of the LoRA, "
                                 "and which of its keys match the model."),
                io.Image.Output("picture", tooltip="How much the LoRA changes each block of the model, as bars."),
                io.String.Output("triggers", tooltip="The trigger words that the file names, for the prompt."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora=NONE, lora_name=None, model=None):
        name = lora_name or lora
        return places.stamp(places.lora_file(name)) if name and name != NONE else ""

    @classmethod
    def execute(cls, lora=NONE, lora_name=None, model=None) -> io.NodeOutput:
        name = lora_name or lora
        if not name or name == NONE:
            raise ValueError("Inspect LoRA has no LoRA: choose one, or connect lora_name.")
        path = places.lora_file(name)
        header = read_header(path)
        facts = lora_facts(header)
        read = read_for(path, model.model) if model is not None else training.read_any_lora(path)
        norms = training.lora_norms(read.tensors)
        lines = lora_report(path, header, read, facts, norms)
        if model is not None:
            lines.append(fit_text(read, model.model))
        picture = training.lora_picture(norms, title=path.stem, subtitle=str(read.form))
        report = "\n".join(lines)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(report).as_dict()
        return io.NodeOutput(report, picture, ", ".join(facts.triggers), ui=shown)


def fit_text(read: training.AnyLora, model) -> str:
    """What the report says of a LoRA on ComfyUI's `model`."""
    try:
        found = fit(read.tensors, model)
        alone = fit({read.names[name]: tensor for name, tensor in read.tensors.items()}, model)
    except ValueError as error:
        return f"On this model it cannot be used, {error}"
    left = [read.names.get(name, name) for name in found.left]
    return match_text(found.matched, found.total, left, alone=alone.matched)
