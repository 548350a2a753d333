"""Which films Split Scenes may read, and which folder it may fill."""

import sys
import types

import pytest
from footage import write_video


@pytest.fixture
def scenes(comfy_folders, load, monkeypatch):
    """nodes/scenes.py over the folders of a ComfyUI with nothing in them, without ComfyUI itself."""
    io = types.SimpleNamespace(ComfyNode=object, Custom=lambda name: None, NodeOutput=None, Input=object)
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", types.SimpleNamespace(io=io))
    for name in ("comfy", "comfy.model_management", "comfy.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return load("scenes")


@pytest.mark.parametrize("name", ["shots", "films/shots", "Aufnahmen ü 場面", "input/shots", "films\\shots"])
def test_the_folder_is_made_under_input(scenes, comfy_folders, name):
    expected = comfy_folders.root / "input" / name.replace("\\", "/").removeprefix("input/")
    assert scenes.shot_folder(name) == expected and not expected.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/tmp/x", "C:\\x", "\\\\server\\x", "a:b", ".hidden",
                                  "a/.b", "...", "a. ", "nul\0", "what?", "link/x", "file", "NUL",
                                  "a/com1", "Aux.old"])
def test_no_other_folder_can_be_filled(scenes, comfy_folders, tmp_path, name):
    (comfy_folders.root / "input" / "file").write_text("a file")
    (comfy_folders.root / "input" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="Folder"):
        scenes.shot_folder(name)


def test_films_and_folders_of_films_are_offered(scenes, comfy_folders):
    root = comfy_folders.root
    for place in ("input/alone.mp4", "input/films/b10.mp4", "input/films/b9.MOV", "datasets/cats/c.mkv",
                  "input/shots/s.mp4", "input/films/notes.txt"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"x")
    (root / "input/shots/_shots.json").write_text("{}")
    (root / "input/empty").mkdir()
    assert scenes.film_choices() == ["input", "input/alone.mp4", "input/films", "input/films/b9.MOV",
                                     "input/films/b10.mp4", "datasets/cats", "datasets/cats/c.mkv"]
    assert [film.name for film in scenes.films("input/films")] == ["b9.MOV", "b10.mp4"]
    assert scenes.films("input/alone.mp4") == [root / "input/alone.mp4"]
    assert scenes.films("datasets/cats") == [root / "datasets/cats/c.mkv"]


@pytest.mark.parametrize("name", ["", "../secret.mp4", "input/../../secret.mp4", "/etc/passwd", "input/none.mp4",
                                  "input/link.mp4", "input/linked/film.mp4", "input/links"])
def test_no_other_film_can_be_read(scenes, comfy_folders, tmp_path, name):
    (tmp_path / "outside").mkdir()
    film = write_video(tmp_path / "outside" / "film.mp4", frames=2)
    (comfy_folders.root / "input" / "link.mp4").symlink_to(film)
    (comfy_folders.root / "input" / "linked").symlink_to(film.parent)
    (comfy_folders.root / "input" / "links").mkdir()
    (comfy_folders.root / "input" / "links" / "link.mp4").symlink_to(film)
    with pytest.raises(ValueError):
        scenes.films(name)


@pytest.mark.parametrize(("video", "folder"), [(None, "shots"), ("input/alone.mp4", None), (None, None)])
def test_inputs_that_are_linked_are_looked_at_each_time(scenes, video, folder):
    stamp = scenes.SplitScenes.fingerprint_inputs(video, folder, trigger="")
    assert stamp != stamp, "an edited caption would go unseen"
