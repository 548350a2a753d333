"""Where the pack may read and write: the only door to ComfyUI's `folder_paths`."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from .. import training

INPUT = "input"
DATASETS = "datasets"
SUBFOLDER = "video_lora"
MODEL_FOLDERS = ("diffusion_models", "checkpoints", "unet_gguf")
"""The last is where ComfyUI-GGUF, if it is there, lists its files."""
CAPTIONER_FOLDERS = ("LLM", "VLM", "prompt_generator", "text_encoders")
LONGEST_CONFIG = 1 << 20
"""Characters of a model's `config.json`."""
CAPTIONER_DEPTH = 3
"""How many folders deep a vision language model may lie: packs put it at `LLM/Qwen-VL/Qwen3-VL-8B-Instruct`."""


def clip_folders() -> list[str]:
    """Folders that may hold clips, as users see them: `input/my_clips`, `datasets/cats`."""
    found = []
    for label, root in _clip_roots():
        for folder, names, _ in os.walk(root):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in names:
                path = os.path.join(folder, name)
                if folder_paths.is_within_directory(root, path):
                    found.append(f"{label}/{os.path.relpath(path, root)}".replace(os.sep, "/"))
    return list(dict.fromkeys(found))


def clip_folder(choice: str) -> Path:
    """The folder behind a choice, `input/my_clips` or a path relative to either root.

    Raises ValueError where it is missing, or lies outside the input and datasets folders once links are followed.
    """
    relative = checked_relative(choice, "Folder")
    label, _, rest = relative.partition("/")
    named = [root for known, root in _clip_roots() if known == label]
    places = [(root, rest) for root in named] + [(root, relative) for _, root in _clip_roots()]
    for root, name in places:
        path = os.path.join(root, name)
        if not os.path.isdir(path):
            continue
        if not folder_paths.is_within_directory(root, path):
            raise ValueError(
                f"Folder {relative!r} leads outside ComfyUI's input and datasets folders, to {os.path.realpath(path)}: "
                "move the clips there, or add that place as 'datasets' in extra_model_paths.yaml."
            )
        return Path(os.path.realpath(path))
    looked = ", ".join(root for _, root in _clip_roots())
    raise ValueError(f"There is no folder {relative!r}: put your clips into a folder of their own in one of: {looked}.")


def checked_relative(name: str, label: str) -> str:
    """`name` with forward slashes, or ValueError where it is not a plain relative path on every system."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{label} is empty: choose one.")
    name = name.strip()
    slashed = name.replace("\\", "/").rstrip("/")
    parts = slashed.split("/")
    if len(slashed) > 1024 or min(slashed, default=" ") < " ":
        raise ValueError(f"{label} {name[:40]!r} is not a usable path.")
    if slashed.startswith("/") or re.match(r"[A-Za-z]:", slashed) or slashed == "":
        raise ValueError(
            f"{label} {name[:80]!r} must be a path inside ComfyUI's folders, without a drive or leading slash."
        )
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{label} {name[:80]!r} must not hold '.', '..' or empty parts.")
    return slashed


def model_files() -> list[str]:
    """Weights files offered as base model: models alone, then checkpoints that hold one among other parts."""
    return list(dict.fromkeys(name for kind in _model_kinds() for name in folder_paths.get_filename_list(kind)))


def model_file(name: str) -> Path:
    """The weights file behind a choice. Raises ValueError where there is none."""
    return _file_of(_model_kinds(), name, "Model file")


def _model_kinds() -> list[str]:
    return [kind for kind in MODEL_FOLDERS if kind in folder_paths.folder_names_and_paths]


def lora_names() -> list[str]:
    """Every LoRA, as ComfyUI's own loaders list it."""
    return folder_paths.get_filename_list("loras")


def lora_file(name: str) -> Path:
    """The LoRA with this name in ComfyUI's LoRA folders; a bare name finds a file in a subfolder if only one has it.

    Raises ValueError naming the file and where it was looked for.
    """
    try:
        return _file_of(("loras",), name, "LoRA")
    except ValueError:
        bare = checked_relative(name, "LoRA").rsplit("/", 1)[-1]
        same = [other for other in folder_paths.get_filename_list("loras") if os.path.basename(other) == bare]
        if len(same) == 1:
            return _file_of(("loras",), same[0], "LoRA")
        raise


def lora_name(path: Path) -> str:
    """A LoRA file's name as ComfyUI's own LoRA loaders list it."""
    for root in folder_paths.get_folder_paths("loras"):
        if folder_paths.is_within_directory(root, str(path)):
            return os.path.relpath(os.path.realpath(path), os.path.realpath(root))
    return path.name


def lora_folder() -> Path:
    """The first LoRA folder that can be written. Raises OSError where none can."""
    return _first_writable(folder_paths.get_folder_paths("loras"), "LoRA folder")


