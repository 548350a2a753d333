"""The Wan of step benchmarks: a random one in the original key format, 512 wide, and a clip of random features."""

import sys
from pathlib import Path

from diffusers import WanTransformer3DModel

from video_lora_studio.loaders.module_weights import build_without_storage, fill_at_random
from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training import BaseModel, TrainingSet, open_base_model
from video_lora_studio.training.families import FAMILIES, file_tensors

sys.path.append(str(Path(__file__).parents[1] / "comfy"))
from prepared_set import random_set  # noqa: E402

WIDTH, FFN, HEADS = 512, 2048, 4
LATENTS, TOKENS = (16, 5, 32, 32), 512
FAMILY = next(family for family in FAMILIES if family.name == "Wan")


def model_of(path: Path, layers: int) -> BaseModel:
    """A random T2V model, float32, written to `path`."""
    model = build_without_storage(lambda: WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, ffn_dim=FFN, num_layers=layers, text_dim=4096
    ))
    write_tensors(path, file_tensors(FAMILY, fill_at_random(model)), {})
    return open_base_model(path)


def data_for(base: BaseModel, folder: Path) -> TrainingSet:
    """One clip."""
    return random_set(folder, base, clips=1, latent_shape=LATENTS, tokens=TOKENS)
