"""A caption's sentences or tags in other orders, so that a LoRA does not learn their order."""

from __future__ import annotations

import re

import torch

from ..seeds import generator

SENTENCE_ENDS = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*")
TAG_ENDS = re.compile(r"\s*[,，、]\s*")


def other_orders(caption: str, trigger: str, by: str, count: int) -> tuple[str, ...]:
    """At most `count` further orders of a caption's parts, all different, always the same ones for the same caption.

    `by` is `sentences` or `tags` (what commas part). A trigger word that stands first stays first.
    """
    first, rest = _leading(caption, trigger)
    pattern, joint = (SENTENCE_ENDS, " ") if by == "sentences" else (TAG_ENDS, ", ")
    parts = [part for part in pattern.split(rest) if part]
    if _begins_with(rest, trigger):  # the word is part of what follows it: "ohwx dances."
        first, parts = first + parts[0] + joint, parts[1:]
    as_it_is = {caption, first + joint.join(parts)}
    found: dict[str, None] = {}
    for attempt in range(16 * count if len(parts) > 1 else 0):  # few parts have few orders, and some are drawn twice
        order = torch.randperm(len(parts), generator=generator(caption, "caption order", attempt)).tolist()
        if (text := first + joint.join(parts[place] for place in order)) not in as_it_is:
            found[text] = None
        if len(found) == count:
            break
    return tuple(found)


def _leading(caption: str, trigger: str) -> tuple[str, str]:
    """A trigger word that commas or the like set apart at the start, as it stands there, and the rest."""
    apart = re.match(rf"{re.escape(trigger)}\s*[,:;.，。]\s*", caption, re.IGNORECASE) if trigger else None
    return (apart[0], caption[apart.end() :]) if apart else ("", caption)


def _begins_with(text: str, trigger: str) -> bool:
    return bool(trigger) and re.match(rf"{re.escape(trigger)}(?!\w)", text, re.IGNORECASE) is not None
