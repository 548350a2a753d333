"""Captions from a model behind HTTP. The one door to requests.

No redirect is followed, no key is kept, and nothing that a server answers is passed on with the key in it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import requests
from urllib3.exceptions import HTTPError

from ..caption_settings import ServiceConfig
from .captioner import CaptionError, Shown
from .destination import HOSTS_VARIABLE, destination
from .service_formats import FORMATS

log = logging.getLogger(__name__)

PATIENCE = (10.0, 300.0)
"""Seconds for a connection, and for a sign of life after it: a local server may have to load its model first."""
ATTEMPTS = 5
TIMED_OUT_ATTEMPTS = 2
FIRST_WAIT = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
LONGEST_WAIT = 300.0
"""A service that asks for more is not waited for."""
LONGEST_ANSWER = 4_000_000  # bytes
LARGEST_QUESTION = 19_000_000  # bytes; Gemini takes 20 MB a request
PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
TIMED_OUT, NO_CONNECTION, NO_TRUST = "no answer in time", "nothing answers there", "its certificate is not trusted"
LONG_ENOUGH = 8
"""Characters from which a key is looked for in what a server says; shorter ones are words like `none`."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back; `status` 0 and a problem where nothing did."""

    status: int = 0
    text: str = ""
    wait: float | None = None
    """Seconds that the service asks to wait."""
    problem: str = ""


