"""The route behind the curve on Train LoRA: the whole of a run so far, whoever asks and whenever."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from aiohttp import web

from .. import training
from . import places
from .progress import running
from .route_guard import PREFIX, guarded


def add_train_routes(routes: web.RouteTableDef) -> None:
    """Put the route of a run's curve into ComfyUI's table."""
    routes.get(f"{PREFIX}/run")(guarded(_run))


async def _run(request: web.Request) -> web.Response:
    """The curve of the run of a name, and its figures of this moment where it is running."""
    return web.json_response(await asyncio.to_thread(_curve, request.query.get("name", "")))


def _curve(name: str) -> dict[str, Any]:
    training.check_name(name)
    listener = running.get(name)
    kept = (listener.first, [*listener.losses]) if listener else ()
    now = listener.now if listener else None
    folder = places.run_folder(name)
    curve = training.read_curve(folder, *kept)
    return curve.as_dict() | {"now": now, "previews": _previews(folder, curve)}


def _previews(folder: Path, curve: training.RunCurve) -> list[dict[str, Any]]:
    """Every preview of the steps that are in the curve: a run that has begun anew shows none of what it was before."""
    before, told = dict(curve.experts), []
    for each in training.list_previews(folder):
        with contextlib.suppress(FileNotFoundError):  # put aside at this moment
            if each["step"] + before.get(each["expert"], 0) <= curve.last:
                path = each["path"]
                told.append({**each, "path": places.shown_output(path), "made": places.stamp(path)})
    return told
