"""Clips that the LoRA makes while it is trained, to look at: the same prompts and noise every time.

Sampled as ComfyUI's KSampler does with `euler` and `simple`: the same noise of a seed, the same levels, guidance
against the empty prompt. C channels, F H W latent frames, height and width; samples have a batch of one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..loaders.clip_writer import write_clip
from .config import PreviewConfig, RunConfig
from .dataset.training_set import Sample, TrainingSet, load_sample
from .evaluate import as_saved
from .families.model_family import ClipDecoder, Features, Streams
from .listener import Listener, Progress
from .loop import Recovery, RunState, StepContext, persist
from .optimizers import Stepper

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one preview shows: a prompt, in the size and with the first frame of a clip of the set."""

    sample: Sample
    text: str
    caption: Path
    """Features of the prompt."""


def scenes_of(training_set: TrainingSet, clips: int) -> list[Scene]:
    """At most so many scenes: of the set's own prompts, or of the first captions of its clips where it has none.

    Clips with sound come first.
    """
    samples = list({sample.clip: sample for sample in reversed(training_set.samples)}.values())[::-1]
    samples = [sample for sample in samples if "video" in sample.streams]
    samples.sort(key=lambda sample: -len(sample.streams))
    if not samples:
        return []
    prompts = training_set.prompts or [sample.captions[0] for sample in samples]
    return [
        Scene(sample=samples[place % len(samples)], text=prompt.text, caption=prompt.features)
        for place, prompt in enumerate(prompts[:clips])
    ]


def previewing(
    context: StepContext, training_set: TrainingSet, config: RunConfig, decoder: ClipDecoder | None, optimizer: Stepper,
    listener: Listener, recovery: Recovery, place: Callable[[int, int], Path], note: Callable[[Sequence[str]], None],
) -> Callable[..., None]:
    """What makes previews of a run after the steps where they are due, where the run begins and where it goes on.

    `place` says where the preview of a step and a number from 1 on goes. What fails is noted once for each reason, and
    the run goes on: of what it learns nothing depends on previews. A run that goes on makes only what is missing, where
    it was broken off. Raises what `listener` raises to stop.
    """
    scenes = scenes_of(training_set, config.preview.clips) if decoder else []
    every, failed = config.preview.every, set()

    def show(state: RunState, goes_on: bool = False) -> None:
        if state.step not in (0, config.last_step) and not (every and state.step % every == 0):
            return
        for number, scene in enumerate(scenes, 1):
            path = place(state.step, number)
            if goes_on and path.is_file():
                continue
            said = Progress(phase="Making a preview, step", done=state.step, total=config.steps, detail=scene.text[:80])
            listener.report(said)
            try:
                made = sampled(context, training_set, scene, config.preview, number - 1, optimizer, listener, recovery)
                frames, *sound = _decoded(decoder, made)
                write_clip(path, frames, context.base.grid.fps, *sound)
                listener.report(dataclasses.replace(said, preview=path))
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                reason = str(error).replace(str(path), str(path.parent)).replace(path.name, "it")
                if reason not in failed:
                    failed.add(reason)
                    note([f"No preview at step {state.step}: {reason}"])

    return show


def _decoded(decoder: ClipDecoder, made: Streams) -> tuple[Any, ...]:
    """Frames, and where there is sound its waveform and rate. RuntimeError whatever the host raises."""
    try:
        sound = decoder.decode_sound(made["audio"]) if "audio" in made else None
        return decoder.decode(made["video"]), *(sound or ())
    except Exception as error:  # of all sorts, and none of them is a reason to stop a run
        log.debug("The VAE cannot decode a preview", exc_info=True)
        words = str(error) or type(error).__name__
        raise RuntimeError(f"the VAE cannot decode it: {words}") from error


@torch.no_grad()
def sampled(
    context: StepContext, training_set: TrainingSet, scene: Scene, config: PreviewConfig, number: int,
    optimizer: Stepper, listener: Listener, recovery: Recovery,
) -> Streams:
    """Latents of a scene with the LoRA that would be saved now, on the CPU, without batch, as encoders gave them.

    Of two experts the high-noise one ends in what it expects at its last level, which is rough, and the low-noise one
    begins from the clip of the scene in the noise of its first.
    """
    base, objective = context.base, context.objective
    frames = dict(scene.sample.shapes)["video"][1]
    clean, prompted = _read(context, scene.sample, scene.caption)
    guidance = config.guidance or base.defaults.guidance
    empty = None if guidance == 1 else _read(context, scene.sample, training_set.no_caption)[1]
    levels = _levels(context, config)
    source = torch.Generator().manual_seed(config.seed + number)
    noise = {name: torch.randn(clip.shape, generator=source).to(context.device) for name, clip in clean.items()}
    starts = levels[0].to(context.device).expand(1)
    now = noise if base.levels[1] == 1 else {
        name: objective.noisy(clip.to(context.device), noise[name], starts) for name, clip in clean.items()
    }
    with as_saved(context.transformer, optimizer):
        for level, following in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            listener.check()
            answer = persist(partial(_answer, context, now, level, prompted, empty, guidance), recovery)
            now = {name: _stepped(context, stream, answer[name], level, following) for name, stream in now.items()}
    made = {name: stream[0].float().cpu() for name, stream in now.items()}
    return made | {"video": base.family.decodable(base, made["video"][:, -frames:])}


def _read(context: StepContext, sample: Sample, caption: Path) -> tuple[Streams, Features]:
    """A sample's clean streams, on the CPU, and what conditions them with a caption, on the device."""
    clean, features = context.family.collate(context.base, [load_sample(sample, caption)])
    return clean, {name: tensor.to(context.device) for name, tensor in features.items()}


def _levels(context: StepContext, config: PreviewConfig) -> Tensor:
    """The sampler's levels that this expert answers for, and 0."""
    low, high = context.base.levels
    levels = context.objective.schedule(config.steps, config.shift or context.base.defaults.sampler_shift)
    kept = levels[:-1][(levels[:-1] >= low) & (levels[:-1] <= high)]
    return torch.cat([kept if len(kept) else torch.tensor([high]), levels[-1:]])


def _answer(
    context: StepContext, now: Streams, level: float, prompted: Features, empty: Features | None, guidance: float
) -> Streams:
    levels = {name: torch.full((1,), level, device=context.device) for name in now}
    with context.autocast():
        answer = context.family.predict(context.transformer, now, levels, {}, prompted)
        if empty is None:
            return answer
        without = context.family.predict(context.transformer, now, levels, {}, empty)
    return {name: without[name] + guidance * (answer[name] - without[name]) for name in answer}


def _stepped(context: StepContext, stream: Tensor, answer: Tensor, level: float, following: float) -> Tensor:
    """The stream at the next level: Euler's step where the path is straight, DDIM's where it is not."""
    at, to = (torch.full((1,), one, device=stream.device) for one in (level, following))
    clean, noise = context.objective.split(stream, answer.float(), at)
    return context.objective.noisy(clean, noise, to) if following else clean
