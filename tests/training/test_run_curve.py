"""The losses of a run as a curve that can be drawn."""

import json
import math

import pytest

from video_lora_studio.training import read_curve
from video_lora_studio.training.run_folder import RunFolder


def write_run(path, losses, *, steps, experts=("",), more=()):
    folder = RunFolder(path)
    folder.write_record({
        "status": "stopped", "settings": {"steps": steps, "recipe": {"high_noise_share": 0.25}},
        "facts": {"base": [["id", expert] for expert in experts]},
    })
    lines = [*({"step": step, "loss": loss} for step, loss in enumerate(losses, 1)), *more]
    (path / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1999, 2000, 30_000])
def test_few_points_keep_every_extreme(tmp_path, count):
    losses = [0.1 + 0.05 * math.sin(step * step) for step in range(count)]
    losses[count // 3] = 9.0
    write_run(tmp_path, losses, steps=count)
    curve = read_curve(tmp_path)
    assert (curve.status, curve.total, curve.last) == ("stopped", count, count)
    assert len(curve.points) <= 500 and curve.points[-1][0] == count
    assert max(high for _, _, high, _ in curve.points) == 9.0
    assert min(low for _, low, _, _ in curve.points) == pytest.approx(min(losses), rel=1e-4)
    assert all(low <= high for _, low, high, _ in curve.points)


def test_the_smoothed_loss_is_a_mean_and_can_be_gone_on_with(tmp_path):
    losses = [0.1 + 0.01 * (step % 7) for step in range(300)]
    write_run(tmp_path, losses, steps=1000)
    curve = read_curve(tmp_path)
    keep, total, weight = (curve.smoothing[name] for name in ("keep", "sum", "weight"))
    weights = [keep ** (len(losses) - 1 - place) for place in range(len(losses))]
    mean = sum(map(lambda one, by: one * by, losses, weights)) / sum(weights)
    assert curve.points[0][3] == pytest.approx(losses[0])
    assert curve.points[-1][3] == pytest.approx(mean, rel=1e-4) == pytest.approx(total / weight, rel=1e-4)


def test_each_expert_has_a_smoothed_loss_of_its_own(tmp_path):
    judged = {"step": 25, "held_out": 0.3, "levels": {"0.9": 0.3}, "expert": "high_noise"}
    write_run(tmp_path, [1.0] * 25 + [0.1] * 40, steps=100, experts=("high_noise", "low_noise"), more=[judged])
    curve = read_curve(tmp_path)
    assert curve.experts == (("high_noise", 0), ("low_noise", 25))
    assert [smooth for *_, smooth in curve.points] == pytest.approx([1.0] * 25 + [0.1] * 40)
    assert curve.held_out == ((25, "high_noise", {"0.9": 0.3}),)


def test_newer_losses_stand_in_place_of_those_on_disk(tmp_path):
    write_run(tmp_path, [0.1, 0.2, 0.3, 0.4], steps=9)
    assert [low for _, low, _, _ in read_curve(tmp_path, 3, [0.5]).points] == [0.1, 0.2, 0.5]
    assert [low for _, low, _, _ in read_curve(tmp_path, 5, [0.5, 0.6]).points] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize("line", [
    "", "{", "[]", "7", "null", '{"step": 2}', '{"loss": 0.5}', '{"step": 2, "loss": NaN}', '{"step": 0, "loss": 0.5}',
    '{"step": 2, "loss": "x"}', '{"step": Infinity, "loss": 0.5}', '{"step": 2, "levels": 7}',
    '{"step": 2, "levels": {"0.5": NaN}}', '{"step": -1, "levels": {"0.5": 1}}', "[" * 5000, "\udcff",
])
def test_a_line_that_says_nothing_is_left_out(tmp_path, line):
    write_run(tmp_path, [0.1], steps=9)
    with (tmp_path / "progress.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    curve = read_curve(tmp_path)
    assert curve.points == ((1, 0.1, 0.1, 0.1),) and curve.held_out == ()
    json.dumps(curve.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "record", [None, "", "[]", '{"format": 2, "settings": 7}', '{"format": 2, "facts": {"base": 1}}']
)
def test_a_folder_without_a_run_gives_an_empty_curve(tmp_path, record):
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    curve = read_curve(tmp_path)
    assert (curve.total, curve.last, curve.points, curve.held_out, curve.experts) == (0, 0, (), (), ())
