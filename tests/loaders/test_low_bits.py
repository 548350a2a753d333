"""Matrices in few bits, and linear layers over them."""

import pytest
import torch
from torch import nn

from video_lora_studio.loaders.low_bits import BITS, NF4, LowBits, quantise
from video_lora_studio.loaders.low_bits_linear import LowBitsLinear

LARGEST_ERROR = {"fp8": 2**-4, "int8": 0.5 / 127, "nf4": 0.5 * (NF4[1] - NF4[0])}
"""Of fp8: relative to the number; of the others: to the largest of its row or block."""


def weight(rows=96, columns=192, seed=0):
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def linear(form, bias=True):
    """The layer in few bits, and a plain one with the same numbers."""
    plain = nn.Linear(192, 96, bias=bias).requires_grad_(False)
    plain.weight.copy_(weight())
    low = LowBitsLinear(plain, quantise(plain.weight, form))
    plain.weight.copy_(low.numbers(torch.float32))
    return low, plain


@pytest.mark.parametrize("form", BITS)
def test_numbers_come_back_within_the_forms_own_error(form):
    exact, low = weight(), quantise(weight(), form)
    error = (low.numbers(torch.float32) - exact).abs()
    group = {"fp8": exact.abs(), "int8": exact.abs().amax(1, keepdim=True),
             "nf4": exact.abs().reshape(96, 3, 64).amax(2).repeat_interleave(64, dim=1)}[form]
    smallest = exact.abs().amax(1, keepdim=True) / 448 * 2**-9 if form == "fp8" else 0
    assert (error <= 1.001 * LARGEST_ERROR[form] * group + smallest).all()
    assert error.max() > 0 and low.bits == pytest.approx(BITS[form], abs=0.2)


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_types_get_the_float32_numbers_rounded_once(form, dtype):
    low = quantise(weight(), form)
    assert torch.equal(low.numbers(dtype), low.numbers(torch.float32).to(dtype))


@pytest.mark.parametrize("form", BITS)
def test_what_came_back_once_comes_back_the_same_again(form):
    once = quantise(weight(), form).numbers(torch.float32)
    torch.testing.assert_close(quantise(once, form).numbers(torch.float32), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", BITS)
def test_rows_of_zeros_stay_zeros_and_large_numbers_stay_finite(form):
    odd = weight()
    odd[0], odd[1, 0] = 0, 1e30
    numbers = quantise(odd, form).numbers(torch.float32)
    assert not numbers[0].any() and numbers.isfinite().all() and numbers[1, 0] == pytest.approx(1e30, rel=1e-6)


def test_nf4_refuses_rows_that_its_blocks_do_not_fit():
    with pytest.raises(ValueError, match="multiple of 64 numbers, not 96"):
        quantise(weight(64, 96), "nf4")


@pytest.mark.parametrize("form", BITS)
def test_shapes_alone_are_quantised_alike(form):
    real, hollow = quantise(weight(), form), quantise(weight().to("meta"), form)
    assert hollow.data.is_meta and hollow.bits == real.bits and hollow.numbers(torch.bfloat16).shape == (96, 192)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", BITS)
def test_a_layer_answers_and_passes_gradients_as_the_layer_with_its_numbers(form, bias):
    low, plain = linear(form, bias)
    inputs = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(1))
    answers = []
    for layer in (low, plain):
        given = inputs.clone().requires_grad_()
        answer = layer(given)
        answer.square().sum().backward()
        answers.append((answer.detach(), given.grad))
    for got, want in zip(*answers, strict=True):
        assert torch.equal(got, want)
    assert low.weight.grad is None


@pytest.mark.parametrize("form", BITS)
def test_a_layer_computes_in_the_type_of_autocast(form):
    low, plain = linear(form)
    inputs = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    answers = []
    for layer in (low, plain):
        given = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            answer = layer(given)
        answer.float().square().sum().backward()
        answers.append((answer.detach(), given.grad))
    (got, gradient), (want, wanted) = answers
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)
    assert gradient.dtype == torch.float32 and torch.equal(gradient, wanted)


@pytest.mark.parametrize("form", BITS)
def test_a_layer_keeps_nothing_but_what_is_stored_for_the_way_back(form):
    low, _ = linear(form)
    inputs, kept = torch.randn(5, 192).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        low(inputs)
    stored = {tensor.data_ptr() for tensor in (low.weight, low.scale)}
    assert {tensor.data_ptr() for tensor in kept} == stored


def test_a_rotated_weight_is_turned_back_in_full_precision_under_autocast():
    data, scale = torch.randint(-127, 128, (8, 64), dtype=torch.int8), torch.rand(8, 1)
    low = LowBits(form="int8 rotated 16", data=data, scale=scale, shape=(8, 64))
    numbers = low.numbers(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low.numbers(torch.float32), numbers)
    lengths = (data.float() * scale).reshape(8, 4, 16).norm(dim=2)
    torch.testing.assert_close(numbers.reshape(8, 4, 16).norm(dim=2), lengths)
    turned_again = LowBits(form=low.form, data=numbers, scale=torch.ones(1, 1), shape=low.shape).numbers(torch.float32)
    torch.testing.assert_close(turned_again, data.float() * scale, rtol=1e-5, atol=1e-4)
