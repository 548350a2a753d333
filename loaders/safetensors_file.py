"""Weights files: headers without bodies, tensors on demand, and writing whole or not at all.

The only file that knows the safetensors format: eight bytes with the length of the header (little-endian), the header
as JSON, then the tensors' bytes without gaps (https://huggingface.co/docs/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path

import torch
from torch import Tensor

from .whole_file import whole_file

GB = 10**9
HEADER_LIMIT = 100_000_000  # safetensors' own
MOST_DIMENSIONS = 32
LONGEST_FILE = 1 << 63  # bytes
WHOLE_LIMIT = 16 * 2**20
SAMPLES, SAMPLE_BYTES = 64, 4096

TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""Data types as safetensors spells them, and torch's names. Older versions of torch lack some."""
DTYPES = {name: getattr(torch, ours) for name, ours in TORCH_NAMES.items() if hasattr(torch, ours)}
SPELLED = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor as the header describes it: its bytes lie at `start:end` in the file."""

    dtype: str
    """As safetensors spells it: `BF16`, `F8_E4M3`."""
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a weights file says of itself before its body."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size: int
    """Bytes of the whole file."""


def read_header(path: str | Path) -> Header:
    """The header of a weights file, safetensors or GGUF; none of its body is read.

    Raises ValueError, one sentence, where the file is missing, empty, of another kind, damaged or half downloaded.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path.name} is a folder, not a weights file: choose a .safetensors file in it.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            if start.startswith(b"GGUF"):
                from .gguf_file import read_gguf_header

                return read_gguf_header(path)
            length = int.from_bytes(start[:8], "little")
            if start[8:9] != b"{" or length > HEADER_LIMIT:
                raise ValueError(f"{path.name} {_what_else(start, size)}")
            if 8 + length > size:
                raise ValueError(f"{path.name} is incomplete: it ends within its header; download it again.")
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise ValueError(f"{path.name} was not found in {path.parent}: choose a file that is there.") from None
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    tensors, metadata = _parse(path.name, text)
    check_size(path.name, size, max((info.end for info in tensors.values()), default=8 + length))
    return Header(path=path, tensors=tensors, metadata=metadata, size=size)


def _what_else(start: bytes, size: int) -> str:
    """What a file is that is not in this format, from its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        return "is empty (0 bytes): download it again."
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "is a PyTorch pickle, which can run code when it is opened: choose the .safetensors file of the model."
    if text.startswith(b"<"):
        return "is a web page, not weights: the site asked for a login or gave an error; download it again."
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves: download the file it stands for."
    if not any(start):
        return "holds only zeros where its header should be: its download has not finished; download it again."
    return "is not a safetensors file, or it is damaged: choose another, or download it again."


def _parse(name: str, text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The header's JSON, checked."""
    start = 8 + len(text)
    tensors: dict[str, TensorInfo] = {}
    try:
        entries = json.loads(text.decode("utf-8"))
        metadata = entries.pop("__metadata__", None) or {}
        "".join([*entries, *metadata]).encode()  # half letters, which nothing could write or show
        for key, entry in entries.items():
            begin, end = map(index, entry["data_offsets"])
            shape = tuple(map(index, entry["shape"][: MOST_DIMENSIONS + 1]))
            if not is_possible(shape) or not isinstance(entry["dtype"], str):
                raise ValueError(key)
            info = TensorInfo(dtype=entry["dtype"], shape=shape, start=start + begin, end=start + end)
            if not 0 <= begin <= end < LONGEST_FILE:
                raise ValueError(key)
            if info.dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[info.dtype].itemsize:
                raise ValueError(key)
            tensors[key] = info
        "".join(metadata.values()).encode()
        spans = sorted((info.start, info.end) for info in tensors.values())
        if any(begin != end for (begin, _), end in zip(spans, [start, *(end for _, end in spans)], strict=False)):
            raise ValueError("gaps")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} has a broken header, so it is damaged: download it again.") from error
    return tensors, metadata


