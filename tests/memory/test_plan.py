"""Of all ways to fit, the cheapest; and one plain sentence where none does."""

from types import SimpleNamespace

import pytest
import torch

from video_lora_studio.training.config import CARDS, RunConfig
from video_lora_studio.training.memory.footprint import Footprint
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.memory.plan import GIB, PRESETS, Room, Speed, choose, describe

SPEED = Speed(operations=100e12, copies=20e9)
WEIGHTS = {"as stored": 28, "fp8": 14, "nf4": 8}
KINDS = {(False, False): (200, 5, 3), (True, True): (20, 3 / 8, 3.5), (True, False): (12, 1 / 8, 4)}
"""By recompute and kept attention: GiB where the way back begins, GiB that each block keeps, 10^15 operations."""


class Known:
    """Footprints of a model of 40 blocks in round figures, GiB."""

    def __init__(self, stored_as="bf16", device="cuda"):
        base = SimpleNamespace(title="Big Model 14B", stored_as=stored_as)
        self.workload = SimpleNamespace(base=base, device=torch.device(device), config=RunConfig())

    def of(self, level):
        size = WEIGHTS[level.weights] * GIB
        start, kept, operations = KINDS[level.recompute, level.keep_attention]
        return Footprint(
            weights=size, block=size // 40, blocks=40, adapter=GIB // 2, optimizer=GIB, start=round(start * GIB),
            end=4 * GIB, kept=round(kept * GIB), operations=operations * 1e15,
        )


def room(device, host=64):
    return Room(device=device * GIB, host=host * GIB)


@pytest.mark.parametrize(("device", "level"), [
    (300, Level()),
    (56, Level(recompute=True, keep_attention=True)),
    (48, Level(recompute=True)),
    (18, Level(recompute=True, swapped=38)),
    (14, Level(recompute=True, offload_activations=True, swapped=36)),
])
def test_the_cheapest_way_that_fits_is_chosen(device, level):
    plan = choose(Known(), room(device), SPEED)
    assert plan.level == level
    assert plan.chosen.need <= device * GIB
    assert not any(each.fits(plan.room) for each in plan.considered[:-1])


def test_fewer_blocks_would_not_fit():
    plan = choose(Known(), room(30), SPEED)
    one_more = plan.chosen.need + WEIGHTS["as stored"] * GIB // 40 * 1.05
    assert plan.level.swapped > 2 and one_more > 30 * GIB


@pytest.mark.parametrize(("host", "weights"), [(64, "as stored"), (8, "fp8")])
def test_few_bits_are_the_last_resort_and_said(host, weights):
    plan = choose(Known(), room(28, host), SPEED)
    assert plan.level.weights == weights
    assert ("not quite those of the file" in plan.lines[0]) == (weights != "as stored")


def test_weights_that_are_stored_in_few_bits_stay_so():
    with pytest.raises(ValueError, match="Big Model 14B"):
        choose(Known(stored_as="fp8 scaled"), room(28, host=1), SPEED)


@pytest.mark.parametrize(("device", "weights", "level"), [
    (300, "as stored", Level()), (300, "fp8", Level(weights="fp8")),
    (42, "fp8", Level(weights="fp8", recompute=True, keep_attention=True)),
    (30, "nf4", Level(weights="nf4", recompute=True)), (14, "nf4", Level(weights="nf4", recompute=True, swapped=40)),
])
def test_weights_stay_as_a_run_began_whatever_is_free(device, weights, level):
    plan = choose(Known(), room(device), SPEED, weights=weights)
    assert plan.level == level or (level.swapped and plan.level.swapped)
    assert {each.level.weights for each in plan.considered} == {weights}


def test_a_run_that_began_with_full_weights_does_not_go_on_with_fewer_bits():
    assert choose(Known(), room(28, host=8), SPEED).level.weights == "fp8"
    with pytest.raises(ValueError, match="Big Model 14B"):
        choose(Known(), room(28, host=8), SPEED, weights="as stored")


def test_the_way_is_described_in_plain_words():
    assert describe(Level(recompute=True, keep_attention=True), 40) == "recompute, attention kept"
    assert describe(Level(weights="fp8", recompute=True, swapped=3), 40) == (
        "weights in fp8, recompute, 3 of 40 blocks wait in host memory"
    )


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"at least .* GiB on the device, of which 2.0 GiB are free.*lower Width"):
        choose(Known(), room(2), SPEED)


def test_a_cpu_has_no_other_memory_to_wait_in():
    plan = choose(Known(device="cpu"), room(30), SPEED)
    assert plan.level == Level(weights="fp8", recompute=True)


def test_by_hand_is_kept_whether_it_fits_or_not():
    level = Level(recompute=True, swapped=10)
    plan = choose(Known(), room(2), SPEED, by_hand=level)
    assert plan.level == level and not plan.chosen.fits(plan.room) and len(plan.lines) == 1


def test_a_dry_run_corrects_the_figure():
    plan = choose(Known(), room(48), SPEED)
    corrected = plan.corrected(40 * GIB)
    assert corrected.chosen.device == 41 * GIB  # with what the optimizer will remember
    assert corrected.level == plan.level and "41.0 GiB of 48.0 GiB" in corrected.lines[0]


def test_copies_that_hide_behind_the_computation_cost_nothing():
    plain = choose(Known(), room(48), SPEED).chosen.seconds
    assert choose(Known(), room(30), SPEED).chosen.seconds == plain
    slow = Speed(operations=SPEED.operations, copies=1e8)
    assert choose(Known(), room(30), slow).chosen.seconds > plain


def test_speed_is_measured_on_the_cpu():
    speed = Speed.of(torch.device("cpu"), torch.float32)
    assert 1e8 < speed.operations < 1e15 and 1e7 < speed.copies < 1e13


@pytest.mark.parametrize(("free", "preset", "usable"), [
    (100, "", 100), (100, "auto", 100), (100, "24 GB", 23), (100, "80 GB", 79), (10, "24 GB", 10), (11, "12 GB", 11),
])
def test_a_preset_is_a_limit_and_no_promise(monkeypatch, free, preset, usable):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    assert Room.of(torch.device("cpu"), preset) == room(usable, host=free)


def test_the_presets_are_the_cards_of_the_settings():
    assert [*PRESETS] == [f"{size} GB" for size in CARDS]
