"""Which file a LoRA's name means, among those that are there."""

import pytest

NAMES = ("a.safetensors", "wan\\b.safetensors", "wan/Style_HIGH_noise.safetensors", "wan/Style_LOW_noise.safetensors",
         "x/A.safetensors", "low_contrast.safetensors", "high_contrast.safetensors", "Rain_HIGH_fp16.safetensors",
         "Rain_LOW_fp16.safetensors", "HighNoise/snow.safetensors", "LowNoise/snow.safetensors",
         "fog-HN-v2.safetensors", "fog-LN-v2.safetensors", "lone_high_noise.safetensors", "dim_high.safetensors",
         "dim_low.safetensors")


@pytest.mark.parametrize(("name", "found"), [
    ("a.safetensors", "a.safetensors"),
    ("wan/b.safetensors", "wan\\b.safetensors"),
    ("wan\\Style_HIGH_noise.safetensors", "wan/Style_HIGH_noise.safetensors"),
    ("b.safetensors", None),
    ("A.safetensors", None),
    ("../a.safetensors", None),
])
def test_a_name_is_listed_with_whichever_slashes(load, name, found):
    assert load("lora_names").listed(name, NAMES) == found


@pytest.mark.parametrize(("name", "found"), [
    ("gone/b.safetensors", ["wan\\b.safetensors"]),
    ("a.safetensors", ["a.safetensors", "x/A.safetensors"]),
    ("other\\A.SAFETENSORS", ["a.safetensors", "x/A.safetensors"]),
    ("c.safetensors", []),
])
def test_files_of_the_same_name_elsewhere(load, name, found):
    assert load("lora_names").elsewhere(name, NAMES) == found


@pytest.mark.parametrize(("name", "low"), [
    ("wan/Style_HIGH_noise.safetensors", "wan/Style_LOW_noise.safetensors"),
    ("wan\\Style_HIGH_noise.safetensors", "wan/Style_LOW_noise.safetensors"),
    ("Rain_HIGH_fp16.safetensors", "Rain_LOW_fp16.safetensors"),
    ("HighNoise/snow.safetensors", "LowNoise/snow.safetensors"),
    ("fog-HN-v2.safetensors", "fog-LN-v2.safetensors"),
    ("dim_high.safetensors", "dim_low.safetensors"),
    ("lone_high_noise.safetensors", None),
    ("high_contrast.safetensors", None),
    ("wan/Style_LOW_noise.safetensors", None),
    ("a.safetensors", None),
])
def test_pairs_are_found_by_name(load, name, low):
    assert load("lora_names").low_noise_name(name, NAMES) == low
