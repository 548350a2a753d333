"""Which key form a LoRA file has, and its tensors under the names that ComfyUI loads.

A key is a prefix, a module's name, with its dots or with underscores for them, and an ending that says what the tensor
is. Who writes what was read in musubi-tuner, sd-scripts, ai-toolkit, diffusion-pipe, SimpleTuner, OneTrainer,
DiffSynth-Studio, LyCORIS, PEFT and diffusers; what ComfyUI loads, in its comfy/lora.py and comfy/weight_adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from .key_map import KeyMap
from .lora_file import KEY_PREFIX

LONGEST_KEY = 500
FLAT = {
    "lora_unet__": "kohya with two underscores (VideoX-Fun)",
    "lora_unet_": "kohya (musubi-tuner, sd-scripts)",
    "lora_transformer_": "OneTrainer",
    "lycoris_": "LyCORIS (SimpleTuner)",
}
"""Prefixes before module names whose dots are underscores, and who writes them. The first that fits counts."""
DOTTED = {
    "base_model.model.": "PEFT",
    "model.diffusion_model.": "names as in checkpoints",
    KEY_PREFIX: "ComfyUI (ai-toolkit, diffusion-pipe and others)",
    "transformer.": "diffusers",
    "pipe.dit.": "DiffSynth-Studio",
    "dit.": "DiffSynth-Studio",
}
"""Prefixes before module names as they are. Several may stand one after the other; the first names the form."""

WRITERS = FLAT | DOTTED | {"": "module names alone (DiffSynth-Studio, training scripts)"}
STATED_FOR = "transformer."
"""Keys and settings that diffusers writes begin with this."""
MOST_ALPHA = 1e6
"""What a header states above is no alpha."""

DOWN, UP, MID, BIAS, ALPHA, DORA, MODULATION = "down", "up", "mid", "bias", "alpha", "dora_scale", "diff_m"
_ADAPTER = r"(?:\.(?!weight$|bias$)[A-Za-z0-9_-]{1,60})?"  # PEFT's name of an adapter: `.default`
ENDINGS = tuple((re.compile(ending + "$"), role) for ending, role in (
    (r"[._]lora\.down\.weight", DOWN), (r"[._]lora\.up\.weight", UP),
    (r"\.lora_linear_layer\.down\.weight", DOWN), (r"\.lora_linear_layer\.up\.weight", UP),
    (r"\.lora_down\.weight", DOWN), (r"\.lora_up\.weight", UP), (r"\.lora_mid\.weight", MID),
    (rf"\.lora_A{_ADAPTER}(?:\.weight)?", DOWN), (rf"\.lora_B{_ADAPTER}(?:\.weight)?", UP),
    (rf"\.lora_(?:B{_ADAPTER}|up)\.bias", BIAS),
    (rf"\.(?:dora_scale|lora_magnitude_vector{_ADAPTER}(?:\.weight)?)", DORA),
    (rf"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)){_ADAPTER}", None),
    (r"\.([ab][12]\.weight|oft_blocks|rescale)", None),
    (r"\.(alpha|diff_m|diff_b|diff|set_weight|reshape_weight|w_norm|b_norm)", None),
))
"""Endings and what the tensor is; None: what the ending's own word says."""
WRITTEN = {DOWN: "lora_A.weight", UP: "lora_B.weight", BIAS: "diff_b", MODULATION: "modulation.diff"}
"""Endings that ComfyUI reads, where they are not the role's own name. It has none for `diff_m`, a difference of the
parameter called modulation (Comfy-Org/ComfyUI issue 8922)."""
WITH_MID = {DOWN: "lora_down.weight", UP: "lora_up.weight", MID: "lora_mid.weight"}
"""The same for convolutions in three parts, which ComfyUI reads in this spelling only."""
KINDS = (
    ("LoRA", {DOWN, UP}), ("LoHa", {"hada_w1_a"}), ("LoKr", {"lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"}),
    ("GLoRA", {"a1.weight"}), ("OFT", {"oft_blocks"}), ("DoRA", {DORA}),
    ("differences of weights and biases", {"diff", "diff_b", MODULATION, BIAS, "w_norm", "b_norm"}),
)
"""What a file may be, and the roles that tell."""


