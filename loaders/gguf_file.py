"""The headers of GGUF files, in the form that `read_header` gives of any weights file.

Little-endian throughout: magic, version, counts, then metadata and tensors as lists, then the tensors' bytes, each at
a multiple of the alignment (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import os
import struct
from operator import index
from pathlib import Path
from typing import BinaryIO

from .gguf_blocks import GGUF_BLOCKS
from .safetensors_file import HEADER_LIMIT, LONGEST_FILE, Header, TensorInfo, check_size, is_possible

ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 20
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SHAPES = "comfy.gguf.orig_shape."
"""What ComfyUI-GGUF calls the shapes of tensors that have too many dimensions for the format."""
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}
"""ggml's types of tensors by number; plain ones are spelled as in safetensors files."""
PLAIN = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8}


def read_gguf_header(path: Path) -> Header:
    """The header of a GGUF file; none of its body is read.

    Shapes as PyTorch has them; `metadata` holds what is text. Raises ValueError, one sentence, where the file is
    damaged, half downloaded or of another version.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(path, file, size)
    except (struct.error, UnicodeDecodeError, OverflowError, TypeError, KeyError, MemoryError) as error:
        raise ValueError(f"{path.name} has a broken header, so it is damaged: download it again.") from error


def _read(path: Path, file: BinaryIO, size: int) -> Header:
    file.seek(4)
    version, tensor_count, entry_count = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"{path.name} is a GGUF file of version {version}, which is not known: choose another.")
    entries = {}
    for _ in range(entry_count):
        name = _text(file)
        entries[name] = _value(file, *_unpack(file, "I"))
    listed = []
    for _ in range(tensor_count):
        name = _text(file)
        dimensions = _unpack(file, "Q" * _limited(_unpack(file, "I")[0], 8))
        listed.append((name, dimensions, *_unpack(file, "IQ")))
    alignment = entries.get("general.alignment", ALIGNMENT) or ALIGNMENT
    if not isinstance(alignment, int) or not 0 < alignment <= LARGEST_ALIGNMENT:
        raise KeyError("general.alignment")
    start = -(-file.tell() // alignment) * alignment
    tensors = {}
    for name, dimensions, kind, offset in listed:
        shape = tuple(reversed(dimensions))
        dtype = TYPES.get(kind, f"GGUF type {kind}")
        begin = start + offset
        wanted = tuple(map(index, entries.get(SHAPES + name, shape)))
        if not (is_possible(wanted) and is_possible(shape)) or math.prod(wanted) != math.prod(shape):
            raise KeyError(name)
        end = begin + _bytes(dtype, shape)
        tensors[name] = TensorInfo(dtype=dtype, shape=wanted, start=begin, end=_limited(end, LONGEST_FILE))
    check_size(path.name, size, max((info.end for info in tensors.values()), default=start), longer=True)
    metadata = {name: value for name, value in entries.items() if isinstance(value, str)}
    return Header(path=path, tensors=tensors, metadata=metadata, size=size)


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; 0 where its type is not known, which `stored_as` refuses."""
    count = math.prod(shape)
    if dtype in PLAIN:
        return count * PLAIN[dtype]
    if dtype not in GGUF_BLOCKS:
        return 0
    values, stored, _ = GGUF_BLOCKS[dtype]
    if not shape or shape[-1] % values:
        raise KeyError(dtype)
    return count // values * stored


def _unpack(file: BinaryIO, form: str) -> tuple:
    form = "<" + form
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _limited(count: int, most: int) -> int:
    if count > most:
        raise OverflowError(count)
    return count


def _text(file: BinaryIO) -> str:
    return file.read(_limited(_unpack(file, "Q")[0], HEADER_LIMIT)).decode()


def _value(file: BinaryIO, kind: int) -> str | int | float | bool | list:
    """One value of the metadata."""
    if kind == STRING:
        return _text(file)
    if kind == ARRAY:
        inner, count = _unpack(file, "IQ")
        _limited(count, HEADER_LIMIT)
        if inner in SCALARS:
            return list(_unpack(file, f"{count}{SCALARS[inner]}"))
        if inner != STRING:  # arrays in arrays: llama.cpp reads none either
            raise KeyError(inner)
        return [_text(file) for _ in range(count)]
    return _unpack(file, SCALARS[kind])[0]
