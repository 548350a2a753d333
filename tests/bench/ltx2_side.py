"""The LTX-2 of step benchmarks, and Lightricks' own trainer as the other side, from a checkout of it."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from video_lora_studio.loaders.module_weights import build_without_storage, fill_at_random
from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training import BaseModel, RunConfig, TrainingSet, open_base_model
from video_lora_studio.training.families import file_tensors

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "comfy")]
from ltx2_twin import FAMILY, header_of  # noqa: E402
from prepared_set import set_of  # noqa: E402

WIDTHS = {
    "num_attention_heads": 4, "attention_head_dim": 128, "cross_attention_dim": 512, "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 64, "audio_cross_attention_dim": 256, "caption_channels": 3840,
}
"""Heads as wide as the real model's, an eighth of them."""
STATED = {
    "dropout": 0.0, "attention_bias": True, "num_vector_embeds": None, "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000, "use_linear_projection": False, "only_cross_attention": False,
    "cross_attention_norm": True, "double_self_attention": False, "upcast_attention": False,
    "standardization_norm": "rms_norm", "norm_elementwise_affine": False, "qk_norm": "rms_norm",
    "positional_embedding_type": "rope", "use_audio_video_cross_attention": True, "share_ff": False,
    "av_cross_ada_norm": True,
}
"""What Lightricks' loader wants a file's header to say beside what differs between files."""
LATENTS, SOUND, TEXT = (128, 5, 16, 16), (8, 34, 16), (1024, 3840)
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
"""All attention, as in its own configurations and as the engine does where nothing is said."""


def model_of(path: Path, layers: int) -> BaseModel:
    """A random LTX-2, float32, written to `path` in the original key format."""
    config = {**FAMILY.twin()[0], **WIDTHS, "num_layers": layers}
    model = fill_at_random(build_without_storage(lambda: LTX2VideoTransformer3DModel(**config)))
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in file_tensors(FAMILY, model).items()}
    write_tensors(path, tensors, header_of(config, **STATED))
    return open_base_model(path)


def data_for(base: BaseModel, folder: Path) -> TrainingSet:
    """One clip with sound."""
    generator = torch.Generator().manual_seed(5)

    def drawn(**shapes):
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return set_of(folder, base, [drawn(video=LATENTS, audio=SOUND)], [drawn(text=TEXT, text_audio=TEXT)])


def as_cached(video: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What its connectors would give: the features as they are, none of them masked."""
    return video, audio, torch.ones(video.shape[:2], dtype=torch.long, device=video.device)


class LtxTrainer:
    """Its trainer, its configuration and its cache.

    Two things of it are left out, to its advantage: the validation runs, and the connectors that its every step sends
    the caption through, for features are cached behind them here.
    """

    def __init__(self, checkout: Path):
        sys.path += [str(checkout / "packages" / package / "src") for package in ("ltx-core", "ltx-trainer")]
        from ltx_trainer import config, trainer

        self._config, self._trainer = config, trainer

    def theirs(
        self, base: BaseModel, data: TrainingSet, folder: Path, config: RunConfig, precision: str = "no",
        loaded: Callable[[nn.Module], object] = lambda model: None,
    ) -> Callable[[], None]:
        """A function that trains on the first clip, called as its script calls it.

        `precision`: its word for the compute type, `no` for float32; with `bf16` the rest is as in its own low-VRAM
        configuration, int8 weights and 8-bit AdamW. `loaded` is given the model as it was read.
        """
        low = precision == "bf16"
        settings = self._config.LtxTrainerConfig(
            model={"model_path": base.path, "video_vae_path": base.path},  # asked for its scale, which is the default
            lora={"rank": config.rank, "alpha": config.rank, "target_modules": TARGETS},
            training_strategy={"name": "flexible", "video": {"is_generated": True, "latents_dir": "latents"},
                               "audio": {"is_generated": True, "latents_dir": "audio_latents"}},
            optimization={"learning_rate": config.learning_rate, "steps": config.steps, "batch_size": 1,
                          "optimizer_type": "adamw8bit" if low else "adamw", "scheduler_type": "constant",
                          "enable_gradient_checkpointing": config.memory.recompute},
            acceleration={"mixed_precision_mode": precision, "quantization": "int8-quanto" if low else None},
            data={"preprocessed_data_root": str(self._write_cache(folder, data)), "num_dataloader_workers": 0},
            validation={"interval": None}, checkpoints={"precision": "float32"}, output_dir=str(folder / "out"),
        )
        trainer = self._trainer

        class Trainer(trainer.LtxvTrainer):
            def _load_models(self):
                model = trainer.load_transformer(base.path, dtype=torch.bfloat16 if low else torch.float32)
                loaded(model)
                self._transformer = trainer.quantize_model(model, "int8-quanto") if low else model
                self._transformer.requires_grad_(False)
                self._embeddings_processor = SimpleNamespace(create_embeddings=as_cached)

        def run() -> None:
            quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
            with mock.patch.object(trainer, "ValidationRunner"), quiet[0], quiet[1]:
                Trainer(settings).train(disable_progress_bars=True)

        return run

    def layers_adapted(self, folder: Path) -> int:
        """How many layers the LoRA it wrote adapts."""
        written = next((folder / "out/checkpoints").glob("*.safetensors"))
        return sum(name.endswith("lora_A.weight") for name in read_tensors(written)[0])

    def _write_cache(self, folder: Path, data: TrainingSet) -> Path:
        """Our first clip as its dataset has it: a folder of each kind of feature."""
        sample = data.samples[0]
        clip, caption = read_tensors(sample.clip_features)[0], read_tensors(sample.captions[0].features)[0]
        _, frames, height, width = clip["video"].shape
        parts = {
            "latents": {"latents": clip["video"], "num_frames": frames, "height": height, "width": width,
                        "fps": data.fps},
            "audio_latents": {"latents": clip["audio"]},
            "conditions": {"video_prompt_embeds": caption["text"], "audio_prompt_embeds": caption["text_audio"],
                           "prompt_attention_mask": torch.ones(len(caption["text"]), dtype=torch.long)},
        }
        for part, tensors in parts.items():
            (folder / "cache" / part).mkdir(parents=True)
            torch.save(tensors, folder / "cache" / part / "clip.pt")
        return folder / "cache"
