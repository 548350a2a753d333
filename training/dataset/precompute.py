"""From clips to cached features: each clip and each caption is encoded once, and again only when it changes.

T frames, P height and Q width in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...loaders.feature_cache import FeatureCache, file_digest
from ...loaders.safetensors_file import Header
from ...loaders.video_file import Footage, FootageEnds, FootageError, read_frames, read_sound
from ..families.model_family import BaseModel, DecodedClip, Encoders, Features
from ..listener import Listener, Progress, SilentListener
from .clip_set import Clip, ClipSet, LeftOut, counted, files, left_out_line, quoted, rate
from .sampling import FrameChoice, choose_frames
from .training_set import PREVIEW, Sample, TrainingSet

log = logging.getLogger(__name__)

FEATURE_VERSION = 1
"""Part of every key: raise it when what is stored, or how frames are chosen, scaled and cropped, changes."""
PREVIEW_SIDE = 160  # pixels


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training set, and what was done to make it."""

    training_set: TrainingSet
    report: str
    left_out: tuple[LeftOut, ...]
    encoded_clips: int
    """Clips that were not in the cache."""
    encoded_captions: int


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is the same for all clips."""

    base: BaseModel
    encoders: Encoders
    width: int
    height: int
    frames: int
    cache: FeatureCache
    device: torch.device
    listener: Listener


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One clip, the frames of it that are used, and what its features are called."""

    clip: Clip
    footage: Footage
    choice: FrameChoice
    key: str
    caption_key: str


def prepare(
    clips: ClipSet,
    base: BaseModel,
    encoders: Encoders,
    *,
    width: int,
    height: int,
    frames: int,
    cache: FeatureCache,
    device: torch.device | None = None,
    listener: Listener | None = None,
) -> Prepared:
    """Every clip brought to `frames` frames of width x height at the model's frame rate, encoded, and cached.

    Captions first, then clips one at a time; what the cache has is not encoded again. Clips that cannot be used are
    left out, with the reason in the report. Frozen parts of the model that captions go through run on `device` (CPU).
    Raises ValueError where the model cannot take this size or length, no clip is left, an encoder is another model's
    or gives numbers that are not finite; OSError where the cache cannot be written.
    """
    base.grid.check(width, height, frames)
    _check_encoders(base, encoders)
    job = _Job(
        base=base, encoders=encoders, width=width, height=height, frames=frames, cache=cache,
        device=device or torch.device("cpu"), listener=listener or SilentListener(),
    )
    left_out: list[LeftOut] = []
    plans = _plan_all(job, clips.clips, left_out)
    _check_some(plans, left_out)
    encoded_captions = _encode_captions(job, plans)
    plans, encoded_clips = _encode_clips(job, plans, left_out)
    _check_some(plans, left_out)
    training_set = TrainingSet(
        family=base.family.name, form=base.form, caption_form=base.caption_form,
        samples=tuple(_sample(job, plan) for plan in plans), trigger=clips.trigger,
        width=width, height=height, frames=frames, fps=base.grid.fps,
    )
    every_left_out = (*clips.left_out, *left_out)
    report = _report(job, plans, training_set, every_left_out, encoded_clips, encoded_captions)
    log.info("prepared %d clips (%d encoded), %d captions encoded", len(plans), encoded_clips, encoded_captions)
    return Prepared(
        training_set=training_set, report=report, left_out=every_left_out, encoded_clips=encoded_clips,
        encoded_captions=encoded_captions,
    )


def _check_encoders(base: BaseModel, encoders: Encoders) -> None:
    """ValueError where the model needs an encoder that is not there."""
    for name in sorted(base.needs):
        if getattr(encoders, name) is None:
            what = {"image": "CLIP vision model", "sound": "audio VAE"}[name]
            raise ValueError(f"{base.title} needs one more encoder: connect its {what} to Prepare.")


def _plan_all(job: _Job, clips: Sequence[Clip], left_out: list[LeftOut]) -> list[_Plan]:
    plans = []
    for clip in _steps(job, "Reading clips", clips, lambda clip: clip.name):
        try:
            plans.append(_plan(job, clip, clip.footage))
        except FootageError as error:
            left_out.append(LeftOut(name=clip.name, reason=error.reason))
    return plans


