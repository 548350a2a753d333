"""Of all ways to fit, the cheapest; and one plain sentence where none does."""

from types import SimpleNamespace

import pytest
import torch

from video_lora_studio.training.config import RunConfig
from video_lora_studio.training.memory.footprint import Footprint
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.memory.plan import GIB, PRESETS, Room, Speed, choose

SPEED = Speed(operations=100e12, copies=20e9)
WEIGHTS = {"as stored": 28, "fp8": 14, "nf4": 8}


class Known:
    """Footprints of a model of 40 blocks in round figures, GiB."""

    def __init__(self, stored_as="bf16", device="cuda"):
        base = SimpleNamespace(title="Big Model 14B", stored_as=stored_as)
        self.workload = SimpleNamespace(base=base, device=torch.device(device), config=RunConfig())

    def of(self, weights, recompute):
        size = WEIGHTS[weights] * GIB
        return Footprint(
            weights=size, block=size // 40, blocks=40, adapter=GIB // 2, optimizer=GIB,
            start=(12 if recompute else 200) * GIB, end=4 * GIB, kept=(GIB // 8 if recompute else 5 * GIB),
            operations=1e15 * (4 if recompute else 3),
        )


def room(device, host=64):
    return Room(device=device * GIB, host=host * GIB)


@pytest.mark.parametrize(("device", "level"), [
    (300, Level()),
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


def test_speed_and_room_are_measured_on_the_cpu():
    cpu = torch.device("cpu")
    speed, found = Speed.of(cpu, torch.float32), Room.of(cpu)
    assert speed.operations > 1e8 and speed.copies > 1e7
    assert found.device == found.host > 0
    assert Room.of(cpu, "24 GB").device == min(found.device, PRESETS["24 GB"]) or found.device < PRESETS["24 GB"]
    assert PRESETS["24 GB"] == 23 * GIB
