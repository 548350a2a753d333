"""Block swap: the same numbers as without it, and never more blocks on the device than promised."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from video_lora_studio.training.memory.block_swap import BlockSwap, present_blocks, swapped_blocks
from video_lora_studio.training.memory.recompute import recompute_blocks

CPU = torch.device("cpu")
WIDTH = 16
ADAPTER = ((2, WIDTH), (WIDTH, 2))


class Block(nn.Module):
    """A frozen layer of every dtype that occurs, and an adapter."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(3, WIDTH).bfloat16())
        self.register_buffer("packed", torch.randint(0, 255, (WIDTH,), dtype=torch.uint8))
        self.register_buffer("scale", torch.rand(()))
        self.requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x):
        y = self.norm(x) * (1 + self.table.float().mean(0)) + self.packed.float() / 255 * self.scale
        return x + torch.tanh(self.linear(y) + self.up(self.down(y)))


class Stack(nn.Module):
    """Blocks under the one method that recompute needs of a transformer."""

    def __init__(self, count, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks, self.call = nn.ModuleList(Block() for _ in range(count)), None

    def enable_gradient_checkpointing(self, call):
        self.call = call

    def forward(self, x):
        for block in self.blocks:
            x = self.call(block, x) if self.call and torch.is_grad_enabled() else block(x)
        return x.square().mean()

    @property
    def trained(self):
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class SimulatedDevice:
    """Memory with a hard limit, in which tensors lie that were placed there and are still alive."""

    def __init__(self, limit=float("inf")):
        self.limit, self.peak, self._placed = limit, 0, []

    def keep(self, tensor):
        """What host memory would be."""
        return tensor.clone()

    def place(self, tensor, device):
        if tensor.shape in ADAPTER:
            return tensor
        placed = tensor.clone()
        self._placed.append((StorageWeakRef(placed.untyped_storage()), placed.untyped_storage()._cdata, placed.nbytes))
        self.peak = max(self.peak, self.present)
        if self.present > self.limit:
            raise torch.OutOfMemoryError(f"{self.present} bytes of {self.limit}")
        return placed

    @property
    def present(self):
        return sum(size for alive, _, size in self._placed if not alive.expired())

    def holds(self, block):
        here = {storage for alive, storage, _ in self._placed if not alive.expired()}
        return all(tensor.untyped_storage()._cdata in here for tensor in frozen(block))


def frozen(block):
    return [tensor for tensor in (*block.parameters(), *block.buffers()) if not tensor.requires_grad]


def bytes_of(block):
    """What a block takes in a slot, whose tensors begin at multiples of 128 numbers."""
    return sum(-(-tensor.numel() // 128) * 128 * tensor.element_size() for tensor in frozen(block))


def inputs(step=0):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(step))


def gradients(stack, micro_steps=1):
    """The losses and the accumulated gradients of some micro-steps."""
    for parameter in stack.trained:
        parameter.grad = None
    losses = []
    for step in range(micro_steps):
        loss = stack(inputs(step))
        loss.backward()
        losses.append(loss.detach())
    return torch.cat([torch.stack(losses), *(parameter.grad.flatten() for parameter in stack.trained)])


def swapping(count, swapped, **more):
    stack = Stack(count)
    recompute_blocks(stack, keep_random_state=False)
    return stack, BlockSwap(stack.blocks, swapped, CPU, **more)


@pytest.mark.parametrize(("count", "total", "expected"), [
    (0, 4, ()), (1, 4, (2,)), (2, 4, (1, 3)), (4, 4, (0, 1, 2, 3)), (3, 40, (6, 20, 33)), (1, 1, (0,)),
])
def test_swapped_blocks_are_evenly_spread(count, total, expected):
    assert swapped_blocks(count, total) == expected


@pytest.mark.parametrize("total", [1, 2, 7, 28, 40, 48])
def test_gaps_between_swapped_blocks_differ_by_at_most_one(total):
    for count in range(1, total + 1):
        blocks = swapped_blocks(count, total)
        gaps = {after - before for before, after in zip(blocks, blocks[1:], strict=False)}
        assert len(set(blocks)) == count and max(blocks) < total and max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("count", [-1, 5])
def test_more_blocks_than_there_are_cannot_be_swapped(count):
    with pytest.raises(ValueError, match="Blocks to swap"):
        swapped_blocks(count, 4)
    with pytest.raises(ValueError, match="the model has 4 blocks"):
        BlockSwap(Stack(4).blocks, [count], CPU)


CASES = [
    (count, swapped, ahead)
    for count, choices in {1: [(0,)], 2: [(1,), (0, 1)], 6: [(3,), (0, 5), (1, 3, 5), (4, 5), tuple(range(6))]}.items()
    for swapped in choices
    for ahead in (0, 1, 2, 9)
]


@pytest.mark.parametrize(("count", "swapped", "ahead"), CASES)
def test_numbers_are_the_same_and_the_device_holds_at_most_the_promised_blocks(count, swapped, ahead):
    expected = gradients(Stack(count), 3)
    promised = present_blocks(len(swapped), count, ahead=ahead) * bytes_of(Stack(1).blocks[0])
    device = SimulatedDevice(promised)
    stack, swap = swapping(count, swapped, ahead=ahead, place=device.place, host=device)
    there = []
    for block in stack.blocks:
        block.register_forward_pre_hook(lambda block, _: there.append(device.holds(block)))
    with torch.no_grad():
        stack(inputs())
    assert torch.equal(gradients(stack, 3), expected)
    assert len(there) == 7 * count and all(there)
    assert device.peak <= promised
    assert sum(device.holds(block) for block in stack.blocks) <= present_blocks(len(swapped), count, ahead=ahead)
    swap.close()
    assert not any(device.holds(stack.blocks[index]) for index in swapped)


@pytest.mark.parametrize(("swapped", "ahead"), [(range(8), 1), (range(8), 2), ((1, 3, 4, 6), 1), ((0, 7), 1)])
def test_the_next_blocks_are_there_before_they_are_needed_in_both_directions(swapped, ahead):
    device = SimulatedDevice()
    stack, _ = swapping(8, swapped, ahead=ahead, place=device.place, host=device)
    there = []
    for index, block in enumerate(stack.blocks):
        block.register_forward_pre_hook(
            lambda *_, at=index: there.append((at, {i for i in range(8) if device.holds(stack.blocks[i])}))
        )
    for _ in range(2):
        there.clear()
        gradients(stack)
        assert [index for index, _ in there] == [*range(8), *reversed(range(8))]
        for place, (index, present) in enumerate(there):
            later = [block for block, _ in there[place + 1 : 8 if place < 8 else None] if block in swapped]
            assert {index, *later[:ahead]} <= present


def test_training_steps_are_the_same():
    found = []
    for swapped in ((), (0, 2, 3)):
        stack, _ = swapping(4, swapped)
        optimizer = torch.optim.AdamW(stack.trained, lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            stack(inputs(step)).backward()
            optimizer.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in stack.trained]))
    assert torch.equal(*found)


