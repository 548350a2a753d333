"""How the LoRA is trained."""

from __future__ import annotations

from comfy_api.latest import io

from .. import training
from .sockets import CATEGORY, Recipe, all_settings

VISIBLE = ("batch_size", "gradient_accumulation", "schedule", "warmup_steps", "shift", "save_every")


class RecipeSettings(io.ComfyNode):
    """Widgets to a RecipeConfig."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSRecipe",
            display_name="Recipe Settings",
            category=CATEGORY,
            description="How the LoRA is trained: batches, schedule, noise levels. Train works without this node.",
            search_aliases=["optimizer", "schedule", "timestep", "lora"],
            inputs=all_settings(training.RecipeConfig, visible=VISIBLE),
            outputs=[
                Recipe.Output("recipe", tooltip="The settings, for Train LoRA; and Prepare if captions are shuffled.")
            ],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(training.RecipeConfig(**settings))
