"""Captions in other orders: the same parts, the trigger word first, the same orders every time."""

import pytest

from video_lora_studio.training.dataset.caption_orders import other_orders


@pytest.mark.parametrize(
    ("caption", "trigger", "by", "first", "parts", "count"),
    [
        ("a, b, c", "", "tags", "", ["a", "b", "c"], 5),
        ("ohwx, a,b , c", "ohwx", "tags", "ohwx, ", ["a", "b", "c"], 5),
        ("OHWX dances, a, b", "ohwx", "tags", "OHWX dances, ", ["a", "b"], 1),
        ("a, ohwx, b", "ohwx", "tags", "", ["a", "ohwx", "b"], 5),
        ("ohwx, She runs. She falls! Why?", "ohwx", "sentences", "ohwx, ", ["She runs.", "She falls!", "Why?"], 5),
        ("ohwx runs. It rains.", "ohwx", "sentences", "ohwx runs. ", ["It rains."], 0),
        ("ohwxy, a", "ohwx", "tags", "", ["ohwxy", "a"], 1),
        ("一。二！三", "", "sentences", "", ["一。", "二！", "三"], 5),
        ("At 3.5 m. He stops.", "", "sentences", "", ["At 3.5 m.", "He stops."], 1),
        ("one", "", "tags", "", ["one"], 0),
        ("", "", "sentences", "", [], 0),
    ],
)
def test_parts_are_kept_and_the_trigger_word_stays_first(caption, trigger, by, first, parts, count):
    joint = ", " if by == "tags" else " "
    orders = other_orders(caption, trigger, by, 32)
    assert len(set(orders)) == len(orders) == count
    for order in orders:
        assert order.startswith(first) and order != caption
        assert sorted(order[len(first) :].split(joint) if by == "tags" else parts) == sorted(parts)
        assert sorted(order.replace(" ", "")) == sorted(caption.replace(" ", ""))


def test_the_same_orders_every_time_and_no_more_than_asked_for():
    caption = "a, b, c, d, e, f"
    four = other_orders(caption, "", "tags", 4)
    assert len(four) == 4 and four == other_orders(caption, "", "tags", 4)
    assert other_orders(caption, "", "tags", 8)[:4] == four


def test_what_few_parts_allow_is_found():
    assert all(other_orders(f"{number}, b", "", "tags", 1) == (f"b, {number}",) for number in range(200))
    assert all(len(other_orders(f"{number}, b, c, d", "", "tags", 23)) == 23 for number in range(50))
