"""VLSStack beside ComfyUI's own LoRA loader: the same latents, and strengths that add as they should."""

from __future__ import annotations

import itertools

import pytest
import torch
from comfy_server import ComfyServer, Result
from graphs import natively, row, stacked
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy
TOLERANCE = 1e-5
LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o")
numbers = itertools.count()


def random_lora(seed: int, *, rank: int = 4, width: int = 128, blocks: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA of the tiny Wan that changes its answer plainly."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block, layer in itertools.product(range(blocks), LAYERS):
        module = f"diffusion_model.blocks.{block}.{layer}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * width**-0.5
        tensors[f"{module}.lora_B.weight"] = torch.randn(width, rank, generator=generator) * 0.3
    return tensors


def sum_of(*loras: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One LoRA whose delta is the sum of theirs: ranks side by side."""
    return {key: torch.cat([lora[key] for lora in loras], dim=0 if ".lora_A." in key else 1) for key in loras[0]}


@pytest.fixture(scope="module")
def loras(comfy: ComfyServer) -> ComfyServer:
    """The server, with `one`, `two` and `both`, the sum of their deltas, among its LoRAs."""
    one, two = random_lora(1), random_lora(2, rank=8)
    for name, tensors in {"one": one, "two": two, "both": sum_of(one, two)}.items():
        save_file(tensors, comfy.models / "loras" / f"{name}.safetensors")
    return comfy


def latents(server: ComfyServer, build, what) -> tuple[torch.Tensor, Result]:
    name = f"stack_{next(numbers)}"
    result = server.queue(build(what, name=name))
    assert result.status == "success", result.error
    return load_file(server.output / f"{name}.safetensors")["samples"], result


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize(("rows", "native"), [
    ([row("one.safetensors")], [("one.safetensors", 1.0)]),
    ([row("one.safetensors", -0.7)], [("one.safetensors", -0.7)]),
    ([row("one.safetensors", 1.8)], [("one.safetensors", 1.8)]),
    ([row("one.safetensors"), row("two.safetensors")], [("both.safetensors", 1.0)]),
    ([row("one.safetensors", 0.3), row("one.safetensors", 0.5)], [("one.safetensors", 0.8)]),
    ([row("one.safetensors", 0.9), row("two.safetensors", 5.0, on=False)], [("one.safetensors", 0.9)]),
], ids=["one", "negative", "above_1", "sum_of_two", "same_file_twice", "row_off"])
def test_same_latents_as_native_loader(loras: ComfyServer, rows, native):
    ours, result = latents(loras, stacked, rows)
    theirs, _ = latents(loras, natively, native)
    bare, _ = latents(loras, natively, [])
    assert distance(ours, theirs) <= TOLERANCE
    assert distance(ours, bare) > 100 * TOLERANCE, "the LoRA changes nothing: the comparison would prove nothing"
    assert "24 of 24" in result.text("stack_report")


@pytest.mark.parametrize("rows", [
    [], [row("one.safetensors", 0.0)], [row("one.safetensors", 1.0, on=False)],
    [row("one.safetensors", 0.0), row("gone.safetensors", 1.0, on=False)],
], ids=["no_rows", "strength_0", "row_off", "row_off_file_gone"])
def test_nothing_asked_for_changes_no_bit(loras: ComfyServer, rows):
    ours, _ = latents(loras, stacked, rows)
    bare, _ = latents(loras, natively, [])
    assert torch.equal(ours, bare)


@pytest.mark.parametrize(("rows", "words"), [
    ([row("one.safetensors"), row("no_such_file.safetensors")], ("no_such_file.safetensors",)),
    ([row("../one.safetensors")], ("../one.safetensors",)),
    ([row("one.safetensors", float("nan"))], ("one.safetensors", "strength")),
    ([{"lora": "one.safetensors", "strength": "much"}], ("strength",)),
], ids=["missing_file", "outside", "nan", "not_a_number"])
def test_rows_that_cannot_be_stop_the_queue(loras: ComfyServer, rows, words):
    result = loras.queue(stacked(rows, name="never"))
    assert result.status in ("error", "refused")
    assert "sampler" not in result.executed
    for word in words:
        assert word.lower() in result.error.lower()


def test_replaced_file_is_read_again(loras: ComfyServer):
    file = loras.models / "loras" / "changing.safetensors"
    save_file(random_lora(1), file)
    before, _ = latents(loras, stacked, [row("changing.safetensors")])
    save_file(random_lora(5), file)
    after, _ = latents(loras, stacked, [row("changing.safetensors")])
    assert distance(before, after) > 100 * TOLERANCE
