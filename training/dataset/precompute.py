"""From clips to cached features: each clip and each caption is encoded once, and again only when it changes.

T frames, P height and Q width in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...loaders.feature_cache import FeatureCache
from ...loaders.safetensors_file import Header
from ...loaders.video_file import FootageEnds, FootageError, read_frames, read_sound
from ..config import CutConfig, RecipeConfig
from ..families.model_family import BaseModel, DecodedClip, Encoders, Features
from ..listener import Listener, Progress, SilentListener
from .buckets import all_sizes
from .clip_set import Clip, ClipSet, LeftOut
from .plans import Plan, Work, key_of, plan_clip
from .preparation import notes_of, report_of
from .training_set import PREVIEW, Caption, Sample, TrainingSet

log = logging.getLogger(__name__)

PREVIEW_SIDE = 160  # pixels


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training set, and what was done to make it."""

    training_set: TrainingSet
    report: str
    left_out: tuple[LeftOut, ...]
    encoded_clips: int
    """Samples that were not in the cache."""
    encoded_captions: int
    """Texts that were not in the cache: captions, other orders of them, the empty caption."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The work, and where it is done."""

    work: Work
    cache: FeatureCache
    device: torch.device
    listener: Listener


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """What was read of a plan, which is the plan that was carried out: fewer frames may decode than were planned."""

    plan: Plan
    frames: Tensor
    sound: Tensor | None


def prepare(
    clips: ClipSet,
    base: BaseModel,
    encoders: Encoders,
    *,
    width: int,
    height: int,
    frames: int,
    cut: CutConfig | None = None,
    recipe: RecipeConfig | None = None,
    prompts: Sequence[str] = (),
    cache: FeatureCache,
    device: torch.device | None = None,
    listener: Listener | None = None,
) -> Prepared:
    """Every clip cut as `cut` says to about width x height and `frames` frames at the model's rate, encoded, cached.

    Captions first, in the orders that `recipe` shuffles them to, and the `prompts` of previews, then clips one at a
    time; what the cache has is not encoded again. Clips that cannot be used are left out, with the reason in the
    report. Frozen parts of the model that captions go through run on `device` (CPU).
    Raises ValueError where the model cannot take this size or length, no clip is left, there is neither a caption nor a
    trigger word, an encoder is another model's or gives numbers that are not finite; OSError where the cache cannot be
    written.
    """
    cut, recipe = cut or CutConfig(), recipe or RecipeConfig()
    work = Work(
        base=base, encoders=encoders, sizes=all_sizes(width, height, frames, cut, base.grid), cut=cut, recipe=recipe
    )
    job = _Job(work=work, cache=cache, device=device or torch.device("cpu"), listener=listener or SilentListener())
    _check_encoders(base, encoders)
    _check_captions(clips)
    left_out: list[LeftOut] = []
    plans = _plan_all(job, clips.clips, left_out)
    _check_some(plans, left_out)
    texts = _texts(work, plans, prompts)
    encoded_captions = _encode_captions(job, texts)
    plans, encoded_clips = _encode_clips(job, plans, left_out)
    _check_some(plans, left_out)
    training_set = TrainingSet(
        family=base.family.name, form=base.form, caption_form=base.caption_form,
        samples=tuple(_sample(job, plan) for plan in plans), no_caption=cache.path(work.caption_key("")),
        trigger=clips.trigger, width=width, height=height, frames=max(size.frames for size in work.sizes),
        fps=base.grid.fps, shuffle=recipe.caption_shuffle,
        orders=0 if recipe.caption_shuffle == "off" else recipe.caption_orders,
        prompts=tuple(Caption(text=text, features=cache.path(work.caption_key(text))) for text in prompts),
    )
    folders = ", ".join(map(str, (clips.folder, *clips.joined)))
    sizes = ", ".join(map(str, work.sizes))
    cache.record(f"{folders} for {base.title} at {sizes}", [*(plan.key for plan in plans), *texts])
    every_left_out = (*clips.left_out, *left_out)
    report = report_of(
        work, plans, training_set, every_left_out, cache, encoded_clips=encoded_clips, texts=len(texts),
        encoded_captions=encoded_captions,
    )
    log.info("prepared %d samples (%d encoded), %d captions encoded", len(plans), encoded_clips, encoded_captions)
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


def _check_captions(clips: ClipSet) -> None:
    """ValueError where there is no word at all to call the LoRA by."""
    if not any(caption for clip in clips.clips for caption in clip.captions):
        raise ValueError(
            f"No clip in {clips.folder} has a caption: set a trigger word in Load Clips, let Caption Clips write "
            "captions, or put a .txt with the same name beside each clip."
        )


def _plan_all(job: _Job, clips: Sequence[Clip], left_out: list[LeftOut]) -> list[Plan]:
    plans = []
    for clip in _steps(job, "Reading clips", clips, lambda clip: clip.name):
        try:
            plans += plan_clip(job.work, clip, clip.footage, left_out)
        except FootageError as error:
            left_out.append(LeftOut(name=clip.name, reason=error.reason))
    return plans


def _check_some(plans: list[Plan], left_out: list[LeftOut]) -> None:
    if not plans:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left_out[:10])
        raise ValueError(f"None of the clips can be used: {reasons}.")


