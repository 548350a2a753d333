"""LoRA files: the one key form that ComfyUI and diffusers both read, and a header that says what is inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .safetensors_file import read_header, read_tensors, write_tensors

KEY_PREFIX = "diffusion_model."
RUN_KEY = "video_lora.run"
"""Header entry with the key of the run that wrote the file: by it we know our own."""


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file whole or not at all. ValueError for numbers not finite, OSError from the disk."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite: {path.name} was not written.")
    write_tensors(path, tensors, metadata)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a LoRA file of any make. Raises ValueError where it is no readable safetensors file."""
    return read_tensors(path)


def read_lora_header(path: Path) -> Mapping[str, str]:
    """The header's entries alone."""
    return read_header(path).metadata


def written_by_run(path: Path) -> str | None:
    """The key of the run of ours that wrote this file, or None where none did."""
    try:
        return read_lora_header(path).get(RUN_KEY)
    except ValueError:
        return None
