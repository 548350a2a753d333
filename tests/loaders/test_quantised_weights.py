"""How weights are stored, and reading them as numbers."""

import json

import pytest
import torch

from video_lora_studio.loaders.quantised_weights import read_weight, stored_as, weight_names
from video_lora_studio.loaders.safetensors_file import TensorReader, read_header, write_tensors

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def written(tmp_path, tensors, metadata=None):
    write_tensors(tmp_path / "x.safetensors", tensors, metadata or {})
    return read_header(tmp_path / "x.safetensors")


def mark(format, **more):
    return torch.tensor(list(json.dumps({"format": format, **more}).encode()), dtype=torch.uint8)


def weight(dtype, rows=64):
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("tensors, name", [
    ({"p.a.weight": weight(torch.bfloat16)}, "bf16"),
    ({"p.a.weight": weight(torch.float16)}, "fp16"),
    ({"p.a.weight": weight(torch.float32)}, "fp32"),
    ({"p.a.weight": weight(torch.bfloat16), "p.norm.weight": torch.ones(32)}, "bf16"),
    ({"p.a.weight": weight(E4M3), "p.a.bias": torch.ones(32)}, "fp8"),
    ({"p.a.weight": weight(E5M2)}, "fp8"),
    ({"p.a.weight": weight(E4M3), "p.a.scale_weight": torch.ones(1), "p.scaled_fp8": torch.zeros(0, dtype=E4M3)},
     "fp8 scaled"),
    ({"p.a.weight": weight(E4M3), "p.a.weight_scale": torch.tensor(1.0), "p.a.comfy_quant": mark("float8_e4m3fn")},
     "fp8 scaled"),
    ({"p.a.weight": weight(torch.int8), "p.a.weight_scale": torch.tensor(1.0)}, "int8"),
    ({"p.a.weight": weight(torch.int8), "p.a.weight_scale": torch.ones(64, 1), "p.a.bias": torch.ones(32),
      "p.a.comfy_quant": mark("int8_tensorwise")}, "int8"),
    ({"p.a.weight": weight(torch.bfloat16), "vae.a.weight": weight(torch.int8, 999)}, "bf16"),
])
def test_the_way_weights_are_stored_is_named(tmp_path, tensors, name):
    header = written(tmp_path, tensors)
    assert stored_as(header, "p.") == name
    assert set(weight_names(header, "p.")) == set(tensors) & {"p.a.weight", "p.a.bias", "p.norm.weight"}


@pytest.mark.parametrize("tensors, format", [
    ({"a.weight": weight(torch.int8)}, "int8 without scales"),
    ({"a.weight": weight(torch.int8), "a.weight_scale": torch.ones(64, 1), "a.comfy_quant": mark("asym_w4a8_int8")},
     "asym_w4a8_int8"),
    ({"a.weight": weight(torch.uint8), "a.weight_scale": torch.ones(64, 2).to(E4M3),
      "a.weight_scale_2": torch.ones(1), "a.comfy_quant": mark("nvfp4")}, "nvfp4"),
    ({"a.weight": weight(torch.uint8), "a.weight_scale": torch.ones(64, 2).to(E4M3),
      "a.weight_scale_2": torch.ones(1)}, "nvfp4"),
    ({"a.weight": weight(E4M3), "a.weight_scale": torch.ones(64, 1, dtype=torch.uint8)}, "mxfp8"),
    ({"a.weight": weight(E4M3), "a.weight_scale": torch.ones(64), "a.comfy_quant": mark("convrot_w4a4")},
     "convrot_w4a4"),
    ({"a.weight": weight(torch.uint8), "a.weight.absmax": torch.ones(64)}, "4-bit"),
])
def test_a_form_that_cannot_be_read_is_named(tmp_path, tensors, format):
    header = written(tmp_path, tensors)
    with pytest.raises(ValueError, match=f"^x.safetensors is stored as .*{format}.*, which cannot be trained on"):
        stored_as(header, "")


@pytest.mark.parametrize("metadata", [{"_quantization_metadata": "{"}, {"_quantization_metadata": '{"layers": [1]}'}])
def test_a_header_that_names_its_format_badly_gets_a_plain_sentence(tmp_path, metadata):
    header = written(tmp_path, {"a.weight": weight(E4M3)}, metadata)
    with pytest.raises(ValueError, match="^x.safetensors does not say clearly how it is quantised"):
        stored_as(header, "")


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.rand(64), torch.rand(64, 1),
                                   torch.tensor([0.5], dtype=torch.bfloat16)])
def test_a_scaled_weight_is_multiplied_by_its_scale_in_float32(tmp_path, ending, scale):
    header = written(tmp_path, {"a.weight": weight(E4M3), f"a.{ending}": scale})
    with TensorReader(header) as reader:
        got = read_weight(reader, "a.weight")
    want = weight(E4M3).float() * scale.float().reshape(-1, 1)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_a_plain_weight_is_read_as_it_is_stored(tmp_path):
    header = written(tmp_path, {"a.weight": weight(E5M2), "a.bias": torch.ones(3), "b.scale_weight": torch.ones(1)})
    with TensorReader(header) as reader:
        assert torch.equal(read_weight(reader, "a.weight").float(), weight(E5M2).float())
        assert read_weight(reader, "a.bias").dtype == torch.float32


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.rand(64, 1)])
def test_int8_is_multiplied_by_its_scale(tmp_path, scale):
    header = written(tmp_path, {"a.weight": weight(torch.int8), "a.weight_scale": scale})
    with TensorReader(header) as reader:
        got = read_weight(reader, "a.weight")
    assert torch.equal(got, weight(torch.int8).float() * scale.reshape(-1, 1))


ROTATED = {"convrot": True, "convrot_groupsize": 16}


@pytest.mark.parametrize("marks, metadata", [
    ({"a.comfy_quant": mark("int8_tensorwise", **ROTATED)}, {}),
    ({"a.comfy_quant": mark("int8_tensorwise", params=ROTATED)}, {}),
    ({}, {"_quantization_metadata": json.dumps({"layers": {"a": {"format": "int8_tensorwise", **ROTATED}}})}),
])
def test_rotated_int8_is_turned_back(tmp_path, marks, metadata):
    exact = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1.0]])
    rotated = (exact.reshape(64, 2, 16) @ (torch.kron(four, four) / 4).T).reshape(64, 32)
    scale = rotated.abs().amax(1, keepdim=True) / 127
    tensors = {"a.weight": (rotated / scale).round().to(torch.int8), "a.weight_scale": scale, **marks}
    header = written(tmp_path, tensors, metadata)
    assert stored_as(header, "") == "int8"
    with TensorReader(header) as reader:
        got = read_weight(reader, "a.weight")
    assert ((got - exact).norm() / exact.norm()).item() < 0.01
    torch.testing.assert_close((got.reshape(64, 2, 16) @ (torch.kron(four, four) / 4).T).reshape(64, 32),
                               tensors["a.weight"].float() * scale)


def test_an_impossible_rotation_is_refused(tmp_path):
    header = written(tmp_path, {"a.weight": weight(torch.int8), "a.weight_scale": torch.ones(1),
                                "a.comfy_quant": mark("int8_tensorwise", convrot=True, convrot_groupsize=8)})
    with TensorReader(header) as reader, pytest.raises(ValueError, match="cannot be rotated in groups of 8 columns"):
        read_weight(reader, "a.weight")