@dataclass(frozen=True, kw_only=True)
class LoraKey:
    """One key of a file, taken apart."""

    prefix: str
    """The first prefix, "" for none."""
    module: str
    flat: bool
    """Whether the module's dots are underscores."""
    role: str


@dataclass(frozen=True, kw_only=True)
class LoraForm:
    """How a LoRA file is written."""

    writer: str
    """Who writes files so: `kohya (musubi-tuner, sd-scripts)`."""
    kinds: tuple[str, ...]
    """What its tensors are: `LoRA`, `LoKr`, `DoRA`."""
    others_names: bool = False
    """Whether its module names are those of a class, diffusers' in practice, and not the model's own."""

    def __str__(self) -> str:
        named = ", layers named as in diffusers" if self.others_names else ""
        return f"{self.writer}{named}: {', '.join(self.kinds) or 'nothing that a LoRA has'}"


@dataclass(frozen=True, kw_only=True)
class AnyLora:
    """A LoRA of any form, its tensors under names that ComfyUI loads."""

    tensors: dict[str, Tensor]
    """As many as the file has; those whose module the model has not keep their names."""
    names: Mapping[str, str]
    """What each of them is called in the file."""
    metadata: Mapping[str, str]
    form: LoraForm


@lru_cache(maxsize=1 << 14)
def take_apart(name: str) -> LoraKey | None:
    """A key of a file as prefix, module and role; None where it is no LoRA's."""
    if len(name) > LONGEST_KEY:
        return None
    match, role = next(((found, role) for ending, role in ENDINGS if (found := ending.search(name))), (None, None))
    if match is None:
        return None
    module, prefix, role = name[: match.start()], "", role or match[1]
    flat = next((known for known in FLAT if module.startswith(known)), None)
    if flat:
        return LoraKey(prefix=flat, module=module.removeprefix(flat), flat=True, role=role)
    while inner := next((known for known in DOTTED if module.startswith(known)), None):
        module, prefix = module.removeprefix(inner), prefix or inner
    return LoraKey(prefix=prefix, module=module, flat=False, role=role)


def lora_form(names: Iterable[str], *, others_names: bool = False) -> LoraForm:
    """The form that most keys of a file have."""
    keys = list(filter(None, map(take_apart, names)))
    if not keys:
        return LoraForm(writer="unknown", kinds=())
    [(prefix, _)] = Counter(key.prefix for key in keys).most_common(1)
    roles = {key.role for key in keys}
    kinds = tuple(kind for kind, telling in KINDS if roles & telling)
    return LoraForm(writer=WRITERS[prefix], kinds=kinds, others_names=others_names)


def lora_layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each module of a LoRA by their roles, under the modules' names without prefix."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if key := take_apart(name):
            layers.setdefault(key.module, {})[key.role] = tensor
    return layers


def as_comfyui_loads(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    modules: Collection[str] = (),
    layouts: Sequence[KeyMap] = (),
) -> AnyLora:
    """Every tensor of a LoRA under the name by which ComfyUI loads it onto a model.

    `modules`: the model's modules and parameters by their own names, without a prefix. `layouts`: from those names to
    the ones of classes, of every kind of model that is known. What neither explains keeps its name, for ComfyUI has
    names of its own for other models. A scale that only the header states, as diffusers writes it, is multiplied into
    `lora_B`; the magnitudes of PEFT's DoRA get a second axis, without which ComfyUI misreads them.
    """
    keys = {name: key for name in tensors if (key := take_apart(name))}
    targets, others_names = _targets({key.module for key in keys.values()}, tuple(modules), layouts)
    whole = {key.module for key in keys.values() if key.role == MID}
    new_names = {name: _new_name(key, targets[key.module], key.module in whole)
                 for name, key in keys.items() if key.module in targets}
    names: dict[str, str] = {}
    for name in sorted(tensors, key=lambda name: new_names.get(name, name) != name):  # what has its name keeps it
        new = new_names.get(name, name)
        names[name if new in names else new] = name
    scales = _Scales(lora_layers(tensors), metadata)
    return AnyLora(
        tensors={new: _adjusted(tensors[name], keys.get(name), scales) for new, name in names.items()},
        names=names,
        metadata=metadata,
        form=lora_form(tensors, others_names=others_names),
    )


