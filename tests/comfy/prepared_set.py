"""A training set of random features, as Prepare would leave it, for scripts that need no footage."""

from __future__ import annotations

from pathlib import Path

import torch

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training import BaseModel, TrainingSet
from video_lora_studio.training.dataset.training_set import PREVIEW, Sample


def random_set(
    folder: Path, base: BaseModel, *, clips: int, latent_shape: tuple[int, int, int, int], tokens: int
) -> TrainingSet:
    """`clips` samples of latents (C, F, H, W) and text features (`tokens`, D), drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(5)
    samples = []
    for index in range(clips):
        clip, caption = folder / f"clip_{index}.safetensors", folder / f"caption_{index}.safetensors"
        latents = torch.randn(latent_shape, generator=generator)
        write_tensors(clip, {"video": latents, PREVIEW: torch.zeros(3, 8, 8, 3, dtype=torch.uint8)}, {})
        write_tensors(caption, {"text": torch.randn(tokens, base.text_width, generator=generator)}, {})
        samples.append(Sample(name=clip.stem, caption="random", clip_features=clip, caption_features=caption,
                              shapes=(("video", latent_shape),), key=f"{index:064x}"))
    _, frames, height, width = latent_shape
    stride = base.grid.space_stride
    return TrainingSet(family=base.family.name, form=base.form,
                       caption_form=base.caption_form, samples=tuple(samples), trigger="", width=width * stride,
                       height=height * stride, frames=(frames - 1) * base.grid.time_stride + 1, fps=base.grid.fps)
