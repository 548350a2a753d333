"""Cells of a comparison sampled as ComfyUI's KSampler does it, and decoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
from torch import Tensor

from .progress import duration, show_text

Latent = dict[str, Any]
"""What flows through LATENT."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The settings of ComfyUI's KSampler, the same for every cell."""

    seed: int
    steps: int
    cfg: float
    name: str
    scheduler: str
    positive: Any
    negative: Any


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the steps with one model; ComfyUI's KSamplerAdvanced does two of them one after the other."""

    first: int | None = None
    last: int | None = None
    adds_noise: bool = True
    denoises_fully: bool = False


def stages_of(two_models: bool, steps: int, low_noise_from: int) -> tuple[Stage, ...]:
    """All steps for one model; for two, those before step `low_noise_from` and the rest; 0 is half of the steps.

    Raises ValueError where one of two models gets no step.
    """
    if not two_models:
        return (Stage(),)
    switch = low_noise_from or steps // 2
    if not 0 < switch < steps:
        raise ValueError(
            f"Of {steps} steps the low-noise model would get those from {switch} on, and one of the models none: "
            "raise steps, or change low_noise_from."
        )
    return Stage(first=0, last=switch), Stage(first=switch, last=steps, adds_noise=False, denoises_fully=True)


@dataclass(kw_only=True)
class Work:
    """How far a comparison is: ComfyUI's bar over all cells and a line on the node, and Cancel."""

    steps: int
    """Of all cells together."""
    node_id: str | None
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self._bar = comfy.utils.ProgressBar(self.steps, node_id=self.node_id)

    def begin(self, words: str) -> None:
        """Show what is done next. Raises ComfyUI's interrupt where the user has cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        left = (time.monotonic() - self.started) / self.done * (self.steps - self.done) if self.done else 0
        show_text(words + (f", {duration(left)} left" if left else ""), self.node_id)

    def previewing(self, model: Any) -> Callable[[int, Any, Any, int], None]:
        """The callback of a sampling, with ComfyUI's own preview where that is switched on."""
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        before = self.done

        def step_done(step: int, x0: Any, _: Any, __: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture = x0.tensors[0] if x0.is_nested else x0
            preview = previewer.decode_latent_to_preview_image("JPEG", picture) if previewer else None
            self.done = before + step + 1
            self._bar.update_absolute(self.done, self.steps, preview)

        return step_done


def sampled(model: Any, latent: Latent, sampler: Sampler, stage: Stage, work: Work) -> Latent:
    """What ComfyUI's KSampler makes of a latent, or KSamplerAdvanced of a part of the steps."""
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    noise = (comfy.sample.prepare_noise(samples, sampler.seed, latent.get("batch_index")) if stage.adds_noise
             else comfy.sample.prepare_empty_noise(samples))
    samples = comfy.sample.sample(
        model, noise, sampler.steps, sampler.cfg, sampler.name, sampler.scheduler, sampler.positive, sampler.negative,
        samples, disable_noise=not stage.adds_noise, start_step=stage.first, last_step=stage.last,
        force_full_denoise=stage.denoises_fully, noise_mask=latent.get("noise_mask"),
        callback=work.previewing(model), disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=sampler.seed,
    )
    ratios = ("downscale_ratio_spacial", "downscale_ratio_temporal")
    return {key: value for key, value in latent.items() if key not in ratios} | {"samples": samples}


def picture_of(latent: Latent) -> Tensor:
    """The latent of the picture; with LTX-2 that of the sound lies beside it."""
    samples = latent["samples"]
    return samples.unbind()[0] if samples.is_nested else samples


def check_video(latent: Latent) -> None:
    """ValueError where a latent is not that of one video."""
    samples = picture_of(latent)
    if samples.ndim != 5:
        raise ValueError(
            "The latent is not a video's: connect an empty video latent, or what an image-to-video node gives."
        )
    if samples.shape[0] != 1:
        raise ValueError(f"The latent holds {samples.shape[0]} videos, and one is compared: set its batch_size to 1.")


def expected_shape(latent: Latent, vae: Any) -> tuple[int, int, int]:
    """Frames, height and width that a latent decodes to at most."""
    frames, height, width = picture_of(latent).shape[-3:]
    time_stride, stride = vae.temporal_compression_decode() or 1, vae.spacial_compression_decode()
    return frames * time_stride, height * stride, width * stride


def decoded(latent: Latent, vae: Any) -> Tensor:
    """The frames of a latent (T, P, Q, 3), as ComfyUI's VAEDecode gives them."""
    images = vae.decode(picture_of(latent))
    return images.reshape(-1, *images.shape[-3:])
