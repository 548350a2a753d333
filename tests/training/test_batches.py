"""Which captions stand beside which clips, how often a clip is shown, and what a run is refused for."""

import dataclasses
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.batches import Batches, ReadAhead, check_captions
from video_lora_studio.training.config import RecipeConfig, RunConfig
from video_lora_studio.training.dataset.training_set import Caption, load_sample
from video_lora_studio.training.run import train
from video_lora_studio.training.run_output import Places


def captioned(training_set, *captions, **more):
    """The set with each sample having these captions, told by the names of their files."""
    samples = tuple(dataclasses.replace(sample, captions=captions) for sample in training_set.samples)
    return dataclasses.replace(training_set, samples=samples, no_caption=Path("none"), **more)


def caption(name, *shuffled):
    return Caption(text=name, features=Path(name), shuffled=tuple(map(Path, shuffled)))


def shown(training_set, base, positions=600, seed="1", **recipe):
    """How often each caption is shown."""
    batches = Batches(training_set, base, RecipeConfig(**recipe), seed=seed)
    return Counter(str(path) for position in range(positions) for path in batches.captions(position))


def test_one_caption_is_always_shown(training_set, base):
    assert shown(captioned(training_set, caption("a")), base, positions=30) == {"a": 30}


def test_several_captions_are_shown_alike(training_set, base):
    counts = shown(captioned(training_set, caption("a"), caption("b"), caption("c")), base)
    assert counts.keys() == {"a", "b", "c"} and all(150 < count < 250 for count in counts.values())


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.1, 35, 90), (0.5, 250, 350), (1.0, 600, 600)])
def test_captions_are_dropped_as_often_as_asked(training_set, base, share, least, most):
    counts = shown(captioned(training_set, caption("a")), base, caption_dropout=share)
    assert least <= counts["none"] <= most and counts["none"] + counts["a"] == 600


def test_orders_are_shown_only_where_captions_are_shuffled(training_set, base):
    data = captioned(training_set, caption("a", "a1", "a2"), caption("b"), shuffle="tags", orders=2)
    assert shown(data, base).keys() == {"a", "b"}
    counts = shown(data, base, caption_shuffle="tags", caption_orders=2)
    assert counts.keys() == {"a", "a1", "a2", "b"} and 250 < counts["b"] < 350
    assert all(60 < counts[name] < 140 for name in ("a", "a1", "a2"))


def test_a_position_always_draws_the_same_and_a_seed_of_its_own(training_set, base):
    data = captioned(training_set, caption("a"), caption("b"))
    recipe = RecipeConfig(batch_size=2, caption_dropout=0.3)
    one, same, other = (Batches(data, base, recipe, seed=seed) for seed in ("1", "1", "2"))
    forth = [one.captions(position) for position in range(50)]
    assert [same.captions(position) for position in reversed(range(50))] == forth[::-1]
    assert [other.captions(position) for position in range(50)] != forth
    assert all(len(one.captions(position)) == len(one.samples(position)) for position in range(50))


def test_the_caption_that_was_drawn_is_the_one_that_is_read(training_set, base, tmp_path):
    write_tensors(tmp_path / "none", {"text": torch.zeros(3, base.text_width)}, {})
    data = dataclasses.replace(training_set, no_caption=tmp_path / "none")
    _, dropped = Batches(data, base, RecipeConfig(caption_dropout=1.0), seed="1").read(0)
    batches = Batches(data, base, RecipeConfig(), seed="1")
    _, told = batches.read(0)
    text = load_sample(batches.samples(0)[0])["text"]
    assert not dropped["text"].any() and torch.equal(told["text"][0, : len(text)], text)
    _, empty = base.family.collate(base, [load_sample(batches.samples(0)[0], tmp_path / "none")])
    assert torch.equal(dropped["text"], empty["text"])


def test_repeats_show_a_sample_more_often(training_set, base):
    first, *rest = training_set.samples
    data = dataclasses.replace(training_set, samples=(dataclasses.replace(first, repeats=3), *rest))
    batches = Batches(data, base, RecipeConfig(batch_size=2), seed="1")
    for epoch in range(3):
        places = range(epoch * len(batches), (epoch + 1) * len(batches))
        counts = Counter(sample.name for place in places for sample in batches.samples(place))
        assert counts == {first.name: 3, **{sample.name: 1 for sample in rest}}


@pytest.mark.parametrize(
    ("recipe", "prepared", "words"),
    [
        ({"caption_shuffle": "tags"}, {}, "4 orders by tags, and the training set has no other orders: connect"),
        ({"caption_shuffle": "tags"}, {"shuffle": "sentences", "orders": 4}, "has 4 orders by sentences"),
        ({"caption_shuffle": "tags", "caption_orders": 2}, {"shuffle": "tags", "orders": 4}, "set to 2 orders"),
    ],
)
def test_orders_that_were_not_prepared_are_said_before_anything_heavy(
    training_set, base, tmp_path, recipe, prepared, words
):
    data = dataclasses.replace(training_set, **prepared)
    config = RunConfig(name="x", steps=1, recipe=RecipeConfig(**recipe))
    with pytest.raises(ValueError, match=words):
        train(data, base, config, places=Places(lora_folder=tmp_path / "l", run_folder=tmp_path / "r"),
              device=torch.device("cpu"))
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize("recipe", [{}, {"caption_shuffle": "tags"}])
def test_a_set_with_orders_serves_recipes_with_and_without(training_set, recipe):
    check_captions(dataclasses.replace(training_set, shuffle="tags", orders=4), RecipeConfig(**recipe))


def test_reading_ahead_gives_what_reading_gives(training_set, base):
    batches = Batches(training_set, base, RecipeConfig(batch_size=2), seed="1")
    plain = Batches(training_set, base, RecipeConfig(batch_size=2), seed="1")
    with ReadAhead(batches.read, end=9) as ahead:
        for position in (0, 1, 2, 2, 3, 7, 8):
            clean, features = ahead.take(position)
            for given, read in zip((clean, features), plain.read(position), strict=True):
                assert given.keys() == read.keys() and all(torch.equal(given[name], read[name]) for name in read)


def test_only_the_next_one_is_made_ahead_and_none_past_the_end():
    made = []
    with ReadAhead(lambda position: made.append(position) or position, end=3) as ahead:
        assert [ahead.take(position) for position in range(3)] == [0, 1, 2]
    assert made == [0, 1, 2]


def test_the_next_one_is_made_while_one_is_in_use():
    begun = threading.Event()

    def make(position):
        if position == 1:
            begun.set()
        return position

    with ReadAhead(make, end=2) as ahead:
        ahead.take(0)
        assert begun.wait(10)


def test_what_reading_raises_is_raised_where_it_is_taken_and_the_thread_ends():
    threads = threading.active_count()

    def make(position):
        if position == 1:
            raise ValueError("the clip is gone")
        return position

    with ReadAhead(make, end=4) as ahead:
        assert ahead.take(0) == 0
        with pytest.raises(ValueError, match="the clip is gone"):
            ahead.take(1)
        assert ahead.take(2) == 2
    assert threading.active_count() == threads
