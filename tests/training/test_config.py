import math

import pytest

from video_lora_studio.training.config import AdapterConfig, CutConfig, RecipeConfig, RunConfig, limits_of


@pytest.mark.parametrize(
    ("config", "setting", "value", "said"),
    [
        (RunConfig, "steps", 0, "Steps is 0"),
        (RunConfig, "steps", 1.5, "Steps must be a whole number"),
        (RunConfig, "rank", -4, "Rank is -4"),
        (RunConfig, "rank", True, "Rank must be a whole number"),
        (RunConfig, "learning_rate", math.nan, "Learning rate must be a number"),
        (RunConfig, "learning_rate", math.inf, "Learning rate must be a number"),
        (RunConfig, "learning_rate", 0.0, "Learning rate is 0.0"),
        (RunConfig, "seed", -1, "Seed is -1"),
        (AdapterConfig, "alpha", -1.0, "Alpha is -1.0"),
        (AdapterConfig, "dropout", 1.0, "Dropout is 1.0"),
        (AdapterConfig, "save_as", "fp8", "Save as is 'fp8'; choose one of: bf16, fp16, fp32"),
        (RecipeConfig, "batch_size", 0, "Batch size is 0"),
        (RecipeConfig, "schedule", "wobbly", "Schedule is 'wobbly'"),
        (RecipeConfig, "logit_std", 0.0, "Logit width is 0.0"),
        (RecipeConfig, "caption_dropout", 1.5, "Caption dropout is 1.5"),
        (RecipeConfig, "caption_shuffle", "words", "Caption shuffle is 'words'; choose one of: off, sentences, tags"),
        (CutConfig, "fit", "stretch", "Fit is 'stretch'"),
        (CutConfig, "window_step", 0.0, "Window step is 0.0"),
    ],
)
def test_a_setting_outside_its_limits_is_refused_by_its_label(config, setting, value, said):
    with pytest.raises(ValueError) as error:
        config(**{setting: value})
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["my_style", "Köln 2", "a-b.c+d (1)", "7", "映画"])
def test_names_that_can_be_files_are_taken(name):
    assert RunConfig(name=name).name == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "a\\b", "..", "a..b", "../a", ".hidden", "_features", "con", "NUL.txt", "a\0b", "a:b", "a ", "a.",
     "x" * 101, "a\nb", "C:x", None, 3],
)
def test_names_that_cannot_be_files_are_refused(name):
    with pytest.raises(ValueError, match="Name"):
        RunConfig(name=name)


def test_every_setting_has_a_label_and_help():
    for config in (RunConfig, AdapterConfig, CutConfig, RecipeConfig):
        for name, field in config.__dataclass_fields__.items():
            if field.metadata:
                assert limits_of(config, name).label and len(limits_of(config, name).help) > 20


def test_alpha_nought_means_the_same_as_rank():
    assert AdapterConfig().scale(16) == 1.0
    assert AdapterConfig(alpha=8.0).scale(16) == 0.5
