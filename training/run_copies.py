"""The copies of a LoRA that its run has kept: found by what the files say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..loaders.lora_file import RUN_KEY, read_lora_header
from .run_folder import RunFolder
from .run_name import check_name


@dataclass(frozen=True, kw_only=True)
class KeptCopy:
    """A LoRA file, and the steps it had learnt when it was written."""

    path: Path
    steps: int


def kept_copies(lora_file: Path, run_folder: Callable[[str], Path]) -> tuple[KeptCopy, ...]:
    """The copies of a LoRA, oldest first, and last the file itself; nothing where no run of ours wrote it.

    `run_folder` gives the folder of the run of a name. A copy is one of the same run, trained for the same model file
    with fewer steps. Raises ValueError where `lora_file` is no readable safetensors file.
    """
    header = read_lora_header(lora_file)
    steps = _steps(header)
    try:
        name = header.get("ss_output_name", "")
        check_name(name)
        folder = RunFolder(run_folder(name)).checkpoint(0, "").parent
    except ValueError:
        return ()
    if RUN_KEY not in header or steps is None:
        return ()
    found = [KeptCopy(path=lora_file, steps=steps)]
    for path in folder.glob("*.safetensors"):
        try:
            other = read_lora_header(path)
        except ValueError:
            continue  # half copied by hand: not one that the run wrote
        copied = _steps(other)
        if _origin(other) == _origin(header) and copied is not None and copied < steps:
            found.append(KeptCopy(path=path, steps=copied))
    return tuple(sorted(found, key=lambda copy: copy.steps))


def _steps(header: Mapping[str, str]) -> int | None:
    steps = header.get("ss_steps", "")
    return int(steps) if steps.isdecimal() and len(steps) < 10 else None


def _origin(header: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The run, and the model file, which tells two experts of one run apart."""
    return header.get(RUN_KEY), header.get("ss_sd_model_name")
