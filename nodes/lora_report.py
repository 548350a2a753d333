"""What Inspect LoRA says of a file, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .. import training
from ..loaders.lora_forms import ALPHA, AnyLora, lora_layers
from ..loaders.safetensors_file import Header
from .lora_facts import LoraFacts

LISTED = 5
"""Names that are listed of many."""


def lora_report(
    path: Path, header: Header, lora: AnyLora, facts: LoraFacts, norms: training.LoraNorms
) -> list[str]:
    """Lines of facts; those that the file does not tell are left out."""
    layers = lora_layers(lora.tensors)
    lines = [f"{path.name}, {size_text(facts.bytes)}", f"Form: {lora.form}"]
    if not layers:
        return [*lines, "It holds no keys that a LoRA has: it is another kind of file."]
    lines.append(f"Fits: {base_text(header.tensors, facts.base)}")
    blocks = f" in {counted(len(norms.blocks), 'block')}" if norms.blocks else ""
    lines.append(f"{rank_text(layers)}; {counted(len(layers), 'layer')}{blocks}, {counted(len(lora.tensors), 'key')}")
    rate = learning_rate(lora.metadata)
    if facts.steps is not None or rate:
        steps = f"{facts.steps:,} steps" if facts.steps is not None else "steps not told"
        lines.append(f"Trained: {steps}" + (f", learning rate {rate}" if rate else ""))
    lines.append(f"Trigger words: {', '.join(facts.triggers) or 'none named'}")
    if norms.blocks:
        strongest, weakest = (choose(norms.blocks, key=norms.blocks.get) for choose in (max, min))
        lines.append(
            f"Norm of the change: {norms.total:.4g} in all, most in block {strongest} "
            f"({norms.blocks[strongest]:.4g}), least in block {weakest} ({norms.blocks[weakest]:.4g})"
        )
    if norms.unknown:
        lines.append(f"Not measured without the model, or not readable: {some_of(norms.unknown)}")
    return lines


def match_text(matched: int, total: int, left: Iterable[str], *, alone: int) -> str:
    """How much of a LoRA fits the given model, how much of it ComfyUI's own loaders find, and what fits nowhere."""
    left = list(left)
    told = f"On this model: {matched} of {total} keys match"
    told += f", {alone} with ComfyUI's own loaders" if alone != matched else ""
    return told + (f"; not: {some_of(left)}" if left else "")


def base_text(names: Iterable[str], stated: str) -> str:
    """Which models a LoRA is for, by its layers and by its header."""
    by_layers = " or ".join(training.families_of(names))
    said = f"its header says {stated}" if stated else "its header does not say"
    return f"{by_layers or 'no model that is known here'} by its layers; {said}"


def rank_text(layers: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Ranks and alphas of all layers: `Rank 32, alpha 16`, `Rank 8 to 64, no alpha`."""
    ranks = {rank for layer in layers.values() if (rank := training.lora_rank(layer)) is not None}
    alphas = {layer[ALPHA].item() for layer in layers.values() if ALPHA in layer and layer[ALPHA].numel() == 1}
    return f"{'Rank ' + _span(ranks) if ranks else 'No rank'}, {'alpha ' + _span(alphas) if alphas else 'no alpha'}"


def _span(numbers: Iterable[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def some_of(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(name[:120] for name in names[:LISTED]) + more


def learning_rate(metadata: Mapping[str, str]) -> str:
    """The learning rate that a header states, as people write it; empty where it states none."""
    for name in ("ss_learning_rate", "ss_unet_lr"):
        try:
            return f"{float(metadata[name]):g}"
        except (KeyError, ValueError):
            continue
    return ""


def counted(count: int, thing: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{count} {thing}" + ("" if count == 1 else "s")


def size_text(count: int) -> str:
    """Bytes as `154 MB`."""
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