def _texts(work: Work, plans: Sequence[Plan], prompts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By key every text that is needed and what it is, the empty caption last."""
    texts: dict[str, tuple[str, str]] = {}
    for plan in plans:
        for text in itertools.chain.from_iterable(plan.texts):
            texts.setdefault(work.caption_key(text), (text, f"caption of {plan.clip.name}"))
    for number, text in enumerate(prompts, 1):
        texts.setdefault(work.caption_key(text), (text, f"preview prompt {number}"))
    texts.setdefault(work.caption_key(""), ("", "the empty caption"))
    return texts


def _encode_captions(job: _Job, texts: Mapping[str, tuple[str, str]]) -> int:
    """Encode the texts that the cache lacks; how many those were."""
    base, missing = job.work.base, [(key, *text) for key, text in texts.items() if not job.cache.has(key)]
    wanted = (text for _, text, _ in missing)
    with contextlib.closing(
        base.family.prepare_captions(base, wanted, job.work.encoders.caption, job.device)
    ) as prepared:
        for key, text, what in _steps(job, "Encoding captions", missing, lambda item: item[2]):
            with _naming(what):
                features = next(prepared)
                _check_finite(features, "text encoder")
            job.cache.store(key, features, {"kind": "caption", "caption": text})
    return len(missing)


def _encode_clips(job: _Job, plans: Sequence[Plan], left_out: list[LeftOut]) -> tuple[list[Plan], int]:
    """Encode the samples that the cache lacks. The plans as they were carried out, and how many were encoded."""
    lacking = {plan.key: plan for plan in plans if not job.cache.has(plan.key)}
    carried_out: dict[str, Plan | FootageError] = {}
    encoded = 0
    with contextlib.closing(_read_ahead(job.work, list(lacking.values()))) as decoded:
        for plan in _steps(job, "Encoding clips", list(lacking.values()), lambda plan: plan.name):
            try:
                read = next(decoded).result()
            except FootageError as error:
                carried_out[plan.key] = error
                continue
            carried_out[plan.key] = read.plan
            if not job.cache.has(read.plan.key):  # fewer frames decode than planned, and so it was encoded before
                _encode_clip(job, read)
                encoded += 1
            del read  # or three windows are in memory while the next but one is read
    done = []
    for plan in plans:
        outcome = carried_out.get(plan.key, plan)
        if isinstance(outcome, FootageError):
            left_out.append(LeftOut(name=plan.name, reason=outcome.reason))
        elif outcome.clip is plan.clip:
            done.append(outcome)
        else:  # a copy of a clip, which has its own name and captions
            done.append(dataclasses.replace(outcome, name=plan.name, clip=plan.clip, texts=plan.texts))
    return done, encoded


def _read_ahead(work: Work, plans: Sequence[Plan]) -> Iterator[Future[_Decoded]]:
    """What each plan reads, in order; while one is used, the next is being read: two windows of memory."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        coming = None
        for plan in (*plans, None):
            ready, coming = coming, plan and pool.submit(_read, work, plan)
            if ready:
                yield ready
                ready = None


def _read(work: Work, plan: Plan) -> _Decoded:
    """Decode a plan, from the frames that are really there. FootageError where they are too few."""
    try:
        frames = read_frames(plan.footage, plan.choice.indexes, plan.width, plan.height, plan.clip.crop)
    except FootageEnds as error:
        if not error.decoded:
            raise
        footage = dataclasses.replace(plan.footage, times=plan.footage.times[: error.decoded])
        shorter = {other.place: other for other in plan_clip(work, plan.clip, footage, [])}
        if plan.place not in shorter:
            raise
        return _read(work, dataclasses.replace(shorter[plan.place], notes=(*plan.notes, error.reason)))
    return _Decoded(plan=plan, frames=frames, sound=_read_sound(work, plan))


def _read_sound(work: Work, plan: Plan) -> Tensor | None:
    """The sound of the span of time that the frames cover; None where there is none to learn from."""
    if not work.learns_sound_of(plan.footage):
        return None
    start, seconds = plan.footage.times[plan.choice.indexes[0]], len(plan.choice.indexes) / work.base.grid.fps
    try:
        return read_sound(plan.footage, start, seconds, work.encoders.sound.rate)
    except FootageError as error:
        log.info("%s", error)
        return None


def _encode_clip(job: _Job, read: _Decoded) -> None:
    base = job.work.base
    with _naming(read.plan.name):
        decoded = DecodedClip(frames=read.frames.float().div_(255), sound=read.sound)
        features = base.family.prepare_clip(base, decoded, job.work.encoders)
        _check_finite(features, "VAE")
    job.cache.store(read.plan.key, {**features, PREVIEW: preview_of(read.frames)}, {"kind": "clip"})


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


def preview_of(frames: Tensor) -> Tensor:
    """First, middle and last of the frames (T, P, Q, 3) uint8, small; an image gives one."""
    count = len(frames)
    chosen = frames[sorted({0, count // 2, count - 1})]
    scale = min(1.0, PREVIEW_SIDE / max(chosen.shape[1:3]))
    size = [max(1, round(side * scale)) for side in chosen.shape[1:3]]
    small = functional.interpolate(chosen.permute(0, 3, 1, 2).float(), size=size, mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _sample(job: _Job, plan: Plan) -> Sample:
    work, cache = job.work, job.cache
    header = cache.header(plan.key)
    keys = [[work.caption_key(text) for text in orders] for orders in plan.texts]
    captions = tuple(
        Caption(text=orders[0], features=cache.path(first), shuffled=tuple(map(cache.path, others)))
        for orders, (first, *others) in zip(plan.texts, keys, strict=True)
    )
    return Sample(
        name=plan.name, clip=plan.clip.name, captions=captions, clip_features=cache.path(plan.key),
        shapes=_shapes(header), key=key_of(plan.key, keys, plan.clip.repeats), repeats=plan.clip.repeats,
        notes=notes_of(work, plan, heard="audio" in header.tensors),
    )


def _shapes(header: Header) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of the features, without the preview."""
    return tuple((name, info.shape) for name, info in sorted(header.tensors.items()) if name != PREVIEW)


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
