"""What the nodes may read and write."""

import os
from pathlib import Path

import pytest


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this system allows no symbolic links")


def test_folders_under_both_roots_are_offered(comfy_folders, load):
    root = comfy_folders.root
    make(root, "input/cats/a.mp4", "input/cats/more/b.mp4", "input/.hidden/c.mp4", "datasets/dogs/d.mp4")
    assert load("places").clip_folders() == ["input/cats", "input/cats/more", "datasets/dogs"]


def test_a_link_out_is_not_offered(comfy_folders, load, tmp_path):
    make(tmp_path, "private/a.mp4")
    link(comfy_folders.root / "input" / "way_out", tmp_path / "private")
    assert load("places").clip_folders() == []


@pytest.mark.parametrize(("choice", "found"), [
    ("input/cats", "input/cats"),
    ("input/cats/", "input/cats"),
    ("input\\cats\\more", "input/cats/more"),
    ("cats/more", "input/cats/more"),
    ("datasets/dogs", "datasets/dogs"),
    ("dogs", "datasets/dogs"),
])
def test_a_choice_leads_to_its_folder(comfy_folders, load, choice, found):
    make(comfy_folders.root, "input/cats/more/b.mp4", "datasets/dogs/d.mp4")
    assert load("places").clip_folder(choice) == comfy_folders.root / found


@pytest.mark.parametrize("choice", [
    "", "  ", "..", "../outside", "input/../../outside", "input/cats/../../..", "input//cats", "./cats", "/etc",
    "\\etc", "C:\\clips", "c:clips", "\\\\server\\share", "//server/share", "input/cats\0", "a" * 2000, "input/gone",
    "cats/a.mp4", "outside", "~", "models", None, 7,
])
def test_nothing_outside_is_reached(comfy_folders, load, choice):
    make(comfy_folders.root, "input/cats/a.mp4", "outside/secret.mp4")
    with pytest.raises(ValueError) as error:
        load("places").clip_folder(choice)
    assert "older" in str(error.value) and len(str(error.value)) < 700


def test_a_link_out_is_refused_with_its_target(comfy_folders, load, tmp_path):
    make(tmp_path, "private/a.mp4")
    link(comfy_folders.root / "input" / "way_out", tmp_path / "private")
    with pytest.raises(ValueError, match="leads outside") as error:
        load("places").clip_folder("input/way_out")
    assert "extra_model_paths.yaml" in str(error.value)


def test_a_folder_added_as_datasets_is_allowed(comfy_folders, load, tmp_path):
    make(tmp_path, "elsewhere/dogs/a.mp4")
    comfy_folders.lists["datasets"].append(str(tmp_path / "elsewhere"))
    places = load("places")
    assert "datasets/dogs" in places.clip_folders()
    assert places.clip_folder("datasets/dogs") == tmp_path.resolve() / "elsewhere" / "dogs"


def test_loras_are_found_by_name_and_by_bare_name_where_only_one_has_it(comfy_folders, load):
    root = comfy_folders.root
    make(root, "models/loras/a.safetensors", "models/loras/wan/b.safetensors", "output/loras/c.safetensors",
         "models/loras/x/twice.safetensors", "models/loras/y/twice.safetensors")
    places = load("places")
    assert places.lora_file("a.safetensors") == root / "models/loras/a.safetensors"
    assert places.lora_file("wan\\b.safetensors") == root / "models/loras/wan/b.safetensors"
    assert places.lora_file("b.safetensors") == root / "models/loras/wan/b.safetensors"
    assert places.lora_file("c.safetensors") == root / "output/loras/c.safetensors"
    for name in ("twice.safetensors", "gone.safetensors"):
        with pytest.raises(ValueError) as error:
            places.lora_file(name)
        assert name in str(error.value) and "models" in str(error.value)


@pytest.mark.parametrize("name", [
    "../../secret.safetensors", "..\\..\\secret.safetensors", "/etc/passwd", "C:/x.safetensors", "",
])
def test_loras_outside_their_folders_are_refused(comfy_folders, load, name):
    make(comfy_folders.root, "secret.safetensors")
    with pytest.raises(ValueError, match="LoRA"):
        load("places").lora_file(name)


def test_a_written_lora_has_the_name_that_comfyui_lists(comfy_folders, load):
    make(comfy_folders.root, "output/loras/mine/a.safetensors")
    name = load("places").lora_name(comfy_folders.root / "output/loras/mine/a.safetensors")
    assert name in comfy_folders.get_filename_list("loras")


def test_loras_go_to_the_first_folder_that_can_be_written(comfy_folders, load):
    places, root = load("places"), comfy_folders.root
    assert places.lora_folder() == root / "models/loras"
    (root / "models/loras").rmdir()
    (root / "models/loras").write_bytes(b"a file where the folder should be")
    assert places.lora_folder() == root / "output/loras"


def test_no_place_to_write_is_said(comfy_folders, load):
    places, root = load("places"), comfy_folders.root
    make(root, "file")
    comfy_folders.lists["loras"] = ["file/loras"]
    with pytest.raises(OSError, match="LoRA folder") as error:
        places.lora_folder()
    assert str(root / "file") in str(error.value)


def test_a_changed_file_has_another_stamp(comfy_folders, load):
    make(comfy_folders.root, "input/a.txt")
    places, path = load("places"), comfy_folders.root / "input/a.txt"
    before = places.stamp(path)
    assert before == places.stamp(path)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000_000))
    assert before != places.stamp(path)
