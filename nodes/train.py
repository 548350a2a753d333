"""Train the LoRA."""

from __future__ import annotations

import functools

import comfy.model_management as model_management
from comfy_api.latest import io, ui

from .. import training
from . import places
from .key_check import check_keys
from .progress import RunListener, show_text
from .sockets import (
    CATEGORY,
    Adapter,
    Base,
    BaseChoice,
    LoraModel,
    LossMap,
    Memory,
    Recipe,
    TrainingSetSocket,
    setting_input,
)


class Train(io.ComfyNode):
    """A training set to a LoRA file, with every other model unloaded meanwhile."""

    @classmethod
    def define_schema(cls):
        run = functools.partial(setting_input, training.RunConfig)
        return io.Schema(
            node_id="VLSTrain",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on the prepared clips and writes it into the LoRA folder. Cancel keeps what was "
            "learnt; queueing the same again returns the finished LoRA.",
            search_aliases=["lora", "train", "finetune", "wan"],
            is_output_node=True,
            inputs=[
                Base.Input("base", tooltip="The model from Base Model."),
                TrainingSetSocket.Input("training_set", tooltip="The prepared clips from Prepare."),
                run("name"),
                run("steps"),
                run("rank"),
                run("learning_rate"),
                run("seed", advanced=True, control_after_generate=False),
                Adapter.Input("adapter", optional=True, tooltip="From Adapter Settings. Without it: the defaults."),
                Recipe.Input("recipe", optional=True, tooltip="From Recipe Settings. Without it: the defaults."),
                Memory.Input("memory", optional=True, tooltip="From Memory Settings. Without it: the defaults."),
            ],
            outputs=[
                LoraModel.Output("lora", tooltip="The LoRA itself, for ComfyUI's Load LoRA Model and Save LoRA."),
                LoraModel.Output("lora_low", tooltip="The second LoRA of models that come in two; empty for others."),
                LossMap.Output("loss", tooltip="The loss of every step, for ComfyUI's Plot Loss Graph."),
                io.String.Output("lora_name", tooltip="Name of the LoRA file, for Stack LoRAs."),
                io.String.Output("report", tooltip="What was trained, how the loss went, what was written."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name, learning_rate):
        """What ComfyUI's own limits do not catch; those of whole numbers it checks itself."""
        given = {"name": name, "learning_rate": learning_rate}
        try:
            training.RunConfig(**{key: value for key, value in given.items() if value is not None})
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, base: BaseChoice, training_set, name, steps, rank, learning_rate, seed,
        adapter=None, recipe=None, memory=None,
    ) -> io.NodeOutput:
        groups = {"adapter": adapter, "recipe": recipe, "memory": memory}
        config = training.RunConfig(
            name=name, steps=steps, rank=rank, learning_rate=learning_rate, seed=seed,
            **{key: value for key, value in groups.items() if value is not None},
        )
        with RunListener(cls.hidden.unique_id, config) as listener:
            result = run_alone(base, training_set, config, listener)
        show_text(result.report, cls.hidden.unique_id)
        return io.NodeOutput(
            *[*result.loras, {}][:2], {"loss": result.losses}, places.lora_name(result.lora_files[0]), result.report,
            ui=ui.PreviewText(result.report),
        )


def run_alone(
    base: BaseChoice, training_set, config: training.RunConfig, listener: RunListener
) -> training.TrainResult:
    """Train with the device to ourselves, and hand its memory back whatever happens."""
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    try:
        return training.train(
            training_set,
            base.base,
            config,
            places=training.Places(
                lora_folder=places.lora_folder(), run_folder=places.run_folder(config.name),
                spare=places.spare_folders(),
            ),
            device=model_management.get_torch_device(),
            precision=base.precision,
            listener=listener,
            check_file=check_keys,
        )
    finally:
        model_management.soft_empty_cache()
