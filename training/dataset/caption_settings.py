"""Settings of captioning, and of a captioning service: frozen values, with their limits."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import check, setting
from .caption_text import CAPTION_PRESETS

OPENAI, GEMINI = "OpenAI-compatible", "Gemini"


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Which clips get captions, and what is asked of the captioner."""

    overwrite: bool = setting(
        False, "Overwrite", "Also write new captions for clips that have one. The first original stays beside it, as "
        "clip.txt.bak. What was written for the same question is kept, also when edited since; another Seed asks anew.",
    )
    preset: str = setting(
        "style", "LoRA of a", "What the LoRA is to learn. style: the captions tell all but the look. subject: all but "
        "what always belongs to the person or thing, which is called by the trigger word. motion: how things and the "
        "camera move. general: everything.", choices=tuple(CAPTION_PRESETS),
    )
    instruction: str = setting(
        "", "Instruction", "What to ask for in your own words, in place of the built-in text. {trigger} stands for the "
        "trigger word.",
    )
    frames: int = setting(
        16, "Frames shown", "How many frames of each clip the captioner sees, evenly over all of it. More show "
        "movement better and take more memory, time or money.", low=1, high=64,
    )
    max_tokens: int = setting(
        256, "Longest caption", "In tokens, about three quarters of a word each. Models that think before they answer "
        "need some thousands.", low=32, high=16384,
    )
    seed: int = setting(
        0, "Seed", "Another number gives another wording, where the captioner heeds it.", low=0, high=2**31 - 1,
    )
    also_write: str = setting(
        "nothing", "Also write", "All captions in one file in the clips' folder as well, as other trainers read it, "
        "without the trigger word.", choices=("nothing", "captions.jsonl", "captions.csv"),
    )

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Which service writes captions. No key is among the settings: keys are in environment variables."""

    service: str = setting(
        OPENAI, "Service", "OpenAI-compatible: OpenAI, vLLM, Ollama, LM Studio, llama.cpp and many others. Gemini: "
        "Google's.", choices=(OPENAI, GEMINI),
    )
    model: str = setting(
        "", "Model", "The name that the service knows the model by, such as qwen3-vl:8b or gemini-2.5-flash. It must "
        "be one that sees pictures.",
    )
    address: str = setting(
        "", "Address", "Where the service is, such as http://192.168.1.20:8000/v1 or https://api.openai.com/v1. Empty: "
        "Ollama on this machine, or Google for Gemini. Never write a key here.",
    )
    sound: bool = setting(
        False, "Send sound", "Also send the first minute of each clip's sound. Only for models that hear.",
    )
    requests_per_minute: int = setting(
        0, "Requests a minute", "At most so many. 0: no limit of ours.", low=0, high=10_000,
    )
    price_in: float = setting(
        0.0, "Price in", "What a million tokens of question cost, for the estimate in the report. 0: not known.",
        low=0.0, high=10_000.0, step=0.01,
    )
    price_out: float = setting(
        0.0, "Price out", "What a million tokens of answer cost, for the estimate in the report. 0: not known.",
        low=0.0, high=10_000.0, step=0.01,
    )

    def __post_init__(self):
        check(self)
