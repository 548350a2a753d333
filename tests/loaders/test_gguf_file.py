"""GGUF files: headers, damage, and every form of packed numbers against the format's own library."""

import struct

import pytest
import torch
from few_bits import STORED, write_in_few_bits
from tiny import write_twin

from video_lora_studio.loaders.gguf_blocks import GGUF_BLOCKS
from video_lora_studio.loaders.low_bits import dequantise
from video_lora_studio.loaders.low_bits_linear import LowBitsLinear
from video_lora_studio.loaders.module_weights import Storage
from video_lora_studio.loaders.quantised_weights import read_weight, stored_as
from video_lora_studio.loaders.safetensors_file import TensorReader, identity, read_header
from video_lora_studio.training.families import file_tensors, open_base_model

gguf = pytest.importorskip("gguf")


def written(path, tensors, metadata=None, shapes=None):
    """`tensors`: name to (array, type)."""
    writer = gguf.GGUFWriter(path, "wan")
    for name, text in (metadata or {}).items():
        writer.add_string(name, text)
    writer.add_array("some.list", ["a", "b"])
    writer.add_bool("some.flag", True)
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed(form, rows=8, blocks=3):
    """Random blocks whose half-precision factors are ordinary numbers."""
    _, stored, _ = GGUF_BLOCKS[form]
    generator = torch.Generator().manual_seed(stored)
    raw = torch.randint(0, 256, (rows * blocks, stored), dtype=torch.uint8, generator=generator)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(form, (0, 2) if form[-1] in "1K" else (0,))
    for place in halves:
        factor = torch.rand(len(raw), generator=generator).half()[:, None]
        raw[:, place:place + 2] = factor.view(torch.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("form", GGUF_BLOCKS)
def test_numbers_are_those_of_the_formats_own_library(form):
    raw = packed(form)
    want = torch.from_numpy(gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[form]).copy())
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]] == GGUF_BLOCKS[form][:2]
    assert want.isfinite().all() and want.std() > 0.1
    got = dequantise(form, raw, None, tuple(want.shape), torch.float32)
    assert torch.equal(got, want)
    assert torch.equal(dequantise(form, raw, None, tuple(want.shape), torch.bfloat16), want.bfloat16())


def test_a_header_is_read_with_shapes_as_pytorch_has_them(tmp_path):
    plain = torch.arange(24, dtype=torch.float32).reshape(2, 12)
    half, brain = torch.ones(5, dtype=torch.float16), torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    path = written(tmp_path / "x.gguf", {
        "a.weight": (packed("Q4_K").numpy(), "Q4_K"), "patch.weight": (plain.numpy(), "F32"),
        "a.bias": (half.numpy(), "F16"), "b.weight": (brain.view(torch.uint8).numpy(), "BF16"),
    }, {"config": "{}"}, {"patch.weight": [2, 3, 1, 2, 2]})
    header = read_header(path)
    assert header.metadata["config"] == "{}" and header.metadata["general.architecture"] == "wan"
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "a.weight": ("Q4_K", (8, 768)), "patch.weight": ("F32", (2, 3, 1, 2, 2)), "a.bias": ("F16", (5,)),
        "b.weight": ("BF16", (2, 3)),
    }
    assert stored_as(header, "") == "GGUF Q4_K"
    with TensorReader(header) as reader:
        assert torch.equal(read_weight(reader, "patch.weight"), plain.reshape(2, 3, 1, 2, 2))
        assert torch.equal(read_weight(reader, "a.bias"), half) and torch.equal(read_weight(reader, "b.weight"), brain)
        assert torch.equal(read_weight(reader, "a.weight"),
                           dequantise("Q4_K", packed("Q4_K"), None, (8, 768), torch.float32))


def test_other_weights_have_another_identity(tmp_path):
    raw = packed("Q8_0", rows=4096, blocks=150).numpy()
    one = identity(read_header(written(tmp_path / "one.gguf", {"a.weight": (raw, "Q8_0")})))
    again = identity(read_header(written(tmp_path / "again.gguf", {"a.weight": (raw, "Q8_0")})))
    raw = raw.copy()
    raw[-1, -1] ^= 1
    other = identity(read_header(written(tmp_path / "other.gguf", {"a.weight": (raw, "Q8_0")})))
    assert one == again != other


def test_a_form_that_cannot_be_read_is_named(tmp_path):
    raw = torch.zeros(8, 98, dtype=torch.uint8).numpy()
    header = read_header(written(tmp_path / "x.gguf", {"a.weight": (raw, "IQ3_XXS")}))
    with pytest.raises(ValueError, match="^x.gguf is stored as IQ3_XXS, which cannot be trained on so far"):
        stored_as(header, "")


def header_bytes(version=3, tensors=1, entries=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


NAME = struct.pack("<Q", 1) + b"a"

BAD_FILES = {
    "cut at once": (b"GGUF\3", "has a broken header"),
    "version 1": (header_bytes(version=1), "is a GGUF file of version 1, which is not known"),
    "no tensor": (header_bytes(), "has a broken header"),
    "endless name": (header_bytes(rest=struct.pack("<Q", 2**60)), "has a broken header"),
    "not text": (header_bytes(rest=struct.pack("<Q", 1) + b"\xff"), "has a broken header"),
    "too many dimensions": (header_bytes(rest=NAME + struct.pack("<I", 2**31)), "has a broken header"),
    "unknown value": (header_bytes(tensors=0, entries=1, rest=NAME + struct.pack("<I", 99)), "has a broken header"),
    "endless list": (header_bytes(tensors=0, entries=1, rest=NAME + struct.pack("<IIQ", 9, 9, 2**60)),
                     "has a broken header"),
    "rows that fit no block": (header_bytes(rest=NAME + struct.pack("<IQIQ", 1, 33, 8, 0)), "has a broken header"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_one_plain_sentence(tmp_path, case):
    content, sentence = BAD_FILES[case]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_header(tmp_path / "bad.gguf")
    message = str(caught.value)
    assert message.startswith("bad.gguf ") and sentence in message and message.endswith(".") and "\n" not in message


def test_a_half_download_says_how_much_is_there(tmp_path):
    path = written(tmp_path / "x.gguf", {"a.weight": (packed("Q8_0", rows=40000).numpy(), "Q8_0")})
    path.write_bytes(path.read_bytes()[:2_000_000])
    with pytest.raises(ValueError, match=r"^x.gguf is incomplete: 2.0 of 4.1 MB are there; download it again.$"):
        read_header(path)


@pytest.mark.parametrize("stored", STORED)
def test_a_model_in_few_bits_is_recognised_and_holds_its_numbers(tmp_path, stored):
    write_twin(tmp_path / "x.safetensors", prefix="" if "GGUF" in stored else "model.diffusion_model.")
    numbers = write_in_few_bits(tmp_path / "x.safetensors", tmp_path / "few.file", stored)
    base, cpu = open_base_model(tmp_path / "few.file"), torch.device("cpu")
    assert base.stored_as in (stored, "GGUF Q8_0")
    bytes_kept = []
    for weights in ("as stored", "full"):
        storage = Storage(weights=weights)
        transformer = base.family.load_transformer(base, dtype=torch.float32, device=cpu, storage=storage)
        got = file_tensors(base.family, transformer)
        assert all(torch.equal(tensor, numbers[base.key_prefix + name]) for name, tensor in got.items())
        assert any(isinstance(layer, LowBitsLinear) for layer in transformer.modules()) == (weights == "as stored")
        bytes_kept.append(sum(t.numel() * t.element_size() for t in transformer.blocks.state_dict().values()))
    assert bytes_kept[0] < 0.3 * bytes_kept[1]
