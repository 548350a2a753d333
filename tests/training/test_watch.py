"""Steps that must not be made, and what is said of held-out clips."""

import json
import math
import random

import pytest

from video_lora_studio.training.watch import (
    Judgement,
    LossExploded,
    LossNotFinite,
    best,
    check_step,
    held_out_words,
    overtrained,
)


def clips():
    return ["walk.mp4", "run.mp4 2.0-4.1 s"]


def first_refused(losses):
    """The error of the first step that is refused, and its place from 1; of none (None, None)."""
    for done, loss in enumerate(losses):
        try:
            check_step(losses[:done], loss, 1.0, clips)
        except ValueError as error:
            return error, done + 1
    return None, None


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (math.nan, 1.0, "The loss became nan"), (math.inf, math.inf, "The loss became inf"),
        (0.1, math.nan, "The gradient became nan"), (0.1, math.inf, "The gradient became inf"),
    ],
)
def test_what_is_no_number_is_refused_at_once_with_step_and_clips(loss, norm, said):
    with pytest.raises(LossNotFinite) as error:
        check_step([0.1, 0.2], loss, norm, clips)
    assert str(error.value) == (
        f"{said} in step 3 (clips: walk.mp4, run.mp4 2.0-4.1 s): lower the learning rate or look at these clips. "
        "The LoRA of step 2 is kept."
    )
    with pytest.raises(LossNotFinite, match="Nothing was learnt yet"):
        check_step([], loss, norm, clips)


def test_healthy_losses_of_one_clip_a_step_never_stop_a_run():
    """Noise levels spread the loss of a batch of one over two orders of magnitude; answering nothing gives 2."""
    for seed in range(15):
        draw = random.Random(seed)
        losses = [min(2.0, draw.lognormvariate(-1.5, 1.0)) for _ in range(1500)]
        assert first_refused(losses) == (None, None)


@pytest.mark.parametrize(
    "losses",
    [
        [0.01] * 50 + [0.99] * 50,  # a hundred times the usual, and still better than answering nothing
        [0.3] * 50 + [1e6] + [0.3] * 20 + [1e6, 1e6] + [0.3] * 20,  # odd clips
        [40.0] * 50 + [70.0] * 50,  # latents of another scale
        [5.0] * 19 + [1.5] * 50,
        [0.1],
    ],
    ids=["below nothing", "odd clips", "scale", "falling", "first"],
)
def test_losses_that_are_odd_but_no_runaway_are_let_pass(losses):
    assert first_refused(losses) == (None, None)


@pytest.mark.parametrize(
    ("losses", "step", "sound"),
    [
        ([0.3] * 100 + [12.0] * 9, 103, 99),  # three steps above ten
        ([0.3] * 100 + [3.0] * 40, 120, 99),  # twenty above two, where a spoilt model that still is finite stays
        ([0.3] * 100 + [0.5 * 2**n for n in range(40)], 108, 104),
        ([4.0] * 100 + [30.0] * 40, 120, 99), ([4.0] * 100 + [41.0] * 40, 103, 99),  # latents of another scale
        ([0.3] * 5 + [50.0, 60.0, 70.0], 8, 4),
    ],
)
def test_a_runaway_is_stopped_and_its_sound_steps_are_known(losses, step, sound):
    error, refused = first_refused(losses)
    assert refused == step and isinstance(error, LossExploded) and error.sound_steps == sound
    assert f"in step {step} (clips: walk.mp4, run.mp4 2.0-4.1 s)" in str(error)
    assert "halve the learning rate" in str(error) and str(error).endswith(f"sound up to step {sound}.")


def judged(*losses, every=250):
    """Judgements with these losses, the first of the untrained model."""
    return [Judgement(step=n * every, levels={"0.25": loss - 0.01, "0.75": loss + 0.01}) for n, loss in
            enumerate(losses)]


def test_a_judgement_is_one_line_of_json_and_back():
    one = Judgement(step=250, levels={"0.125": 0.1, "0.375": 0.3})
    line = json.dumps(one.entry())
    assert line == '{"step": 250, "held_out": 0.2, "levels": {"0.125": 0.1, "0.375": 0.3}}'
    assert Judgement.of(json.loads(line)) == one


@pytest.mark.parametrize(
    "entry",
    [{}, {"step": 1, "loss": 0.1}, {"step": 1, "levels": {}}, {"step": 1, "levels": {"0.1": None}},
     {"step": 1, "levels": [0.1]}, {"step": -1, "levels": {"0.1": 0.1}}, {"step": 1, "levels": {"0.1": math.nan}}],
)
def test_what_is_no_judgement_is_refused(entry):
    with pytest.raises(ValueError, match="no judgement"):
        Judgement.of(entry)


@pytest.mark.parametrize(
    ("losses", "lowest", "over"),
    [
        ((), None, False), ((0.1,), None, False),  # the untrained model is no LoRA
        ((0.10, 0.09, 0.08), 500, False), ((0.10, 0.08, 0.08), 250, False), ((0.05, 0.09, 0.08), 500, False),
        ((0.10, 0.08, 0.09, 0.10), 250, False), ((0.10, 0.08, 0.09, 0.10, 0.11), 250, True),
        ((0.10, 0.08, 0.0801, 0.0805, 0.0815), 250, False),  # within what is no clear rise
        ((0.10, 0.08, 0.12, 0.12, 0.0799), 1000, False), ((0.05, 0.09, 0.08, 0.08), 500, True),
    ],
)
def test_the_best_step_and_overtraining(losses, lowest, over):
    found = best(judged(*losses))
    assert (found.step if found else None) == lowest
    assert overtrained(judged(*losses)) is over


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((), []), ((0.1,), []),
        ((0.1, 0.081, 0.085, 0.09, 0.094), ["Held-out loss was lowest at step 250 (0.0810) and has risen to 0.0940 "
                                             "since: the LoRA of step 250 is kept as cat_best."]),
        ((0.1, 0.09, 0.08), ["Held-out loss was 0.1000 before training and is lowest at the end, 0.0800."]),
        ((0.1, 0.08, 0.0805), ["Held-out loss was 0.1000 before training, lowest at step 250 (0.0800) and 0.0805 at "
                               "the end: the LoRA of step 250 is kept as cat_best."]),
        ((0.1, 0.11, 0.13), ["Held-out loss was 0.1000 before training and never lower since, 0.1300 at the end: what "
                             "was learnt does not carry over to other clips. More clips or a lower rank may help."]),
    ],
)
def test_the_report_says_how_held_out_clips_fared(losses, said):
    assert held_out_words(judged(*losses), "cat_best") == said
