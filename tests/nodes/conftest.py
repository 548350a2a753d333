"""Modules of nodes/ that can be tested without ComfyUI."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
from host_folders import FolderPaths

import video_lora_studio

NODES = f"{video_lora_studio.__name__}.nodes"


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
    for name in [name for name in sys.modules if name.startswith(f"{NODES}.")]:
        monkeypatch.delitem(sys.modules, name)
    yield lambda name: importlib.import_module(f"{NODES}.{name}")
    for name in [name for name in sys.modules if name.startswith(f"{NODES}.")]:
        del sys.modules[name]
