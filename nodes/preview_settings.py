"""What is shown of a LoRA while it is trained."""

from __future__ import annotations

from comfy_api.latest import io

from .. import training
from .sockets import CATEGORY, Preview, all_settings

VISIBLE = ("every", "clips", "steps", "guidance")


class PreviewSettings(io.ComfyNode):
    """Widgets to a PreviewConfig."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSPreview",
            display_name="Preview Settings",
            category=CATEGORY,
            description="How often Train LoRA makes clips to look at, and how. Train makes them with its defaults "
            "without this node, as soon as a VAE is connected to it.",
            search_aliases=["sample", "sampling", "validation", "lora"],
            inputs=all_settings(training.PreviewConfig, visible=VISIBLE),
            outputs=[Preview.Output("preview", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(training.PreviewConfig(**settings))