class CaptionService:
    """A Captioner over an OpenAI-compatible server or Gemini."""

    def __init__(self, config: ServiceConfig, check: Callable[[], None] = lambda: None):
        """`check` is called often while it waits and may raise to stop.

        Raises ValueError where footage must not go to the address, or no model is named.
        """
        self._config, self._check = config, check
        self._format = FORMATS[config.service]
        self._place = destination(config.address.strip() or self._format.home)
        self._model = config.model.strip()
        if not self._model:
            raise ValueError("Model is empty: write the name that the service knows its model by.")
        self._url = self._format.url(self._place, self._model)
        self.hears = config.sound
        self.title = f"{self._model} at {self._place.host}"
        self._next = 0.0
        self._session: requests.Session | None = None

    def __repr__(self) -> str:
        return f"CaptionService({self.title})"

    def before(self, clips: int, shown: Shown) -> str:
        """Requests, size, tokens and, where prices are set, cost. ValueError where a key is missing."""
        self._place.key()
        size = clips * len(self._question(shown))
        tokens_in, tokens_out = clips * self._format.tokens(shown), clips * shown.max_tokens
        where = "" if self._place.own_network else ", which leave this machine"
        parts = [
            f"{clips} request{'' if clips == 1 else 's'} to {self._place.host}{where}: "
            f"about {size / 1e6:.1f} MB, {tokens_in:,} tokens in and at most {tokens_out:,} of captions out"
        ]
        if self._config.price_in or self._config.price_out:
            cost = (tokens_in * self._config.price_in + tokens_out * self._config.price_out) / 1e6
            parts.append(f"about {cost:.2f} at the prices set")
        return ", ".join(parts) + "."

    def caption(self, shown: Shown) -> str:
        """One caption. CaptionError where this clip got none, ValueError where none will."""
        question = self._question(shown)
        if len(question) > LARGEST_QUESTION:
            raise CaptionError(f"{len(question) / 1e6:.0f} MB are too much for one request: show fewer frames")
        per_minute = self._config.requests_per_minute
        for attempt in range(ATTEMPTS):
            self._pause(self._next - time.monotonic())
            self._next = time.monotonic() + (60 / per_minute if per_minute else 0.0)
            reply = self._post(question)
            if reply.status == 200:
                return self._answer(reply)
            self._stop_if_final(reply)
            if attempt + 1 == (TIMED_OUT_ATTEMPTS if reply.problem == TIMED_OUT else ATTEMPTS):
                break
            wait = FIRST_WAIT * 2**attempt if reply.wait is None else reply.wait
            log.info("%s: %s, again in %.0f s", self._place.host, reply.problem or f"HTTP {reply.status}", wait)
            self._pause(wait)
        if reply.problem == NO_CONNECTION:
            raise ValueError(f"{self._place.host}: {NO_CONNECTION}. Is the server running, and the address right?")
        raise CaptionError(f"{self._place.host}: {self._said(reply)}")

    def close(self) -> None:
        """Let go of the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _question(self, shown: Shown) -> bytes:
        return json.dumps(self._format.body(self._place, self._model, shown)).encode()

    def _answer(self, reply: Reply) -> str:
        try:
            text = self._format.answer(json.loads(reply.text))
        except CaptionError as error:
            refusal = self._on_one_line(str(error))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            refusal = f"{self._place.host} did not answer the way such a service does"
        else:
            return self._without_key(text)
        raise CaptionError(refusal)

    def _stop_if_final(self, reply: Reply) -> None:
        """ValueError where no clip will get a caption, CaptionError where asking again will not help this one."""
        status, host = reply.status, self._place.host
        if 300 <= status < 400:
            raise ValueError(f"{host} sends on to another address, which is not followed: write the final address.")
        if status in (401, 403) or "API_KEY_INVALID" in reply.text:
            raise ValueError(f"{host} {self._about_the_key()} (HTTP {status}).")
        if status in (402, 404, 405) or (status == 429 and "insufficient_quota" in reply.text):
            raise ValueError(f"{host}: {self._said(reply)}.")
        if (reply.wait or 0) > LONGEST_WAIT:
            raise ValueError(f"{host} asks to wait {reply.wait / 60:.0f} minutes: queue again then.")
        if reply.problem == NO_TRUST:
            raise ValueError(f"{host}: {NO_TRUST}.")
        if status and status not in PASSING:
            raise CaptionError(f"{host}: {self._said(reply)}")

    def _about_the_key(self) -> str:
        if self._place.key():
            return f"refuses the key in the environment variable {self._place.key_variable}"
        if self._place.key_variable:
            return f"wants a key: set the environment variable {self._place.key_variable} and start ComfyUI again"
        return f"wants a key, which goes only to hosts that the environment variable {HOSTS_VARIABLE} names"

    def _said(self, reply: Reply) -> str:
        """What went wrong, in the server's words where it has some."""
        if reply.problem:
            return reply.problem
        try:
            error = json.loads(reply.text)
            error = error[0] if isinstance(error, list) else error
            error = error.get("error", error)
            words = error if isinstance(error, str) else str(error.get("message") or "")
        except (ValueError, LookupError, AttributeError, RecursionError):
            words = ""
        words = self._on_one_line(words)[:200]
        return f"HTTP {reply.status}{', ' if words else ''}{words.rstrip('.')}"

    def _without_key(self, text: str) -> str:
        key = self._place.key()
        return text.replace(key, "[key]") if len(key) >= LONG_ENOUGH else text

    def _on_one_line(self, text: str) -> str:
        """Words of the server's for people: no key, no half letters, no lines."""
        return " ".join(self._without_key(text).encode("utf-8", errors="ignore").decode().split())

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.2))

    def _post(self, question: bytes) -> Reply:
        """Ask once. The asking is done by a thread, so that Cancel need not wait for the answer."""
        key = self._place.key()
        headers = {"Content-Type": "application/json", "User-Agent": "video-lora-studio"}
        headers |= self._format.headers(key) if key else {}
        if self._session is None:
            self._session = self._new_session()
        replies: list[Reply] = []
        arguments = self._session, self._url, question, headers, replies
        thread = threading.Thread(target=_exchange, args=arguments, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                self._check()
        except BaseException:
            self.close()
            raise
        return replies[0] if replies else Reply(problem=NO_CONNECTION)

    def _new_session(self) -> requests.Session:
        """A session that adds nothing of its own: no key from a .netrc, and no proxy on the way to our own network."""
        session = requests.Session()
        session.trust_env = not self._place.own_network
        session.auth = _as_it_is
        return session


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _exchange(session: requests.Session, url: str, question: bytes, headers: dict, replies: list[Reply]) -> None:
    """Post once and put what came of it into `replies`. Errors of the libraries end here: they hold the request."""
    try:
        with session.post(
            url, data=question, headers=headers, timeout=PATIENCE, allow_redirects=False, stream=True
        ) as response:
            text = b""
            for piece in response.iter_content(65536):
                text += piece
                if len(text) > LONGEST_ANSWER:
                    break
            decoded = text.decode("utf-8", errors="replace")
            replies.append(Reply(status=response.status_code, text=decoded, wait=asked_to_wait(response, decoded)))
    except requests.exceptions.SSLError:
        replies.append(Reply(problem=NO_TRUST))
    except requests.Timeout:
        replies.append(Reply(problem=TIMED_OUT))
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        late = "timed out" in str(error)  # requests calls a body that stops coming a broken connection
        replies.append(Reply(problem=TIMED_OUT if late else NO_CONNECTION))


def asked_to_wait(response: requests.Response, text: str) -> float | None:
    """Seconds: by the header Retry-After (a number or a date), or as Google says it, in the error's details."""
    if response.status_code < 400:
        return None
    said = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,7}(\.\d{1,3})?", said):
        return float(said)
    if found := re.search(r'"retryDelay"\s*:\s*"(\d{1,7}(?:\.\d+)?)s"', text):
        return float(found[1])
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