def is_possible(shape: tuple[int, ...]) -> bool:
    """Whether a tensor could have this shape; an empty one must not be too large for its strides either."""
    sides = [max(size, 1) for size in shape[:MOST_DIMENSIONS]]
    return len(shape) == len(sides) and min(shape, default=0) >= 0 and math.prod(sides) < LONGEST_FILE


def check_size(name: str, size: int, promised: int, *, longer: bool = False) -> None:
    """ValueError unless a file has as many bytes as its header promises, or more where it may be `longer`."""
    if size < promised:
        unit, digits = (GB, 1) if promised >= GB else (10**6, 1)
        there, whole = f"{size / unit:.{digits}f}", f"{promised / unit:.{digits}f}"
        if there == whole:
            there, whole, label = f"{size:,}", f"{promised:,}", "bytes"
        else:
            label = "GB" if unit == GB else "MB"
        raise ValueError(f"{name} is incomplete: {there} of {whole} {label} are there; download it again.")
    if size > promised and not longer:
        raise ValueError(
            f"{name} is {size - promised:,} bytes longer than its header says, so it is damaged: download it again."
        )


def identity(header: Header) -> str:
    """Hex digest of a file's header, its size and samples of its body: other weights, another digest.

    Files up to 16 MB are read whole; of larger ones 64 blocks of 4 KB spread evenly over the body.
    """
    digest = hashlib.sha256(str(header.size).encode())
    with header.path.open("rb") as file:
        length = min((info.start for info in header.tensors.values()), default=header.size)
        digest.update(file.read(header.size if header.size <= WHOLE_LIMIT else length))
        if header.size > WHOLE_LIMIT:
            last = header.size - SAMPLE_BYTES
            for sample in range(SAMPLES):
                file.seek(length + (last - length) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


class TensorReader:
    """A file's tensors one at a time, as they are stored, in memory of their own: nothing is mapped or kept.

    `bodies=False` reads nothing: the tensors have their type and shape, on `meta`.
    """

    def __init__(self, header: Header, *, bodies: bool = True):
        self.header = header
        self._bodies = bodies
        self._file = header.path.open("rb", buffering=0)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU. ValueError where torch has no such data type or the file ends early."""
        info = self.header.tensors[name]
        if info.dtype not in DTYPES:
            raise ValueError(
                f"{self.header.path.name} stores {name} as {info.dtype}, which this PyTorch does not know: "
                "choose another version of the model."
            )
        return self.read_bytes(name).view(DTYPES[info.dtype]).reshape(info.shape)

    def read_bytes(self, name: str) -> Tensor:
        """One tensor's bytes as they lie in the file, uint8 (bytes,). ValueError where the file ends early."""
        info = self.header.tensors[name]
        if not self._bodies:
            return torch.empty(info.end - info.start, dtype=torch.uint8, device="meta")
        raw = torch.empty(info.end - info.start, dtype=torch.uint8)
        view = memoryview(raw.numpy())
        self._file.seek(info.start)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise ValueError(f"{self.header.path.name} ended while {name} was read: download it again.")
            done += count
        return raw


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a small file. Raises like `read_header`."""
    header = read_header(path)
    with TensorReader(header) as reader:
        return {name: reader.read(name) for name in header.tensors}, dict(header.metadata)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file whole or not at all: what stood there before stays until the new one is on the disk.

    The same tensors and metadata give the same bytes; the safetensors library orders metadata by chance. Raises
    OSError, one sentence, where the disk cannot be written; no temporary file is left behind.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps every tensor aligned
    with whole_file(Path(path)) as file:
        file.write(_header_bytes(order, tensors, metadata))
        for name in order:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy())


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """CRC-32 over the names and bytes of tensors, and a text beside them: finds a bad disk, not an ill will."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(flat.numpy(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def _header_bytes(order: Sequence[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file's beginning: the header's length, and the header, filled with blanks to a multiple of eight bytes."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {"dtype": SPELLED[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text
