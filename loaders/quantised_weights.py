"""How a file stores its weights, and its tensors as plain numbers again.

Formats as ComfyUI writes them. fp8 is plain (a cast) or scaled: the weight times one scale, which older files call
`.scale_weight` (with a marker `scaled_fp8` and sometimes `.scale_input`) and newer ones `.weight_scale` (sometimes
with `.input_scale`, and a `.comfy_quant` tensor or a `_quantization_metadata` entry that names the format).
"""

from __future__ import annotations

import json
import math
from collections import Counter

import torch
from torch import Tensor

from .safetensors_file import Header, TensorReader

STORED_AS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
PACKED = {"I8": "int8", "U8": "4-bit or another packed form", "F4": "fp4"}
SCALES = (".scale_weight", ".weight_scale")
MARKS = (*SCALES, ".scale_input", ".input_scale", ".weight_scale_2", ".pre_quant_scale", ".comfy_quant")
READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def weight_names(header: Header, prefix: str) -> list[str]:
    """Names under `prefix`, as they stand in the file, of the weights themselves: no scales, no markers."""
    return [
        name
        for name in header.tensors
        if name.startswith(prefix) and not name.endswith(MARKS) and name != f"{prefix}scaled_fp8"
    ]


def stored_as(header: Header, prefix: str) -> str:
    """How the weights under `prefix` are stored: `bf16`, `fp16`, `fp32`, `fp8` or `fp8 scaled`.

    fp8 where any is; otherwise as most of the bytes are. Raises ValueError, naming the format, where it cannot be
    read.
    """
    formats = _named_formats(header, prefix) - set(READABLE_FORMATS)
    names = weight_names(header, prefix)
    bytes_by_type: Counter[str] = Counter()
    for name in names:
        info = header.tensors[name]
        bytes_by_type[info.dtype] += info.end - info.start
        if (scale := _scale_name(header, name)) and not _is_plain_scale(header, name, scale):
            formats.add("mxfp8" if info.dtype.startswith("F8") else f"{info.dtype} with block scales")
    if any(name.startswith(prefix) and name.endswith(".weight_scale_2") for name in header.tensors):
        formats.add("nvfp4")
    if not formats:
        formats = {PACKED.get(dtype, dtype) for dtype in bytes_by_type if dtype not in STORED_AS}
    if formats:
        raise ValueError(
            f"{header.path.name} is stored as {', '.join(sorted(formats))}, which cannot be trained on so far: "
            "choose the bf16, fp16, fp8 or fp8 scaled version of the model."
        )
    if any(_scale_name(header, name) for name in names):
        return "fp8 scaled"
    kinds = [STORED_AS[dtype] for dtype, _ in bytes_by_type.most_common()]
    return "fp8" if "fp8" in kinds else kinds[0]


def read_weight(reader: TensorReader, name: str) -> Tensor:
    """One weight as floating-point numbers: as stored, or multiplied by its scale in float32 where it has one."""
    weight = reader.read(name)
    scale_name = _scale_name(reader.header, name)
    if scale_name is None:
        return weight
    scale = reader.read(scale_name).to(torch.float32)
    if scale.numel() > 1:
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return weight.to(torch.float32).mul_(scale)


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
    entries = []
    try:
        if "_quantization_metadata" in header.metadata:
            entries += json.loads(header.metadata["_quantization_metadata"])["layers"].values()
        marks = [name for name in header.tensors if name.startswith(prefix) and name.endswith(".comfy_quant")]
        if marks:
            with TensorReader(header) as reader:
                entries += [json.loads(bytes(reader.read(name).tolist())) for name in marks]
        return {str(entry["format"]) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{header.path.name} does not say clearly how it is quantised: choose another version of the model."
        ) from error
