"""Files that strangers hand out, laid out from bytes: weights, LoRAs, captions, records, resume points."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from fuzz_draw import DRAWN, Draw, as_json, as_text, expanded

from video_lora_studio.loaders import caption_file, caption_table, feature_cache, lora_file, quantised_weights
from video_lora_studio.loaders.safetensors_file import checksum, identity, read_header, read_tensors, write_tensors
from video_lora_studio.training import resume, run_curve, run_facts, run_folder
from video_lora_studio.training.dataset import captioning, review, shot_record
from video_lora_studio.training.loop import RunState

Work = Callable[[], object]
SPARSE = 1 << 40
"""The longest file made for a header: it takes no room, for nothing is written to it."""


def header_file(path: Path, text: bytes, *, body: bool) -> Path:
    """A safetensors file with this text as header, as long as the header says where `body`."""
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    size = 0
    if body:
        try:
            entries = json.loads(text)
            size = max((entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            size = 0
    if isinstance(size, int) and 0 < size < SPARSE:
        os.truncate(path, 8 + len(text) + size)
    return path


def read_all(path: Path) -> None:
    """Everything that is asked of a weights file of unknown make."""
    header = read_header(path)
    lora_file.written_by_run(path)
    assert all(isinstance(text, str) for entry in header.metadata.items() for text in entry)
    names = quantised_weights.weight_names(header, "")
    if names:
        quantised_weights.stored_as(header, "")
    if header.size < 1 << 20:
        identity(header)
        for tensor in read_tensors(path)[0].values():
            assert tensor.numel() >= 0


def safetensors(data: bytes, place: Path) -> Work:
    path = header_file(place / "x.safetensors", expanded(data), body=bool(data) and data[0] % 4 > 0)
    return lambda: read_all(path)


def safetensors_seeds() -> list[bytes]:
    weight = '"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    texts = [
        "{" + weight,
        '{"__metadata__":{"format":"pt","k":"v"},' + weight,
        "{}",
        '{"a.weight":{"dtype":"F8_E4M3","shape":[4,4],"data_offsets":[0,16]},"a.weight_scale":'
        '{"dtype":"F32","shape":[],"data_offsets":[16,20]}}',
        '{"a.weight":{"dtype":"I8","shape":[4,4],"data_offsets":[0,16]},"a.comfy_quant":'
        '{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}',
        '{"__metadata__":{"_quantization_metadata":"{\\"layers\\":{\\"a\\":{\\"format\\":\\"int8_tensorwise\\"}}}"},'
        + weight,
        '{"a":{"dtype":"F4","shape":[9,9,9,9],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"F32","shape":[9,9,9,9,9,9,9,9],"data_offsets":[0,1]}}',
    ]
    return [bytes([first]) + text.encode() for text in texts for first in (1, 201)]


def gguf(data: bytes, place: Path) -> Work:
    path = place / "x.gguf"
    path.write_bytes(b"GGUF" + expanded(data) + bytes(4096 if data[:1] > b"\x10" else 0))
    return lambda: read_all(path)


def gguf_seeds() -> list[bytes]:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    entries = [
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        text(b"general.name") + struct.pack("<I", 8) + text(b"tiny"),
        text(b"comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQ", 9, 5, 2) + struct.pack("<ii", 2, 16),
        text(b"list") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 1) + struct.pack("<I", 7),
        text(b"f") + struct.pack("<If", 6, 0.5),
    ]
    tensor = text(b"a.weight") + struct.pack("<IQQIQ", 2, 32, 1, 8, 0)
    whole = struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor
    short = struct.pack("<IQQ", 3, 1, 0) + tensor
    nested = struct.pack("<IQQ", 3, 0, 1) + text(b"n") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1)
    return [bytes([first]) + body for body in (whole, short, nested) for first in (40, 230)]


LORA_NAMES = ("diffusion_model.blocks.0.self_attn.q", "blocks.0.ffn.0", "lora_unet_blocks_0_attn", "transformer.a", "")
LORA_ENDINGS = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".alpha",
    ".lora_up.weight",
    ".lora_down.weight",
    ".diff",
    ".hada_w1_a",
    ".lokr_w1",
    ".dora_scale",
    ".reshape_weight",
)


def lora(data: bytes, place: Path) -> Work:
    draw, entries, end = Draw(data), {}, 0
    for _ in range(draw.number(7)):
        shape = [draw.of((1, 2, 4, 0, 16)) for _ in range(draw.number(5))]
        name = (draw.of(LORA_NAMES) or draw.text()[:300]) + draw.of(LORA_ENDINGS)
        dtype, width = draw.of(
            (("F32", 4), ("BF16", 2), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1), ("C64", 8), ("I8", 1))
        )
        size = math.prod(shape) * width
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw.number(2):
        entries["__metadata__"] = {draw.text()[:100]: draw.text() for _ in range(draw.number(4))}
        entries["__metadata__"] |= {"modelspec.trigger_phrase": draw.text(), lora_file.RUN_KEY: draw.text()[:50]}
    if draw.number(8) == 7 and entries:
        entries[next(iter(entries))] = draw.value()
    path = header_file(place / "x.safetensors", as_json(entries), body=draw.number(8) < 7)

    def work() -> None:
        tensors, _ = lora_file.read_lora(path)
        lora_file.written_by_run(path)
        lora_file.write_lora(
            place / "again.safetensors", {k: v.float() for k, v in tensors.items() if not v.is_complex()}, {}
        )

    return work


def captions(data: bytes, place: Path) -> Work:
    path, body = place / "walk.txt", expanded(data)
    for name in (path, place / caption_file.EXCLUDED):
        name.write_bytes(body)
    (place / "walk.mp4").write_bytes(b"")

    def work() -> None:
        found, _ = caption_file.read_captions(path)
        for kept in caption_file.read_excluded(place):
            caption_table.plain_name(kept)
        if found and len("\n---\n".join(found).encode()) < caption_file.LONGEST:
            caption_file.write_captions(path, found)
            assert caption_file.read_captions(path)[0] == found
        review.set_captions(place, {"walk.mp4": as_text(body)})
        review.review(place)

    return work


def captions_seeds() -> list[bytes]:
    texts = [
        b"a man walks\n---\na man\n",
        b"\xff\xfea\0b\0",
        b"\xef\xbb\xbfa\n",
        b"\n \n---  \n",
        b"caf\xe9",
        b"a,b\tc\n- --- -\n",
    ]
    return [bytes([first]) + text for text in texts for first in (1, 202, 250)]


ENDINGS = (".jsonl", ".json", ".csv")


def tables(data: bytes, place: Path) -> Work:
    path, body = place / f"captions{ENDINGS[data[0] % 3 if data else 0]}", expanded(data[1:])
    if data[1:2] > b"\xf0":
        draw = Draw(data[2:])
        body = as_json(
            draw.of(
                ([{"media_path": draw.text(), "caption": draw.value(1)}], {draw.text()[:9000]: draw.text()[:100_000]})
            )
        )
    path.write_bytes(body)

    def work() -> None:
        found = caption_table.read_table(path)
        captions, strange = found.match(["a.mp4", "b/a.mp4", "c.png"])
        for text in (*(text for texts in captions.values() for text in texts), *strange):
            text.encode()
        caption_table.write_table(place / "copy.csv", found.rows)

    return work


def tables_seeds() -> list[bytes]:
    texts = [
        (0, b'{"media_path": "a.mp4", "caption": "a man"}\n{"video": "/data/b/a.mp4", "caption": ["x", "y"]}\n'),
        (1, b'[{"file_name": "c.png", "text": "a"}]'),
        (1, b'{"a.mp4": "a", "b/a.mp4": ["b", "c"]}'),
        (2, b'caption,media_path\n"a, b",a.mp4\nb,b/a.mp4\n'),
        (2, b"video_path;caption\na.mp4;b\n"),
    ]
    return [bytes([kind, first]) + text for kind, text in texts for first in (1, 203, 250)]


FACTS = {
    "engine": 2, "base": [["a", ""]], "precision": "float32", "settings": {"seed": 0, "recipe": {"shift": 1.0}},
    "data": "a", "clips": {"walk.mp4": "b"},
}


def records(data: bytes, place: Path) -> Work:
    body = expanded(data[1:])
    if data[:1] > b"\xc0":
        body = as_json(Draw(data[1:]).value())
    cache_folder = feature_cache.FeatureCache(place / "cache")
    for name in ("run.json", "progress.jsonl", "_shots.json", "_captioned.json", "cache/sets/x.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(body)
    (place / "x.safetensors").write_bytes(b"")

    def work() -> None:
        folder = run_folder.RunFolder(place)
        facts = folder.record().get("facts")
        told = run_facts.changes(facts if isinstance(facts, dict) else {}, FACTS)
        assert len("".join(told).encode()) < 4000
        json.dumps(run_curve.read_curve(place).as_dict(), allow_nan=False).encode()
        folder.finished("key", 1, [place / "x.safetensors"])
        shot_record.read_record(place)
        captioning._read_record(place)
        cache_folder.sets()

    return work


def records_seeds() -> list[bytes]:
    texts = [
        b'{"format": 2, "key": "key", "status": "finished", "steps": 1, "parts": {"x.safetensors": '
        b'{"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "steps": 1, "report": ["a"]}},'
        b' "facts": {"engine": 2, "base": [], "precision": "float32", "settings": {"recipe": {"shift": 1.0}},'
        b' "data": "a", "clips": {"walk.mp4": "b"}}}',
        b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n',
        b'{"name": "a", "recorded": 1.0, "keys": ["ab"]}',
        b'{"films": {"id": {"film": "a.mp4", "stem": "a", "bounds": {"h": [0, 9]}, "shots": {"a.mp4": [0, 9, 5]}}}}',
        b'{"walk.txt": "digest"}',
        b'{"films": {"id": {"film": "a.mp4", "stem": "a", "bounds": {"how": [1e999]}, "shots": {}}}}',
    ]
    return [bytes([9, first]) + text for text in texts for first in (1, 204)] + [bytes([250]) + seed for seed in DRAWN]


def resumes(data: bytes, place: Path) -> Work:
    draw, path = Draw(data), place / "step-000003.safetensors"
    if draw.number(4):
        entry = json.loads(good_entry(path))
        names = (*entry, "more")
        entry |= {draw.of(names): draw.value() for _ in range(draw.number(3))}
        text = as_json(entry).decode()
    else:
        text = as_text(expanded(draw.rest())).encode(errors="replace").decode()
    shape = (draw.of((1, 0, 2)),) * draw.number(3)
    names = ("losses", "losses", "losses", "adapter/a", "optimizer/b/c", "adapter/b", "x", "adapter")
    stored = {draw.of(names): torch.zeros(shape) for _ in range(3)}
    write_tensors(path, stored, {resume.ENTRY: text, resume.CHECKSUM: checksum(stored, text)})

    def work() -> None:
        point = resume.ResumePoint.read(path)
        assert isinstance(point.state.step, int) and isinstance(point.state.losses, list)

    return work


def good_entry(path: Path) -> str:
    """What the header of a real resume point says."""
    point = resume.ResumePoint(
        state=RunState(step=3, losses=[0.5, 0.25, 0.125]), adapter={}, optimizer=({}, {}), weights="as stored"
    )
    point.write(path)
    return read_header(path).metadata[resume.ENTRY]
