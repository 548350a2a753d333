"""Rename rules, read both ways."""

import pytest

from video_lora_studio.loaders.key_map import KeyMap

NAMES = KeyMap((
    ("head.table", "scale_shift_table"),
    ("blocks.*.table", "blocks.*.scale_shift_table"),
    ("blocks.*.attn.q", "layers.*.attention.to_q"),
    ("blocks.*.attn", "layers.*.attention"),
    ("a.norm1", "a.norm2"),
    ("a.norm2", "a.norm1"),
))


@pytest.mark.parametrize("in_file, in_class", [
    ("blocks.3.attn.q.weight", "layers.3.attention.to_q.weight"),
    ("blocks.12.attn.q.lora_A.weight", "layers.12.attention.to_q.lora_A.weight"),
    ("blocks.3.attn.q", "layers.3.attention.to_q"),
    ("blocks.3.attn.q_norm.weight", "layers.3.attention.q_norm.weight"),
    ("blocks.3.attn", "layers.3.attention"),
    ("blocks.0.table", "blocks.0.scale_shift_table"),
    ("head.table", "scale_shift_table"),
    ("a.norm1.bias", "a.norm2.bias"),
    ("a.norm2.bias", "a.norm1.bias"),
    ("unknown.q.weight", "unknown.q.weight"),
    ("blocks", "blocks"),
])
def test_names_go_both_ways(in_file, in_class):
    assert NAMES.forward(in_file) == in_class
    assert NAMES.back(in_class) == in_file


def test_the_first_rule_that_matches_wins_and_is_applied_once():
    names = KeyMap((("a", "b"), ("a.x", "c"), ("b", "d")))
    assert names.forward("a.x") == "b.x"


def test_a_key_map_is_a_value():
    assert KeyMap((("a", "b"),)) == KeyMap((("a", "b"),))
    with pytest.raises(AttributeError):
        NAMES.rules = ()
