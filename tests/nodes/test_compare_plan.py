"""What a comparison shows: strengths from text, kept copies to rows, cells that are one and the same."""

import json

import pytest
import torch
from safetensors.torch import save_file

from video_lora_studio.loaders.lora_file import RUN_KEY


def rows_of(load, *rows):
    return load("rows").parse_rows(json.dumps([{"lora": "a.safetensors", **each} for each in rows]))


@pytest.fixture
def plan(load, comfy_folders):
    """The module, over ComfyUI's folders."""
    return load("compare_plan")


@pytest.fixture
def write(comfy_folders):
    """Write a LoRA among ComfyUI's, or a copy of it into the run's folder, as a run does."""
    def write_file(file, *, steps, name="a", run="1", model="wan.safetensors", copy=False):
        folder = comfy_folders.root / (f"output/video_lora/{name}/checkpoints" if copy else "models/loras")
        folder.mkdir(parents=True, exist_ok=True)
        header = {"ss_output_name": name, RUN_KEY: run, "ss_sd_model_name": model, "ss_steps": str(steps)}
        save_file({"x": torch.zeros(1)}, folder / file, header)
        return folder / file

    return write_file


@pytest.mark.parametrize(("text", "strengths"), [
    ("0, 1", (0, 1)), ("1", (1,)), (" -0.5,.25 , 1. ,1e-1", (-0.5, 0.25, 1, 0.1)), ("1,1", (1, 1)),
    ("+10, -10", (10, -10)),
])
def test_strengths_are_numbers_separated_by_commas(plan, text, strengths):
    assert plan.parse_strengths(text) == strengths


@pytest.mark.parametrize(("text", "words"), [
    ("", "Strengths is empty"), ("  ", "Strengths is empty"), (",", "Strengths is empty"),
    ("0, one", "'one' is not a number"), ("0,,1", "'' is not a number"), ("0; 1", "'0; 1' is not a number"),
    ("nan", "'nan' is not a number"), ("inf", "'inf' is not a number"), ("0x1", "'0x1' is not a number"),
    ("1_0", "'1_0' is not a number"), ("٣", "'٣' is not a number"), ("11", "11 must lie between -10 and 10"),
    ("1e999", "1e999 must lie between"), ("1" * 2000, "at most 1,000 characters"),
    (",".join(["1"] * 101), "101 strengths are 101 cells, and at most 100 can be compared: write fewer strengths."),
])
def test_what_is_no_strength_is_said(plan, text, words):
    with pytest.raises(ValueError) as error:
        plan.parse_strengths(text)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 200


def test_too_many_cells_are_counted(plan, load):
    with pytest.raises(ValueError, match="40 checkpoints at 3 strengths are 120 cells, and at most 100 can be"):
        plan.plan_of(rows_of(load, {}), (0, 1, 2), [plan.Checkpoint()] * 40)


def test_cells_without_a_lora_are_one(plan, load):
    checkpoints = [plan.Checkpoint(label=f"step {step}") for step in (1, 2, 3)]
    made = plan.plan_of(rows_of(load, {"strength": 0.8}), (0, 1, 0, 0.5), checkpoints)
    assert made.columns == ("without", "strength 0.8", "without", "strength 0.4")
    assert made.rows == ("step 1", "step 2", "step 3")
    assert [(cell.label, cell.shown_at) for cell in made.cells] == [
        ("without", tuple((row, column) for row in range(3) for column in (0, 2))),
        ("step 1, strength 0.8", ((0, 1),)), ("step 1, strength 0.4", ((0, 3),)),
        ("step 2, strength 0.8", ((1, 1),)), ("step 2, strength 0.4", ((1, 3),)),
        ("step 3, strength 0.8", ((2, 1),)), ("step 3, strength 0.4", ((2, 3),)),
    ]
    assert [cell.loras[0].strength for cell in made.cells] == [0, 0.8, 0.4, 0.8, 0.4, 0.8, 0.4]
    assert not made.cells[0].loras[0].applies


@pytest.mark.parametrize(("rows", "column", "title"), [
    ([{}], "strength 0.5", "a"),
    ([{"strength": -0.4}], "strength -0.2", "a"),
    ([{"lora": "style/b.safetensors"}], "strength 0.5", "b"),
    ([{"strength": 1, "strength_low": 0.6}], "strength × 0.5", "a"),
    ([{"strength": 1, "audio": 0}], "strength × 0.5", "a"),
    ([{}, {"lora": "b.safetensors", "strength": 0.3}], "strength × 0.5", "a 1 + b 0.3"),
    ([{}, {"lora": "b.safetensors", "on": False}], "strength 0.5", "a"),
])
def test_a_column_says_the_strength_or_the_factor_of_all(plan, load, rows, column, title):
    made = plan.plan_of(rows_of(load, *rows), (0.5,), [plan.Checkpoint()])
    assert (made.columns, made.rows, made.title) == ((column,), ("",), title)