def _new_name(key: LoraKey, target: str, in_three: bool) -> str:
    written = (WITH_MID if in_three else WRITTEN).get(key.role) or WRITTEN.get(key.role, key.role)
    return f"{KEY_PREFIX}{target}.{written}"


def _targets(
    found: Collection[str], modules: tuple[str, ...], layouts: Sequence[KeyMap]
) -> tuple[dict[str, str], bool]:
    """The model's module behind each module name of a file, where there is one; and whether a class's names are used.

    A file is read in one layout throughout, for a name may be right in two and mean another module in each.
    """
    best, others_names = {}, False
    for layout in (KeyMap(()), *layouts):
        known = _aliases(modules, layout)
        hits = {name: known[name] for name in found if name in known}
        if len(hits) > len(best):
            best, others_names = hits, layout.rules != ()
        if len(best) == len(found):
            break
    return best, others_names


@lru_cache(maxsize=16)
def _aliases(modules: tuple[str, ...], layout: KeyMap) -> dict[str, str]:
    """The model's modules by their names in a layout, with dots and with underscores.

    A block with a modulation is there as well: differences of that are written without its name.
    """
    named = {layout.forward(module): module for module in modules}
    owners = {layout.forward(owner): owner for module in modules
              if (owner := module.removesuffix(".modulation")) != module}
    named = owners | named
    return {name.replace(".", "_"): module for name, module in named.items()} | named


class _Scales:
    """By what a module's product of matrices is multiplied."""

    def __init__(self, layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str]):
        self._layers, self._stated = layers, _stated_settings(metadata)

    def of_header(self, key: LoraKey) -> float:
        """The scale that the header states and no tensor does; 1 where there is none."""
        rank = self._rank(key)
        if ALPHA in self._layers[key.module] or key.prefix != STATED_FOR or not self._stated or not rank:
            return 1.0
        return _stated_scale(self._stated, key.module, rank)

    def of_alpha(self, key: LoraKey) -> float:
        """alpha / rank where the file has an alpha, 1 where it has none."""
        alpha, rank = self._layers[key.module].get(ALPHA), self._rank(key)
        return alpha.item() / rank if alpha is not None and alpha.numel() == 1 and rank else 1.0

    def _rank(self, key: LoraKey) -> int:
        """Rows of `lora_A`; 0 where there is none."""
        down = self._layers[key.module].get(DOWN)
        return down.shape[0] if down is not None and down.ndim else 0


def _adjusted(tensor: Tensor, key: LoraKey | None, scales: _Scales) -> Tensor:
    if key is None:
        return tensor
    if key.role == DORA and tensor.ndim == 1:
        return tensor.unsqueeze(1)
    if key.role not in (UP, BIAS):
        return tensor
    scale = scales.of_header(key) * (scales.of_alpha(key) if key.role == BIAS else 1.0)
    return tensor if scale == 1 else tensor.float() * scale


def _stated_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """diffusers' `lora_adapter_metadata`: settings of PEFT, each after `transformer.`."""
    try:
        stated = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    return {name.removeprefix(STATED_FOR): value for name, value in stated.items() if name.startswith(STATED_FOR)} \
        if isinstance(stated, dict) else {}


def _stated_scale(stated: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, in rank-stabilised LoRA alpha / sqrt(rank); a module may have an alpha of its own."""
    own = stated.get("alpha_pattern")
    own = own if isinstance(own, dict) else {}
    named = next((alpha for name, alpha in own.items() if module == name or module.endswith(f".{name}")), None)
    alpha = stated.get("lora_alpha") if named is None else named
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < MOST_ALPHA:
        return 1.0
    return alpha / (math.sqrt(rank) if stated.get("use_rslora") is True else rank)
