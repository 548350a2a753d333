"""A stand-in for ComfyUI's `folder_paths`, where nodes/ is tested without ComfyUI."""

from __future__ import annotations

import os
import types
from pathlib import Path


class FolderPaths(types.ModuleType):
    """ComfyUI's `folder_paths`, as far as it is asked, over one folder."""

    def __init__(self, root: Path):
        super().__init__("folder_paths")
        self.root = root
        self.lists = {"datasets": ["datasets"], "loras": ["models/loras", "output/loras"],
                      "diffusion_models": ["models/diffusion_models"]}
        self.models_dir = str(root / "models")
        self.folder_names_and_paths = self.lists
        for place in ("input", "output", *(place for places in self.lists.values() for place in places)):
            (root / place).mkdir(parents=True, exist_ok=True)

    def get_folder_paths(self, kind):
        return [str(self.root / place) for place in self.lists[kind]]

    def get_filename_list(self, kind):
        roots = [Path(root) for root in self.get_folder_paths(kind)]
        return sorted(str(path.relative_to(root)) for root in roots for path in root.rglob("*") if path.is_file())

    def get_input_directory(self):
        return str(self.root / "input")

    def get_output_directory(self):
        return str(self.root / "output")

    def is_within_directory(self, directory, target):
        real = os.path.realpath(directory)
        return os.path.commonpath((real, os.path.realpath(target))) == real
