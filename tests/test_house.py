"""The import rules, read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from video_lora_studio import training

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"loaders": 0, "training": 1, "nodes": 2}
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution", "node_helpers"}
DOORS = {
    "peft": ["training/adapter.py"],
    "av": [f"loaders/{name}.py" for name in (
        "video_file", "video_stream", "video_colour", "video_writer", "clip_writer",
    )],
    "safetensors": ["loaders/safetensors_file.py"],
    "diffusers": ["training/families/"],
    "transformers": ["training/dataset/captioners/"],
    "folder_paths": ["nodes/places.py"],
    "requests": ["training/dataset/captioners/service.py"],
    "urllib3": ["training/dataset/captioners/service.py"],
    "scenedetect": ["training/dataset/shots.py"],
    "bitsandbytes": ["training/optimizers.py", "training/dataset/captioners/local_model.py"],
    "prodigyopt": ["training/optimizers.py"],
    "schedulefree": ["training/optimizers.py"],
}
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core"}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path):
    """(module, level, names) of every import in a file, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, tuple(alias.name for alias in node.names)


def relative(path):
    return path.relative_to(ROOT).as_posix()


def target(path, module, level):
    """Where a relative import leads, as parts from the root."""
    package = path.relative_to(ROOT).parent.parts
    return (*package[: len(package) - level + 1], *filter(None, module.split(".")))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_rooms_import_downwards_only(path):
    room = path.relative_to(ROOT).parts[0]
    for module, level, names in imports(path):
        if level == 0:
            top = module.split(".")[0]
            assert top not in ROOMS and top != "video_lora_studio", f"{module}: our own code is imported relatively"
            assert room == "nodes" or top not in HOST, f"{module}: only nodes/ knows ComfyUI"
            continue
        place = target(path, module, level)
        rooms = [place[0]] if place else [name for name in names if name in ROOMS]
        for other in rooms:
            assert ROOMS[other] <= ROOMS[room], f"{room}/ must not import {other}/"
        if room == "nodes" and place and place[0] == "training":
            assert place == ("training",), f"nodes/ uses training by its public words, not {'.'.join(place)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_one_door_per_dependency(path):
    for module, level, _ in imports(path):
        doors = DOORS.get(module.split(".")[0]) if level == 0 else None
        assert doors is None or relative(path).startswith(tuple(doors)), f"{module} is imported only in {doors}"


@pytest.mark.parametrize("path", sorted((ROOT / "training/families").glob("*.py")), ids=relative)
def test_families_know_neither_each_other_nor_the_run(path):
    if path.stem in ("__init__", "model_family"):
        return
    allowed = {("training", "families", "model_family"), ("training", "objective"), ("training", "config")}
    for module, level, _ in imports(path):
        if level:
            place = target(path, module, level)
            assert place in allowed or place[0] == "loaders", ".".join(place)


def test_file_names_are_unique_and_say_something():
    names = [path.stem for path in FILES if path.stem != "__init__"]
    assert len(names) == len(set(names))
    assert not VAGUE & set(names)


def test_no_public_word_is_a_modules_name():
    """Importing such a module would put it in the word's place."""
    modules = {path.stem for path in (ROOT / "training").glob("*.py")} | {"dataset", "families", "memory"}
    assert not modules & set(training.__all__)


def test_no_family_is_named_outside_its_file():
    """The engine beside families/ knows no model by name."""
    for path in FILES:
        if "families" in path.parts or path.is_relative_to(ROOT / "nodes"):
            continue
        text = path.read_text(encoding="utf-8").lower()
        for name in ("wan", "ltx", "cogvideo"):
            words = [word.strip("`'\".,:;()") for word in text.replace("want", "").replace("_", " ").split()]
            assert not any(word.startswith(name) for word in words), f"{relative(path)} names {name}"


@pytest.mark.parametrize("module", ["video_lora_studio", "video_lora_studio.training", "video_lora_studio.loaders"])
def test_importing_is_light(module):
    code = f"import {module}, sys; print([m for m in ('diffusers', 'peft', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_dangerous_is_called():
    banned = {"eval", "exec", "compile", "system", "popen", "Popen"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                owner = getattr(getattr(node.func, "value", None), "id", "")
                assert name not in banned or owner in ("re", "torch"), f"{relative(path)}:{node.lineno} calls {name}"
        modules = {module.split(".")[0] for module, level, _ in imports(path) if level == 0}
        assert not modules & {"pickle", "subprocess", "shelve", "marshal"}, relative(path)
