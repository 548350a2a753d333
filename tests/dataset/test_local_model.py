"""Captions by a model in a folder: tiny models of real classes, loaded as transformers loads the large ones."""

import importlib.util
import json
import shutil

import pytest
import torch
from tiny_captioners import MODELS, write_captioner, write_config

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.dataset.captioners.captioner import Shown
from video_lora_studio.training.dataset.captioners.local_model import LocalModel

CPU = torch.device("cpu")
CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
}
loads = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None,
                           reason="transformers' video processors need torchvision; ComfyUI has it, and "
                                  "tests/comfy runs this file there")
every = pytest.mark.parametrize("kind", MODELS)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a tiny model of a kind, written once."""
    root, written = tmp_path_factory.mktemp("LLM"), {}

    def folder(kind):
        if kind not in written:
            written[kind] = write_captioner(root / kind, kind)
        return written[kind]

    return folder


def frames(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 64, 96, 3), generator=generator, dtype=torch.uint8)


def shown(**changes):
    return Shown(**{"frames": frames(), "fps": 2.5, "instruction": "What happens?", "max_tokens": 24, **changes})


@pytest.fixture
def asked(monkeypatch):
    """What reaches `generate` of each model, in order."""
    import transformers

    seen = []
    for name in CLASSES.values():
        plain = getattr(transformers, name).generate

        def generate(model, *args, plain=plain, **inputs):
            seen.append(inputs)
            return plain(model, *args, **inputs)

        monkeypatch.setattr(getattr(transformers, name), "generate", generate)
    return seen


def prompt_of(folder, inputs):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(str(folder)).decode(inputs["input_ids"][0])


@loads
@every
def test_a_caption_follows_from_frames_their_times_the_question_and_the_seed(folder_of, kind):
    model = LocalModel(folder_of(kind), device=CPU)
    text = model.caption(shown())
    assert text and text == model.caption(shown())
    changes = [{"seed": 1}, {"frames": frames(seed=1)}, {"frames": frames().flip(0)}, {"fps": 25.0},
               {"instruction": "Who is there?"}, {"frames": frames(1), "fps": 0.0}]
    others = [model.caption(shown(**change)) for change in changes]
    assert text not in others and len(set(others)) == len(others)


@loads
@every
def test_every_frame_and_its_true_time_reach_the_model(folder_of, asked, kind):
    folder = folder_of(kind)
    LocalModel(folder, device=CPU).caption(shown())
    LocalModel(folder, device=CPU).caption(shown(fps=5.0))
    inputs = asked[0]
    assert inputs["video_grid_thw"][0, 0] == 3, "five frames go in by twos"
    assert inputs["pixel_values_videos"].shape[0] == inputs["video_grid_thw"].prod()
    prompt = prompt_of(folder, inputs)
    mark = "<|VIDEO|>" if kind == "qwen2_5_omni" else "<|video_pad|>"
    assert prompt.count(mark) == inputs["video_grid_thw"].prod() // 4
    assert "What happens?" in prompt and "images" not in prompt
    if kind == "qwen3_vl":
        assert ["<0.2 seconds>" in prompt, "<1.0 seconds>" in prompt, "<1.6 seconds>" in prompt] == [True] * 3
        assert "<0.5 seconds>" in prompt_of(folder, asked[1])
    else:
        name = "video_second_per_grid" if kind == "qwen2_5_omni" else "second_per_grid_ts"
        assert [float(each[name][0]) for each in asked] == [pytest.approx(0.8, abs=1e-6), pytest.approx(0.4, abs=1e-6)]


@loads
@every
def test_an_image_is_asked_about_as_an_image(folder_of, asked, kind):
    LocalModel(folder_of(kind), device=CPU).caption(shown(frames=frames(1), fps=0.0))
    assert "pixel_values" in asked[0] and "pixel_values_videos" not in asked[0]


@loads
def test_sound_is_heard_by_a_model_that_hears(folder_of, asked):
    model = LocalModel(folder_of("qwen2_5_omni"), device=CPU)
    assert model.hears and not LocalModel(folder_of("qwen3_vl"), device=CPU).hears
    tone = torch.sin(torch.arange(32000) / 8).expand(2, -1)
    texts = [model.caption(shown(sound=sound)) for sound in (None, tone, torch.rand(2, 32000) - 0.5)]
    assert len(set(texts)) == 3
    assert "input_features" not in asked[0]
    assert prompt_of(folder_of("qwen2_5_omni"), asked[1]).count("<|AUDIO|>") == 50, "25 tokens for each second"


@loads
def test_it_loads_at_the_first_caption_and_again_after_closing(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("qwen3_vl"), tmp_path / "Some-VL")
    model = LocalModel(folder, device=CPU)
    assert model.title == "Some-VL, on this machine"
    assert "16 bits on cpu" in model.before(3, shown())
    text = model.caption(shown())
    hidden = folder.rename(tmp_path / "away")
    assert model.caption(shown()) == text, "nothing is read again while it is loaded"
    model.close()
    hidden.rename(folder)
    assert model.caption(shown()) == text


@loads
def test_it_can_be_stopped_at_every_token(folder_of):
    calls = []

    def check():
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError("stopped")

    model = LocalModel(folder_of("qwen3_vl"), device=CPU, check=check)
    with pytest.raises(InterruptedError):
        model.caption(shown())
    assert len(calls) == 3 and model.caption(shown())


@loads
def test_other_random_numbers_stay_as_they_were(folder_of):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    LocalModel(folder_of("qwen3_vl"), device=CPU).caption(shown())
    assert torch.equal(torch.rand(4), wanted)


@loads
def test_code_in_a_folder_is_not_run(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("qwen3_vl"), tmp_path / "with_code")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own_code.Own", "AutoModelForImageTextToText": "own_code.Own"}
    write_config(folder, **config, auto_map=own)
    (folder / "own_code.py").write_text("raise SystemExit('this code was run')")
    plain = LocalModel(folder_of("qwen3_vl"), device=CPU)
    assert LocalModel(folder, device=CPU).caption(shown()) == plain.caption(shown())


VISION = {"model_type": "qwen3_vl", "vision_config": {}}


def without_config(folder):
    folder.mkdir()


def broken_config(folder):
    write_config(folder)
    (folder / "config.json").write_text('{"model_type": ')


def text_model(folder):
    write_config(folder, model_type="llama")


def pickled_weights(folder):
    write_config(folder, **VISION)
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def one_file(folder, **config):
    write_config(folder, **{**VISION, **config})
    write_tensors(folder / "model-00001-of-00002.safetensors", {"weight": torch.ones(64, 64)}, {})


def shard_missing(folder):
    one_file(folder)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def half_downloaded(folder):
    one_file(folder)
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def unknown_kind(folder):
    one_file(folder, model_type="own_vl", auto_map={"AutoConfig": "own_code.Own"})


def quantised(folder):
    one_file(folder, quantization_config={"quant_method": "fp8"})


@pytest.mark.parametrize(("make", "bits", "words"), [
    (without_config, 16, ("no config.json", "transformers")),
    (broken_config, 16, ("config.json", "cannot be read")),
    (text_model, 16, ("not a model that looks at pictures",)),
    (pickled_weights, 16, ("no safetensors", "pytorch_model.bin")),
    (shard_missing, 16, ("lacks model-00002-of-00002.safetensors", "1 of 2")),
    (half_downloaded, 16, ("model-00001-of-00002.safetensors",)),
    (unknown_kind, 16, ("'own_vl'", "does not know", "not run")),
    (one_file, 5, ("bits is 5", "16, 8 or 4")),
    (quantised, 4, ("quantised already", "16 bits")),
    pytest.param(one_file, 4, ("bitsandbytes", "pip install"), marks=pytest.mark.skipif(
        importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")),
])
def test_what_is_wrong_is_said_before_the_first_caption(tmp_path, make, bits, words):
    make(tmp_path / "model")
    with pytest.raises(ValueError) as error:
        LocalModel(tmp_path / "model", bits=bits, device=CPU).before(3, shown())
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_memory_is_given_back_on_every_kind_of_device(tmp_path, monkeypatch, kind):
    freed = []
    monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda: freed.append(kind))
    folder = write_config(tmp_path / "model", model_type="qwen3_vl", vision_config={})
    LocalModel(folder, device=torch.device(kind)).close()
    assert freed == [kind]


def test_an_old_transformers_is_named(tmp_path, monkeypatch):
    import transformers

    one_file(tmp_path / "model")
    monkeypatch.setattr(transformers, "__version__", "4.50.3")
    with pytest.raises(ValueError, match=r"4\.57 or newer, and this is 4\.50\.3"):
        LocalModel(tmp_path / "model", device=CPU).before(3, shown())


@loads
def test_what_transformers_refuses_is_one_sentence(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("qwen3_vl"), tmp_path / "no_tokens")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="cannot load no_tokens") as error:
        LocalModel(folder, device=CPU).caption(shown())
    assert "\n" not in str(error.value)