def test_all_strengths_of_a_row_are_multiplied(load):
    (row,) = rows_of(load, {"strength": 0.5, "strength_low": -1, "audio": 2, "start": 0.25, "blocks": "0:1"})
    doubled = row.times(2)
    assert (doubled.strength, doubled.strength_low, doubled.audio) == (1.0, -2.0, 4.0)
    assert (doubled.lora, doubled.start, doubled.blocks) == (row.lora, row.start, row.blocks)


def test_kept_copies_are_those_of_this_run_oldest_first(plan, load, write):
    last = write("a.safetensors", steps=1000)
    copies = [write(f"step-{step:06d}.safetensors", steps=step, copy=True) for step in (500, 250, 750)]
    write("step-000900.safetensors", steps=900, run="an earlier one", copy=True)
    write("step-001250.safetensors", steps=1250, copy=True)
    write("low_noise-step-000500.safetensors", steps=500, model="low.safetensors", copy=True)
    (copies[0].parent / "step-000001.safetensors").write_bytes(b"half")
    made = plan.all_checkpoints(rows_of(load, {}), None, None)
    assert [each.label for each in made] == ["step 250", "step 500", "step 750", "step 1000\nlast"]
    assert [each.file_of("a.safetensors") for each in made] == [copies[1], copies[0], copies[2], last]


def test_copies_of_two_experts_go_together_in_their_order(plan, load, write):
    low_of = {"a_high_noise.safetensors": "a_low_noise.safetensors"}.get
    for expert, steps in (("high_noise", (250, 500, 600)), ("low_noise", (250, 500, 750, 1400))):
        for step in steps[:-1]:
            write(f"{expert}-step-{step}.safetensors", steps=step, model=expert, copy=True)
        write(f"a_{expert}.safetensors", steps=steps[-1], model=expert)
    rows = rows_of(load, {"lora": "a_high_noise.safetensors"})
    made = plan.all_checkpoints(rows, None, low_of)
    assert [each.label for each in made] == ["step 250", "step 500", "step 600 / 750", "step 600 / 1400\nlast"]
    assert [each.file_of("a_low_noise.safetensors").stem for each in made] == [
        "low_noise-step-250", "low_noise-step-500", "low_noise-step-750", "a_low_noise"]
    assert [each.label for each in plan.all_checkpoints(rows, None, None)] == [
        "step 250", "step 500", "step 600\nlast"]


def test_of_several_loras_the_one_with_copies_is_followed(plan, load, write):
    write("a.safetensors", steps=10)
    write("b.safetensors", steps=10, name="b")
    copy = write("step-5.safetensors", steps=5, name="b", copy=True)
    rows = rows_of(load, {}, {"lora": "b.safetensors"})
    first, _ = plan.all_checkpoints(rows, None, None)
    assert first.file_of("b.safetensors") == copy and first.file_of("a.safetensors").name == "a.safetensors"
    with pytest.raises(ValueError, match="No copies of a.safetensors were kept: compare the last only, or train with"):
        plan.all_checkpoints(rows, "a.safetensors", None)
    write("step-5.safetensors", steps=5, copy=True)
    with pytest.raises(ValueError, match=r"several LoRAs, a.safetensors and b.safetensors: switch all of them off but"):
        plan.all_checkpoints(rows, None, None)
    assert len(plan.all_checkpoints(rows, "b.safetensors", None)) == 2


@pytest.mark.parametrize("name", ["../../secrets", "/etc", "", "_features", "x" * 200, "a/b"])
def test_a_files_claim_leads_to_no_other_folder(plan, load, write, comfy_folders, name):
    header = {"ss_output_name": name, RUN_KEY: "1", "ss_sd_model_name": "m", "ss_steps": "10"}
    save_file({"x": torch.zeros(1)}, comfy_folders.root / "models/loras/a.safetensors", header)
    with pytest.raises(ValueError, match="No copies of a.safetensors were kept"):
        plan.all_checkpoints(rows_of(load, {}), None, None)


@pytest.mark.parametrize("steps", ["", "ten", "-1", "²", "9" * 400])
def test_a_lora_that_does_not_say_its_steps_has_no_copies(plan, load, write, steps):
    write("a.safetensors", steps=steps)
    write("step-5.safetensors", steps=5, copy=True)
    with pytest.raises(ValueError, match="No copies"):
        plan.all_checkpoints(rows_of(load, {}), None, None)
