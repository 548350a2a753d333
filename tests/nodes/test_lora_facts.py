"""What a LoRA's header says of it, and the preview beside it."""

import json
from pathlib import Path

import pytest

from video_lora_studio.loaders.safetensors_file import Header, TensorInfo


def header(metadata: dict[str, str], ranks: dict[str, int]) -> Header:
    tensors = {name: TensorInfo(dtype="F32", shape=(rank, 8), start=0, end=0) for name, rank in ranks.items()}
    return Header(path=Path("a.safetensors"), tensors=tensors, metadata=metadata, size=1234)


@pytest.mark.parametrize(("metadata", "base", "steps", "triggers"), [
    ({"ss_base_model_version": "Wan 2.1", "ss_steps": "800", "modelspec.trigger_phrase": " zoe, walks "}, "Wan 2.1",
     800, ("zoe, walks",)),
    ({"modelspec.architecture": "ltx-2/lora"}, "ltx-2", None, ()),
    ({"training_info": '{"step": 1500, "epoch": 3}'}, "", 1500, ()),
    ({"ss_sd_model_name": "wan.safetensors", "ss_steps": "many", "ss_tag_frequency": "{"}, "wan.safetensors", None, ()),
    ({"ss_tag_frequency": json.dumps({"10_zoe": {"zoe": 10, " a hat": 4}, "20": {"a hat": 7, "sky": 1}, "x": 3})}, "",
     None, ("a hat", "zoe", "sky")),
    ({"training_info": "[1]", "ss_tag_frequency": "[" * 9000}, "", None, ()),
], ids=["ours", "modelspec", "ai_toolkit", "broken", "kohya", "of_other_kinds"])
def test_facts_of_whoever_wrote_it(load, metadata, base, steps, triggers):
    facts = load("lora_facts").lora_facts(header(metadata, {"x.lora_A.weight": 4, "x.lora_B.weight": 64}))
    assert (facts.base, facts.steps, facts.triggers) == (base, steps, triggers)
    assert (facts.rank, facts.keys, facts.bytes) == ("4", 2, 1234)


@pytest.mark.parametrize(("ranks", "told"), [
    ({"x.lora_down.weight": 16, "x.lora_up.weight": 99}, "16"),
    ({"x.lora_A.weight": 8, "y.lora_A.default.weight": 32}, "8 to 32"),
    ({"x.lokr_w1": 4}, "64"),
])
def test_rank_is_read_from_the_shapes(load, ranks, told):
    assert load("lora_facts").lora_facts(header({"ss_network_dim": "64"}, ranks)).rank == told


def test_the_preview_lies_beside_the_file(load, tmp_path):
    beside, lora = load("lora_facts").preview_beside, tmp_path / "style.v2.safetensors"
    assert beside(lora) is None
    (tmp_path / "style.png").write_bytes(b"of another")
    (tmp_path / "style.v2.txt").write_bytes(b"no picture")
    assert beside(lora) is None
    (tmp_path / "style.v2.mp4").write_bytes(b"clip")
    assert beside(lora) == tmp_path / "style.v2.mp4"
    (tmp_path / "style.v2.preview.webp").write_bytes(b"picture")
    assert beside(lora) == tmp_path / "style.v2.preview.webp"


def test_a_preview_that_leads_to_another_kind_of_file_is_none(load, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    try:
        (tmp_path / "a.png").symlink_to(tmp_path / "secret.txt")
    except OSError:
        pytest.skip("this system allows no links")
    assert load("lora_facts").preview_beside(tmp_path / "a.safetensors") is None
