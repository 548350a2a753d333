"""Real checkpoints without their weights: the names and shapes listed in tests/data, and files with such a header."""

import json
import os
import struct
from pathlib import Path

import torch

DATA = Path(__file__).parent / "data"


def real(checkpoint):
    """The shapes by name of a real checkpoint, and diffusers' configuration of it: tests/data/<checkpoint>.json."""
    listed = json.loads((DATA / f"{checkpoint}.json").read_text(encoding="utf-8"))
    repeated = {f"{part}.{n}.{name}": shape for part, block in listed["repeated"].items()
                for n in range(block["layers"]) for name, shape in block["in_each"].items()}
    return listed["outside"] | repeated, listed["config"]


def hollow_file(path, shapes, prefix="", metadata=None):
    """A bf16 file with these names and shapes whose body takes no room on the disk."""
    entries, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        entries[prefix + name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path
