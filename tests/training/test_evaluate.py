"""Held-out clips: which ones they are, what they are asked, and that asking leaves no trace."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from family_studio import open_studio

from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.config import AdapterConfig, RecipeConfig, RunConfig
from video_lora_studio.training.evaluate import held_out_context, held_out_losses
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import micro_step_loss
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.optimizers import build_optimizer
from video_lora_studio.training.run import attach_adapter, fit, set_up
from video_lora_studio.training.watch import Judgement, LossNotFinite, best, overtrained

CPU = torch.device("cpu")
SILENT = SilentListener()


def samples(training_set, *clips, **more):
    """The set with one sample of each name in `clips`; `cat.mp4 2` is a second one of cat.mp4."""
    first = training_set.samples[0]
    made = [
        dataclasses.replace(first, name=name, clip=name.split()[0], clip_features=Path(name), key=name, **more)
        for name in clips
    ]
    return dataclasses.replace(training_set, samples=tuple(made))


def names(part):
    return [sample.name for sample in part.samples]


@pytest.mark.parametrize(("clips", "held_out"), [(1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (80, 4), (500, 4)])
def test_by_itself_one_clip_in_twenty_is_held_out(training_set, clips, held_out):
    trained, rest = samples(training_set, *(f"{n}.mp4" for n in range(clips))).split(-1, 0)
    assert len(rest.samples) == held_out and len(trained.samples) == clips - held_out


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_split_parts_the_set_by_clips_and_keeps_its_order(training_set, count, seed):
    every = samples(training_set, "a.mp4", "b.mp4", "a.mp4 2", "c.mp4", "b.mp4 2", "d.mp4", "a.mp4 3")
    trained, rest = every.split(count, seed)
    assert sorted(names(trained) + names(rest)) == sorted(names(every))
    for part in (trained, rest):
        assert names(part) == [name for name in names(every) if name in names(part)]
    held_out = {sample.clip for sample in rest.samples}
    assert len(held_out) == count and not held_out & {sample.clip for sample in trained.samples}
    again = every.split(count, seed)
    assert [names(part) for part in again] == [names(trained), names(rest)]


def test_files_with_the_same_content_are_held_out_together(training_set):
    every = samples(training_set, "a.mp4", "b.mp4", "c.mp4", "d.mp4", "a.mp4 2", "d.mp4 2")
    shared = {"c.mp4": "a.mp4", "d.mp4 2": "c.mp4 3"}
    copies = [dataclasses.replace(sample, clip_features=Path(shared.get(sample.name, sample.name)))
              for sample in (*every.samples, dataclasses.replace(every.samples[2], name="c.mp4 3"))]
    every = dataclasses.replace(every, samples=tuple(copies))
    together, alone = {"a.mp4", "a.mp4 2", "c.mp4", "c.mp4 3", "d.mp4", "d.mp4 2"}, {"b.mp4"}
    for seed in range(8):
        assert set(names(every.split(1, seed)[1])) in (together, alone)
    with pytest.raises(ValueError, match="Held-out clips is 2 and there are 2 clips to learn from"):
        every.split(2, 0)


def test_the_seed_chooses_and_other_names_or_captions_change_nothing(training_set):
    every = samples(training_set, *(f"{n}.mp4" for n in range(10)))
    assert len({names(every.split(1, seed)[1])[0] for seed in range(40)}) > 5
    renamed = tuple(dataclasses.replace(s, name=f"x{s.name}", clip=f"x{s.clip}", key="other") for s in every.samples)
    for seed in range(5):
        found = dataclasses.replace(every, samples=renamed).split(2, seed)[1]
        assert names(found) == [f"x{name}" for name in names(every.split(2, seed)[1])]


def test_only_clips_that_can_be_learnt_from_are_held_out(training_set):
    silent = samples(training_set, "a.mp4", "b.mp4", "c.mp4")
    loud = samples(training_set, "d.mp4", "e.mp4", shapes=(("audio", (8, 4, 16)),))
    every = dataclasses.replace(silent, samples=silent.samples + loud.samples)
    for seed in range(6):
        trained, rest = every.split(1, seed, {"audio"})
        assert names(rest)[0] in ("d.mp4", "e.mp4") and len(trained.samples) == 4
    with pytest.raises(ValueError, match="there are 2 clips to learn from: set it lower"):
        every.split(2, 0, {"audio"})


class Case:
    """A model with its adapter, two clips to train on and two held out."""

    def __init__(self, data, base, recipe=None, dropout=0.0, level=None, copies=0):
        recipe = recipe or RecipeConfig(warmup_steps=0)
        config = RunConfig(
            rank=16, learning_rate=1e-2, recipe=recipe, adapter=AdapterConfig(dropout=dropout), steps=200
        )
        trained, self.held_out = data.split(len({sample.clip for sample in data.samples}) // 2, 0)
        self.context = set_up(trained, base, config, CPU, torch.float32, SILENT)
        blocks = base.family.blocks(self.context.transformer)
        blocks.extend(copy.deepcopy(list(blocks) * copies))
        adapter = attach_adapter(self.context, config)
        self.fitting = fit(self.context, config, level or Level())
        self.parameters = list(adapter.parameters())
        self.optimizer = build_optimizer(self.parameters, config)
        self.asked = held_out_context(self.context, self.held_out, recipe)

    def judge(self, listener=SILENT):
        return held_out_losses(self.asked, self.optimizer, listener)

    def step(self, done, position=None):
        for parameter in self.parameters:
            parameter.grad = None
        loss = micro_step_loss(self.context, done if position is None else position)
        loss.backward()
        self.optimizer.step(done)
        return loss.item()


@pytest.fixture(scope="module")
def four_clips(make_set):
    return make_set(4)


@pytest.mark.parametrize("recipe", [{}, {"ema": 0.9, "caption_dropout": 0.5, "batch_size": 2}])
def test_judging_leaves_no_trace(four_clips, base, recipe):
    found = []
    for judging in (True, False):
        case = Case(four_clips, base, RecipeConfig(warmup_steps=0, **recipe), dropout=0.3)
        torch.manual_seed(7)
        losses = []
        for done in range(3):
            before = torch.get_rng_state()
            gradients = [parameter.grad for parameter in case.parameters]
            modes = [module.training for module in case.context.transformer.modules()]
            if judging:
                assert case.judge() == case.judge()
            assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
            assert all(p.grad is old for p, old in zip(case.parameters, gradients, strict=True))
            assert [module.training for module in case.context.transformer.modules()] == modes and any(modes)
            losses.append(case.step(done))
        found.append((losses, [parameter.detach() for parameter in case.parameters]))
    (losses, weights), (plain_losses, plain_weights) = found
    assert losses == plain_losses
    assert all(torch.equal(one, other) for one, other in zip(weights, plain_weights, strict=True))


def test_what_would_be_saved_is_judged(four_clips, base):
    case = Case(four_clips, base, RecipeConfig(warmup_steps=0, ema=0.95))
    for done in range(6):
        case.step(done)
    average = case.judge()
    plain = build_optimizer(case.parameters, RunConfig())
    assert held_out_losses(case.asked, plain, SILENT) != average
    with case.optimizer.kept_weights():
        assert held_out_losses(case.asked, plain, SILENT) == average


@pytest.mark.parametrize(
    ("expert", "levels"), [("", (0.0, 1.0)), ("high_noise", (0.875, 1.0)), ("low_noise", (0.0, 0.875))]
)
def test_levels_lie_evenly_within_those_of_the_expert(four_clips, base, expert, levels):
    case = Case(four_clips, dataclasses.replace(base, expert=expert, levels=levels))
    low, high = levels
    asked = []

    @dataclasses.dataclass(frozen=True)
    class Noting(type(case.context.objective)):
        def noisy(self, clean, noise, level):
            assert not torch.is_grad_enabled(), "a graph would take a step's memory"
            asked.append(level.tolist())
            return super().noisy(clean, noise, level)

    noting = Noting(**{f.name: getattr(case.context.objective, f.name) for f in
                       dataclasses.fields(case.context.objective)})
    losses = held_out_losses(dataclasses.replace(case.asked, objective=noting), case.optimizer, SILENT)
    expected = [low + (high - low) * part for part in (0.125, 0.375, 0.625, 0.875)]
    assert [level for (level,) in asked] == pytest.approx(expected * 2), "two samples, one a batch"
    assert [float(level) for level in losses] == pytest.approx(expected, abs=1e-3) and len(losses) == 4
    assert all(math.isfinite(loss) and loss > 0 for loss in losses.values())


def test_few_samples_of_a_clip_of_many_windows_are_judged(four_clips, base):
    case = Case(four_clips, base)
    many = [dataclasses.replace(sample, name=f"{sample.name} {n}", repeats=3)
            for sample in case.held_out.samples for n in range(30)]
    held_out = dataclasses.replace(case.held_out, samples=tuple(many))
    batches = held_out_context(case.context, held_out, RecipeConfig(batch_size=4)).batches
    shown = [sample for place in range(len(batches)) for sample in batches.samples(place)]
    assert sorted(sample.name for sample in shown) == sorted(
        f"{sample.name} {n}" for sample in case.held_out.samples for n in (3, 11, 18, 26)
    )


def test_memory_is_saved_in_the_same_numbers(four_clips, base):
    """Passes without a way back turn the direction of block swap; the steps around them must not notice."""
    found = []
    for level in (
        Level(), Level(recompute=True, swapped=2), Level(recompute=True, swapped=4, offload_activations=True)
    ):
        case = Case(four_clips, base, level=level, copies=1)
        found.append([case.judge(), case.step(0), case.judge(), case.judge(), case.step(1), case.judge()])
        case.fitting.close()
    plain = found[0]
    assert plain[2] == plain[3] != plain[0]
    for saving in found[1:]:
        assert saving[2] == saving[3]
        for one, other in zip(plain, saving, strict=True):
            assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("twin", [("LTX-2", "2.0"), ("CogVideoX", "5b")])
def test_sound_and_other_objectives_are_judged_alike(tmp_path, twin):
    studio = open_studio(twin, tmp_path)
    case = Case(studio.data, studio.base)
    before = case.judge()
    assert list(before) == ["0.125", "0.375", "0.625", "0.875"]
    case.step(0)
    assert case.judge() != before and case.judge() == case.judge()


class CancelsAt(SilentListener):
    def __init__(self, checks):
        self.left = checks

    def check(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("checks", [0, 3, 7])
def test_cancel_ends_it_before_the_next_pass(four_clips, base, checks):
    case = Case(four_clips, base, RecipeConfig(warmup_steps=0, ema=0.9), dropout=0.5)
    for done in range(2):
        case.step(done)
    weights = [parameter.detach().clone() for parameter in case.parameters]
    modes = [module.training for module in case.context.transformer.modules()]
    with pytest.raises(KeyboardInterrupt):
        case.judge(CancelsAt(checks))
    assert [module.training for module in case.context.transformer.modules()] == modes
    assert all(torch.equal(one, other) for one, other in zip(weights, case.parameters, strict=True))
    case.judge(CancelsAt(8))


def test_a_held_out_clip_that_is_no_number_is_named(make_set, base):
    case = Case(make_set(4), base)
    broken, sound = case.held_out.samples
    features, _ = read_tensors(broken.clip_features)
    write_tensors(broken.clip_features, features | {"video": features["video"] * math.nan}, {})
    with pytest.raises(LossNotFinite) as error:
        case.judge()
    assert broken.name in str(error.value) and sound.name not in str(error.value)


def test_memorising_shows_as_a_held_out_loss_that_falls_and_rises(make_set, base):
    """One clip with the same noise again and again: what is learnt first helps others, what comes then does not."""
    case = Case(make_set(2), base)
    judged, losses = [], []
    for done in range(136):
        if done % 27 == 0:
            judged.append(Judgement(step=done, levels=case.judge()))
        losses.append(case.step(done, position=0))
    assert losses[-1] < 0.6 * losses[40] < 0.4 * losses[0], "what is trained on is learnt better and better"
    lowest = best(judged)
    assert 0 < lowest.step < 120 and lowest.loss < 0.6 * judged[0].loss
    assert overtrained(judged) and judged[-1].loss > 1.1 * lowest.loss
