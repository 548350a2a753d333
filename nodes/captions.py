"""Have captions written, and choose by what."""

from __future__ import annotations

import comfy.model_management as model_management
from comfy_api.latest import io

from .. import training
from . import places
from .progress import NodeListener, show_text
from .sockets import CATEGORY, Captioner, Clips, all_settings, setting_input

VISIBLE = ("overwrite", "preset")
MORE = {"instruction": {"multiline": True}, "seed": {"control_after_generate": False}}
BITS = ("16", "8", "4")


class CaptionClips(io.ComfyNode):
    """Clips and a captioner to clips with captions, and a text file beside each."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSCaptionClips",
            display_name="Caption Clips",
            category=CATEGORY,
            description="Has a model describe the clips that have no caption, and keeps the captions as text files "
            "beside them.",
            search_aliases=["caption", "describe video", "tag dataset", "vlm", "lora"],
            inputs=[
                Clips.Input("clips", tooltip="The clips from Load Clips or Split Scenes."),
                Captioner.Input(
                    "captioner",
                    lazy=True,
                    tooltip="What writes the captions: Captioner: CLIP, Captioner: Local Model or Captioner: Service.",
                ),
                *(
                    setting_input(
                        training.CaptionConfig, name, optional=True, advanced=name not in VISIBLE, **MORE.get(name, {})
                    )
                    for name in training.CaptionConfig.__dataclass_fields__
                ),
            ],
            outputs=[
                Clips.Output("clips", tooltip="The clips with their captions, for Prepare."),
                io.String.Output("report", tooltip="What was written, what was kept, which clips got none and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, clips, captioner, overwrite=False, **_):
        """No model is loaded and no service asked where every clip has its caption."""
        wanted = overwrite or any(not clip.caption_file for clip in clips.clips)
        return ["captioner"] if wanted and captioner is None else []

    @classmethod
    def execute(cls, clips, captioner=None, **settings) -> io.NodeOutput:
        config = training.CaptionConfig(**settings)
        if isinstance(captioner, training.LocalModel):  # ComfyUI does not know of its memory
            model_management.unload_all_models()
            model_management.soft_empty_cache()
        done = training.caption_clips(clips, captioner, config, NodeListener(cls.hidden.unique_id))
        show_text(done.report.partition("\n")[0], cls.hidden.unique_id)
        return io.NodeOutput(done.clips, done.report)


class CaptionerClip(io.ComfyNode):
    """The graph's own CLIP as a captioner."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSCaptionerClip",
            display_name="Captioner: CLIP",
            category=CATEGORY,
            description="Captions by a text encoder that can also write, such as Gemma 3 or Qwen3-VL, loaded by "
            "ComfyUI itself.",
            search_aliases=["caption", "gemma", "qwen", "text generate"],
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="A CLIP that can write and see, from Load CLIP: Gemma 3 or Qwen3-VL, for example."
                ),
            ],
            outputs=[Captioner.Output("captioner", tooltip="For Caption Clips.")],
        )

    @classmethod
    def execute(cls, clip) -> io.NodeOutput:
        from .host_captioner import HostCaptioner

        return io.NodeOutput(HostCaptioner(clip))


class CaptionerLocal(io.ComfyNode):
    """A vision language model in a folder on this machine, by transformers."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSCaptionerLocal",
            display_name="Captioner: Local Model",
            category=CATEGORY,
            description="Captions by a vision language model from a folder on this machine. Nothing is downloaded and "
            "nothing leaves the machine.",
            search_aliases=["caption", "qwen vl", "omni", "transformers", "vlm"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=places.captioner_folders(),
                    display_name="Folder",
                    tooltip="The model's folder, with config.json and its .safetensors files: Qwen3-VL, Qwen2.5-VL or "
                    "Qwen2.5/3-Omni, which also hears.",
                ),
                io.Combo.Input(
                    "bits",
                    options=list(BITS),
                    default=BITS[0],
                    optional=True,
                    display_name="Bits",
                    tooltip="Bits per weight. 8 and 4 need half and a quarter of the memory, describe a little worse, "
                    "and need the package bitsandbytes.",
                ),
            ],
            outputs=[Captioner.Output("captioner", tooltip="For Caption Clips.")],
        )

    @classmethod
    def validate_inputs(cls, folder):
        if folder is None:
            return True
        try:
            places.captioner_folder(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, folder, bits=BITS[0]) -> io.NodeOutput:
        device = model_management.get_torch_device()
        check = model_management.throw_exception_if_processing_interrupted
        model = training.LocalModel(places.captioner_folder(folder), bits=int(bits), device=device, check=check)
        return io.NodeOutput(model)


class CaptionerService(io.ComfyNode):
    """A model behind HTTP: on this machine, in its network, or at OpenAI or Google."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSCaptionerService",
            display_name="Captioner: Service",
            category=CATEGORY,
            description="Captions by a server: Ollama, LM Studio, llama.cpp or vLLM in your own network, OpenAI or "
            "Gemini. Frames of the clips are sent there. Keys are read from environment variables only.",
            search_aliases=["caption", "ollama", "vllm", "lm studio", "openai", "gemini", "api"],
            inputs=all_settings(training.ServiceConfig, visible=("service", "model", "address")),
            outputs=[Captioner.Output("captioner", tooltip="For Caption Clips.")],
        )

    @classmethod
    def validate_inputs(cls, service=None, model=None, address=None):
        """What can be said before anything runs: that the address may be sent to."""
        given = {"service": service, "model": model, "address": address}
        try:
            if None not in given.values():
                training.CaptionService(training.ServiceConfig(**given))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        check = model_management.throw_exception_if_processing_interrupted
        return io.NodeOutput(training.CaptionService(training.ServiceConfig(**settings), check))
