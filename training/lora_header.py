"""The header of a LoRA file: what LoRA managers read, and what we need to know our own.

Names: `modelspec.*` as in the Stability AI model metadata standard 1.0.0, `ss_*` as in kohya-ss/sd-scripts. Neither a
path nor a caption is written, and no date: the same run gives the same bytes.
"""

from __future__ import annotations

import json

from ..loaders.lora_file import RUN_KEY
from .config import RunConfig
from .dataset.training_set import TrainingSet
from .families.model_family import BaseModel


def lora_header(
    training_set: TrainingSet, base: BaseModel, config: RunConfig, *, key: str, steps_done: int
) -> dict[str, str]:
    """Header entries, all strings."""
    size = f"{training_set.width}x{training_set.height}"
    alpha = config.adapter.scale(config.rank) * config.rank
    # How it was looked at and where it paused are no part of what it is: chunks end with the bytes of an undivided run.
    settings = {name: value for name, value in config.as_dict().items() if name not in ("pause_at", "preview")}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": config.name,
        "modelspec.architecture": f"{base.title}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": size,
        "modelspec.trigger_phrase": training_set.trigger,
        "ss_output_name": config.name,
        "ss_base_model_version": base.title,
        "ss_sd_model_name": base.path.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_learning_rate": f"{config.learning_rate:g}",
        "ss_lr_scheduler": config.recipe.schedule,
        "ss_optimizer": config.recipe.optimizer,
        "ss_steps": str(steps_done),
        "ss_max_train_steps": str(config.steps),
        "ss_batch_size_per_device": str(config.recipe.batch_size),
        "ss_gradient_accumulation_steps": str(config.recipe.gradient_accumulation),
        "ss_seed": str(config.seed),
        "ss_resolution": size,
        "ss_num_train_images": str(len(training_set.samples)),
        "ss_frames": str(training_set.frames),
        RUN_KEY: key,
        "video_lora.settings": json.dumps(settings, sort_keys=True),
        "video_lora.data": training_set.data_hash,
    }
