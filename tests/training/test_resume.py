"""A run that was broken off goes on as if it had not been: the same bytes at the end, and what is said of it."""

import dataclasses
import json

import pytest
import torch

from video_lora_studio.loaders.lora_file import read_lora
from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training import loop
from video_lora_studio.training.config import AdapterConfig, MemoryConfig, RecipeConfig, RunConfig
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import RunState
from video_lora_studio.training.optimizers import Stepper
from video_lora_studio.training.resume import ResumeFolder, ResumePoint, keep_last_runs
from video_lora_studio.training.run import train
from video_lora_studio.training.run_facts import changes, facts_of, run_key
from video_lora_studio.training.run_output import Places
from video_lora_studio.training.watch import LossExploded

CPU = torch.device("cpu")
STEPS = 6


class Stop(BaseException):
    """As a host asks to stop: no ordinary Exception."""


class StopsAt(SilentListener):
    """Stops before the micro-step that would follow `steps` steps."""

    def __init__(self, steps):
        self.left = steps

    def check(self):
        if not self.left:
            raise Stop

    def report(self, progress):
        self.left -= progress.phase == "Training"


def settings(steps=STEPS, *, recipe=None, dropout=0.0, **more):
    return RunConfig(
        name="test", steps=steps, rank=4, learning_rate=1e-3, recipe=RecipeConfig(warmup_steps=2, **recipe or {}),
        adapter=AdapterConfig(save_as="fp32", dropout=dropout), **more,
    )


@pytest.fixture
def start(tmp_path, base, training_set):
    """Start a run in a folder of this test's own, once more and once more."""

    def go(config=None, *, place="here", data=training_set, **more):
        places = Places(lora_folder=tmp_path / place / "loras", run_folder=tmp_path / place / "run")
        return train(data, base, config or settings(), places=places, device=CPU, **more)

    go.folder = tmp_path
    return go


def stopped(start, steps, *args, **more):
    with pytest.raises(Stop):
        start(*args, listener=StopsAt(steps), **more)


def points(start, place="here"):
    return sorted(path.name for path in (start.folder / place / "run" / "resume").glob("*/*.safetensors"))


