"""Which folders are offered as captioners."""

import json

import pytest


@pytest.fixture
def places(load, comfy_folders):
    comfy_folders.lists["LLM"] = ["models/LLM", "elsewhere/llm"]
    return load("places")


def put_model(folders, where, config='{"vision_config": {}}', weights="model.safetensors"):
    folder = folders.root / where
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / weights).write_bytes(b"weights")
    return folder


def test_vision_language_models_are_offered_wherever_packs_keep_them(places, comfy_folders):
    kept = {
        "LLM/Qwen3-VL-4B": put_model(comfy_folders, "models/LLM/Qwen3-VL-4B"),
        "LLM/Qwen-VL/Qwen2.5-VL-7B": put_model(comfy_folders, "models/LLM/Qwen-VL/Qwen2.5-VL-7B"),
        "LLM/Omni": put_model(comfy_folders, "elsewhere/llm/Omni", json.dumps({"thinker_config": {}})),
        "VLM/made by me": put_model(comfy_folders, "models/VLM/made by me"),
        "prompt_generator/Qwen3-VL-8B": put_model(comfy_folders, "models/prompt_generator/Qwen3-VL-8B"),
    }
    put_model(comfy_folders, "models/text_encoders/umt5", '{"model_type": "umt5"}')
    put_model(comfy_folders, "models/LLM/pickled", weights="pytorch_model.bin")
    put_model(comfy_folders, "models/LLM/.hidden")
    put_model(comfy_folders, "models/LLM/broken", "{")
    put_model(comfy_folders, "models/LLM/a/b/c/too_deep")
    assert sorted(places.captioner_folders()) == sorted(kept)
    for name, folder in kept.items():
        assert places.captioner_folder(name) == folder


@pytest.mark.parametrize(("name", "words"), [
    ("LLM/../../input", "must not hold"), ("/etc", "without a drive or leading slash"),
    ("C:\\models", "without a drive"), ("", "is empty"), ("LLM", "holds no vision language model"),
    ("LLM/none", "holds no vision language model"), ("loras/Qwen", "models/LLM"),
])
def test_other_names_are_refused(places, comfy_folders, name, words):
    put_model(comfy_folders, "models/loras/Qwen")
    with pytest.raises(ValueError) as error:
        places.captioner_folder(name)
    assert words in str(error.value).replace("\\", "/")
