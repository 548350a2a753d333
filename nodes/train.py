"""Train the LoRA, at once or in chunks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import comfy.model_management as model_management
from comfy_api.latest import io, ui

from .. import training
from . import places
from .host_decoder import HostDecoder
from .host_encoders import check_audio_vae, check_vae
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
    Preview,
    Recipe,
    Run,
    TrainingSetSocket,
    setting_input,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What flows through VLS_RUN: all that a run is made of."""

    base: BaseChoice
    training_set: training.TrainingSet
    config: training.RunConfig
    decoder: training.ClipDecoder | None


def outputs() -> list[io.Output]:
    """What comes of training."""
    return [
        LoraModel.Output("lora", tooltip="The LoRA itself, for ComfyUI's Load LoRA Model and Save LoRA."),
        LoraModel.Output("lora_low", tooltip="The second LoRA of models that come in two; empty for others."),
        LossMap.Output("loss", tooltip="The loss of every step, for ComfyUI's Plot Loss Graph."),
        io.String.Output("lora_name", tooltip="Name of the LoRA file, for Stack LoRAs."),
        io.String.Output("report", tooltip="What was trained, how the loss went, what was written."),
        Run.Output("run", tooltip="The run itself, for Continue Training."),
    ]


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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE that is connected to Prepare. With it clips are made while it trains, shown on "
                    "this node and kept in the run's folder.",
                ),
                io.Vae.Input(
                    "audio_vae",
                    optional=True,
                    tooltip="The audio VAE that is connected to Prepare, to hear the clips as well (LTX-2).",
                ),
                Preview.Input("preview", optional=True, tooltip="From Preview Settings. Without it: the defaults."),
                run("pause_at", advanced=True, optional=True),
            ],
            outputs=outputs(),
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
        adapter=None, recipe=None, memory=None, vae=None, audio_vae=None, preview=None, pause_at=0,
    ) -> io.NodeOutput:
        groups = {"adapter": adapter, "recipe": recipe, "memory": memory, "preview": preview}
        config = training.RunConfig(
            name=name, steps=steps, rank=rank, learning_rate=learning_rate, seed=seed, pause_at=pause_at,
            **{key: value for key, value in groups.items() if value is not None},
        )
        decoder = decoder_of(vae, audio_vae, base)
        request = RunRequest(base=base, training_set=training_set, config=config, decoder=decoder)
        return answer_of(request, cls.hidden.unique_id)


class ContinueTraining(io.ComfyNode):
    """The next chunk of a run, with whatever the graph does in between."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSContinue",
            display_name="Continue Training",
            category=CATEGORY,
            description="Goes on with a run that Train LoRA has paused, so that your own sampler can show the LoRA in "
            "between. Chunks end with the same LoRA as one run without a pause.",
            search_aliases=["lora", "train", "chunk", "resume", "loop"],
            is_output_node=True,
            inputs=[
                Run.Input("run", tooltip="From Train LoRA, or from the Continue Training before."),
                setting_input(training.RunConfig, "pause_at"),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="What must be done before this goes on: connect the picture or video that the LoRA of the "
                    "chunk before has made.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, run: RunRequest, pause_at, after=None) -> io.NodeOutput:
        config = dataclasses.replace(run.config, pause_at=pause_at)
        return answer_of(dataclasses.replace(run, config=config), cls.hidden.unique_id)


def decoder_of(vae: Any, audio_vae: Any, base: BaseChoice) -> training.ClipDecoder | None:
    """What makes videos of previews; None without a VAE. ValueError where it is another model's."""
    if vae is None:
        if audio_vae is not None:
            raise ValueError("Train LoRA has an audio VAE and no VAE, so no clips can be made: connect vae as well.")
        return None
    check_vae(vae, base.base)
    if audio_vae is not None:
        check_audio_vae(audio_vae)
    return HostDecoder(vae, audio_vae)


def answer_of(request: RunRequest, node_id: str | None) -> io.NodeOutput:
    """Train, and what both nodes give."""
    with RunListener(node_id, request.config) as listener:
        result = run_alone(request, listener)
    show_text(result.report, node_id)
    return io.NodeOutput(
        *[*result.loras, {}][:2], {"loss": result.losses}, places.lora_name(result.lora_files[0]), result.report,
        request, ui=ui.PreviewText(result.report),
    )


def run_alone(request: RunRequest, listener: RunListener) -> training.TrainResult:
    """Train with the device to ourselves, and hand its memory back whatever happens."""
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    try:
        return training.train(
            request.training_set,
            request.base.base,
            request.config,
            places=training.Places(
                lora_folder=places.lora_folder(), run_folder=places.run_folder(request.config.name),
                spare=places.spare_folders(),
            ),
            device=model_management.get_torch_device(),
            precision=request.base.precision,
            listener=listener,
            check_file=check_keys,
            decoder=request.decoder,
        )
    finally:
        model_management.soft_empty_cache()
