"""Modules of nodes/ that can be tested without ComfyUI."""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path

import pytest

import video_lora_studio

NODES = f"{video_lora_studio.__name__}.nodes"


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


@pytest.fixture
def comfy_folders(tmp_path, monkeypatch) -> FolderPaths:
    """The folders of a ComfyUI that has nothing in them, in place of its `folder_paths`."""
    folders = FolderPaths(tmp_path.resolve() / "ComfyUI")
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    return folders


@pytest.fixture
def load(monkeypatch):
    """Import a module of nodes/ by its name, anew, without the package's list of nodes, which needs ComfyUI."""
    package = types.ModuleType(NODES)
    package.__path__ = [str(Path(video_lora_studio.__file__).parent / "nodes")]
    monkeypatch.setitem(sys.modules, NODES, package)
    monkeypatch.delattr(video_lora_studio, "nodes", raising=False)
    before = {name for name in sys.modules if name.startswith(f"{NODES}.")}
    yield lambda name: importlib.import_module(f"{NODES}.{name}")
    for name in [name for name in sys.modules if name.startswith(f"{NODES}.") and name not in before]:
        del sys.modules[name]
