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
    ({"lora": "a", "on": False}, False),
])
def test_a_row_applies_where_it_changes_something(load, row, applies):
    assert load("rows").parse_rows(text_of(row))[0].applies is applies


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
])
def test_what_cannot_be_read_is_named(load, text, words):
    with pytest.raises(ValueError) as error:
        load("rows").parse_rows(text)
    message = str(error.value)
    assert message.startswith("LoRAs") and "\n" not in message and len(message) < 300
    for word in words:
        assert word in message
