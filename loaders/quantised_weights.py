"""How a file stores its weights, and its tensors as plain numbers again.

Formats as ComfyUI writes them. fp8 is plain (a cast) or scaled: the weight times one scale, which older files call
`.scale_weight` (with a marker `scaled_fp8` and sometimes `.scale_input`) and newer ones `.weight_scale` (sometimes
with `.input_scale`, and a `.comfy_quant` tensor or a `_quantization_metadata` entry that names the format). int8 is
scaled like the newer fp8, and may be rotated besides. GGUF files hold blocks of packed numbers with their scales.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from .gguf_blocks import GGUF_BLOCKS
from .low_bits import LowBits, rotated_form
from .safetensors_file import Header, TensorReader

STORED_AS = {
    "BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8",
    **{form: f"GGUF {form}" for form in GGUF_BLOCKS},
}
PACKED = {"U8": "4-bit or another packed form", "F4": "fp4"}
SCALES = (".scale_weight", ".weight_scale")
MARKS = (*SCALES, ".scale_input", ".input_scale", ".weight_scale_2", ".pre_quant_scale", ".comfy_quant")
LONGEST_MARK = 1 << 16
"""Bytes of a `.comfy_quant` tensor."""
READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
KEPT_BITS = {torch.float8_e4m3fn: "fp8", torch.float8_e5m2: "fp8", torch.int8: "int8"}


def weight_names(header: Header, prefix: str) -> list[str]:
    """Names under `prefix`, as they stand in the file, of the weights themselves: no scales, no markers."""
    return [
        name
        for name in header.tensors
        if name.startswith(prefix) and not name.endswith(MARKS) and name != f"{prefix}scaled_fp8"
    ]


def stored_as(header: Header, prefix: str) -> str:
    """How the weights under `prefix` are stored: `bf16`, `fp16`, `fp32`, `fp8`, `fp8 scaled`, `int8`, `GGUF Q4_K`.

    In few bits where any is; otherwise as most of the bytes are. Raises ValueError, naming the format, where it cannot
    be read.
    """
    formats = _named_formats(header, prefix) - set(READABLE_FORMATS)
    names = weight_names(header, prefix)
    bytes_by_type: Counter[str] = Counter()
    for name in names:
        info = header.tensors[name]
        bytes_by_type[info.dtype] += info.end - info.start
        scale = _scale_name(header, name)
        if scale and not _is_plain_scale(header, name, scale):
            formats.add("mxfp8" if info.dtype.startswith("F8") else f"{info.dtype} with block scales")
        if info.dtype == "I8" and not scale:
            formats.add("int8 without scales")
    if any(name.startswith(prefix) and name.endswith(".weight_scale_2") for name in header.tensors):
        formats.add("nvfp4")
    if not formats:
        formats = {PACKED.get(dtype, dtype) for dtype in bytes_by_type if dtype not in STORED_AS}
    if formats:
        raise ValueError(
            f"{header.path.name} is stored as {_listed(formats)}, which cannot be trained on so far: "
            "choose the bf16, fp16, fp8 or fp8 scaled version of the model."
        )
    kinds = [STORED_AS[dtype] for dtype, _ in bytes_by_type.most_common()]
    few = next((kind for kind in kinds if kind not in ("bf16", "fp16", "fp32")), None)
    scaled = few == "fp8" and any(_scale_name(header, name) for name in names)
    return "fp8 scaled" if scaled else few or kinds[0]


def _listed(formats: Collection[str]) -> str:
    return ", ".join(name[:40] for name in sorted(formats)[:5])


def read_stored(reader: TensorReader, name: str) -> Tensor | LowBits:
    """One weight as it is stored: floating-point numbers, or a weight in few bits with its scale."""
    info = reader.header.tensors[name]
    if info.dtype in GGUF_BLOCKS:
        rows = math.prod(info.shape[:-1])
        return LowBits(form=info.dtype, data=reader.read_bytes(name).reshape(rows, -1), scale=None, shape=info.shape)
    weight = reader.read(name)
    scale_name = _scale_name(reader.header, name)
    scale = None if scale_name is None else reader.read(scale_name).to(torch.float32)
    if weight.dtype not in KEPT_BITS:
        return weight if scale is None else weight.to(torch.float32).mul_(_by_rows(scale, weight.ndim))
    form = KEPT_BITS[weight.dtype]
    if form == "int8" and (columns := _rotated(reader.header, name)):
        form = rotated_form(columns, info.shape)
    scale = None if scale is None else _by_rows(scale, weight.ndim)
    return LowBits(form=form, data=weight, scale=scale, shape=info.shape)


def read_weight(reader: TensorReader, name: str) -> Tensor:
    """One weight as floating-point numbers: as stored, or in float32 where it is in few bits with a scale."""
    stored = read_stored(reader, name)
    if not isinstance(stored, LowBits):
        return stored
    return stored.data if stored.form == "fp8" and stored.scale is None else stored.numbers(torch.float32)


def _by_rows(scale: Tensor, ndim: int) -> Tensor:
    """A scale with as many dimensions as its weight has: one number, or one for each row."""
    return scale.reshape(-1, *[1] * (ndim - 1))


def _scale_name(header: Header, name: str) -> str | None:
    """The name of a weight's scale, where it has one."""
    layer, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return None
    return next((layer + scale for scale in SCALES if layer + scale in header.tensors), None)


def _is_plain_scale(header: Header, name: str, scale: str) -> bool:
    """Whether a scale is one number for the weight, or one for each of its rows."""
    info = header.tensors[scale]
    rows = header.tensors[name].shape[:1]
    return info.dtype in ("F32", "F16", "BF16") and math.prod(info.shape) in (1, *rows)


def _named_formats(header: Header, prefix: str) -> set[str]:
    """The formats a file names itself, in its header or in `.comfy_quant` tensors."""
    marks = [name for name in header.tensors if name.startswith(prefix) and name.endswith(".comfy_quant")]
    with _said_clearly(header):
        entries = [*_listed_layers(header).values(), *_marked_layers(header, marks)]
        return {str(entry["format"]) for entry in entries}


def _rotated(header: Header, name: str) -> int:
    """How many columns of a weight are rotated together; 0 where none are (comfy-kitchen's `convrot`)."""
    layer = name.removesuffix(".weight")
    mark = f"{layer}.comfy_quant"
    with _said_clearly(header):
        marked = _marked_layers(header, [mark] if mark in header.tensors else [])
        entry = {**_listed_layers(header).get(layer, {}), **(marked[0] if marked else {})}
        entry = {**dict(entry.get("params") or {}), **entry}
        return int(entry.get("convrot_groupsize", 256)) if entry.get("convrot") else 0


def _listed_layers(header: Header) -> dict[str, dict]:
    text = header.metadata.get("_quantization_metadata")
    return _layers(text) if text else {}


@lru_cache(maxsize=4)
def _layers(text: str) -> dict[str, dict]:
    return json.loads(text)["layers"]


def _marked_layers(header: Header, marks: Sequence[str]) -> list[dict]:
    if not marks:
        return []
    if any(header.tensors[name].end - header.tensors[name].start > LONGEST_MARK for name in marks):
        raise ValueError(marks)
    with TensorReader(header) as reader:
        return [json.loads(bytes(reader.read(name).tolist())) for name in marks]


@contextmanager
def _said_clearly(header: Header) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{header.path.name} does not say clearly how it is quantised: choose another version of the model."
        ) from error
