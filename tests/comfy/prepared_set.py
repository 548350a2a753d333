"""A training set of random features, as Prepare would leave it, for scripts that need no footage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training import BaseModel, TrainingSet
from video_lora_studio.training.dataset.training_set import PREVIEW, Caption, Sample
from video_lora_studio.training.families.model_family import Features


def random_set(
    folder: Path, base: BaseModel, *, clips: int, latent_shape: tuple[int, int, int, int], tokens: int
) -> TrainingSet:
    """`clips` samples of latents (C, F, H, W) and text features (`tokens`, D), drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(5)
    drawn = [
        ({"video": torch.randn(latent_shape, generator=generator)},
         {"text": torch.randn(tokens, base.text_width, generator=generator)})
        for _ in range(clips)
    ]
    return set_of(folder, base, *zip(*drawn, strict=True))


def set_of(folder: Path, base: BaseModel, clips: Sequence[Features], captions: Sequence[Features]) -> TrainingSet:
    """Samples with these features of clips, and of their captions, written into `folder`."""
    samples = []
    for index, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        clip_file, caption_file = folder / f"clip_{index}.safetensors", folder / f"caption_{index}.safetensors"
        write_tensors(clip_file, {**clip, PREVIEW: torch.zeros(3, 8, 8, 3, dtype=torch.uint8)}, {})
        write_tensors(caption_file, caption, {})
        shapes = tuple((name, tuple(clip[name].shape)) for name in sorted(clip))
        captions = (Caption(text="random", features=caption_file),)
        samples.append(Sample(name=clip_file.stem, clip=clip_file.stem, captions=captions,
                              clip_features=clip_file, shapes=shapes, key=f"{index:064x}"))
    _, frames, height, width = clips[0]["video"].shape
    stride = base.grid.space_stride
    return TrainingSet(family=base.family.name, form=base.form,
                       caption_form=base.caption_form, samples=tuple(samples), no_caption=caption_file,
                       trigger="", width=width * stride, height=height * stride,
                       frames=(frames - 1) * base.grid.time_stride + 1, fps=base.grid.fps)
