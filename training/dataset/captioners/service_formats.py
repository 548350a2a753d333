"""How services want to be asked and how they answer: OpenAI's chat completions and Gemini's generateContent.

OpenAI: https://platform.openai.com/docs/api-reference/chat/create, which vLLM, Ollama, LM Studio and llama.cpp speak
too. Gemini: https://ai.google.dev/api/generate-content.
"""

from __future__ import annotations

import base64
import io
import re
import wave
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..caption_settings import GEMINI, OPENAI
from .captioner import CaptionError, Shown
from .destination import Destination

THINKING_ROOM = 4096
"""Tokens beyond the caption for models of the known services, which think first and count that as their answer."""
JPEG_QUALITY = 88
TOKENS_A_SECOND_OF_SOUND = 32  # https://ai.google.dev/gemini-api/docs/tokens


class ServiceFormat(Protocol):
    """One way of asking."""

    home: str
    """Where such a service is where no address is given."""

    def url(self, place: Destination, model: str) -> str:
        """The address to post to. Raises ValueError where the model's name cannot be in one."""

    def headers(self, key: str) -> dict[str, str]:
        """How the key is shown."""

    def body(self, place: Destination, model: str, shown: Shown) -> dict[str, Any]:
        """The question."""

    def answer(self, reply: dict[str, Any]) -> str:
        """The text in a reply. CaptionError where there is none; a LookupError, TypeError... where it is malformed."""

    def tokens(self, shown: Shown) -> int:
        """About how many tokens the question takes."""


class OpenAiChat:
    """Chat completions with pictures, and sound as a WAV, in the message."""

    home = "http://127.0.0.1:11434/v1"

    def url(self, place: Destination, model: str) -> str:
        return f"{place.url.removesuffix('/chat/completions')}/chat/completions"

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def body(self, place: Destination, model: str, shown: Shown) -> dict[str, Any]:
        pictures = [f"data:image/jpeg;base64,{picture}" for picture in jpegs(shown.frames)]
        content: list[dict] = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        if shown.sound is not None:
            sound = {"data": wav(shown.sound, shown.rate), "format": "wav"}
            content.append({"type": "input_audio", "input_audio": sound})
        content.append({"type": "text", "text": shown.timed_instruction})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": False}
        if place.known:  # its newer models refuse `max_tokens`
            return body | {"max_completion_tokens": shown.max_tokens + THINKING_ROOM}
        if place.own_network:  # of the others some refuse `seed`
            body["seed"] = shown.seed
        return body | {"max_tokens": shown.max_tokens}

    def answer(self, reply: dict[str, Any]) -> str:
        choice = reply["choices"][0]
        message, ending = choice["message"], choice.get("finish_reason")
        if message.get("refusal"):
            raise CaptionError(f"the model refused: {str(message['refusal'])[:200]}")
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
        return told(content, blocked=ending == "content_filter", cut=ending == "length")

    def tokens(self, shown: Shown) -> int:
        _, height, width, _ = shown.frames.shape
        return len(shown.frames) * -(-height * width // 784) + _words(shown)  # Qwen-VL: one token per 28 x 28 pixels


class GeminiContents:
    """generateContent with pictures and sound in the question."""

    home = "https://generativelanguage.googleapis.com/v1beta"

    def url(self, place: Destination, model: str) -> str:
        name = model.removeprefix("models/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"Model {name[:40]!r} is not a name of a Gemini model, such as gemini-2.5-flash.")
        return f"{place.url}/models/{name}:generateContent"

    def headers(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key}

    def body(self, place: Destination, model: str, shown: Shown) -> dict[str, Any]:
        pictures = jpegs(shown.frames)
        parts: list[dict] = [{"inlineData": {"mimeType": "image/jpeg", "data": picture}} for picture in pictures]
        if shown.sound is not None:
            parts.append({"inlineData": {"mimeType": "audio/wav", "data": wav(shown.sound, shown.rate)}})
        parts.append({"text": shown.timed_instruction})
        longest = shown.max_tokens + (THINKING_ROOM if place.known else 0)
        return {
            "contents": [{"role": "user", "parts": parts}],
            "generationConfig": {"maxOutputTokens": longest, "seed": shown.seed % 2**31},
        }

    def answer(self, reply: dict[str, Any]) -> str:
        if reason := (reply.get("promptFeedback") or {}).get("blockReason"):
            raise CaptionError(f"the service refused the clip ({str(reason)[:40]})")
        candidate = reply["candidates"][0]
        ending = candidate.get("finishReason")
        parts = (candidate.get("content") or {}).get("parts") or ()
        text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
        return told(text, blocked=ending not in (None, "STOP", "MAX_TOKENS"), cut=ending == "MAX_TOKENS")

    def tokens(self, shown: Shown) -> int:
        seconds = 0 if shown.sound is None else shown.sound.shape[-1] // shown.rate
        return len(shown.frames) * 258 + seconds * TOKENS_A_SECOND_OF_SOUND + _words(shown)


FORMATS: dict[str, ServiceFormat] = {OPENAI: OpenAiChat(), GEMINI: GeminiContents()}


def told(text: str, *, blocked: bool, cut: bool) -> str:
    """The text of an answer, or CaptionError saying why there is none."""
    if blocked:
        raise CaptionError("the service stopped the answer by its content rules")
    if not text.strip():
        more = ": the model used all its tokens before it answered; raise Longest caption" if cut else ""
        raise CaptionError(f"the answer is empty{more}")
    return text


def jpegs(frames: Tensor) -> list[str]:
    """Frames (T, P, Q, 3) as JPEG files in base64."""
    found = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame.numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def wav(sound: Tensor, rate: int) -> str:
    """Sound (2, N) as a WAV file of one channel, 16 bits, in base64."""
    samples = (sound.float().mean(0).clamp(-1, 1) * 32767).round().to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.numpy().astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def _words(shown: Shown) -> int:
    return len(shown.timed_instruction) // 4
