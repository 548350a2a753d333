"""Recompute in its variants: what is kept, what is computed again, and that the numbers stay the same."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from video_lora_studio.training.memory.recompute import (
    FUSED_ATTENTION,
    ActivationOffload,
    is_recomputed,
    recompute_blocks,
)

WIDTH, TOKENS, TEXT, BLOCKS = 32, 24, 5, 4


class Block(nn.Module):
    """Self-attention, attention to a text, and an adapter; `two` streams as some models have."""

    def __init__(self, dropout):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.adapter, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def attend(self, x, y):
        heads = [(part @ self.linear.weight).unflatten(-1, (2, -1)).transpose(1, 2) for part in (x, y, y)]
        return functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    def forward(self, x, text, table, rotary, mask):
        x = x + self.attend(x * table, x * rotary[0])
        x = x + self.dropout(self.adapter(self.attend(x, text)))
        return x, text + x.mean(1, keepdim=True)


class Stack(nn.Module):
    """Blocks that pass two streams on, under the one method that recompute needs of a transformer."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.call = nn.ModuleList(Block(dropout) for _ in range(BLOCKS)), None

    def enable_gradient_checkpointing(self, call):
        self.call = call

    def forward(self):
        source = torch.Generator().manual_seed(1)
        draw = lambda *shape: torch.randn(*shape, WIDTH, generator=source)  # noqa: E731
        x, text, table, rotary = draw(2, TOKENS), draw(2, TEXT), draw(2, 1), (draw(1),)
        for block in self.blocks:
            if self.call and torch.is_grad_enabled():
                x, text = self.call(block, x, text, table, rotary, None)
            else:
                x, text = block(x, text, table, rotary, None)
        return x.square().mean() + text.square().mean()


class Parked(ActivationOffload):
    """Counts what waits, and looks whether the device has let go of it."""

    def __init__(self):
        super().__init__()
        self.shapes, self.came_back = [], 0
        self.sources = []

    def keep(self, tensor):
        self.shapes.append(tuple(tensor.shape))
        self.sources.append(weakref.ref(tensor))
        away = tensor.clone()

        def back():
            self.came_back += 1
            return away.clone()

        return back


class Operations(TorchDispatchMode):
    """Counts attention by its number of keys."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in FUSED_ATTENTION:
            self.keys.append(args[1].shape[-2])
        return operation(*args, **(kwargs or {}))


def gradients(stack):
    stack.zero_grad()
    torch.manual_seed(5)
    loss = stack()
    loss.backward()
    return torch.cat([loss.detach().reshape(1), *(p.grad.flatten() for p in stack.parameters() if p.requires_grad)])


def plain(dropout=0.0):
    """The numbers without recompute."""
    return gradients(Stack(dropout))


VARIANTS = [{}, {"offload": True}, {"keep_attention": True}, {"offload": True, "keep_attention": True}]


def recomputed(dropout=0.0, *, offload=False, **more):
    stack, parked = Stack(dropout), Parked() if offload else None
    recompute_blocks(stack, keep_random_state=dropout > 0, offload=parked, **more)
    return stack, parked


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_numbers_are_the_same(variant, dropout):
    stack, _ = recomputed(dropout, **variant)
    for _ in range(2):
        torch.testing.assert_close(gradients(stack), plain(dropout), rtol=1e-6, atol=0)


def test_what_blocks_pass_on_waits_elsewhere_and_nothing_else():
    stack, parked = recomputed(offload=True)
    loss = stack()
    assert parked.shapes == [(2, TOKENS, WIDTH), (2, TEXT, WIDTH)] * (BLOCKS - 1) and parked.came_back == 0
    assert not any(source() is not None for source in parked.sources)
    loss.backward()
    assert parked.came_back == 2 * (BLOCKS - 1)


def test_offloading_is_over_after_the_block():
    stack, parked = recomputed(offload=True)
    stack()
    kept = len(parked.shapes)
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()
    assert len(parked.shapes) == kept


def test_host_memory_gives_back_what_it_was_given():
    shelf, tensor = ActivationOffload(), torch.randn(3, 4)
    back = shelf.keep(tensor)
    shelf.settle()
    assert torch.equal(back(), tensor)


@pytest.mark.parametrize(("keep", "self_attention"), [(False, 2), (True, 1)])
def test_self_attention_is_kept_and_attention_to_few_keys_computed_again(keep, self_attention):
    stack, _ = recomputed(keep_attention=keep)
    with Operations() as seen:
        stack().backward()
    assert seen.keys.count(TOKENS) == self_attention * BLOCKS
    assert seen.keys.count(TEXT) == 2 * BLOCKS


def test_the_last_call_holds():
    stack, parked = recomputed(offload=True)
    recompute_blocks(stack, keep_random_state=False)
    torch.testing.assert_close(gradients(stack), plain(), rtol=1e-6, atol=0)
    assert not parked.shapes


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_an_error_in_a_block_leaves_it_sound(variant):
    stack, _ = recomputed(**variant)
    fail = stack.blocks[2].adapter.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stack()
    assert not is_recomputed()
    fail.remove()
    torch.testing.assert_close(gradients(stack), plain(), rtol=1e-6, atol=0)


def test_without_gradients_nothing_is_kept():
    stack, parked = recomputed(offload=True)
    with torch.no_grad():
        assert stack().isfinite()
    assert not parked.shapes


def test_a_block_knows_whether_it_is_recomputed():
    stack, _ = recomputed()
    known = []
    stack.blocks[1].register_forward_pre_hook(lambda *_: known.append(is_recomputed()))
    with torch.no_grad():
        stack()
    stack().backward()
    assert known == [False, True, True] and not is_recomputed()
