"""Where a model's weights are kept, and in how many bits."""

import pytest
import torch
from torch import nn

from video_lora_studio.loaders.host_memory import SLAB, HostMemory
from video_lora_studio.loaders.key_map import KeyMap
from video_lora_studio.loaders.low_bits import quantise
from video_lora_studio.loaders.low_bits_linear import LowBitsLinear
from video_lora_studio.loaders.module_weights import Storage, build_without_storage, fill

FEW = ("fp8", "int8", "nf4")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.big = nn.Linear(128, 256)
        self.odd = nn.Linear(96, 64, bias=False)
        self.gate = nn.Linear(128, 8)
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(64, 128)})
        self.exact = nn.Linear(64, 64)
        self.table = nn.Parameter(torch.zeros(6, 128))
        self.register_buffer("angles", torch.arange(4.0), persistent=False)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(64, 128)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])


def filled(storage, device="cpu", dtype=torch.bfloat16, read=lambda name, tensor: tensor):
    torch.manual_seed(0)
    tensors = Model().state_dict()
    module = build_without_storage(Model)
    fill(module, {name: tensor.shape for name, tensor in tensors.items()},
         lambda name: read(name, tensors[name].to("meta") if device == "meta" else tensors[name]), KeyMap(()),
         dtype=dtype, keep_fp32=("exact",), device=device, blocks=module.blocks, storage=storage)
    return module, tensors


def in_few_bits(module):
    return {name for name, layer in module.named_modules() if isinstance(layer, LowBitsLinear)}


def test_an_unknown_word_for_the_weights_is_refused():
    with pytest.raises(ValueError, match="^Weights is 'int4'; choose one of: as stored, full, fp8, int8, nf4.$"):
        Storage(weights="int4")


@pytest.mark.parametrize("weights", FEW)
def test_only_large_matrices_of_the_blocks_are_quantised(weights):
    module, tensors = filled(Storage(weights=weights))
    layers = ("big",) if weights == "nf4" else ("big", "odd")
    assert in_few_bits(module) == {f"blocks.{n}.{layer}" for n in range(3) for layer in layers}
    for name in in_few_bits(module):
        layer = module.get_submodule(name)
        want = quantise(tensors[f"{name}.weight"], weights).numbers(torch.float32)
        assert layer.form == weights and torch.equal(layer.numbers(torch.float32), want)
    assert module.blocks[0].big.bias.dtype == module.embedding.weight.dtype == torch.bfloat16
    assert module.blocks[0].exact.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("weights", ["as stored", "full"])
def test_plain_weights_become_the_compute_type(weights):
    module, tensors = filled(Storage(weights=weights))
    assert not in_few_bits(module)
    assert all(torch.equal(got, tensors[name].to(got.dtype)) for name, got in module.state_dict().items())


@pytest.mark.parametrize("stored, weights, form", [
    ("fp8", "as stored", "fp8"), ("int8", "as stored", "int8"), ("fp8", "full", None), ("fp8", "int8", "fp8"),
    ("int8", "fp8", "int8"), ("fp8", "nf4", "nf4"), ("nf4", "fp8", "nf4"), ("nf4", "nf4", "nf4"),
])
def test_what_is_stored_in_few_bits_is_requantised_only_where_it_shrinks(stored, weights, form):
    def read(name, tensor):
        return quantise(tensor, stored) if name.endswith("big.weight") else tensor

    module, tensors = filled(Storage(weights=weights), dtype=torch.float32, read=read)
    layer, numbers = module.blocks[1].big, quantise(tensors["blocks.1.big.weight"], stored).numbers(torch.float32)
    if form is None:
        assert not in_few_bits(module) and torch.equal(layer.weight, numbers)
    else:
        want = numbers if form == stored else quantise(numbers, form).numbers(torch.float32)
        assert layer.form == form and torch.equal(layer.numbers(torch.float32), want)


def test_few_bits_outside_the_blocks_become_numbers():
    module, tensors = filled(Storage(), dtype=torch.float32, read=lambda name, tensor: (
        quantise(tensor, "int8") if name in ("embedding.weight", "blocks.0.exact.weight") else tensor))
    assert not in_few_bits(module)
    for layer, name in ((module.embedding, "embedding.weight"), (module.blocks[0].exact, "blocks.0.exact.weight")):
        assert torch.equal(layer.weight, quantise(tensors[name], "int8").numbers(torch.float32))


@pytest.mark.parametrize("weights", ["as stored", *FEW])
def test_shapes_alone_are_stored_alike(weights):
    real, _ = filled(Storage(weights=weights, on_host=frozenset({1})))
    hollow, _ = filled(Storage(weights=weights, on_host=frozenset({1})), device="meta")
    described = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        for module in (real, hollow)
    ]
    assert described[0] == described[1] and all(tensor.is_meta for tensor in (*hollow.parameters(), *hollow.buffers()))


class Kept(HostMemory):
    """Slabs that need no pinning, and a note of every tensor kept."""

    kept: list = []

    def __init__(self, *, pinned):
        super().__init__(pinned=True)
        self.kept.clear()

    def keep(self, tensor):
        self.kept.append(super().keep(tensor))
        return self.kept[-1]

    @staticmethod
    def _empty(size):
        return torch.empty(size, dtype=torch.uint8)


@pytest.mark.parametrize("weights", ["as stored", *FEW])
def test_the_weights_of_chosen_blocks_wait_in_host_memory(monkeypatch, weights):
    monkeypatch.setattr("video_lora_studio.loaders.module_weights.HostMemory", Kept)
    plain, _ = filled(Storage(weights=weights))
    module, _ = filled(Storage(weights=weights, on_host=frozenset({0, 2})))
    kept = {tensor.data_ptr() for tensor in Kept.kept}
    for index, block in enumerate(module.blocks):
        waiting = {name for name, tensor in block.state_dict().items() if tensor.data_ptr() in kept}
        assert waiting == (set(block.state_dict()) if index in (0, 2) else set())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name].float(), tensor.float()), name


def test_host_memory_lies_in_slabs_and_keeps_types_and_values():
    memory = Kept(pinned=True)
    tensors = [torch.randn(3, 5), torch.ones(7, dtype=torch.bfloat16), torch.zeros(0), torch.tensor(4),
               torch.randn(64, 64).to(torch.float8_e4m3fn), torch.arange(10, dtype=torch.uint8)]
    kept = [memory.keep(tensor) for tensor in tensors]
    assert all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())
               for a, b in zip(kept, tensors, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == 1
    assert kept[0].untyped_storage().nbytes() == SLAB
    large = memory.keep(torch.empty(1, dtype=torch.uint8).expand(SLAB + 1))
    assert large.untyped_storage().nbytes() == SLAB + 1


def test_host_memory_that_is_not_pinned_is_the_tensor_itself():
    tensor = torch.ones(3)
    assert HostMemory(pinned=False).keep(tensor) is tensor
