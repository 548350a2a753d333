"""What will be read of each clip, at which sizes, and what the features of it are called."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from ...loaders.feature_cache import file_digest
from ...loaders.video_file import Footage, FootageError
from ..config import CutConfig, RecipeConfig
from ..families.model_family import BaseModel, Encoders
from .buckets import Size, bucket
from .caption_orders import other_orders
from .clip_set import Clip, LeftOut
from .sampling import FrameChoice, choose_windows

FEATURE_VERSION = 2
"""Part of every key: raise it when what is stored, or how frames are chosen, scaled and cropped, changes."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What clips are prepared for and how: the same for all of them."""

    base: BaseModel
    encoders: Encoders
    sizes: tuple[Size, ...]
    cut: CutConfig
    recipe: RecipeConfig

    def learns_sound_of(self, footage: Footage) -> bool:
        """Whether the sound of this footage is learnt."""
        return "audio" in self.base.streams and self.encoders.sound is not None and footage.has_audio

    def caption_key(self, caption: str) -> str:
        """What the features of a caption are called."""
        return key_of("caption", FEATURE_VERSION, self.base.caption_form, caption, self.encoders.caption.identity)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One window of one clip at one size."""

    name: str
    clip: Clip
    footage: Footage
    """The clip's, or what of it really decodes."""
    choice: FrameChoice
    width: int
    height: int
    place: tuple[int, int]
    """Which of the sizes, and which window."""
    key: str
    texts: tuple[tuple[str, ...], ...]
    """For each caption of the clip its text, then the same in other orders."""
    notes: tuple[str, ...] = ()
    """What came up while it was read."""


def plan_clip(work: Work, clip: Clip, footage: Footage, left_out: list[LeftOut]) -> list[Plan]:
    """Every window of a clip at every size; a size at which it cannot be used joins `left_out`.

    FootageError where no size can be used, or the file is gone.
    """
    try:
        content = file_digest(clip.path)
    except OSError as error:
        raise FootageError(clip.path, f"cannot be read any more ({error.strerror or error})") from error
    plans: dict[str, Plan] = {}
    reasons: list[tuple[Size, str]] = []
    for number, size in enumerate(work.sizes):
        try:
            found = _at_size(work, clip, footage, content, number)
        except ValueError as error:
            reasons.append((size, str(error)))
        else:
            for plan in found:  # a short clip may be the same at two sizes
                plans.setdefault(plan.key, plan)
    if not plans:
        raise FootageError(clip.path, reasons[0][1])
    left_out += [LeftOut(name=f"{clip.name} at {size}", reason=reason) for size, reason in reasons]
    return list(plans.values())


def _at_size(work: Work, clip: Clip, footage: Footage, content: str, number: int) -> list[Plan]:
    """Every window of a clip at one size. ValueError, with the reason, where it cannot be used at it."""
    size, grid, encoders, crop = work.sizes[number], work.base.grid, work.encoders, clip.crop
    picture = (crop.width, crop.height) if crop else (footage.width, footage.height)
    if footage.kind == "image":
        choices = (FrameChoice(indexes=(0,), seconds=0.0),)
    else:
        choices = choose_windows(footage.times, grid.fps, size.frames, grid, work.cut)
    width, height = bucket(*picture, size, work.cut, grid)
    used = [*sorted(work.base.needs), *(["sound"] if work.learns_sound_of(footage) else [])]
    identities = [encoders.clip.identity, *(getattr(encoders, name).identity for name in used)]
    area = crop and (crop.left, crop.top, crop.width, crop.height)
    return [
        Plan(
            name=_name(work, clip, width, height, choice, len(choices)), clip=clip, footage=footage, choice=choice,
            width=width, height=height, place=(number, window), texts=_texts(work, clip),
            key=key_of(
                "clip", FEATURE_VERSION, work.base.form, content, choice.indexes, area, width, height, identities
            ),
        )
        for window, choice in enumerate(choices)
    ]


def _name(work: Work, clip: Clip, width: int, height: int, choice: FrameChoice, windows: int) -> str:
    """`clip.mp4`; `clip.mp4 512x512x33 2.0-4.1 s` where there is more than one sample of a clip."""
    size = f" {width}x{height}x{len(choice.indexes)}" if len(work.sizes) > 1 else ""
    span = f" {choice.start:.1f}-{choice.start + choice.seconds:.1f} s" if windows > 1 else ""
    return f"{clip.name}{size}{span}"


def _texts(work: Work, clip: Clip) -> tuple[tuple[str, ...], ...]:
    by, count = work.recipe.caption_shuffle, work.recipe.caption_orders
    if by == "off":
        return tuple((caption,) for caption in clip.captions)
    return tuple((caption, *other_orders(caption, clip.trigger, by, count)) for caption in clip.captions)


def key_of(*parts) -> str:
    """Hex digest of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
