"""The engine: from clips to a LoRA file. Knows torch, not ComfyUI.

These are its public words, imported on first use so that importing the pack stays cheap.
"""

from importlib import import_module

_PUBLIC = {
    "AdapterConfig": ".config",
    "CutConfig": ".config",
    "MemoryConfig": ".config",
    "PreviewConfig": ".config",
    "PRECISIONS": ".config",
    "RecipeConfig": ".config",
    "RunConfig": ".config",
    "check_name": ".run_name",
    "limits_of": ".config",
    "scan": ".dataset.scan",
    "repeated": ".dataset.scan",
    "check_clips": ".dataset.checks",
    "CheckConfig": ".dataset.check_settings",
    "join": ".dataset.clip_set",
    "ClipSet": ".dataset.clip_set",
    "review": ".dataset.review",
    "clip_file": ".dataset.review",
    "still": ".dataset.review",
    "set_captions": ".dataset.review",
    "set_excluded": ".dataset.review",
    "replace_everywhere": ".dataset.review",
    "insert_trigger": ".dataset.review",
    "remove_trigger": ".dataset.review",
    "caption_clips": ".dataset.captioning",
    "CaptionConfig": ".dataset.caption_settings",
    "ServiceConfig": ".dataset.caption_settings",
    "CaptionService": ".dataset.captioners.service",
    "LocalModel": ".dataset.captioners.local_model",
    "Shown": ".dataset.captioners.captioner",
    "CaptionError": ".dataset.captioners.captioner",
    "split_scenes": ".dataset.shots",
    "films_in": ".dataset.shots",
    "SplitConfig": ".dataset.shots",
    "has_shots": ".dataset.shot_record",
    "TrainingSet": ".dataset.training_set",
    "contact_sheet": ".dataset.contact_sheet",
    "FeatureCache": "..loaders.feature_cache",
    "clean_cache": ".dataset.cache_care",
    "prepare": ".dataset.precompute",
    "all_sizes": ".dataset.buckets",
    "open_base_model": ".families",
    "BaseModel": ".families.model_family",
    "Encoders": ".families.model_family",
    "ClipDecoder": ".families.model_family",
    "list_previews": ".run_folder",
    "CaptionEncoder": ".families.model_family",
    "ClipEncoder": ".families.model_family",
    "Listener": ".listener",
    "Progress": ".listener",
    "SilentListener": ".listener",
    "read_lora": "..loaders.lora_file",
    "read_lora_header": "..loaders.lora_file",
    "AnyLora": "..loaders.lora_forms",
    "read_any_lora": ".lora_reading",
    "families_of": ".lora_reading",
    "LoraNorms": ".norms",
    "layer_place": ".place_in_model",
    "lora_norms": ".norms",
    "lora_rank": ".norms",
    "lora_picture": ".norms_picture",
    "ComparisonGrid": ".comparison_grid",
    "grid_bytes": ".comparison_grid",
    "KeptCopy": ".run_copies",
    "kept_copies": ".run_copies",
    "Places": ".run_output",
    "read_curve": ".run_curve",
    "RunCurve": ".run_curve",
    "TrainResult": ".train_result",
    "check_writable": ".run",
    "train": ".run",
    "KeyMatch": ".run_output",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name], __name__), name)
    globals()[name] = value
    return value
