"""What a LoRA's header says of it, for the one who chooses it; nothing of its weights is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..loaders.lora_forms import DOWN, take_apart
from ..loaders.safetensors_file import Header

PREVIEW_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
                 ".gif": "image/gif", ".mp4": "video/mp4", ".webm": "video/webm"}
"""What may lie beside a LoRA to show what it does, as `name.preview.png` or `name.png`."""
LONGEST = 500
MOST_TAGS = 8


@dataclass(frozen=True, kw_only=True)
class LoraFacts:
    """Facts of one LoRA file; empty or None where its header does not say."""

    base: str
    rank: str
    steps: int | None
    triggers: tuple[str, ...]
    keys: int
    bytes: int


def lora_facts(header: Header) -> LoraFacts:
    """The facts in a header, whoever wrote it.

    Names: `modelspec.*` of the Stability AI model metadata standard, `ss_*` of kohya-ss/sd-scripts, which musubi-tuner
    writes too, `training_info` of ai-toolkit.
    """
    told = header.metadata
    base = told.get("ss_base_model_version") or told.get("modelspec.architecture", "").removesuffix("/lora")
    steps = told.get("ss_steps") or _read(told, "training_info").get("step")
    phrase = told.get("modelspec.trigger_phrase", "").strip()
    return LoraFacts(
        base=(base or told.get("ss_sd_model_name", ""))[:LONGEST],
        rank=_rank(header),
        steps=int(steps) if str(steps).isdecimal() and len(str(steps)) < 12 else None,
        triggers=(phrase[:LONGEST],) if phrase else _commonest_tags(told),
        keys=len(header.tensors),
        bytes=header.size,
    )


def preview_beside(lora: Path) -> Path | None:
    """The picture or clip beside a LoRA file that shows what it does, where there is one."""
    for ending in (*(f".preview{kind}" for kind in PREVIEW_KINDS), *PREVIEW_KINDS):
        path = lora.with_suffix(ending)
        if path.is_file() and path.resolve().suffix.lower() == path.suffix.lower():  # no link to another kind of file
            return path
    return None


def _rank(header: Header) -> str:
    downs = (info for name, info in header.tensors.items() if (key := take_apart(name)) and key.role == DOWN)
    ranks = {info.shape[0] for info in downs if info.shape}
    if not ranks:
        return header.metadata.get("ss_network_dim", "")[:LONGEST]
    return f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"


def _commonest_tags(told: Mapping[str, str]) -> tuple[str, ...]:
    """The commonest parts of the captions, which kohya's trainers count; the trigger word is among them."""
    counts: dict[str, float] = {}
    for folder in _read(told, "ss_tag_frequency").values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, (int, float)) and 0 < len(tag.strip()) <= LONGEST:
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return tuple(sorted(counts, key=lambda tag: -counts[tag])[:MOST_TAGS])


def _read(told: Mapping[str, str], name: str) -> dict:
    try:
        value = json.loads(told.get(name, "{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
