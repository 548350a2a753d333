"""What is predicted is what is measured."""

from types import SimpleNamespace

import pytest
import torch
from checkpoints import hollow_file, real
from twin_steps import CPU, SIZES, predicted, real_steps, workload, write_deep_twin

from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.memory.footprint import Footprint, Footprints
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.memory.live_bytes import LiveBytes, peak_bytes
from video_lora_studio.training.memory.workload import largest_sample

GIB = 2**30


@pytest.mark.parametrize("case", SIZES[:3], ids=["recompute", "attention kept", "all kept"])
def test_the_predicted_peak_is_the_measured_one(case, tmp_path):
    name, kind, blocks, size, level = case
    base = write_deep_twin(tmp_path / "twin.safetensors", name, kind, blocks)
    steps, held = real_steps(base, size, level)
    assert predicted(base, size, level) == pytest.approx(peak_bytes(steps, CPU, held), rel=0.02)


@pytest.mark.parametrize("weights", ["fp8", "nf4"])
def test_fewer_bits_take_their_weights_and_the_room_to_unpack_the_largest(weights, tmp_path):
    base = write_deep_twin(tmp_path / "twin.safetensors", "Wan", "T2V", 5)
    level = Level(recompute=True, weights=weights)
    steps, held = real_steps(base, (64, 64, 5), level)
    measured = peak_bytes(steps, CPU, held)
    assert measured <= predicted(base, (64, 64, 5), level) <= 1.05 * measured


def test_a_real_model_is_predicted_from_its_header_alone(tmp_path):
    shapes, _ = real("wan2.1_t2v_14B")
    base = open_base_model(hollow_file(tmp_path / "wan.safetensors", shapes))
    footprints = Footprints(workload(base, (832, 480, 81), device=torch.device("cuda"), compute=torch.bfloat16))
    found = footprints.of(Level(recompute=True))
    assert found.blocks == 40
    assert found.weights == pytest.approx(2 * sum(torch.Size(shape).numel() for shape in shapes.values()), rel=0.01)
    tokens, width = 21 * 30 * 52, 5120
    assert found.kept == pytest.approx(2 * tokens * width, rel=0.05)  # each block keeps its bf16 input
    linear = 2 * tokens * sum(torch.Size(s).numel() for name, s in shapes.items() if ".ffn." in name and len(s) == 2)
    assert 3 * linear < found.operations < 20 * linear
    attended = footprints.of(Level(recompute=True, keep_attention=True))
    sums = 4 * tokens * 40  # one float32 for each query of each of the 40 heads
    assert attended.start - found.start == pytest.approx(39 * (2 * tokens * width + sums), rel=0.01)
    assert attended.kept == found.kept  # what offloading takes away
    assert found.operations - attended.operations == pytest.approx(40 * 4 * tokens**2 * width, rel=0.01)
    small = footprints.of(Level(recompute=True, weights="fp8"))
    assert small.weights == pytest.approx(found.weights / 2, rel=0.02)
    assert (small.kept, small.operations, small.adapter) == (found.kept, found.operations, found.adapter)


FOOTPRINT = Footprint(
    weights=100, block=10, blocks=8, adapter=4, optimizer=8, start=50, end=20, kept=3, operations=1.0
)


@pytest.mark.parametrize(("level", "device", "host"), [
    (Level(recompute=True), 100 + 4 + 8 + 50, 0),
    (Level(recompute=True, swapped=2), 162, 20),
    (Level(recompute=True, swapped=5), 162 - 30, 50),
    (Level(recompute=True, offload_activations=True), 162 - 7 * 3, 8 * 3),
    (Level(recompute=True, offload_activations=True, swapped=8), 162 - 60 - 21, 80 + 24),
])
def test_swap_and_offload_move_bytes_to_the_host(level, device, host):
    assert (FOOTPRINT.on_device(level), FOOTPRINT.on_host(level)) == (device, host)


def test_gradients_of_an_earlier_micro_step_count():
    level = Level(recompute=True)
    assert FOOTPRINT.on_device(level, accumulated=True) == FOOTPRINT.on_device(level) + FOOTPRINT.adapter


def test_live_bytes_are_those_of_storages_until_they_are_freed():
    held = torch.zeros(100)
    with LiveBytes([held]) as counted:
        view = held.view(10, 10)
        first = torch.zeros(1000)
        second = first + 1
        del first, view
        third = second * 2
        del second
    assert counted.peak == 4 * (100 + 2000)
    assert counted.now == 4 * (100 + 1000) and third.numel() == 1000


def test_operations_of_a_matrix_product_are_counted():
    with LiveBytes() as counted:
        torch.zeros(3, 4) @ torch.zeros(4, 5)
    assert counted.operations == 2 * 3 * 4 * 5


def test_the_largest_clip_with_its_longest_caption_counts(tmp_path):
    def caption(tokens):
        path = tmp_path / f"{tokens}.safetensors"
        write_tensors(path, {"text": torch.zeros(tokens, 8)}, {})
        return SimpleNamespace(features=path)

    def sample(frames, *tokens):
        shapes = (("video", (16, frames, 8, 8)), ("preview", (3, 4, 4, 3)))
        return SimpleNamespace(shapes=shapes, captions=[caption(count) for count in tokens])

    data = SimpleNamespace(samples=[sample(2, 90), sample(5, 3, 7), sample(5, 4)], streams=frozenset({"video"}))
    found = largest_sample(data, frozenset(("video",)))
    assert found == {"video": (16, 5, 8, 8), "text": (7, 8)}
