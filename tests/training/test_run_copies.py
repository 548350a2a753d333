"""The copies of a LoRA that a real run keeps are found by the LoRA's file alone."""

import shutil

import pytest
import torch

from video_lora_studio.training import Places, RecipeConfig, RunConfig, kept_copies, train


@pytest.fixture
def trained(tmp_path, base, training_set):
    """Train a LoRA of a name; its file."""
    def go(name="mine", steps=5, save_every=2, seed=0):
        config = RunConfig(name=name, steps=steps, rank=4, seed=seed, recipe=RecipeConfig(save_every=save_every))
        places = Places(lora_folder=tmp_path / "loras", run_folder=tmp_path / "runs" / name)
        return train(training_set, base, config, places=places, device=torch.device("cpu")).lora_files[0]

    return go


def found(tmp_path, file):
    return [(copy.steps, copy.path.name) for copy in kept_copies(file, lambda name: tmp_path / "runs" / name)]


def test_copies_of_a_run_oldest_first_and_the_lora_last(tmp_path, trained):
    file = trained()
    copies = [(2, "step-000002.safetensors"), (4, "step-000004.safetensors")]
    assert found(tmp_path, file) == [*copies, (5, "mine.safetensors")]
    renamed = file.with_name("another name.safetensors")
    file.rename(renamed)
    assert found(tmp_path, renamed) == [*copies, (5, renamed.name)]
    shutil.rmtree(tmp_path / "runs")
    assert found(tmp_path, renamed) == [(5, renamed.name)]


def test_copies_of_another_run_of_the_name_are_not_those_of_this_one(tmp_path, trained):
    trained(steps=6)
    again = trained(steps=3, save_every=1, seed=1)
    assert found(tmp_path, again) == [(1, "step-000001.safetensors"), (2, "step-000002.safetensors"),
                                      (3, "mine.safetensors")]