RECIPES = [
    {}, {"schedule": "cosine", "ema": 0.9}, {"gradient_accumulation": 2, "lora_plus": 4.0}, {"optimizer": "Adafactor"},
    {"optimizer": "schedule-free AdamW"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_run_stopped_twice_ends_with_the_bytes_of_one_that_was_not(start, recipe):
    config = settings(recipe=recipe)
    whole = start(config, place="whole")
    stopped(start, 1, config)
    stopped(start, 3, config)
    result = start(config)
    assert result.lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()
    assert result.losses == whole.losses and not result.reused
    assert "Went on from step 4." in result.report and "2 of them now after going on from step 4" in result.report
    written = [json.loads(line)["loss"] for line in (start.folder / "here/run/progress.jsonl").read_text().splitlines()]
    assert written == whole.losses


def test_dropout_draws_the_same_after_going_on_and_leaves_the_hosts_generator_alone(start):
    config = settings(dropout=0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = start(config, place="whole")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    stopped(start, 2, config)
    assert start(config).lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()


def test_more_steps_go_on_from_the_end_and_fewer_begin_anew(start):
    start(settings(3))
    more = start(settings(5))
    assert "Went on from step 3." in more.report
    assert more.lora_files[0].read_bytes() == start(settings(5), place="whole").lora_files[0].read_bytes()
    earlier = more.lora_files[0].read_bytes()
    fewer = start(settings(2))
    assert "Begun anew: the last run of these settings had 5 steps." in fewer.report
    assert fewer.lora_files[0].read_bytes() == start(settings(2), place="other").lora_files[0].read_bytes()
    (kept,) = (start.folder / "here/run/replaced").iterdir()
    assert kept.read_bytes() == earlier


def test_a_schedule_is_said_to_be_another_when_more_steps_are_asked(start):
    start(settings(3, recipe={"schedule": "linear"}))
    assert "The schedule (linear) is that of 5 steps" in start(settings(5, recipe={"schedule": "linear"})).report


def test_saving_and_names_of_settings_that_decide_nothing_do_not_begin_a_new_run(start):
    stopped(start, 2)
    result = start(settings(recipe={"save_every": 2, "resume_every": 0.0}))
    assert "Went on from step 2." in result.report


def test_the_last_two_points_are_kept_and_a_point_is_made_every_so_often(start):
    stopped(start, 3, settings(recipe={"resume_every": 0.0}))
    assert points(start) == ["step-000002.safetensors", "step-000003.safetensors"]
    start(settings())
    assert points(start) == ["step-000003.safetensors", "step-000006.safetensors"]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def one_bit_flipped(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)


def a_number_in_the_header_changed(path):
    data = path.read_bytes()
    assert b'\\"step\\": 3' in data
    path.write_bytes(data.replace(b'\\"step\\": 3', b'\\"step\\": 5', 1))


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, one_bit_flipped, a_number_in_the_header_changed, emptied])
def test_a_broken_newest_point_is_found_and_the_one_before_is_used(start, damage):
    whole = start(place="whole")
    stopped(start, 3, settings(recipe={"resume_every": 0.0}))
    (newest,) = (start.folder / "here/run/resume").glob("*/step-000003.safetensors")
    damage(newest)
    result = start()
    assert "The resume point of step 3 is damaged" in result.report and "Went on from step 2." in result.report
    assert result.lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()


def test_other_settings_are_a_new_run_that_says_what_is_other_and_the_old_one_can_be_gone_back_to(start):
    whole = start(place="whole")
    stopped(start, 4)
    other = start(settings(seed=3, recipe={"shift": 5.0}))
    assert "A new run, other than the last one of this name: Seed 0 → 3; Shift 0.0 → 5.0\n" in other.report
    assert "Went on" not in other.report
    back = start()
    assert "Went on from step 4." in back.report
    assert back.lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()


def test_other_clips_are_named(start, training_set):
    start(settings(2))
    first, second, third = training_set.samples
    changed = dataclasses.replace(second, key="other caption")
    added = dataclasses.replace(third, name="new.mp4", key="new")
    data = dataclasses.replace(training_set, samples=(first, changed, added))
    report = start(settings(2), data=data).report
    assert "clips added: new.mp4" in report and f"clips gone: {third.name}" in report
    assert f"clips or captions changed: {second.name}" in report


def test_two_runs_of_one_name_at_once_are_refused_in_words(start):
    class StartsAnother(SilentListener):
        said = ""

        def check(self):
            with pytest.raises(ValueError, match="'run' is being trained at this moment") as error:
                start()
            StartsAnother.said = str(error.value)

    start(settings(1), listener=StartsAnother())
    assert "choose another name" in StartsAnother.said
    start(settings(1))  # and the lock is gone afterwards


def test_what_a_killed_process_left_half_written_is_gone(start):
    start(settings(2))
    here = start.folder / "here"
    resume = next((here / "run/resume").iterdir())
    left = [here / "loras/test.safetensors.0123abcd.part", here / "run/run.json.0123abcd.part",
            resume / "step-000009.safetensors.0123abcd.part"]
    other = here / "loras/theirs.safetensors.0123abcd.part"
    for path in (*left, other):
        path.write_bytes(b"half")
    start(settings(3))
    assert not any(path.exists() for path in left) and other.exists()


def test_a_lora_that_is_gone_is_written_again_from_the_last_point(start):
    path = start().lora_files[0]
    first = path.read_bytes()
    path.unlink()
    again = start(listener=StopsAt(1))  # no step is made
    assert again.lora_files[0].read_bytes() == first and not again.reused


def test_memory_that_runs_out_within_the_optimizers_step_takes_nothing(start, monkeypatch):
    """The step may be half made then: it is taken back, and made again with the next level."""
    config = settings(recipe={"resume_every": 0.0})
    whole = start(config, place="whole")
    step, failed = Stepper.step, []

    def fails_halfway(self, done):
        step(self, done)
        if done in (0, 4) and failed.count(done) == 0:
            failed.append(done)
            raise MemoryError

    monkeypatch.setattr(Stepper, "step", fails_halfway)
    result = start(config)
    assert failed[0] == 0 and "Memory ran out" in result.report
    assert result.lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()


def test_a_step_broken_off_halfway_is_not_kept(start, monkeypatch):
    config = settings(recipe={"resume_every": 0.0})
    step = Stepper.step

    def stops_halfway(self, done):
        step(self, done)
        if done == 3:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Stepper, "step", stops_halfway)
        start(config)
    tensors, header = read_lora(start.folder / "here/loras/test.safetensors")
    assert header["ss_steps"] == "3"
    whole = read_lora(start(settings(3), place="three").lora_files[0])[0]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
    assert start(config).lora_files[0].read_bytes() == start(config, place="whole").lora_files[0].read_bytes()


