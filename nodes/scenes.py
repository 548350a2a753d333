"""Cut long footage into clips."""

from __future__ import annotations

import re
from pathlib import Path

from comfy_api.latest import io

from .. import training
from . import places
from .progress import NodeListener, show_text
from .sockets import CATEGORY, Clips, all_settings

UNFIT = re.compile(
    r'[<>:"|?*\x00-\x1f]|(^|/)\.|[. ](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d) *(/|\.|$)', re.IGNORECASE
)
"""Signs and names that Windows does not allow, and hidden folders."""


class SplitScenes(io.ComfyNode):
    """A film, or a folder of films, to a folder of shots under input/, and those as a set of clips."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSSplitScenes",
            display_name="Split Scenes",
            category=CATEGORY,
            description="Cuts long footage into shots and writes each as a clip of its own. The footage is only read, "
            "and what was written before is not written again.",
            search_aliases=["scene detection", "shots", "cut", "pyscenedetect", "dataset", "footage", "lora"],
            inputs=[
                io.Combo.Input(
                    "video",
                    options=film_choices(),
                    display_name="Footage",
                    tooltip="A video inside ComfyUI's input or datasets folder, or a folder there, all of whose videos "
                    "are cut.",
                ),
                io.String.Input(
                    "folder",
                    default="shots",
                    display_name="Folder",
                    tooltip="Name of the folder under input that is filled with the shots. It is made where it is not "
                    "there.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    display_name="Trigger word",
                    tooltip="A word that stands for what the LoRA learns, for example myst1le. It is put before every "
                    "caption that does not hold it. May stay empty.",
                ),
                *all_settings(training.SplitConfig, visible=("shortest", "longest", "sensitivity")),
                io.Boolean.Input(
                    "again",
                    default=False,
                    optional=True,
                    advanced=True,
                    display_name="Write again",
                    tooltip="Write every shot anew, also those that are there and those that you have removed.",
                ),
            ],
            outputs=[
                Clips.Output("clips", tooltip="The shots, for Caption Clips or Prepare."),
                io.String.Output("report", tooltip="Every shot, every stretch that was left out and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, video, folder):
        try:
            if video is not None:
                films(video)
            if folder is not None:
                shot_folder(folder)
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, video, folder, **_):
        """The films, and what is in the folder: an edited caption and a removed shot count as a change."""
        if video is None or folder is None:  # linked: not known before it runs
            return float("nan")
        there = [path for path in shot_folder(folder).rglob("*") if path.is_file()]
        return [f"{path.name}:{places.stamp(path)}" for path in [*films(video), *sorted(there)]]

    @classmethod
    def execute(cls, video, folder, trigger, again=False, **settings) -> io.NodeOutput:
        listener = NodeListener(cls.hidden.unique_id)
        target = shot_folder(folder)
        config = training.SplitConfig(**settings)
        report = training.split_scenes(films(video), target, config, listener, again=again).report()
        clips = training.scan(target, trigger, listener)
        show_text(report.partition("\n")[0], cls.hidden.unique_id)
        return io.NodeOutput(clips, report)


def film_choices() -> list[str]:
    """Videos that may be cut, and folders of them; folders that were filled with shots are not offered."""
    choices = []
    for folder in (places.INPUT, places.DATASETS, *places.clip_folders()):
        try:
            path = places.clip_folder(folder)
            inside = [] if training.has_shots(path) else training.films_in(path)
        except (OSError, ValueError):  # nothing in it, or it cannot be read
            continue
        choices += [folder, *(f"{folder}/{film.name}" for film in inside)] if inside else []
    return choices


def films(choice: str) -> list[Path]:
    """The videos behind a choice. Raises ValueError where there is none, or it leads out of ComfyUI's folders."""
    name = places.checked_relative(choice, "Footage")
    folder, _, file = name.rpartition("/")
    inside = places.clip_folder(folder) / file if folder else None
    if inside is None or not inside.is_file():
        return [_within(film) for film in training.films_in(places.clip_folder(name))]
    return [_within(inside)]


def _within(film: Path) -> Path:
    """The film itself. Raises ValueError where it is a link out of its folder."""
    if not film.resolve().is_relative_to(film.parent.resolve()):
        raise ValueError(f"{film.name} is a link to a file outside its folder: copy or move the film itself there.")
    return film


def shot_folder(name: str) -> Path:
    """The folder of this name under input/, whether it is there or not. Raises ValueError where the name is not fit."""
    relative = places.checked_relative(name, "Folder").removeprefix(f"{places.INPUT}/")
    if UNFIT.search(relative):
        raise ValueError(f"Folder {name!r} is no name on every system: choose another, of letters and digits.")
    root = places.clip_folder(places.INPUT)
    target = (root / relative).resolve()
    if target == root or not target.is_relative_to(root):
        raise ValueError(f"Folder {name!r} leads outside ComfyUI's input folder, to {target}: choose another name.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"Folder {name!r} is a file: choose another name.")
    return target
