"""Headers of every family's model with something changed in them, made from bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fuzz_draw import Draw, as_json
from fuzz_files import header_file

from video_lora_studio.training.adapter import linear_layers
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model


@cache
def model_headers() -> tuple[tuple[dict, dict], ...]:
    """(name to (dtype, shape), metadata) of every family's tiny model, as files have them."""
    from ltx2_twin import FAMILY, header_of

    found = []
    kinds = {"Wan": ("T2V", "I2V", "TI2V"), "LTX-2": ("2.0", "2.3"), "CogVideoX": ("2b", "1.5 I2V")}
    for family in FAMILIES:
        for kind in kinds.get(family.name, (None,)):
            config, twin = family.twin() if kind is None else family.twin(kind=kind)
            tensors = {name: ("F32", list(tensor.shape)) for name, tensor in file_tensors(family, twin).items()}
            metadata = dict(header_of(config, kind)) if family.name == FAMILY.name else {}
            found.append((tensors, metadata))
    return tuple(found)


SIZES = (0, 1, 2, 3, 5, 6, 9, 16, 36, 48, 64, 96, 127, 128, 4096, 65536, 2**31, 2**40, 2**63 - 1)
CONFIG_KEYS = (
    "num_attention_heads",
    "audio_num_attention_heads",
    "connector_num_attention_heads",
    "rope_type",
    "norm_eps",
    "frequencies_precision",
    "positional_embedding_theta",
    "positional_embedding_max_pos",
    "cross_attention_adaln",
    "timestep_scale_multiplier",
    "causal_temporal_positioning",
    "use_middle_indices_grid",
    "qk_norm",
    "audio_positional_embedding_max_pos",
    "av_ca_timestep_scale_multiplier",
    "apply_gated_attention",
)


def base_models(data: bytes, place: Path) -> Callable[[], object]:
    draw = Draw(data)
    tensors, metadata = draw.of(model_headers())
    tensors, metadata = dict(tensors), dict(metadata)
    prefix = draw.of(("", "", "model.diffusion_model.", "diffusion_model."))
    for _ in range(draw.number(5)):
        name = draw.of(sorted(tensors) or ["x"])
        dtype, shape = tensors.get(name, ("F32", []))
        what = draw.number(8)
        if what == 0:
            tensors.pop(name, None)
        elif what == 1:
            tensors[name] = draw.of(("BF16", "F8_E4M3", "I8", "U8", "F4", "I64", "BOOL", "Q9_K", "x" * 300)), shape
        elif what == 2 and shape:
            tensors[name] = dtype, [draw.of(SIZES) if draw.number(2) else side for side in shape]
        elif what == 3:
            tensors[name] = dtype, [draw.of(SIZES) for _ in range(draw.number(8))]
        elif what == 4:
            number = draw.of(("1", "9", "40", "999999999", "9" * 30, "9" * 5000, "\u0663", "-1", "x"))
            tensors[name.replace(".0.", f".{number}.")] = dtype, shape
        elif what == 5:
            tensors[
                name.replace("weight", draw.of(("weight_scale", "comfy_quant", "scale_weight", "lora_A.weight")))
            ] = (draw.of(("F32", "U8")), draw.of(([], [1], [7])))
        elif what == 6:
            config = json.loads(metadata.get("config", "{}")).get("transformer", {})
            config |= {draw.of(CONFIG_KEYS): draw.of((draw.value, lambda: draw.of((0, -1, 7, "x", [], [0], 1e308))))()}
            metadata["config"] = as_json({"transformer": config}).decode()
        else:
            metadata[draw.of(("config", "_quantization_metadata"))] = draw.of(
                (as_json(draw.value()).decode(), draw.text())
            )
            if metadata.get("config", "{}")[:1] != "{" or "transformer" not in metadata.get("config", "{}"):
                break
    entries, end = {"__metadata__": metadata}, 0
    widths = {"BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "I64": 8, "BOOL": 1, "F32": 4}
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * widths.get(dtype, 1)
        entries[prefix + name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    path = header_file(place / "x.safetensors", as_json(entries), body=True)

    def work() -> None:
        base = open_base_model(path)
        linear_layers(base)
        base.family.adapter_targets(base, base.streams)
        base.grid.check(64, 64, 9)

    return work
