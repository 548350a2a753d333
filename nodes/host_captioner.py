"""The graph's own CLIP as a captioner, where it is a language model that looks at pictures.

T frames, P height and Q width in pixels.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import training

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.05,
            "repetition_penalty": 1.05}
"""As ComfyUI's own TextGenerate node has them."""


class HostCaptioner:
    """A CLIP from a socket as a Captioner. Raises ValueError for one that cannot write text."""

    def __init__(self, clip: Any):
        writer = writer_of(clip.cond_stage_model)
        name = getattr(clip.tokenizer, "clip_name", type(clip.tokenizer).__name__)
        if writer is None:
            raise ValueError(
                f"The CLIP ({name}) only reads text and cannot write any: load one that can, such as Qwen3-VL or "
                "Gemma, with Load CLIP."
            )
        self._clip = clip
        self.title = f"{name}, the CLIP of this graph"
        self.hears = hasattr(writer, "audio_projector")

    def before(self, clips: int, shown: training.Shown) -> str:
        """Nothing to say. ValueError where the CLIP takes no pictures; no model runs for this."""
        self._tokens(shown)
        return ""

    def caption(self, shown: training.Shown) -> str:
        """One caption; the same for the same seed."""
        try:
            tokens = self._clip.generate(
                self._tokens(shown), max_length=shown.max_tokens, seed=shown.seed, **SAMPLING
            )
        except torch.cuda.OutOfMemoryError as error:
            raise training.CaptionError(
                f"{self.title}: no memory left for {len(shown.frames)} frames; show fewer."
            ) from error
        text = self._clip.decode(tokens).strip()
        if not text:
            raise training.CaptionError(f"{self.title} wrote nothing.")
        return text

    def close(self) -> None:
        """Nothing to do: ComfyUI keeps the CLIP, and unloads it when memory is wanted."""

    def _tokens(self, shown: training.Shown) -> Any:
        """The question with the frames in it, all of them, whichever way this CLIP's tokenizer takes several.

        Made anew for each caption: some of ComfyUI's models take the frames out of the tokens as they read them.
        """
        frames = shown.frames.float() / 255  # (T, P, Q, 3)
        given: dict[str, Any] = {"skip_template": False, "min_length": 1, "thinking": False}
        if shown.sound is not None and self.hears:
            given["audio"] = {"waveform": shown.sound[None], "sample_rate": shown.rate}
        # Tokenizers with a video input drop frames for one a second; told that one a second came, they keep all.
        ways = [{"video": frames, "fps": 1}, {"image": frames}] if len(frames) > 1 else [{"image": frames}]
        for way in ways:
            tokens = self._clip.tokenize(shown.timed_instruction, **given, **way)
            if seen(tokens) == len(frames):
                return tokens
        raise ValueError(
            f"{self.title}, takes no pictures: load one that looks at them, such as Qwen3-VL or Gemma, with Load CLIP."
        )


def writer_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """The part of a text encoder that writes text, token by token; None where it has none.

    ComfyUI's wrappers have a `generate` whatever they wrap, so it is looked for in what does not encode.
    """
    if not hasattr(model, "generate"):
        return None
    parts = (part for part in model.modules() if not hasattr(part, "encode_token_weights"))
    return next((part for part in parts if callable(getattr(part, "generate", None))), None)


def seen(tokens: Any) -> int:
    """How many pictures stand among ComfyUI's tokens: lists of (token, weight), of which a picture is a dict."""
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    entries = (entry[0] for batches in lists for batch in batches for entry in batch)
    return sum(len(entry["data"]) for entry in entries if isinstance(entry, dict) and entry.get("type") == "image")
