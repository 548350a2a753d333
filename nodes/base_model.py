"""Choose the model that the LoRA is for."""

from __future__ import annotations

from comfy_api.latest import io

from .. import training
from . import places
from .sockets import CATEGORY, Base, BaseChoice

NO_FILE = "none"
FROM_NAME = "as the file's name says"
EXPERTS = {FROM_NAME: "", "high noise": "high_noise", "low noise": "low_noise"}


class ChooseBaseModel(io.ComfyNode):
    """A weights file, recognised from its header alone."""

    @classmethod
    def define_schema(cls):
        files = places.model_files()
        return io.Schema(
            node_id="VLSBaseModel",
            display_name="Base Model",
            category=CATEGORY,
            description="Chooses the model that the LoRA is for and recognises it. Nothing heavy is loaded before "
            "training starts.",
            search_aliases=["wan", "checkpoint", "diffusion model", "train", "lora"],
            inputs=[
                io.Combo.Input(
                    "model_file",
                    options=files,
                    display_name="Model file",
                    tooltip="The model to train for, from models/diffusion_models or models/checkpoints: the one "
                    ".safetensors file that you generate with. bf16, fp16, fp32 and fp8 files work.",
                ),
                io.Combo.Input(
                    "low_noise_file",
                    options=[NO_FILE, *files],
                    default=NO_FILE,
                    display_name="Low-noise file",
                    tooltip="The second file of models that come in two, as Wan 2.2 A14B does. For all others: none.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(training.PRECISIONS),
                    default=training.PRECISIONS[0],
                    display_name="Precision",
                    tooltip="What training computes in. auto takes bf16 on a graphics card and fp32 on a processor.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "expert",
                    options=list(EXPERTS),
                    default=FROM_NAME,
                    optional=True,
                    display_name="Expert",
                    tooltip="Whether the file is one of two experts, which no file says of itself: with a low-noise "
                    "file beside it, it is the high-noise one; alone, its name tells, or you do.",
                    advanced=True,
                ),
            ],
            outputs=[
                Base.Output("base", tooltip="The model, for Prepare and Train."),
                io.String.Output("report", tooltip="Which model it is, how it is stored and what suits it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_file):
        """Only the header is read: a file that cannot be trained is refused before the queue starts.

        ComfyUI shows the message once for each input named here; what concerns the others is said by `execute`.
        """
        try:
            if model_file is not None:
                training.open_base_model(places.model_file(model_file))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_file, low_noise_file, precision, expert=FROM_NAME):
        chosen = [name for name in (model_file, low_noise_file) if name not in (None, NO_FILE)]
        return [places.stamp(places.model_file(name)) for name in chosen]

    @classmethod
    def execute(cls, model_file, low_noise_file, precision, expert=FROM_NAME) -> io.NodeOutput:
        base = open_files(model_file, low_noise_file, expert)
        return io.NodeOutput(BaseChoice(base=base, precision=precision), describe(base))


def open_files(model_file: str, low_noise_file: str, expert: str) -> training.BaseModel:
    """The model in one file, or in two. Raises ValueError where they cannot be trained, or do not belong together."""
    path = places.model_file(model_file)
    if low_noise_file != NO_FILE:
        return training.open_base_model(path, low_noise_path=places.model_file(low_noise_file))
    base = training.open_base_model(path, expert=EXPERTS[expert])
    if base.one_of_two and not base.expert:
        raise ValueError(
            f"{model_file} is one of the two experts of {base.title} and its name does not say which: set Expert, or "
            "choose the other file as low-noise file."
        )
    return base


def describe(base: training.BaseModel) -> str:
    """What was recognised, in a few lines."""
    suits, grid = base.defaults, base.grid
    return (
        f"{base.title}, stored as {base.stored_as}\n"
        f"Clips: {suits.width} x {suits.height}, {suits.frames} frames at {grid.fps:g} a second; "
        f"sizes in multiples of {grid.size_multiple}, frames {grid.time_stride} x n + 1\n"
        f"A good start: {suits.steps} steps, rank {suits.rank}, learning rate {suits.learning_rate:g}"
    )
