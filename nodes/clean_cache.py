"""See what the feature cache holds, and take out what is not needed."""

from __future__ import annotations

import time

from comfy_api.latest import io, ui

from .. import training
from . import places
from .progress import show_text
from .sockets import CATEGORY

LIST, REMOVE = "list", "remove"


class CleanCache(io.ComfyNode):
    """The feature cache to a report, and on request to a smaller one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VLSCleanCache",
            display_name="Clean Feature Cache",
            category=CATEGORY,
            description="Lists what Prepare has kept on disk, with sizes, and removes what no training set needs any "
            "more, if you ask for it.",
            search_aliases=["cache", "disk space", "orphans", "features", "cleanup"],
            inputs=[
                io.Combo.Input(
                    "action",
                    options=[LIST, REMOVE],
                    default=LIST,
                    display_name="Action",
                    tooltip="list: only say what is there. remove: delete the files that no training set needs. Files "
                    "used within the last day always stay.",
                ),
                io.Int.Input(
                    "forget_after",
                    default=0,
                    min=0,
                    max=3650,
                    display_name="Forget sets after days",
                    tooltip="Training sets not prepared for this many days count as not needed. 0 keeps all of them.",
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="The training sets in the cache with their sizes, and what is not "
                                 "needed or was removed."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, action, forget_after=0):
        return time.time()

    @classmethod
    def execute(cls, action, forget_after=0) -> io.NodeOutput:
        cache = training.FeatureCache(places.feature_folder())
        report = training.clean_cache(cache, remove=action == REMOVE, forget_after=forget_after)
        show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(report, ui=ui.PreviewText(report))
