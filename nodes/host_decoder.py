"""ComfyUI's VAEs the other way: latents to what people look at and listen to, beside a model that is being trained.

T frames, P Q pixel height and width, C channels, F H W latent frames, height and width, N samples of sound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor

from .host_encoders import kept


class HostDecoder:
    """A VAE from a socket, and an audio VAE where there is one, as a ClipDecoder."""

    def __init__(self, vae: Any, audio_vae: Any = None):
        self._vae, self._audio_vae = vae, audio_vae

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (C, F, H, W) to frames (T, P, Q, 3), as ComfyUI's VAE Decode gives them."""
        return self._aside(lambda: kept(self._vae.decode(latents[None]).flatten(0, -4)))

    def decode_sound(self, latents: Tensor) -> tuple[Tensor, int] | None:
        """Sound latents (C, T, bins) to a waveform (2, N) and its rate, as ComfyUI's LTXV Audio VAE Decode."""
        if self._audio_vae is None:
            return None
        rate = int(self._audio_vae.first_stage_model.output_sample_rate)
        return self._aside(lambda: kept(self._audio_vae.decode(latents[None])[0].movedim(-1, 0).expand(2, -1))), rate

    def _aside(self, decode: Callable[[], Tensor]) -> Tensor:
        """Beside a model that is being trained: the VAE goes from the device as soon as it has done its work."""
        try:
            with torch.inference_mode():
                return decode()
        finally:
            model_management.unload_all_models()
            model_management.soft_empty_cache()
