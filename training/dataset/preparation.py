"""What was done to each clip to prepare it, and why, in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from ...loaders.feature_cache import FeatureCache
from .buckets import bucket
from .clip_set import LeftOut, counted, files, left_out_line, quoted, rate
from .plans import Plan, Work
from .training_set import Sample, TrainingSet


def notes_of(work: Work, plan: Plan, *, heard: bool) -> tuple[str, ...]:
    """What was done to a clip. `heard`: whether its sound is among the features."""
    footage, choice, fps = plan.footage, plan.choice, work.base.grid.fps
    notes = ["image, 1 frame"]
    if footage.kind == "video":
        count = len(choice.indexes)
        notes = [f"{count} frame{'' if count == 1 else 's'}, {choice.seconds:.1f} s"]
        if abs(footage.fps / fps - 1) > 0.005:
            notes.append(f"{rate(footage.fps)} to {rate(fps)} fps")
        if "audio" in work.base.streams and work.encoders.sound and not heard:
            notes.append("no sound: learns from the picture only")
    return (*notes, *_size_notes(work, plan), *choice.notes, *plan.notes, *plan.clip.notes)


def _size_notes(work: Work, plan: Plan) -> list[str]:
    """How the picture came to its size."""
    crop = plan.clip.crop
    width, height = (crop.width, crop.height) if crop else (plan.footage.width, plan.footage.height)
    asked = work.sizes[plan.place[0]]
    scale = max(plan.width / width, plan.height / height)
    words = f"{'enlarged ' if scale > 1 else ''}from {plan.footage.width}x{plan.footage.height}"
    notes = [f"{plan.width}x{plan.height}" + (f" {words}" if scale != 1 or crop else "")]
    if crop:
        notes.append(f"only {width}x{height} of it, from {crop.left}, {crop.top}")
    wide, high = bucket(width, height, asked, dataclasses.replace(work.cut, upscale=True), work.base.grid)
    if wide * high > plan.width * plan.height:
        notes.append("smaller than asked for: not enlarged")
    sides = 1 - plan.width / (width * scale), 1 - plan.height / (height * scale)
    for lost, where in zip(sides, ("left and right", "top and bottom"), strict=True):
        if lost > 0.005:
            notes.append(f"{lost:.0%} cropped {where}")
    return notes


def report_of(
    work: Work,
    plans: Sequence[Plan],
    training_set: TrainingSet,
    left_out: Sequence[LeftOut],
    cache: FeatureCache,
    *,
    encoded_clips: int,
    texts: int,
    encoded_captions: int,
) -> str:
    """For people: what was made, what it cost, and a line for each sample. `texts`: how many are needed in all."""
    samples, base = training_set.samples, work.base
    clips = list({plan.clip.name: plan.clip for plan in plans}.values())
    count, size = cache.size()
    sizes = ", ".join(f"{asked.width}x{asked.height}, {asked.frames} frames" for asked in work.sizes)
    shown = sum(sample.repeats for sample in samples)
    what = "Clips" if len(plans) == len(clips) else "Samples"
    head = [
        f"{counted(clips)} ready{'' if len(plans) == len(clips) else f' as {len(plans)} samples'}, "
        f"{files(len(left_out))} left out",
        f"For {base.title}: {sizes} at {rate(base.grid.fps)} fps, {work.cut.fit}",
        f"Buckets: {_buckets(plans)}",
        *([f"An epoch shows {shown} samples, repeats included"] if shown != len(samples) else []),
        _coverage(plans, training_set.trigger),
        f"{what}: {encoded_clips} encoded now, {len(plans) - encoded_clips} from the cache",
        f"Captions: {encoded_captions} encoded now, {texts - encoded_captions} from the cache",
        f"Cache: {cache.folder}, {files(count)}, {size / 1e6:.1f} MB",
    ]
    return "\n".join([*head, "", *map(_line, samples), *map(left_out_line, left_out)])


def _buckets(plans: Sequence[Plan]) -> str:
    """`832x480x81: 5, 480x832x81: 2`, those of most samples first."""
    counts = Counter(f"{plan.width}x{plan.height}x{len(plan.choice.indexes)}" for plan in plans)
    return ", ".join(f"{shape}: {count}" for shape, count in counts.most_common())


def _coverage(plans: Sequence[Plan], trigger: str) -> str:
    """How many clips have a caption of their own, and what the others learn from."""
    clips = {plan.clip.name: plan.clip for plan in plans}.values()
    own = sum(bool(clip.caption_file) for clip in clips)
    several = sum(len(clip.captions) > 1 for clip in clips)
    words = f"Captioned: {own} of {len(clips)}"
    if several:
        words += f", {several} with several captions"
    if own < len(clips):
        words += f"; the others learn from {'the trigger word alone' if trigger else 'no words'}"
    return words


def _line(sample: Sample) -> str:
    more = len(sample.captions) - 1
    facts = [*sample.notes, *([f"{sample.repeats} times an epoch"] if sample.repeats > 1 else [])]
    others = f" and {more} more caption{'' if more == 1 else 's'}" if more else ""
    return f"{sample.name}: {', '.join(facts)}; {quoted(sample.captions[0].text)}{others}"
