"""Headers, single tensors, bad files in one sentence each, and writing whole or not at all."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from video_lora_studio.loaders.safetensors_file import (
    DTYPES,
    TensorReader,
    identity,
    read_header,
    read_tensors,
    write_tensors,
)


def with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def one_tensor(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_tensor_is_read_as_the_library_reads_it(tmp_path, dtype):
    raw = torch.randint(0, 2, (3, 4, DTYPES[dtype].itemsize), dtype=torch.uint8)
    tensor = raw.view(DTYPES[dtype]).reshape(3, 4)
    write_tensors(tmp_path / "x.safetensors", {"x": tensor, "scalar": tensor[0, 0], "none": tensor[:0]}, {})
    header = read_header(tmp_path / "x.safetensors")
    with TensorReader(header) as reader:
        got = {name: reader.read(name) for name in header.tensors}
    assert header.tensors["x"].dtype == dtype
    assert header.tensors["x"].shape == (3, 4)
    assert got["x"].dtype == DTYPES[dtype] and got["scalar"].shape == () and got["none"].shape == (0, 4)
    assert torch.equal(got["x"].view(torch.uint8), tensor.contiguous().view(torch.uint8))
    if dtype != "F8_E8M0":
        want = load_file(tmp_path / "x.safetensors")
        assert torch.equal(got["x"].view(torch.uint8), want["x"].view(torch.uint8))


def test_a_file_written_by_the_library_is_read(tmp_path):
    tensors = {"a.weight": torch.randn(5, 3), "b": torch.arange(4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    got, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert got.keys() == tensors.keys() and all(torch.equal(got[name], tensors[name]) for name in tensors)


def test_a_read_tensor_keeps_its_values_after_the_file_is_gone(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(1000)}, {})
    got, _ = read_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert got["x"].sum() == 1000


WHOLE = with_header(one_tensor(), bytes(8))

BAD_FILES = {
    "empty": (b"", "bad.safetensors is empty (0 bytes): download it again."),
    "zip pickle": (b"PK\x03\x04" + bytes(99), "is a PyTorch pickle, which can run code"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=2) + bytes(99), "is a PyTorch pickle"),
    "gguf": (b"GGUF" + bytes(99), "is a GGUF file of version 0, which is not known"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "zeros": (bytes(4096), "holds only zeros where its header should be"),
    "text": (b"Not found: this is a longer text", "is not a safetensors file"),
    "few bytes": (b"\x10", "is not a safetensors file"),
    "cut in header": (WHOLE[:20], "is incomplete: it ends within its header"),
    "cut in body": (WHOLE[:-3], f"is incomplete: {len(WHOLE) - 3} of {len(WHOLE)} bytes are there"),
    "too long": (WHOLE + b"1234", "is 4 bytes longer than its header says"),
    "no json": (with_header(b"{broken!"), "has a broken header"),
    "not utf-8": (with_header(b'{"\xff": 1}'), "has a broken header"),
    "header too long": (struct.pack("<Q", 10**12) + b"{" + bytes(99), "is not a safetensors file"),
    "a value for a tensor": (with_header({"x": 3}), "has a broken header"),
    "wrong length": (with_header(one_tensor(shape=[3]), bytes(8)), "has a broken header"),
    "negative": (with_header(one_tensor(data_offsets=[-8, 0]), bytes(8)), "has a broken header"),
    "gap": (with_header(one_tensor(data_offsets=[8, 16]), bytes(16)), "has a broken header"),
    "fraction": (with_header(one_tensor(data_offsets=[0.0, 8.0]), bytes(8)), "has a broken header"),
    "metadata not text": (with_header({"__metadata__": {"a": 1}}), "has a broken header"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_one_plain_sentence(tmp_path, case):
    content, sentence = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith("bad.safetensors ") and sentence in message
    assert message.endswith(".") and "\n" not in message and len(message) < 200


def test_a_half_download_says_how_much_is_there(tmp_path):
    entry = {"dtype": "BF16", "shape": [1_400_000_000], "data_offsets": [0, 2_800_000_000]}
    path = tmp_path / "wan.safetensors"
    path.write_bytes(with_header({"x": entry}))
    os.truncate(path, 1_200_000_000)
    with pytest.raises(ValueError, match="^wan.safetensors is incomplete: 1.2 of 2.8 GB are there; download it again"):
        read_header(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.safetensors was not found in "):
        read_header(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="is a folder, not a weights file"):
        read_header(tmp_path)


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path):
    text = json.dumps(one_tensor()).encode().ljust(0x0280)
    (tmp_path / "x.safetensors").write_bytes(with_header(text, bytes(8)))
    assert read_header(tmp_path / "x.safetensors").tensors["x"].shape == (2,)


def test_a_data_type_that_torch_lacks_is_named_when_it_is_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(with_header(one_tensor(dtype="F6_E2M3"), bytes(8)))
    header = read_header(tmp_path / "x.safetensors")
    with TensorReader(header) as reader, pytest.raises(ValueError, match="stores x as F6_E2M3"):
        reader.read("x")


@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_identity_stays_for_the_same_file_and_changes_with_its_weights(tmp_path, size):
    path = tmp_path / "x.safetensors"
    tensor = torch.zeros(size // 4)
    seen = []
    for value in (0, 0, 1):
        write_tensors(path, {"x": tensor + value}, {})
        seen.append(identity(read_header(path)))
    write_tensors(path, {"x": tensor}, {"a": "b"})
    seen.append(identity(read_header(path)))
    assert seen[0] == seen[1] and len(set(seen)) == 3


def test_written_tensors_may_share_memory_and_be_views(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "turned": whole.T, "row": whole[1], "again": whole, "learnt": torch.nn.Parameter(whole)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"a": "b"})
    got, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"a": "b"}
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path):
    tensors = {"b": torch.ones(3, dtype=torch.bool), "a": torch.ones(2).bfloat16(), "c": torch.ones(5).double()}
    metadata = {"z": "1", "a": "é\n\"{", "m": ""}
    files = []
    for turn in (list, lambda items: list(items)[::-1]):
        write_tensors(tmp_path / "x.safetensors", dict(turn(tensors.items())), dict(turn(metadata.items())))
        files.append((tmp_path / "x.safetensors").read_bytes())
    assert files[0] == files[1] and read_tensors(tmp_path / "x.safetensors")[1] == metadata
    header = read_header(tmp_path / "x.safetensors")
    assert all(info.start % DTYPES[info.dtype].itemsize == 0 for info in header.tensors.values())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("broken", ["torch.Tensor.numpy", "os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(3)}, {})
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="x.safetensors could not be written: No space left on device"):
        write_tensors(path, {"x": torch.zeros(3)}, {})
    assert path.read_bytes() == before and files_in(tmp_path) == ["x.safetensors"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(3)}, {})

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"x": torch.zeros(3)}, {})
    assert read_tensors(path)[0]["x"].sum() == 3 and files_in(tmp_path) == ["x.safetensors"]


def test_a_folder_is_made_and_one_that_cannot_be_made_is_named(tmp_path):
    write_tensors(tmp_path / "new" / "x.safetensors", {"x": torch.ones(1)}, {})
    assert files_in(tmp_path / "new") == ["x.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="x.safetensors could not be written"):
        write_tensors(tmp_path / "file" / "x.safetensors", {"x": torch.ones(1)}, {})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no group rights in the mode of a file")
def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(1)}, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
