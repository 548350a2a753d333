"""What the LoRA adapts, and how strongly."""

from __future__ import annotations

from comfy_api.latest import io

from .. import training
from .sockets import CATEGORY, Adapter, all_settings

VISIBLE = ("alpha", "targets", "dropout", "save_as")


class AdapterSettings(io.ComfyNode):
    """Widgets to an AdapterConfig."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSAdapter",
            display_name="Adapter Settings",
            category=CATEGORY,
            description="Which layers the LoRA adapts, and how strongly. Train works without this node.",
            search_aliases=["alpha", "dropout", "target modules", "lora"],
            inputs=all_settings(training.AdapterConfig, visible=VISIBLE),
            outputs=[Adapter.Output("adapter", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(training.AdapterConfig(**settings))
