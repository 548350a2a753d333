"""The command line: what the review page and the cleaning node do, without ComfyUI."""

import io
import os
import sys
import time

import pytest
import torch

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.cli import main


@pytest.fixture
def folder(tmp_path):
    for name, caption in (("one", "a cat walks"), ("two", "a category")):
        (tmp_path / f"{name}.mp4").touch()
        (tmp_path / f"{name}.txt").write_text(caption, encoding="utf-8")
    (tmp_path / "_excluded.txt").write_text("two.mp4\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "said", "one"),
    [
        (["list"], ["one.mp4: a cat walks", "two.mp4 (left out): a category"], "a cat walks"),
        (["replace", "Cat", "dog", "--whole-words"], ["one.mp4: a dog walks", "1 changed"], "a dog walks\n"),
        (["replace", "Cat", "dog", "--match-case"], ["0 changed"], "a cat walks"),
        (["insert", "zoe"], ["one.mp4: zoe, a cat walks", "two.mp4: zoe, a category", "2 changed"],
         "zoe, a cat walks\n"),
        (["remove", "cat"], ["one.mp4: a walks", "1 changed"], "a walks\n"),
    ],
    ids=["list", "replace", "case", "insert", "remove"],
)
def test_captions_are_changed_in_a_folder(folder, capsys, command, said, one):
    assert main(["captions", command[0], str(folder), *command[1:]]) == 0
    assert capsys.readouterr().out.splitlines() == said
    assert (folder / "one.txt").read_text(encoding="utf-8") == one


@pytest.mark.parametrize("command", [["captions", "list"], ["cache"]])
def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys, command):
    assert main([*command, str(tmp_path / "none")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("video-lora: ") and "none" in told and told.count("\n") == 1


def test_the_cache_is_listed_and_cleaned_only_when_asked(tmp_path, capsys):
    cache = FeatureCache(tmp_path)
    cache.store("ab" * 32, {"video": torch.zeros(9)}, {})
    os.utime(cache.path("ab" * 32), (time.time() - 2 * 86400,) * 2)
    assert main(["cache", str(tmp_path)]) == 0 and "Not needed: 1 file" in capsys.readouterr().out
    assert cache.path("ab" * 32).exists()
    assert main(["cache", str(tmp_path), "--remove"]) == 0 and "Removed: 1 file" in capsys.readouterr().out
    assert not cache.path("ab" * 32).exists()


def test_captions_are_printed_where_the_console_lacks_their_letters(folder, monkeypatch):
    (folder / "one.txt").write_text("a 場面", encoding="utf-8")
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["captions", "list", str(folder)]) == 0
    console.flush()
    assert console.buffer.getvalue().splitlines()[0] == b"one.mp4: a ??"
