"""Choose a folder of footage."""

from __future__ import annotations

import os
from pathlib import Path

from comfy_api.latest import io

from .. import training
from . import places
from .progress import NodeListener, show_text
from .sockets import CATEGORY, Clips, all_settings


class LoadClips(io.ComfyNode):
    """A folder under input/ or datasets/ to a set of clips with captions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSLoadClips",
            display_name="Load Clips",
            category=CATEGORY,
            description="Reads a folder of videos and pictures with their captions, looks at every frame, and says "
            "what is used and what is not.",
            search_aliases=["dataset", "footage", "video folder", "train", "lora"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=places.clip_folders(),
                    display_name="Folder",
                    tooltip="A folder of clips inside ComfyUI's input or datasets folder. Videos (mp4, mov, mkv, webm, "
                    "avi, gif) and pictures; a text file of the same name beside a clip holds its caption, or a table "
                    "(JSONL, JSON, CSV) those of many.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    display_name="Trigger word",
                    tooltip="A word that stands for what the LoRA learns, for example myst1le. It is put before every "
                    "caption that does not hold it. May stay empty.",
                ),
                io.Boolean.Input(
                    "subfolders",
                    default=True,
                    optional=True,
                    advanced=True,
                    display_name="Subfolders",
                    tooltip="Read the folders inside it too. One named 3_portraits shows its clips three times as "
                    "often.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    display_name="Repeats",
                    tooltip="How often every clip of this folder is shown in the time that others are shown once.",
                ),
                *all_settings(training.CheckConfig, visible=()),
                Clips.Input(
                    "more",
                    optional=True,
                    tooltip="The clips of another Load Clips, to train on both: each folder keeps its own trigger word "
                    "and repeats.",
                ),
            ],
            outputs=[
                Clips.Output("clips", tooltip="The clips and their captions, for Caption Clips or Prepare."),
                io.String.Output("report", tooltip="Every file that is used and every file that is left out, and why."),
                io.Image.Output(
                    "contact_sheet", tooltip="First, middle and last frame of every clip, its caption, what was found."
                ),
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
    def fingerprint_inputs(cls, folder, **_):
        return float("nan") if folder is None else listing(folder)  # linked: not known before it runs

    @classmethod
    def execute(cls, folder, trigger, subfolders=True, repeats=1, more=None, **checks) -> io.NodeOutput:
        listener, cache = NodeListener(cls.hidden.unique_id), training.FeatureCache(places.feature_folder())
        found = training.scan(places.clip_folder(folder), trigger, listener, subfolders=subfolders)
        clips = training.check_clips(
            training.repeated(found, repeats), cache, training.CheckConfig(**checks), listener,
            known=more.clips if more else (),
        )
        if more:
            clips = training.join(more, clips)
        report = clips.report()
        show_text(report.partition("\n")[0], cls.hidden.unique_id)
        return io.NodeOutput(clips, report, training.contact_sheet(clips, cache))


def listing(folder: str) -> list[str]:
    """Names, sizes and times of change of all files in the folder and those in it: an edited caption is a change."""
    root = places.clip_folder(folder)
    found = []
    for inner, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(inner, name)
            try:
                found.append(f"{path.relative_to(root).as_posix()}:{places.stamp(path)}")
            except OSError:
                found.append(f"{path.relative_to(root).as_posix()}:unreadable")
    return found
