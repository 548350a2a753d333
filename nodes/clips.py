"""Choose a folder of footage."""

from __future__ import annotations

import os

from comfy_api.latest import io

from .. import training
from . import places
from .progress import NodeListener, show_text
from .sockets import CATEGORY, Clips


class LoadClips(io.ComfyNode):
    """A folder under input/ or datasets/ to a set of clips with captions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSLoadClips",
            display_name="Load Clips",
            category=CATEGORY,
            description="Reads a folder of videos and pictures with their captions, and says what is used and what is "
            "not.",
            search_aliases=["dataset", "footage", "video folder", "train", "lora"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=places.clip_folders(),
                    display_name="Folder",
                    tooltip="A folder of clips inside ComfyUI's input or datasets folder. Videos (mp4, mov, mkv, webm, "
                    "avi, gif) and pictures; a text file of the same name beside a clip holds its caption.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    display_name="Trigger word",
                    tooltip="A word that stands for what the LoRA learns, for example myst1le. It is put before every "
                    "caption that does not hold it. May stay empty.",
                ),
            ],
            outputs=[
                Clips.Output("clips", tooltip="The clips and their captions, for Prepare."),
                io.String.Output("report", tooltip="Every file that is used and every file that is left out, and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder):
        if folder is None:
            return True
        try:
            places.clip_folder(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, trigger):
        return listing(folder)

    @classmethod
    def execute(cls, folder, trigger) -> io.NodeOutput:
        clips = training.scan(places.clip_folder(folder), trigger, NodeListener(cls.hidden.unique_id))
        report = clips.report()
        show_text(report.partition("\n")[0], cls.hidden.unique_id)
        return io.NodeOutput(clips, report)


def listing(folder: str | None) -> list[str] | None:
    """Names, sizes and times of change of what is in the folder, so that an edited caption counts as a change."""
    if folder is None:
        return None
    with os.scandir(places.clip_folder(folder)) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sorted(f"{name}:{facts.st_size}:{facts.st_mtime_ns}" for name, facts in found)
