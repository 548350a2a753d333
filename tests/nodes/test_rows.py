"""Rows of a LoRA stack, read from the widget's text."""

import json

import pytest


def text_of(*rows):
    return json.dumps(list(rows))


@pytest.mark.parametrize(("row", "on", "lora", "strength", "low"), [
    ({"on": True, "lora": "a.safetensors", "strength": 0.8}, True, "a.safetensors", 0.8, 0.8),
    ({"lora": "a.safetensors"}, True, "a.safetensors", 1.0, 1.0),
    ({"lora": " style/a.safetensors ", "strength": -2}, True, "style/a.safetensors", -2.0, -2.0),
    ({"lora": "a", "strength": 1.5, "strength_low": 0}, True, "a", 1.5, 0.0),
    ({"on": False, "lora": "", "strength": 0.5}, False, "", 0.5, 0.5),
    ({"on": False}, False, "", 1.0, 1.0),
], ids=["full", "short", "negative", "low", "off_and_empty", "bare"])
def test_a_row_says_what_it_says(load, row, on, lora, strength, low):
    (read,) = load("rows").parse_rows(text_of(row))
    assert (read.on, read.lora, read.strength, read.strength_low) == (on, lora, strength, low)


@pytest.mark.parametrize(("row", "applies"), [
    ({"lora": "a"}, True),
    ({"lora": "a", "strength": 0}, False),
    ({"lora": "a", "strength": 0, "strength_low": 0.5}, True),
    ({"lora": "a", "strength": 0, "audio": 0.5}, True),
    ({"lora": "a", "on": False}, False),
])
def test_a_row_applies_where_it_changes_something(load, row, applies):
    assert load("rows").parse_rows(text_of(row))[0].applies is applies


def test_sound_follows_the_strength_until_it_has_its_own(load):
    alone, apart = load("rows").parse_rows(text_of({"lora": "a", "strength": 0.7}, {"lora": "a", "audio": -1}))
    assert (alone.audio, apart.strength, apart.audio) == (0.7, 1.0, -1.0)


@pytest.mark.parametrize(("text", "weights"), [
    ("", [1, 1, 1, 1, 1]),
    ("  ", [1, 1, 1, 1, 1]),
    ("0-9:0.5, 31-35:1", [0.5, 0.5, 0, 1, 0]),
    ("9 - 31 : -2", [0, -2, -2, -2, 0]),
    ("10:1e-1,*:1", [1, 1, 0.1, 1, 1]),
    ("*:.25", [0.25] * 5),
    ("*:0", [0] * 5),
])
def test_blocks_have_the_weights_that_are_written(load, text, weights):
    (row,) = load("rows").parse_rows(text_of({"lora": "a", "blocks": text}))
    assert [row.blocks.of(block) for block in (0, 9, 10, 31, 36)] == weights


def test_a_part_of_the_steps(load):
    whole, part = load("rows").parse_rows(text_of({"lora": "a"}, {"lora": "a", "start": 0.25, "end": 0.5}))
    assert (whole.start, whole.end, part.start, part.end) == (0.0, 1.0, 0.25, 0.5)


@pytest.mark.parametrize(("text", "factors"), [
    ("", [1, 1, 1, 1, 1]),
    (" \n", [1, 1, 1, 1, 1]),
    ("0:0.5", [0.5] * 5),
    ("0:0, 1:1", [0, 0.1, 0.25, 0.5, 0.9]),
    ("0:0, 0.5:1, 1:0", [0, 0.2, 0.5, 1, 0.2]),
    ("0.25 : 1 , 0.5 : -3", [1, 1, 1, -3, -3]),
    ("0.1:2,.25:2E0,0.5:+1e-1", [2, 2, 2, 0.1, 0.1]),
    ("0:1, 0.1:10, 0.100001:0, 1.:0", [1, 10, 0, 0, 0]),
    (", ".join(f"{place / 31:.4f}:{place}e-1" for place in range(32)), [0, 0.31, 0.775, 1.55, 2.79]),
])
def test_a_curve_is_straight_between_its_points_and_level_beyond(load, text, factors):
    (row,) = load("rows").parse_rows(text_of({"lora": "a", "curve": text}))
    assert [row.factor_at(share) for share in (0, 0.1, 0.25, 0.5, 0.9)] == pytest.approx(factors, abs=1e-3)
    assert row.steady is (not text.strip())


def test_a_curve_counts_the_steps_as_the_part_of_the_steps_does(load):
    (row,) = load("rows").parse_rows(text_of({"lora": "a", "start": 0.25, "end": 0.75, "curve": "0:0, 1:1"}))
    assert [row.factor_at(share / 8) for share in range(8)] == [0, 0, 0.25, 0.375, 0.5, 0.625, 0, 0]


def test_rows_keep_their_order_and_may_repeat(load):
    rows = load("rows").parse_rows(text_of({"lora": "b"}, {"lora": "a"}, {"lora": "b", "strength": 0.1}))
    assert [row.lora for row in rows] == ["b", "a", "b"]


@pytest.mark.parametrize("text", ["", "  \n", "[]"])
def test_nothing_is_no_rows(load, text):
    assert load("rows").parse_rows(text) == ()