def point_of(step):
    state = RunState(step=step, losses=[0.5] * step)
    return ResumePoint(state=state, adapter={"a": torch.ones(2)}, optimizer=({}, {"groups/0/lr": 0.1}), weights="full")


def test_experts_points_are_told_apart(tmp_path):
    high, low = ResumeFolder(tmp_path, "high_noise"), ResumeFolder(tmp_path, "low_noise")
    high.add(point_of(3))
    assert low.newest(10) == (None, []) and low.last_step() == 0
    found, _ = high.newest(10)
    assert found.state.step == 3 and found.weights == "full" and found.optimizer[1] == {"groups/0/lr": 0.1}
    assert high.newest(2) == (None, [])


def test_of_other_runs_only_the_last_one_keeps_its_points(tmp_path):
    import os

    for age, name in enumerate(("oldest", "older", "current")):
        ResumeFolder(tmp_path / name).add(point_of(1))
        os.utime(tmp_path / name, (age, age))
    keep_last_runs(tmp_path, "current")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "older"]


def test_a_loss_that_runs_away_goes_back_to_the_last_sound_lora(start, monkeypatch):
    """Steps 5, 6 and 7 are far too high, and the step before them may have made them so."""
    stopped(start, 2, settings(9))
    checked = loop.check_step
    monkeypatch.setattr(
        loop, "check_step", lambda losses, loss, *more: checked(
            [*losses[:4], *(1e3 for _ in losses[4:])], loss if len(losses) < 4 else 1e3, *more
        )
    )
    with pytest.raises(LossExploded, match=r"step 7 .*sound up to step 3\. That of step 2 is kept\."):
        start(settings(9))
    assert read_lora(start.folder / "here/loras/test.safetensors")[1]["ss_steps"] == "2"
    assert points(start) == ["step-000000.safetensors", "step-000002.safetensors"]


HELD_OUT = {"held_out": 1, "judge_every": 2}


def test_held_out_clips_are_judged_the_best_lora_is_kept_and_all_of_it_goes_on_after_a_stop(start, training_set):
    config = settings(recipe=HELD_OUT)
    whole = start(config, place="whole")
    stopped(start, 3, config)
    result = start(config)
    assert result.report.count("Held-out loss was") == 1 and "Held out, not trained on: " in result.report
    lines = [json.loads(line) for line in (start.folder / "here/run/progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    judged = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
    assert lines == [json.loads(line) for line in (start.folder / "whole/run/progress.jsonl").read_text().splitlines()]
    best = min((step for step in judged if step), key=judged.get)
    kept = result.lora_files[0].with_name("test_best.safetensors")
    assert read_lora(kept)[1]["ss_steps"] == str(best)
    assert kept.read_bytes() == whole.lora_files[0].with_name("test_best.safetensors").read_bytes()
    assert result.lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()


def test_a_best_file_of_somebody_else_is_never_replaced(start):
    theirs = start.folder / "here/loras/test_best.safetensors"
    theirs.parent.mkdir(parents=True)
    write_tensors(theirs, {"x": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="test_best.safetensors is already in the LoRA folder"):
        start()


@pytest.mark.parametrize(
    ("memory", "said"),
    [({"compile": True}, "Compile not set → True"), ({"level": "by hand", "weights": "fp8"}, "Weights not set → fp8"),
     ({"level": "by hand", "recompute": False}, ""), ({"level": "24 GB"}, "")],
)
def test_of_the_ways_to_save_memory_only_those_that_change_numbers_are_a_new_run(base, training_set, memory, said):
    plain = facts_of(training_set, base, settings(), torch.float32)
    other = facts_of(training_set, base, settings(memory=MemoryConfig(**memory)), torch.float32)
    assert (run_key(plain) != run_key(other)) is bool(said)
    assert changes(json.loads(json.dumps(plain)), other) == ([said] if said else [])
