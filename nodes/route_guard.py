"""What every route of the pack begins with: a place, and a look at who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

PREFIX = "/video_lora"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(handler: Handler) -> Handler:
    """The handler for requests from this server's own pages; what is wrong comes back as one sentence."""
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            origin = request.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
                return refusal(403, "The request comes from another site.")
            return await handler(request)
        except ValueError as error:
            return refusal(400, str(error))
        except OSError as error:
            return refusal(500, str(error))

    return answer


def refusal(status: int, reason: str) -> web.Response:
    """An error as JSON, `{"error": reason}`."""
    return web.json_response({"error": reason}, status=status)
