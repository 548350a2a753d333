"""Turn clips and captions into what is trained on."""

from __future__ import annotations

import comfy.model_management as model_management
from comfy_api.latest import io

from .. import training
from . import places
from .host_encoders import HostAudioVae, HostClip, HostVae, HostVision, check_vae
from .progress import NodeListener, show_text
from .sockets import CATEGORY, Base, BaseChoice, Clips, Recipe, TrainingSetSocket, all_settings

ENCODERS = ("vae", "clip", "clip_vision", "audio_vae")
MOST_PROMPTS = int(training.limits_of(training.PreviewConfig, "clips").high)


class Prepare(io.ComfyNode):
    """Clips, VAE and CLIP to features, each encoded once and kept on disk."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSPrepare",
            display_name="Prepare",
            category=CATEGORY,
            description="Cuts and encodes every clip and caption once. What was encoded before is taken from disk.",
            search_aliases=["cache latents", "encode dataset", "train", "lora"],
            inputs=[
                Clips.Input("clips", tooltip="The clips from Load Clips, Split Scenes or Caption Clips."),
                Base.Input("base", tooltip="The model from Base Model: it decides sizes and frame rate."),
                io.Vae.Input("vae", lazy=True, tooltip="The VAE that belongs to the base model, from Load VAE."),
                io.Clip.Input(
                    "clip", lazy=True, tooltip="The text encoder that belongs to the base model, from Load CLIP."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    lazy=True,
                    tooltip="The CLIP vision model, for models that look at the first frame with it (Wan 2.1 I2V).",
                ),
                io.Vae.Input(
                    "audio_vae",
                    optional=True,
                    lazy=True,
                    tooltip="The audio VAE, for models that learn sound (LTX-2). Without it only pictures are learnt.",
                ),
                size_input(
                    "width", "Width", 8192, "Width in pixels to which clips are cut; with Fit at keep proportions, "
                    "Width x Height says about how many pixels each clip has."
                ),
                size_input("height", "Height", 8192, "Height in pixels to which clips are cut; see Width."),
                size_input(
                    "frames", "Frames", 1025, "Frames taken of each clip, or of each window, at the model's frame "
                    "rate. Shorter clips give fewer."
                ),
                *all_settings(training.CutConfig, visible=("fit",)),
                Recipe.Input(
                    "recipe",
                    optional=True,
                    tooltip="From Recipe Settings, only where captions are shuffled: their orders are encoded here.",
                ),
                io.String.Input(
                    "preview_prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    display_name="Preview prompts",
                    tooltip="What Train LoRA shows while it trains, one prompt a line, as many as Clips of Preview "
                    "Settings says. Empty: the first captions of the clips.",
                ),
            ],
            outputs=[
                TrainingSetSocket.Output("training_set", tooltip="What Train learns from."),
                io.String.Output("report", tooltip="What was encoded, what was taken from disk, what was left out."),
                io.Image.Output("contact_sheet", tooltip="First, middle and last frame of every clip as it is used."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, clips, base, width, height, frames, **more):
        """Every encoder that is connected and not loaded yet; an error of size is said before any is."""
        check_size(base, width, height, frames, cut_of(more))
        return [name for name in ENCODERS if name in more and more[name] is None]

    @classmethod
    def fingerprint_inputs(cls, **_):
        """Features that somebody has deleted are made again."""
        return training.FeatureCache(places.feature_folder()).token()

    @classmethod
    def execute(
        cls, clips, base: BaseChoice, vae, clip, width, height, frames, clip_vision=None, audio_vae=None, recipe=None,
        preview_prompts="", **settings,
    ) -> io.NodeOutput:
        cut = cut_of(settings)
        width, height, frames = check_size(base, width, height, frames, cut)
        check_vae(vae, base.base)
        prepared = training.prepare(
            clips,
            base.base,
            training.Encoders(
                clip=HostVae(vae),
                caption=HostClip(clip),
                image=None if clip_vision is None else HostVision(clip_vision),
                sound=None if audio_vae is None else HostAudioVae(audio_vae),
            ),
            width=width,
            height=height,
            frames=frames,
            cut=cut,
            recipe=recipe,
            prompts=prompts_of(preview_prompts),
            cache=training.FeatureCache(places.feature_folder()),
            device=model_management.get_torch_device(),
            listener=NodeListener(cls.hidden.unique_id),
        )
        show_text(prepared.report.partition("\n")[0], cls.hidden.unique_id)
        return io.NodeOutput(prepared.training_set, prepared.report, training.contact_sheet(prepared))


def prompts_of(text: str) -> list[str]:
    """The prompts of previews, one a line. ValueError where they are too many or cannot be read."""
    prompts, most = [line.strip() for line in text.splitlines() if line.strip()], MOST_PROMPTS
    if len(prompts) > most:
        raise ValueError(f"Preview prompts has {len(prompts)} lines, and at most {most} are shown: write fewer.")
    if text != text.encode("utf-8", errors="ignore").decode():
        raise ValueError("Preview prompts holds half a character, which no text encoder reads: write it anew.")
    return prompts


def size_input(name: str, label: str, most: int, help: str) -> io.Input:
    """A size that may be left to the model."""
    return io.Int.Input(
        name, default=0, min=0, max=most, display_name=label, tooltip=f"{help} 0 means what suits the model."
    )


def cut_of(settings: dict) -> training.CutConfig:
    """How clips are cut, from those of a node's inputs that say so. ValueError where one is out of its limits."""
    names = training.CutConfig.__dataclass_fields__
    return training.CutConfig(**{name: value for name, value in settings.items() if name in names})


def check_size(
    base: BaseChoice, width: int, height: int, frames: int, cut: training.CutConfig
) -> tuple[int, int, int]:
    """The size that clips will have, with the model's own for 0. Raises ValueError where the model cannot take it."""
    suits = base.base.defaults
    size = width or suits.width, height or suits.height, frames or suits.frames
    training.all_sizes(*size, cut, base.base.grid)
    return size
