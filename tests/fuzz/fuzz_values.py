"""What workflows and services say, made from bytes: rows, settings, paths and names, answers."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from fuzz_draw import DRAWN, NUMBERS, Draw, as_json, as_text, expanded
from host_folders import FolderPaths

import video_lora_studio
from video_lora_studio.loaders import caption_file
from video_lora_studio.training import config as settings
from video_lora_studio.training.dataset import caption_settings, caption_text, review
from video_lora_studio.training.dataset.captioners import service
from video_lora_studio.training.dataset.captioners.captioner import CaptionError, Shown

Work = Callable[[], object]


@cache
def nodes_module(name: str) -> types.ModuleType:
    """A module of nodes/ that needs of ComfyUI no more than its folders, which `folders` stands in for."""
    package = types.ModuleType(f"{video_lora_studio.__name__}.nodes")
    package.__path__ = [str(Path(video_lora_studio.__file__).parent / "nodes")]
    before = sys.modules.get(package.__name__)
    sys.modules[package.__name__] = package
    try:
        return importlib.import_module(f"{package.__name__}.{name}")
    finally:
        if before is not None:
            sys.modules[package.__name__] = before


def rows(data: bytes, place: Path) -> Work:
    parse_rows = nodes_module("rows").parse_rows
    if data[:1] < b"\x60":
        draw = Draw(data[1:])
        row = {"on": True, "lora": "a.safetensors", "strength": 1.0}
        fields = ("on", "lora", "strength", "strength_low", "blocks", "curve", "start", "end", "audio")
        row |= {draw.of(fields): draw.value() for _ in range(draw.number(3))}
        listed = draw.of(([row], [row] * 60, row, draw.value(), [draw.value()]))
        text = as_json(listed).decode()
        return lambda: parse_rows(text)
    return lambda: parse_rows(as_text(expanded(data)))


def rows_seeds() -> list[bytes]:
    row = '{"on": true, "lora": "a.safetensors", "strength": 0.8, "strength_low": 1, "blocks": "0-9:0.5, 31:1"}'
    curve = '{"lora": "a.safetensors", "start": 0.25, "curve": "0:0, 0.3:1, 1:0.4"}'
    texts = [f"[{row}]".encode(), f"[{row}, {curve}]".encode()]
    return [bytes([first]) + text for first, text in zip((100, 230), texts, strict=True)] + DRAWN


def strengths(data: bytes, place: Path) -> Work:
    sys.modules["folder_paths"] = folders(place)
    parse_strengths = nodes_module("compare_plan").parse_strengths
    text = as_text(expanded(data))
    return lambda: parse_strengths(text)


def strengths_seeds() -> list[bytes]:
    return [bytes([100]) + text for text in (b"0, 1", b"0,0.5, 1.5,-2", b" 1e1 ,.5", b"0," * 200)] + DRAWN


GROUPS = (
    settings.RunConfig,
    settings.PreviewConfig,
    settings.RecipeConfig,
    settings.CutConfig,
    settings.MemoryConfig,
    settings.AdapterConfig,
    caption_settings.CaptionConfig,
    caption_settings.ServiceConfig,
)


def values(data: bytes, place: Path) -> Work:
    draw = Draw(data)
    group = draw.of(GROUPS)
    names = tuple(group.__dataclass_fields__)
    given = {
        draw.of(names): draw.of((draw.value, draw.text, lambda: draw.of(NUMBERS)))() for _ in range(1 + draw.number(3))
    }

    def work() -> None:
        made = group(**given)
        json.dumps(dataclasses.asdict(made), allow_nan=False).encode()
        for field in dataclasses.fields(made):
            wanted = (int, float) if isinstance(field.default, float) else type(field.default)
            assert isinstance(getattr(made, field.name), wanted), field.name
        if isinstance(made, caption_settings.ServiceConfig):
            service.CaptionService(made)

    return work


def paths(data: bytes, place: Path) -> Work:
    draw = Draw(data)
    host = folders(place)
    sys.modules["folder_paths"] = host
    places = nodes_module("places")
    places.folder_paths = host
    name = draw.of((draw.text, lambda: as_text(draw.rest()), draw.value))()
    if draw.number(3) == 2 and isinstance(name, str):
        name = draw.of(("input/", "datasets/", "input/way_out/", "..\\", "LLM/")) + name
    ask = draw.of(
        (
            places.clip_folder,
            places.lora_file,
            places.model_file,
            places.captioner_folder,
            lambda name: places.checked_relative(name, "Folder"),
            lambda name: review.clip_file(host.root / "input/cats", str(name)),
            lambda name: settings.RunConfig(name=name),
        )
    )
    return lambda: inside(host.root, ask(name))


def inside(root: Path, found: object) -> None:
    """A path that was let through leads into the host's folders; a name is one on every system."""
    if isinstance(found, Path):
        real = os.path.realpath(found)
        roots = [str(root / place) for place in ("input", "datasets", "models", "output")]
        assert any(f"{real}{os.sep}".startswith(f"{place}{os.sep}") for place in roots), real
        if found.is_file():
            found.read_bytes()
    elif isinstance(found, settings.RunConfig):
        assert len(f"{found.name}_high_noise.safetensors.01234567.part".encode()) <= 255, found.name


