"""Routes behind the rows of Stack LoRAs: what there is to choose from, and what one LoRA says of itself."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..loaders.safetensors_file import read_header
from . import places
from .lora_facts import PREVIEW_KINDS, lora_facts, preview_beside
from .lora_names import low_noise_name
from .route_guard import PREFIX, guarded


def add_lora_routes(routes: web.RouteTableDef) -> None:
    """Put the routes of the stack's rows into ComfyUI's table."""
    routes.get(f"{PREFIX}/loras")(guarded(_loras))
    routes.get(f"{PREFIX}/lora")(guarded(_lora))
    routes.get(f"{PREFIX}/lora_preview")(guarded(_preview))


async def _loras(request: web.Request) -> web.Response:
    """Every LoRA, with the name of its low-noise partner where it has one."""
    return web.json_response({"loras": await asyncio.to_thread(_pairs)})


def _pairs() -> list[dict[str, Any]]:
    names = places.lora_names()
    return [{"name": name, "low": low_noise_name(name, names)} for name in names]


async def _lora(request: web.Request) -> web.Response:
    """The facts of one LoRA, and what kind of preview lies beside it."""
    return web.json_response(await asyncio.to_thread(_facts, request.query.get("name", "")))


def _facts(name: str) -> dict[str, Any]:
    path = places.lora_file(name)
    preview = preview_beside(path)
    shown = {"kind": PREVIEW_KINDS[preview.suffix.lower()], "stamp": places.stamp(preview)} if preview else None
    return asdict(lora_facts(read_header(path))) | {"preview": shown}


async def _preview(request: web.Request) -> web.StreamResponse:
    """The picture or clip beside a LoRA."""
    path = await asyncio.to_thread(preview_beside, places.lora_file(request.query.get("name", "")))
    if path is None:
        raise ValueError("No preview lies beside this LoRA.")
    kind = PREVIEW_KINDS[path.suffix.lower()]
    return web.FileResponse(path, headers={"Content-Type": kind, "X-Content-Type-Options": "nosniff"})
