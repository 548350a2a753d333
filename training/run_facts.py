"""What decides a run's numbers: its key, and what is different from the run before."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .config import BY_HAND, RunConfig, limits_of, shown
from .dataset.training_set import TrainingSet
from .families.model_family import BaseModel
from .run_folder import settings_key

ENGINE_VERSION = 2
"""Raised when the same settings would give another LoRA than before."""

NO_NUMBERS = {"": ("name", "steps", "pause_at", "preview"), "recipe": ("save_every", "resume_every", "judge_every")}
"""Settings that decide nothing about a step, by group: a run goes on when they change."""

Facts = dict[str, Any]


def facts_of(training_set: TrainingSet, base: BaseModel, config: RunConfig, compute: torch.dtype) -> Facts:
    """All that the LoRA's numbers depend on, and how many steps are made of them is not; plain values, for JSON."""
    settings = config.as_dict()
    memory = settings.pop("memory")
    numbers = {"compile": True} if memory["compile"] else {}  # other numbers in their last digits
    if memory["level"] == BY_HAND and memory["weights"] not in ("as stored", "full"):  # fewer bits are other numbers
        numbers["weights"] = memory["weights"]
    settings["memory"] = numbers
    for group, names in NO_NUMBERS.items():
        for name in names:
            del (settings[group] if group else settings)[name]
    clips: dict[str, list[str]] = defaultdict(list)
    for sample in training_set.samples:
        clips[sample.name].append(sample.key)
    return {
        "engine": ENGINE_VERSION,
        "base": [[expert.identity, expert.expert] for expert in (base, base.low_noise) if expert],
        "precision": str(compute).removeprefix("torch."),
        "settings": settings,
        "data": training_set.data_hash,
        "clips": {name: hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16] for name, keys in clips.items()},
    }


def run_key(facts: Facts) -> str:
    """Hash of the facts: the same key, the same numbers."""
    return settings_key({name: value for name, value in facts.items() if name != "clips"})


def changes(before: Mapping[str, Any], now: Facts) -> list[str]:
    """In which facts two runs differ, in words; `before` may come from a file."""
    words = []
    if before.get("engine") != now["engine"]:
        words.append("this pack's version")
    if before.get("base") != now["base"]:
        words.append("the base model's file")
    if before.get("precision") != now["precision"]:
        words.append(f"Precision {_short(before.get('precision'))} → {now['precision']}")
    for path, value in _leaves(now["settings"]):
        old = _at(before.get("settings"), path)
        if old != value:
            words.append(f"{_label(path)} {'not set' if old is None else _short(old)} → {_short(value)}")
    return [*words, *_clip_changes(before, now)]


def _clip_changes(before: Mapping[str, Any], now: Facts) -> list[str]:
    clips = before.get("clips")
    old, new = clips if isinstance(clips, dict) else {}, now["clips"]
    kinds = {
        "clips added": [name for name in new if name not in old],
        "clips gone": [name for name in old if name not in new],
        "clips or captions changed": [name for name in new if name in old and new[name] != old[name]],
    }
    words = [f"{kind}: {_names(names)}" for kind, names in kinds.items() if names]
    return words or (["the order of the clips"] if before.get("data") != now["data"] else [])


def _names(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _leaves(settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    """What stands at a path of nested dictionaries, None where nothing does."""
    for name in path:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _short(value: Any) -> str:
    return value[:60] if isinstance(value, str) else shown(value)


def _label(path: tuple[str, ...]) -> str:
    """What the setting at a path of `RunConfig` is called on its node."""
    config: Any = RunConfig()
    for name in path[:-1]:
        config = getattr(config, name)
    return limits_of(type(config), path[-1]).label if dataclasses.is_dataclass(config) else path[-1]