def folders(place: Path) -> FolderPaths:
    """A host with a few files, links in its folders that lead out, and a secret beside it."""
    host = FolderPaths(place / "host")
    if not (host.root / "input/cats").is_dir():
        for name in (
            "input/cats/a.mp4",
            "datasets/a/b.mp4",
            "models/loras/a.safetensors",
            "../secret/clip.mp4",
            "../secret/a.safetensors",
            "models/LLM/a/config.json",
        ):
            (host.root / name).resolve().parent.mkdir(parents=True, exist_ok=True)
            (host.root / name).write_bytes(b"{}")
        for link, target in (("input/way_out", place / "secret"), ("input/cats/clip.mp4", place / "secret/clip.mp4")):
            with contextlib.suppress(OSError):  # Windows lets not everybody
                (host.root / link).symlink_to(target)
    return host


def paths_seeds() -> list[bytes]:
    names = [
        "input/cats",
        "a.mp4",
        "../../secret",
        "C:\\x",
        "input/way_out",
        "clip.mp4",
        "input/cats/../../..",
        "a\0b",
        "\uff0e\uff0e\uff0fsecret",
        "CON",
        "\u202egpj.exe",
        "input/cats::$DATA",
        "//server/share",
        "my_style",
    ]
    return [bytes([1]) + name.encode() + bytes([0, which]) for name in names for which in range(7)] + DRAWN


SHOWN = Shown(frames=torch.zeros(1, 56, 56, 3, dtype=torch.uint8), fps=0.0, instruction="Describe it.")


class Answered:
    """What a service sends: `requests`' response, as far as it is read."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes):
        self.status_code, self.headers, self._body = status, headers, body

    def __enter__(self) -> Answered:
        return self

    def __exit__(self, *_) -> None: ...

    def iter_content(self, size: int):
        yield from (self._body[place : place + size] for place in range(0, len(self._body), size))


class Session:
    """In place of `requests.Session`: answers without a network."""

    def __init__(self, answer: Answered):
        self._answer = answer

    def post(self, *_, **__) -> Answered:
        return self._answer

    def close(self) -> None: ...


def answers(data: bytes, place: Path) -> Work:
    draw = Draw(data)
    status = draw.of((200, 200, 200, 200, 302, 400, 401, 404, 418))
    kind = draw.of((caption_settings.OPENAI, caption_settings.GEMINI))
    said = draw.of(("", "3", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT", "Mon, 01 Jan 0001 00:00:00 -0000"))
    form = draw.number(4)
    if form == 0:
        body = expanded(draw.rest())
    elif form == 1:
        message = {"content": draw.text(), "refusal": draw.of((None, draw.text()))}
        body = as_json(
            draw.of(
                (
                    {"choices": [{"message": message}]},
                    {
                        "candidates": [
                            {"content": {"parts": [{"text": draw.text(), "thought": draw.of((None, True, 3))}]}}
                        ]
                    },
                    {"error": {"message": draw.text()}},
                )
            )
        )
    else:
        body = as_json(
            draw.of(
                (
                    draw.value(),
                    {"choices": draw.value()},
                    {"choices": [{"message": draw.value()}]},
                    {"candidates": [draw.value()]},
                    {"error": draw.value()},
                    [{"error": draw.value()}],
                )
            )
        )
    made = service.CaptionService(caption_settings.ServiceConfig(service=kind, model="m", address="http://127.0.0.1:9"))
    service.requests.Session = lambda: Session(Answered(status, {"Retry-After": said}, body))

    def work() -> None:
        try:
            caption = caption_text.clean_caption(made.caption(SHOWN))
        except CaptionError as error:  # the end of a sentence that begins with the clip's name
            raise ValueError(f"{error}.") from error
        caption_text.is_refusal(caption)
        caption_file.split_captions(caption)
        caption.encode()

    return work


def answers_seeds() -> list[bytes]:
    texts = [
        b'{"choices": [{"message": {"content": "A cat walks."}, "finish_reason": "stop"}]}',
        b'{"candidates": [{"content": {"parts": [{"text": "A cat."}]}, "finishReason": "STOP"}]}',
        b'{"error": {"message": "no such model"}}',
        b'[{"error": {"message": "no", "details": []}}]',
        b'{"choices": [{"message": {"content": "<think>a</think> **Caption:** \\"x\\""}}]}',
        b"[[[[[[[[",
    ]
    heads = [bytes([status, kind, 0, 0, first]) for status in (0, 5) for kind in (0, 1) for first in (1, 250)]
    return [head + text for head in heads for text in texts] + DRAWN