def test_predicting_between_forward_and_backward_does_no_harm():
    expected = gradients(Stack(5))
    stack, _ = swapping(5, (0, 2, 4))
    for parameter in stack.trained:
        parameter.grad = None
    loss = stack(inputs())
    with torch.no_grad():
        assert torch.equal(stack(inputs(7)), Stack(5)(inputs(7)))
    other = stack(inputs(8))
    loss.backward()
    del other
    found = torch.cat([loss.detach().reshape(1), *(parameter.grad.flatten() for parameter in stack.trained)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("when", ["forward", "recompute", "backward"])
def test_an_error_in_the_middle_of_a_step_leaves_it_sound(at, when):
    expected = gradients(Stack(5), 2)
    stack, _ = swapping(5, (0, 1, 3, 4))
    calls = []

    def fail(*_):
        calls.append(at)
        if len(calls) == (2 if when == "recompute" else 1):
            raise KeyboardInterrupt

    block = stack.blocks[at]
    hook = block.up.weight.register_hook(fail) if when == "backward" else block.linear.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        gradients(stack, 2)
    hook.remove()
    assert torch.equal(gradients(stack, 2), expected)


def test_without_recompute_it_refuses():
    stack = Stack(3)
    BlockSwap(stack.blocks, (1,), CPU)
    with pytest.raises(ValueError, match="needs Recompute"):
        stack(inputs())
    with torch.no_grad():
        assert stack(inputs()).isfinite()


def test_parameters_stay_the_same_objects_and_weights_the_same_numbers():
    stack = Stack(4)
    before, values = list(stack.parameters()), copy.deepcopy(stack.state_dict())
    recompute_blocks(stack, keep_random_state=False)
    swap = BlockSwap(stack.blocks, (0, 1, 2, 3), CPU)
    for _ in range(2):
        gradients(stack)
        for name, tensor in stack.state_dict().items():
            assert torch.equal(tensor, values[name]) and tensor.dtype == values[name].dtype, name
    swap.close()
    swap.close()
    assert all(now is then for now, then in zip(stack.parameters(), before, strict=True))
    for name, tensor in stack.state_dict().items():
        assert torch.equal(tensor, values[name]), name
    assert torch.equal(gradients(stack), gradients(Stack(4)))


def test_more_blocks_can_be_swapped_in_the_middle_of_a_run_and_none_again():
    expected = gradients(Stack(6), 2)
    device = SimulatedDevice()
    stack, swap = swapping(6, (3,), place=device.place, host=device)
    for swapped in ((1, 3, 5), tuple(range(6)), ()):
        gradients(stack)
        swap.close()
        swap = BlockSwap(stack.blocks, swapped, CPU, place=device.place, host=device)
        assert torch.equal(gradients(stack, 2), expected)
        assert device.present <= present_blocks(len(swapped), 6) * bytes_of(Stack(1).blocks[0])
    assert all(device.holds(block) for block in stack.blocks)


def test_where_the_device_is_too_small_it_says_so_and_leaves_the_weights_whole():
    stack, values = Stack(6), Stack(6).state_dict()
    device = SimulatedDevice(bytes_of(stack.blocks[0]) * 5 // 2)
    with pytest.raises(torch.OutOfMemoryError):
        BlockSwap(stack.blocks, (1, 3, 4), CPU, place=device.place, host=device)
    assert all(torch.equal(tensor, values[name]) for name, tensor in stack.state_dict().items())
    assert torch.equal(gradients(stack), gradients(Stack(6)))


class LateStream:
    """Stands for a second CUDA stream. A copy spoils at once what it overwrites, and ends when it is waited for."""

    def __init__(self):
        self.queue, self.done, self.open, self.behind_compute, self.most = [], 0, False, False, 0

    def __enter__(self):
        assert self.behind_compute, "what used the memory before may still be computing"
        self.open, self.behind_compute = True, False

    def __exit__(self, *_):
        self.open = False

    def copy(self, to, numbers, non_blocking):
        assert non_blocking
        to.fill_(float("nan") if to.is_floating_point() else 0)
        self.queue.append((to, numbers.clone()))

    def wait_stream(self, other):
        assert other is not self
        self.behind_compute = True

    def record_event(self):
        return len(self.queue)

    def finish(self, event):
        """What the computation's stream does when it waits for an event of this one."""
        self.most = max(self.most, len(self.queue) - event)
        for to, numbers in self.queue[self.done : event]:
            to.data.view(-1)[:] = numbers.view(-1)
        self.done = max(self.done, event)


@pytest.fixture
def late_stream(monkeypatch):
    """A stream that stands for the one on which a CUDA device would copy."""
    stream, copy_ = LateStream(), torch.Tensor.copy_
    compute = SimpleNamespace(wait_event=stream.finish, wait_stream=lambda other: other.finish(len(other.queue)))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, numbers, non_blocking=False: (
        stream.copy(to, numbers, non_blocking) if stream.open else copy_(to, numbers)
    ))
    return stream


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("swapped", [(0, 1, 2, 3, 4, 5), (1, 4), (5,)])
def test_copies_beside_the_computation_wait_and_are_waited_for(late_stream, swapped, ahead):
    expected, device = gradients(Stack(6), 2), SimulatedDevice()
    stack = Stack(6)
    recompute_blocks(stack, keep_random_state=False)
    swap = BlockSwap(
        stack.blocks, swapped, torch.device("cuda"), ahead=ahead, place=device.place, host=device
    )
    for _ in range(2):
        assert torch.equal(gradients(stack, 2), expected)
        with torch.no_grad():
            assert torch.equal(stack(inputs(7)), Stack(6)(inputs(7)))
    # Seven tensors to a block; those of the next were on their way while one was waited for.
    assert late_stream.most >= 7 * min(ahead, len(swapped) - 1)
    with torch.no_grad():
        stack.blocks[0](inputs())
    swap.close()
    assert late_stream.done == len(late_stream.queue)
