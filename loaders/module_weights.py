"""Modules without storage, filled strictly from a file, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .key_map import KeyMap
from .quantised_weights import read_weight, weight_names
from .safetensors_file import Header, TensorReader


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
    read: Callable[[str], Tensor],
    names: KeyMap,
    *,
    dtype: torch.dtype,
    keep_fp32: Sequence[str] = (),
    device: torch.device | str = "cpu",
    source: str = "The file",
) -> None:
    """Give every parameter of a module its tensor from a file, frozen, in `dtype` on `device`.

    `shapes`: names in the file to shapes; `read`: a name in the file to its tensor; `names`: from names in the file to
    those in the module. Parameters under a module named in `keep_fp32` become float32 when `dtype` is lower.
    Each tensor goes to its device before the next is read. Raises ValueError, before anything is read, naming the
    first few tensors that `source` lacks, has too many or has in other shapes.
    """
    wanted = {names.back(name): (name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    _check(source, shapes, {in_file: shape for in_file, (_, shape) in wanted.items()})
    for in_file, (name, _) in wanted.items():
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        exact = any(part in keep_fp32 for part in name.split("."))
        tensor = read(in_file)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32 if exact and dtype.itemsize < 4 else dtype)
        tensor = tensor.to(device)
        if leaf in owner._parameters:
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            owner.register_buffer(leaf, tensor)
    for owner in module.modules():
        for leaf, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[leaf] = buffer.to(device)


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
) -> nn.Module:
    """`fill` from the tensors under `prefix` of a weights file, however stored, that `wanted` says yes to.

    The module, in evaluation mode. Raises like `fill`.
    """
    shapes = {name.removeprefix(prefix): header.tensors[name].shape for name in weight_names(header, prefix)}
    shapes = {name: shape for name, shape in shapes.items() if wanted(name)}
    with TensorReader(header) as reader:
        fill(
            module, shapes, lambda name: read_weight(reader, prefix + name), names, dtype=dtype, keep_fp32=keep_fp32,
            device=device, source=header.path.name,
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
