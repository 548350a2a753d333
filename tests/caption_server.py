"""A server on this machine that answers as captioning services do, in the order it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """One answer: JSON or raw text, headers, and what goes wrong on the way."""

    status: int = 200
    body: object = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    """Close the connection without a word."""


@dataclass
class CaptionServer:
    """What was asked, and what is yet to be answered; the last answer is repeated."""

    port: int
    answers: list[Answer]
    requests: list[dict] = field(default_factory=list)
    """Path, headers (lower case), JSON body and time of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def chat(text: object, finish: str = "stop", **message) -> Answer:
    """An answer of OpenAI's chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return Answer(body={"object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 9}})


def gemini(*texts: str, finish: str = "STOP", thought: str = "") -> Answer:
    """An answer of Gemini's generateContent."""
    parts = [{"text": thought, "thought": True}] * bool(thought) + [{"text": text} for text in texts]
    content = {"role": "model", **({"parts": parts} if parts else {})}
    return Answer(body={"candidates": [{"content": content, "finishReason": finish, "index": 0}]})


def fails(status: int, message: str = "no", headers: dict | None = None, **error) -> Answer:
    """An error as both services tell it."""
    return Answer(status, {"error": {"message": message, "code": status, **error}}, headers or {})


@contextmanager
def caption_server(*answers: Answer) -> Iterator[CaptionServer]:
    """The server, while the block runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append(
                    {"path": self.path, "headers": headers, "json": json.loads(body), "time": time.monotonic()}
                )
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            time.sleep(answer.delay)
            if answer.drop:
                self.close_connection = True
                self.connection.close()
                return
            data = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(data.encode())), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data.encode())
            except OSError:  # the client has left
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server = CaptionServer(port=listening.server_address[1], answers=list(answers))
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