def run_folder(name: str) -> Path:
    """What the run of this name leaves beside the LoRA. `name` has been checked by RunConfig.

    Raises ValueError where a link stands there that leads out of the folder of all runs.
    """
    runs = os.path.join(folder_paths.get_output_directory(), SUBFOLDER)
    if not folder_paths.is_within_directory(runs, os.path.join(runs, name)):
        raise ValueError(f"Name {name!r} is a link in {runs} that leads out of it: choose another name.")
    return Path(runs) / name


def shown_output(path: Path) -> dict[str, str]:
    """A file in the output folder as ComfyUI's own route /view is asked for it."""
    folder = os.path.relpath(path.parent, folder_paths.get_output_directory()).replace(os.sep, "/")
    return {"filename": path.name, "subfolder": folder, "type": "output"}


def spare_folders() -> tuple[Path, ...]:
    """Where a LoRA may be kept if the disk of its own folder is full: other LoRA folders, those of the user."""
    others = [*folder_paths.get_folder_paths("loras"), folder_paths.get_user_directory(),
              folder_paths.get_input_directory(), folder_paths.get_output_directory()]
    return tuple(Path(folder) for folder in dict.fromkeys(others) if os.path.isdir(folder))


def feature_folder() -> Path:
    """Where features of clips and captions are kept. Raises OSError where it cannot be written."""
    return _first_writable([os.path.join(folder_paths.get_output_directory(), SUBFOLDER, "_features")], "folder")


def temporary_video() -> Path:
    """A new file name for a video that is only shown; ComfyUI empties that folder when it starts."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"video_lora_{uuid.uuid4().hex}.mp4"


def stamp(path: Path) -> str:
    """Size and time of change of a file: another stamp, another content."""
    facts = path.stat()
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def _clip_roots() -> list[tuple[str, str]]:
    roots = [(DATASETS, root) for root in folder_paths.get_folder_paths(DATASETS)]
    return [(INPUT, folder_paths.get_input_directory()), *roots]


def _file_of(kinds: Iterable[str], name: str, label: str) -> Path:
    relative = checked_relative(name, label)
    roots = [root for kind in kinds for root in folder_paths.get_folder_paths(kind)]
    for root in roots:
        path = os.path.join(root, relative)
        if os.path.isfile(path):
            return Path(path)
    raise ValueError(f"{label} {relative!r} was not found; looked in: {', '.join(roots)}.")


def _first_writable(folders: Iterable[str], label: str) -> Path:
    reasons = []
    for folder in folders:
        try:
            training.check_writable(Path(folder))
        except OSError as error:
            reasons.append(str(error))
        else:
            return Path(folder)
    raise OSError(f"No {label} can be written. {' '.join(reasons)}")


def captioner_folders() -> list[str]:
    """Folders of vision language models as transformers reads them, as users see them: `LLM/Qwen3-VL-8B-Instruct`.

    Such a folder holds safetensors weights and a `config.json` that speaks of eyes.
    """
    found = []
    for kind, root in _captioner_roots():
        for folder, names, files in os.walk(root, followlinks=True):
            depth = os.path.relpath(folder, root).count(os.sep) + 1 if folder != root else 0
            names[:] = sorted(n for n in names if not n.startswith(".")) if depth < CAPTIONER_DEPTH else []
            if depth and any(name.endswith(".safetensors") for name in files) and _has_eyes(folder):
                found.append(f"{kind}/{os.path.relpath(folder, root)}".replace(os.sep, "/"))
    return list(dict.fromkeys(found))


def captioner_folder(name: str) -> Path:
    """The folder behind a choice of `captioner_folders`. Raises ValueError where there is none."""
    relative = checked_relative(name, "Folder")
    kind, _, rest = relative.partition("/")
    for known, root in _captioner_roots():
        path = os.path.join(root, rest)
        if known == kind and rest and os.path.isfile(os.path.join(path, "config.json")):
            return Path(path)
    looked = ", ".join(dict.fromkeys(root for _, root in _captioner_roots()))
    raise ValueError(
        f"Folder {relative!r} holds no vision language model: put the model's folder, with config.json and its "
        f".safetensors files, into one of: {looked}."
    )


def _captioner_roots() -> list[tuple[str, str]]:
    """Where packs for vision language models keep them, registered with ComfyUI or not."""
    roots = []
    for kind in CAPTIONER_FOLDERS:
        registered = folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else []
        roots += [(kind, root) for root in (*registered, os.path.join(folder_paths.models_dir, kind))]
    return list(dict.fromkeys(roots))


def _has_eyes(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.loads(file.read(LONGEST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool({"vision_config", "thinker_config"} & set(config))