def _plan(job: _Job, clip: Clip, footage: Footage) -> _Plan:
    """Which frames, and the keys of the features. FootageError where too few frames are there or the file is gone."""
    grid, encoders = job.base.grid, job.encoders
    if footage.kind == "image":
        choice = FrameChoice(indexes=(0,), seconds=0.0)
    else:
        try:
            choice = choose_frames(footage.times, grid.fps, job.frames, grid)
        except ValueError as error:
            raise FootageError(clip.path, str(error)) from error
    try:
        content = file_digest(clip.path)
    except OSError as error:
        raise FootageError(clip.path, f"cannot be read any more ({error.strerror or error})") from error
    used = [*sorted(job.base.needs), *(["sound"] if _sounds(job, footage) else [])]
    identities = [encoders.clip.identity, *(getattr(encoders, name).identity for name in used)]
    return _Plan(
        clip=clip, footage=footage, choice=choice,
        key=_key("clip", FEATURE_VERSION, job.base.form, content, choice.indexes, job.width, job.height, identities),
        caption_key=_key(
            "caption", FEATURE_VERSION, job.base.caption_form, clip.captions[0], encoders.caption.identity
        ),
    )


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_some(plans: list[_Plan], left_out: list[LeftOut]) -> None:
    if not plans:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left_out[:10])
        raise ValueError(f"None of the clips can be used: {reasons}.")


def _encode_captions(job: _Job, plans: Sequence[_Plan]) -> int:
    """Encode the captions that the cache lacks; how many those were."""
    missing = {plan.caption_key: plan.clip for plan in plans if not job.cache.has(plan.caption_key)}
    captions = (clip.captions[0] for clip in missing.values())
    with contextlib.closing(
        job.base.family.prepare_captions(job.base, captions, job.encoders.caption, job.device)
    ) as prepared:
        for key, clip in _steps(job, "Encoding captions", list(missing.items()), lambda item: item[1].name):
            with _naming(f"caption of {clip.name}"):
                features = next(prepared)
                _check_finite(features, "text encoder")
            job.cache.store(key, features, {"kind": "caption", "caption": clip.captions[0]})
    return len(missing)


def _encode_clips(job: _Job, plans: Sequence[_Plan], left_out: list[LeftOut]) -> tuple[list[_Plan], int]:
    """Encode the clips that the cache lacks. The plans as they were carried out, and how many clips were encoded."""
    done: list[_Plan] = []
    encoded = 0
    lacking = [plan for plan in plans if not job.cache.has(plan.key)]
    carried_out = {}
    for plan in _steps(job, "Encoding clips", lacking, lambda plan: plan.clip.name):
        try:
            carried_out[plan.clip.path], fresh = _encode_clip(job, plan)
            encoded += fresh
        except FootageError as error:
            carried_out[plan.clip.path] = None
            left_out.append(LeftOut(name=plan.clip.name, reason=error.reason))
    for plan in plans:
        plan = carried_out.get(plan.clip.path, plan)
        if plan is not None:
            done.append(plan)
    return done, encoded


def _encode_clip(job: _Job, plan: _Plan) -> tuple[_Plan, bool]:
    """Encode one clip, from the frames that really decode. The plan as carried out, and whether it was encoded now."""
    if job.cache.has(plan.key):  # a copy of it under another name has just been encoded
        return plan, False
    try:
        frames = read_frames(plan.footage, plan.choice.indexes, job.width, job.height)
    except FootageEnds as error:
        footage = plan.footage
        if not error.decoded:
            raise
        clip = dataclasses.replace(plan.clip, notes=(*plan.clip.notes, error.reason))
        return _encode_clip(job, _plan(job, clip, dataclasses.replace(footage, times=footage.times[: error.decoded])))
    with _naming(plan.clip.name):
        decoded = DecodedClip(frames=frames.float().div_(255), sound=_read_sound(job, plan))
        features = job.base.family.prepare_clip(job.base, decoded, job.encoders)
        _check_finite(features, "VAE")
    job.cache.store(plan.key, {**features, PREVIEW: _preview(frames)}, {"kind": "clip"})
    return plan, True


def _sounds(job: _Job, footage: Footage) -> bool:
    """Whether the sound of this footage is learnt."""
    return "audio" in job.base.streams and job.encoders.sound is not None and footage.has_audio


