"""How a run is fitted into memory."""

from __future__ import annotations

from comfy_api.latest import io

from .. import training
from .sockets import CATEGORY, Memory, all_settings

VISIBLE = ("level",)


class MemorySettings(io.ComfyNode):
    """Widgets to a MemoryConfig."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSMemory",
            display_name="Memory Settings",
            category=CATEGORY,
            description="How training is made to fit into memory. Train works without this node.",
            search_aliases=["gradient checkpointing", "vram", "block swap", "fp8", "nf4", "qlora", "lora"],
            inputs=all_settings(training.MemoryConfig, visible=VISIBLE),
            outputs=[Memory.Output("memory", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(training.MemoryConfig(**settings))
