"""Routes behind the review page: the browser does what `training.review` can do, in dataset folders only.

What is written are captions of clips that are there, and the list of clips left out. A request that another site's
page could send is refused: its Origin is another, or it is no JSON.
"""

from __future__ import annotations

import asyncio
import functools
import json
import mimetypes
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from .. import training
from . import places
from .route_guard import PREFIX, guarded, refusal

LARGEST = 8 << 20
"""Bytes of a request."""
LONGEST_WORDS = 1000
MEDIA_TYPES = {".mov": "video/mp4", ".m4v": "video/mp4", ".mkv": "video/x-matroska"}
"""What browsers play under another name than the system's, or under none."""
PATIENCE = "private, max-age=86400"

Work = Callable[[Path, dict[str, Any]], Any]


def add_review_routes(routes: web.RouteTableDef) -> None:
    """Put the routes of the review page into ComfyUI's table."""
    writing, decoding = asyncio.Lock(), asyncio.Semaphore(2)
    routes.get(f"{PREFIX}/review")(guarded(_review))
    routes.get(f"{PREFIX}/clip")(guarded(_clip))
    routes.get(f"{PREFIX}/still")(guarded(functools.partial(_still, decoding)))
    for name, work in (("captions", _captions), ("excluded", _excluded), ("replace", _replace), ("trigger", _trigger)):
        routes.post(f"{PREFIX}/{name}")(guarded(functools.partial(_change, work, writing)))


async def _change(work: Work, writing: asyncio.Lock, request: web.Request) -> web.Response:
    """Do what a JSON request asks for, one request at a time, beside the server's own loop."""
    if request.content_type != "application/json":
        return refusal(415, "The request must be JSON.")
    data = await _body(request)
    if data is None:
        return refusal(413, f"The request is larger than {LARGEST >> 20} MB.")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return refusal(400, "The request cannot be read as JSON.")
    if not isinstance(fields, dict):
        return refusal(400, "The request must be a JSON object.")
    folder = places.clip_folder(_field(fields, "folder", str))
    async with writing:
        return web.json_response(await asyncio.to_thread(work, folder, fields))


async def _body(request: web.Request) -> bytes | None:
    """The bytes of a request; None where they are too many."""
    data = bytearray()
    async for piece in request.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > LARGEST:
            return None
    return bytes(data)


def _field(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind):
        raise ValueError(f"The request lacks {name!r}.")
    return value


def _words(fields: dict[str, Any], name: str) -> str:
    """A text that is put into many captions, or looked for in them."""
    words = _field(fields, name, str)
    if len(words) > LONGEST_WORDS:
        raise ValueError(f"The request's {name!r} is longer than {LONGEST_WORDS:,} characters: shorten it.")
    return words


def _captions(folder: Path, fields: dict[str, Any]) -> dict:
    changes = _field(fields, "changes", list)
    if not all(isinstance(change, dict) for change in changes):
        raise ValueError("The request's changes must be objects.")
    wanted, seen = ({_field(change, "name", str): _field(change, key, str) for change in changes}
                    for key in ("caption", "seen"))
    return asdict(training.set_captions(folder, wanted, seen))


def _excluded(folder: Path, fields: dict[str, Any]) -> dict:
    names = _field(fields, "names", list)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("The request's names must be texts.")
    training.set_excluded(folder, names, _field(fields, "excluded", bool))
    return {}


def _replace(folder: Path, fields: dict[str, Any]) -> dict:
    find, put = (_words(fields, key) for key in ("find", "put"))
    choices = {key: _field(fields, key, bool) for key in ("match_case", "whole_words")}
    return asdict(training.replace_everywhere(folder, find, put, **choices))


def _trigger(folder: Path, fields: dict[str, Any]) -> dict:
    change = training.insert_trigger if _field(fields, "insert", bool) else training.remove_trigger
    return asdict(change(folder, _words(fields, "trigger")))


async def _review(request: web.Request) -> web.Response:
    """Every clip of a folder with its caption."""
    clips = await asyncio.to_thread(training.review, _asked(request))
    return web.json_response({"clips": [asdict(clip) for clip in clips]})


async def _clip(request: web.Request) -> web.StreamResponse:
    """A clip's own bytes, or the part of them that a player asks for."""
    path = training.clip_file(_asked(request), request.query.get("name", ""))
    kind = MEDIA_TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return web.FileResponse(path, headers={"Content-Type": kind, "X-Content-Type-Options": "nosniff"})


async def _still(decoding: asyncio.Semaphore, request: web.Request) -> web.Response:
    """A clip's middle frame: shown until it is played, and where the browser cannot play it."""
    async with decoding:
        data = await asyncio.to_thread(training.still, _asked(request), request.query.get("name", ""))
    return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": PATIENCE})


def _asked(request: web.Request) -> Path:
    return places.clip_folder(request.query.get("folder", ""))
