"""ComfyUI's VAE and CLIP as the two encoders the engine asks for.

T frames, P Q pixel height and width, C channels, F H W latent frames, height and width, L tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import training

SAMPLES = 16
"""Values read of each tensor for an identity: evenly spread, so that any training or merging shows."""


class HostVae:
    """A VAE from a socket as a ClipEncoder."""

    def __init__(self, vae: Any):
        self._vae = vae
        self.identity = identity_of(vae.first_stage_model, getattr(vae, "patcher", None), str(vae.vae_dtype))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (T, P, Q, 3) in 0..1 to latents (C, F, H, W), float32 on the CPU, as ComfyUI's VAE gives them.

        One clip goes in as four dimensions: with five, ComfyUI crops the time axis to a multiple of the stride.
        """
        return kept(self._vae.encode(frames)[0])


class HostClip:
    """A CLIP from a socket as a CaptionEncoder."""

    def __init__(self, clip: Any):
        self._clip = clip
        options = (type(clip.tokenizer).__name__, clip.layer_idx, sorted(clip.tokenizer_options.items()))
        self.identity = identity_of(clip.cond_stage_model, clip.patcher, repr(options))

    def encode(self, caption: str) -> Tensor:
        """One caption to text features (L, D), float32 on the CPU, without padding where ComfyUI says what is."""
        text, extra = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(caption))[0]
        mask = extra.get("attention_mask")
        return kept(text[0] if mask is None else text[0][mask[0].bool().to(text.device)])


class HostVision:
    """A CLIP vision model from a socket as an ImageEncoder."""

    def __init__(self, clip_vision: Any):
        self._clip_vision = clip_vision
        self.identity = identity_of(clip_vision.model, clip_vision.patcher)

    def encode(self, image: Tensor) -> Tensor:
        """One image (P, Q, 3) in 0..1, cropped to its middle, to features before the last layer (L, D), float32."""
        return kept(self._clip_vision.encode_image(image[None])["penultimate_hidden_states"][0])


class HostAudioVae:
    """An audio VAE from a socket as a SoundEncoder."""

    def __init__(self, vae: Any):
        self._vae = vae
        self.identity = identity_of(vae.first_stage_model, vae.patcher, str(vae.vae_dtype))
        self.rate = int(getattr(vae, "audio_sample_rate", 44100))

    def encode(self, sound: Tensor) -> Tensor:
        """A waveform (2, N) at `rate` samples a second to latents (C, T, bins), float32, as ComfyUI gives them.

        Silence is added to its end: ComfyUI would crop both ends to a multiple of the VAE's step.
        """
        sound = functional.pad(sound, (0, -sound.shape[1] % self._vae.spacial_compression_encode()))
        return kept(self._vae.encode(sound.T[None])[0])


def check_vae(vae: Any, base: training.BaseModel) -> None:
    """ValueError unless the VAE makes video latents with the channels that the model takes; encodes nothing."""
    channels, wanted = vae.latent_channels, base.grid.channels
    if vae.latent_dim != 3 or channels != wanted:
        kind = "video" if vae.latent_dim == 3 else "picture"
        raise ValueError(
            f"This is another model's VAE: it makes {kind} latents of {channels} channels, and {base.title} takes "
            f"video latents of {wanted}. Load the VAE that belongs to {base.title}."
        )


def check_audio_vae(vae: Any) -> None:
    """ValueError unless the VAE makes sound; decodes nothing."""
    if not hasattr(vae.first_stage_model, "output_sample_rate"):
        raise ValueError(
            "What is connected to audio_vae makes no sound: connect the audio VAE that is connected to Prepare, or "
            "nothing."
        )


def kept(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that autograd may use, though ComfyUI's nodes run in inference mode."""
    with torch.inference_mode(False):
        return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def identity_of(model: torch.nn.Module, patcher: Any, *facts: str) -> str:
    """Hash of a model's class, parameter names, shapes and sampled values, and of the patches upon it.

    Values are those before patching, so that it does not matter whether the model is loaded at the moment.
    """
    digest = hashlib.sha256(repr((type(model).__qualname__, *facts)).encode())
    backup: Mapping[str, Any] = getattr(patcher, "backup", {})
    for name, tensor in sorted(model.state_dict().items()):
        original = backup.get(name)
        add_tensor(digest, name, tensor if original is None else original.weight)
    for name, patches in sorted(getattr(patcher, "patches", {}).items(), key=lambda item: str(item[0])):
        for strength, patch, of_model, *_ in patches:
            digest.update(f"{name}:{strength}:{of_model}".encode())
            for tensor in tensors_in(patch):
                add_tensor(digest, "patch", tensor)
    return digest.hexdigest()


def add_tensor(digest: Any, name: str, tensor: Any) -> None:
    """Add a tensor's name, type, shape and some of its values to a hash; anything else by its text."""
    if not isinstance(tensor, Tensor):
        digest.update(f"{name}={tensor!r}".encode())
        return
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
    if tensor.numel() and not tensor.is_meta:
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        digest.update(flat[::step][:SAMPLES].cpu().contiguous().view(torch.uint8).numpy().tobytes())


def tensors_in(patch: Any) -> Iterator[Tensor]:
    """The tensors of one of ComfyUI's weight patches: adapters and nested tuples."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, (tuple, list)):
        for part in patch:
            yield from tensors_in(part)
    elif hasattr(patch, "weights"):
        yield from tensors_in(patch.weights)
