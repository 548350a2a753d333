"""The pack's own socket types, and widgets made from declared settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from .. import training

CATEGORY = "Video LoRA"

Clips = io.Custom("VLS_CLIPS")
Captioner = io.Custom("VLS_CAPTIONER")
Base = io.Custom("VLS_BASE_MODEL")
TrainingSetSocket = io.Custom("VLS_TRAINING_SET")
Adapter = io.Custom("VLS_ADAPTER")
Recipe = io.Custom("VLS_RECIPE")
Memory = io.Custom("VLS_MEMORY")
Preview = io.Custom("VLS_PREVIEW")
Run = io.Custom("VLS_RUN")
Stack = io.Custom("VLS_STACK")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")


@dataclass(frozen=True, kw_only=True)
class BaseChoice:
    """What flows through VLS_BASE_MODEL: the weights file, and what to compute in."""

    base: training.BaseModel
    precision: str


def setting_input(config: type, name: str, *, advanced: bool = False, **more: Any) -> io.Input:
    """The widget of one declared setting, with its default, limits and help as tooltip.

    The front end shows, and keeps, as many digits as the setting's step has.
    """
    field = config.__dataclass_fields__[name]
    limits = training.limits_of(config, name)
    shared = {
        "id": name,
        "display_name": limits.label,
        "tooltip": limits.help,
        "default": field.default,
        "advanced": advanced or None,
        **more,
    }
    if limits.choices:
        return io.Combo.Input(options=list(limits.choices), **shared)
    if isinstance(field.default, bool):
        return io.Boolean.Input(**shared)
    if isinstance(field.default, int):
        step = int(limits.step) if limits.step else 1
        return io.Int.Input(min=int(limits.low), max=int(limits.high), step=step, **shared)
    if isinstance(field.default, float):
        return io.Float.Input(min=limits.low, max=limits.high, step=limits.step, **shared)
    return io.String.Input(**shared)


def all_settings(config: type, *, visible: tuple[str, ...]) -> list[io.Input]:
    """Widgets of every setting of a group; those not named `visible` are behind "advanced".

    None is required: a prompt that leaves one out, being older or shorter, gets its default.
    """
    names = config.__dataclass_fields__
    return [setting_input(config, name, advanced=name not in visible, optional=True) for name in names]