def _read_sound(job: _Job, plan: _Plan) -> Tensor | None:
    """The sound of the span of time that the frames cover; None where there is none to learn from."""
    if not _sounds(job, plan.footage):
        return None
    start, seconds = plan.footage.times[plan.choice.indexes[0]], len(plan.choice.indexes) / job.base.grid.fps
    try:
        return read_sound(plan.footage, start, seconds, job.encoders.sound.rate)
    except FootageError as error:
        log.info("%s", error)
        return None


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say in a ValueError which clip or caption it came up with."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _check_finite(features: Features, encoder: str) -> None:
    if not all(tensor.isfinite().all() for tensor in features.values()):
        raise ValueError(f"The {encoder} gave values that are not numbers: run it in bf16 or fp32.")


def _preview(frames: Tensor) -> Tensor:
    """First, middle and last of the frames (T, P, Q, 3) uint8, small; an image gives one."""
    count = len(frames)
    chosen = frames[sorted({0, count // 2, count - 1})]
    scale = min(1.0, PREVIEW_SIDE / max(chosen.shape[1:3]))
    size = [max(1, round(side * scale)) for side in chosen.shape[1:3]]
    small = functional.interpolate(chosen.permute(0, 3, 1, 2).float(), size=size, mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _sample(job: _Job, plan: _Plan) -> Sample:
    cache = job.cache
    return Sample(
        name=plan.clip.name, caption=plan.clip.captions[0], clip_features=cache.path(plan.key),
        caption_features=cache.path(plan.caption_key), shapes=_shapes(cache.header(plan.key)),
        key=_key(plan.key, plan.caption_key), notes=_notes(job, plan),
    )


def _shapes(header: Header) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of the features, without the preview."""
    return tuple((name, info.shape) for name, info in sorted(header.tensors.items()) if name != PREVIEW)


def _notes(job: _Job, plan: _Plan) -> tuple[str, ...]:
    """What was done to a clip."""
    footage, choice = plan.footage, plan.choice
    notes = ["image, 1 frame"]
    if footage.kind == "video":
        count = len(choice.indexes)
        notes = [f"{count} frame{'' if count == 1 else 's'}, {choice.seconds:.1f} s"]
        if abs(footage.fps / job.base.grid.fps - 1) > 0.005:
            notes.append(f"{rate(footage.fps)} to {rate(job.base.grid.fps)} fps")
        if "audio" in job.base.streams and job.encoders.sound and "audio" not in job.cache.header(plan.key).tensors:
            notes.append("no sound: learns from the picture only")
    scale = max(job.width / footage.width, job.height / footage.height)
    if scale > 1:
        notes.append(f"enlarged from {footage.width}x{footage.height}")
    elif scale < 1:
        notes.append(f"from {footage.width}x{footage.height}")
    sides = 1 - job.width / (footage.width * scale), 1 - job.height / (footage.height * scale)
    for lost, where in zip(sides, ("left and right", "top and bottom"), strict=True):
        if lost > 0.005:
            notes.append(f"{lost:.0%} cropped {where}")
    return (*notes, *choice.notes, *plan.clip.notes)


def _report(
    job: _Job, plans: Sequence[_Plan], training_set: TrainingSet, left_out: Sequence[LeftOut], clips: int, captions: int
) -> str:
    """For people: what was made, what it cost, and a line for each clip."""
    texts = len({plan.caption_key for plan in plans})
    count, size = job.cache.size()
    head = [
        f"{counted([plan.clip for plan in plans])} ready, {files(len(left_out))} left out",
        f"For {job.base.title}: {job.width}x{job.height}, {job.frames} frames at {rate(job.base.grid.fps)} fps",
        f"Clips: {clips} encoded now, {len(plans) - clips} from the cache",
        f"Captions: {captions} encoded now, {max(0, texts - captions)} from the cache",
        f"Cache: {job.cache.folder}, {files(count)}, {size / 1e6:.1f} MB",
    ]
    used = [
        f"{sample.name}: {', '.join(sample.notes)}; {quoted(sample.caption)}" for sample in training_set.samples
    ]
    return "\n".join([*head, "", *used, *map(left_out_line, left_out)])


def _steps(job: _Job, phase: str, items: Sequence, name_of) -> Iterator:
    """The items one by one, with a chance to stop before each and the time left after each."""
    start = time.monotonic()
    for done, item in enumerate(items):
        left = (time.monotonic() - start) / done * (len(items) - done) if done else None
        job.listener.check()
        job.listener.report(
            Progress(phase=phase, done=done, total=len(items), seconds_left=left, detail=name_of(item))
        )
        yield item
    if items:
        job.listener.report(Progress(phase=phase, done=len(items), total=len(items), seconds_left=0.0))
