"""Modules built without storage and filled strictly."""

import pytest
import torch
from torch import nn

from video_lora_studio.loaders.key_map import KeyMap
from video_lora_studio.loaders.module_weights import build_without_storage, fill

NAMES = KeyMap(tuple((f"file.{part}", part) for part in ("norm", "linear", "table", "count")))


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("angles", torch.arange(5.0), persistent=False)


def weights():
    return {name: torch.randn(tensor.shape) for name, tensor in Part().state_dict().items() if name != "count"} | {
        "count": torch.tensor([7])
    }


def filled(tensors, **options):
    module = build_without_storage(Part)
    in_file = {f"file.{name}": tensor for name, tensor in tensors.items()}
    shapes = {name: tensor.shape for name, tensor in in_file.items()}
    options = {"dtype": torch.float32, "source": "x.safetensors"} | options
    fill(module, shapes, in_file.__getitem__, NAMES, **options)
    return module


def test_parameters_have_no_storage_and_buffers_have_before_filling():
    module = build_without_storage(Part)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(module.angles, torch.arange(5.0))


def test_building_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    build_without_storage(Part)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_filled_module_holds_the_tensors_frozen():
    tensors = weights()
    module = filled(tensors)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("dtype, kept", [
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32),
    (torch.float64, torch.float64),
])
def test_named_parts_stay_in_full_precision_when_the_rest_is_lower(dtype, kept):
    module = filled(weights(), dtype=dtype, keep_fp32=("norm", "table"))
    assert module.linear.weight.dtype == dtype
    assert module.norm.weight.dtype == module.table.dtype == kept
    assert module.count.dtype == torch.int64 and module.angles.dtype == torch.float32


@pytest.mark.parametrize("changed, sentence", [
    (lambda t: t.pop("table"), "it lacks file.table."),
    (lambda t: t.update(more=torch.ones(1)), "it has file.more too many."),
    (lambda t: t.update(table=torch.ones(3, 4)), r"it has file.table as \[3, 4\] instead of \[2, 4\]."),
    (lambda t: (t.pop("table"), t.update(a=t["count"], b=t["count"], c=t["count"], d=t["count"])),
     "it lacks file.table, and it has file.a, file.b, file.c and 1 more too many."),
])
def test_what_is_missing_extra_or_misshaped_is_named_before_anything_is_read(changed, sentence):
    tensors = weights()
    changed(tensors)
    module = build_without_storage(Part)

    def read(name):
        raise AssertionError(f"{name} was read")

    shapes = {f"file.{name}": tensor.shape for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match=f"^x.safetensors does not hold this model's weights exactly: {sentence}$"):
        fill(module, shapes, read, NAMES, dtype=torch.float32, source="x.safetensors")