@pytest.mark.parametrize(("text", "words"), [
    ("[{]", ("JSON", "line 1")),
    ('{"lora": "a"}', ("list of rows",)),
    ("7", ("list of rows",)),
    ("[" * 30_000, ("nested",)),
    (" " * 200_001, ("characters",)),
    (text_of(*[{"lora": "a"}] * 101), ("101", "100")),
    ('["a.safetensors"]', ("row 1", "looks like")),
    (text_of({"lora": "a"}, {"lora": "b", "weight": 1}), ("row 2", "weight")),
    (text_of({"lora": "a", "on": 1}), ("row 1", "on")),
    (text_of({"on": True}), ("row 1", "no LoRA is chosen")),
    (text_of({"lora": "  "}), ("row 1", "no LoRA is chosen")),
    (text_of({"lora": 3}), ("row 1", "file name")),
    (text_of({"lora": "a", "strength": "much"}), ("row 1 (a)", "strength", "number")),
    (text_of({"lora": "a", "strength": True}), ("strength", "number")),
    (text_of({"lora": "a", "strength": None}), ("strength", "number")),
    (text_of({"lora": "a", "strength": float("nan")}), ("a", "strength", "nan")),
    (text_of({"lora": "a", "strength": 1e308}), ("strength", "between -10 and 10")),
    (text_of({"lora": "a", "strength": 10**400}), ("strength", "between")),
    ('[{"lora": "a", "strength": 1' + "0" * 5000 + "}]", ("too long",)),
    (text_of({"lora": "a", "strength": [1]}), ("strength", "[1]")),
    (text_of({"lora": "a", "strength_low": -11}), ("strength_low", "-11")),
    (text_of({"lora": "a", "audio": "loud"}), ("row 1 (a)", "audio", "number")),
    (text_of({"lora": "a", "start": -0.1}), ("start", "between 0 and 1")),
    (text_of({"lora": "a", "end": 50}), ("end", "between 0 and 1")),
    (text_of({"lora": "a", "start": 0.5, "end": 0.5}), ("start", "before the end")),
    (text_of({"lora": "a", "start": None}), ("start", "number")),
    (text_of({"lora": "a", "blocks": ["0-9"]}), ("blocks", "must be text")),
    (text_of({"lora": "a", "blocks": "0" * 1001}), ("blocks", "must be text")),
    (text_of({"lora": "a", "blocks": "0-9"}), ("blocks", "'0-9' cannot be read", "31-35:1")),
    (text_of({"lora": "a", "blocks": "0-9:0.5,"}), ("blocks", "cannot be read")),
    (text_of({"lora": "a", "blocks": "a-b:1"}), ("blocks", "cannot be read")),
    (text_of({"lora": "a", "blocks": "-3:1"}), ("blocks", "cannot be read")),
    (text_of({"lora": "a", "blocks": "3:x"}), ("blocks", "weight", "number")),
    (text_of({"lora": "a", "blocks": "3:nan"}), ("blocks", "weight", "number")),
    (text_of({"lora": "a", "blocks": "3:inf"}), ("blocks", "weight", "between -10 and 10")),
    (text_of({"lora": "a", "blocks": "9-3:1"}), ("blocks", "'9-3:1'", "lower to a higher")),
    (text_of({"lora": "a", "blocks": "0-1000:1"}), ("blocks", "below 1000")),
    (text_of({"lora": "a", "blocks": "0-9:1, 9:2"}), ("blocks", "'9:2'", "named before")),
    (text_of({"lora": "a", "blocks": "*:1, *:0"}), ("blocks", "* is there twice")),
    (text_of({"lora": "b"}, {"lora": "a", "curve": [[0, 1]]}), ("row 2 (a)", "curve", "must be text")),
    (text_of({"lora": "a", "curve": None}), ("curve", "must be text", "0.3:1")),
    (text_of({"lora": "a", "curve": "0" * 1001}), ("curve", "must be text")),
    (text_of({"lora": "a", "curve": "0.5"}), ("row 1 (a): curve", "'0.5' cannot be read", "place:factor")),
    (text_of({"lora": "a", "curve": "0:0, 1:1,"}), ("curve", "'' cannot be read")),
    (text_of({"lora": "a", "curve": "0:0; 1:1"}), ("curve", "cannot be read")),
    (text_of({"lora": "a", "curve": "0:nan"}), ("curve", "'0:nan' cannot be read")),
    (text_of({"lora": "a", "curve": "0:inf"}), ("curve", "cannot be read")),
    (text_of({"lora": "a", "curve": "0:1_0"}), ("curve", "cannot be read")),
    (text_of({"lora": "a", "curve": "0:0x1"}), ("curve", "cannot be read")),
    (text_of({"lora": "a", "curve": "\u0661:1"}), ("curve", "cannot be read")),
    (text_of({"lora": "a", "curve": "30%:1"}), ("curve", "'30%:1' cannot be read")),
    (text_of({"lora": "a", "curve": "0:1, 30:2"}), ("curve", "place of '30:2' is 30.0", "between 0 and 1")),
    (text_of({"lora": "a", "curve": "-0.1:1"}), ("curve", "place", "between 0 and 1")),
    (text_of({"lora": "a", "curve": "0:1, 1:10.5"}), ("curve", "factor of '1:10.5'", "between -10 and 10")),
    (text_of({"lora": "a", "curve": "0:1e999"}), ("curve", "factor", "inf", "between -10 and 10")),
    (text_of({"lora": "a", "curve": "0:" + "9" * 900}), ("curve", "factor", "between -10 and 10")),
    (text_of({"lora": "a", "curve": "0:1, 0.5:1, 0.5:2"}), ("curve", "'0.5:2' must lie after 0.5", "rise")),
    (text_of({"lora": "a", "curve": "0.5:1, 0.2:2"}), ("curve", "'0.2:2' must lie after 0.5")),
    (text_of({"lora": "a", "curve": ",".join(f"0.{n:03}:1" for n in range(33))}), ("curve", "33 points", "32")),
])
def test_what_cannot_be_read_is_named(load, text, words):
    with pytest.raises(ValueError) as error:
        load("rows").parse_rows(text)
    message = str(error.value)
    assert message.startswith("LoRAs") and "\n" not in message and len(message) < 300
    for word in words:
        assert word in message
