"""Modules without storage, filled strictly from a file, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .host_memory import HostMemory
from .key_map import KeyMap
from .low_bits import BITS, NF4_BLOCK, LowBits, quantise
from .low_bits_linear import LowBitsLinear
from .quantised_weights import read_stored, weight_names
from .safetensors_file import Header, TensorReader

KEPT_AS = ("as stored", "full", *BITS)
LEAST_SIDE = 64
"""Matrices with fewer rows or columns are not quantised: it would save nothing."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How, and where, a transformer's frozen weights are kept. Raises ValueError for another word in `weights`."""

    weights: str = "as stored"
    """`as stored`: linear layers of the blocks that the file has in few bits stay so, the rest gets the compute type.
    `full`: everything gets the compute type. `fp8`, `int8`, `nf4`: the blocks' large linear layers, but those of norms,
    are quantised as they are read, unless the file has them about as small."""
    on_host: frozenset[int] = frozenset()
    """Indexes of the blocks whose weights go to host memory, pinned where the device is CUDA."""
    check: Callable[[], None] = field(default=lambda: None, compare=False)
    """Called before each tensor is read; what it raises ends the reading."""

    def __post_init__(self):
        if self.weights not in KEPT_AS:
            raise ValueError(f"Weights is {self.weights!r}; choose one of: {', '.join(KEPT_AS)}.")


AS_STORED = Storage()


def build_without_storage(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` builds, its parameters without storage (on `meta`) and its buffers real.

    Buffers that no file holds, such as rotary tables, are computed as the module is made and must be kept. The
    global random state is left as it was.
    """
    from accelerate import init_empty_weights

    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        return make()


def fill(
    module: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor | LowBits],
    names: KeyMap,
    *,
    dtype: torch.dtype,
    keep_fp32: Sequence[str] = (),
    device: torch.device | str = "cpu",
    source: str = "The file",
    blocks: Sequence[nn.Module] = (),
    storage: Storage = AS_STORED,
) -> None:
    """Give every parameter of a module its tensor from a file, frozen, in `dtype` on `device`.

    `shapes`: names in the file to shapes; `read`: a name in the file to its tensor; `names`: from names in the file to
    those in the module. Parameters under a module named in `keep_fp32` become float32 when `dtype` is lower.
    `storage` says which linear layers of `blocks` become a `LowBitsLinear`, and which blocks go to host memory.
    Each tensor goes to its place before the next is read. Raises ValueError, before anything is read, naming the
    first few tensors that `source` lacks, has too many or has in other shapes.
    """
    device = torch.device(device)
    wanted = {names.back(name): (name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    _check(source, shapes, {in_file: shape for in_file, (_, shape) in wanted.items()})
    block_of = _block_of(module, blocks)
    host = HostMemory(pinned=device.type == "cuda")
    for in_file, (name, _) in wanted.items():
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        exact = any(part in keep_fp32 for part in name.split("."))
        storage.check()
        tensor = read(in_file).to(device)
        waits = block_of.get(parent) in storage.on_host and device.type != "meta"
        if leaf == "weight" and parent in block_of and type(owner) is nn.Linear and not exact:
            tensor = _in_few_bits(tensor, storage.weights, parent)
            if isinstance(tensor, LowBits):
                tensor = tensor.map(host.keep) if waits else tensor
                module.set_submodule(parent, LowBitsLinear(owner, tensor))
                continue
        if isinstance(tensor, LowBits):
            tensor = tensor.numbers(torch.float32 if exact else dtype)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32 if exact and dtype.itemsize < 4 else dtype)
        _put(owner, leaf, host.keep(tensor) if waits else tensor)
    for name, owner in module.named_modules():
        for leaf, buffer in owner._buffers.items():
            if buffer is not None and not (isinstance(owner, LowBitsLinear) and block_of[name] in storage.on_host):
                owner._buffers[leaf] = buffer.to(device)


def _put(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    """A tensor as a module's frozen parameter or buffer, whichever it has under that name."""
    if leaf in owner._parameters:
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        owner.register_buffer(leaf, tensor)


def _block_of(module: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, int]:
    """The index of the block that every module in one is in, by the module's name."""
    owners = {id(part): index for index, block in enumerate(blocks) for part in block.modules()}
    return {name: owners[id(part)] for name, part in module.named_modules() if id(part) in owners}


def _in_few_bits(stored: Tensor | LowBits, kept_as: str, layer: str) -> Tensor | LowBits:
    """A linear layer's weight as `Storage.weights` says: in few bits where that is to be, or as it came."""
    if kept_as == "full":
        return stored.numbers(torch.float32) if isinstance(stored, LowBits) else stored
    if kept_as == "as stored" or (isinstance(stored, LowBits) and stored.bits < 1.5 * BITS[kept_as]):
        return stored
    rows, columns = stored.shape
    thin = min(rows, columns) < LEAST_SIDE or (kept_as == "nf4" and columns % NF4_BLOCK)
    if thin or any(part.startswith("norm") for part in layer.split(".")):
        return stored
    return quantise(stored.numbers(torch.float32) if isinstance(stored, LowBits) else stored, kept_as)


def fill_from_file(
    module: nn.Module,
    header: Header,
    prefix: str,
    names: KeyMap,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    keep_fp32: Sequence[str] = (),
    wanted: Callable[[str], bool] = lambda name: True,
    blocks: Callable[[nn.Module], Sequence[nn.Module]] = lambda module: (),
    storage: Storage = AS_STORED,
) -> nn.Module:
    """`fill` from the tensors under `prefix` of a weights file, however stored, that `wanted` says yes to.

    `blocks`: from the module to its blocks, for `storage`. The module, in evaluation mode; on `meta` nothing is read,
    and it has its shapes and types only. Raises like `fill`.
    """
    shapes = {name.removeprefix(prefix): header.tensors[name].shape for name in weight_names(header, prefix)}
    shapes = {name: shape for name, shape in shapes.items() if wanted(name)}
    with TensorReader(header, bodies=torch.device(device).type != "meta") as reader:
        fill(
            module, shapes, lambda name: read_stored(reader, prefix + name), names, dtype=dtype, keep_fp32=keep_fp32,
            device=device, source=header.path.name, blocks=blocks(module), storage=storage,
        )
    return module.train(False)


def fill_at_random(module: nn.Module) -> nn.Module:
    """Lively random weights, the same each time: matrices keep a signal's size, norms stay near 1, tables are small."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str) -> Tensor:
        noise = torch.randn(shapes[name], generator=generator)
        if noise.ndim == 1:
            return 0.1 * noise + ("norm" in name and name.endswith("weight"))
        return noise * (noise[0].numel() ** -0.5 if name.endswith("weight") else 0.1)

    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    fill(module, shapes, draw, KeyMap(()), dtype=torch.float32)
    return module.train(False)


def _check(source: str, found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> None:
    """ValueError unless names and shapes agree."""
    faults = []
    if missing := [name for name in wanted if name not in found]:
        faults.append(f"lacks {_some(missing)}")
    if extra := [name for name in found if name not in wanted]:
        faults.append(f"has {_some(extra)} too many")
    misshaped = [
        f"{name} as {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if misshaped:
        faults.append(f"has {_some(misshaped)}")
    if faults:
        raise ValueError(f"{source} does not hold this model's weights exactly: it {', and it '.join(faults)}.")


def _some(names: list[str], most: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
