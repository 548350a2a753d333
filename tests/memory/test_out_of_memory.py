"""Which errors say that memory ran out, and which level is tried next."""

import pytest
import torch

from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.memory.out_of_memory import is_out_of_memory, next_level

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(("error", "device", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), CUDA, True),
    (RuntimeError("CUDA error: out of memory"), CUDA, True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), CUDA, True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.36 MB)"), MPS, True),
    (RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"), CUDA, True),
    (RuntimeError("Could not allocate tensor with 42 bytes. There is not enough GPU video memory available!"),
     CUDA, True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
     CPU, True),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), CPU, True),
    (MemoryError(), CPU, True),
    (MemoryError(), CUDA, False),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."), CUDA, False),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), CUDA, False),
    (ValueError("the model is out of memory of the past"), CUDA, False),
    (KeyboardInterrupt(), CUDA, False),
])
def test_errors(error, device, expected):
    assert is_out_of_memory(error, device) == expected


def test_what_this_machine_raises_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value, CPU)


def levels(blocks, level):
    while (level := next_level(level, blocks)) is not None:
        yield level


def again(swapped=0, offload=False, keep=False):
    return Level(recompute=True, swapped=swapped, offload_activations=offload, keep_attention=keep)


@pytest.mark.parametrize(("blocks", "start", "expected"), [
    (40, Level(), [again(keep=True), *(again(n) for n in (0, 4, 8, 16, 32, 40)), again(40, True)]),
    (28, again(10), [again(20), again(28), again(28, True)]),
    (30, again(15, True), [again(30, True)]),
    (30, again(15, True, keep=True), [again(15, True), again(30, True)]),
    (2, Level(), [again(keep=True), again(), again(0, True)]),
    (3, again(), [again(3), again(3, True)]),
])
def test_each_level_needs_less_until_nothing_is_left(blocks, start, expected):
    assert list(levels(blocks, start)) == expected


@pytest.mark.parametrize("weights", ["as stored", "full", "nf4"])
def test_the_weights_bits_stay(weights):
    level = Level(weights=weights)
    while (above := next_level(level, 8)) is not None:
        level = above
        assert level.weights == weights
