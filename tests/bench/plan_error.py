"""Predicted against measured peak memory of a training step on the CPU, on twins of all families.

    python tests/bench/plan_error.py [--first N]

Predicted: `training/memory/footprint`, from the file's header. Measured twice, over two of the engine's own steps:
bytes of live tensors, and what PyTorch's CPU allocator handed out and took back (its profiler), weights included.
MB are 10^6 bytes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

from twin_steps import CPU, SIZES, predicted, real_steps, write_deep_twin  # noqa: E402

from video_lora_studio.training.memory.live_bytes import peak_bytes  # noqa: E402
from video_lora_studio.training.memory.plan import describe  # noqa: E402


def allocator_peak(run, held):
    """The most bytes that the CPU's allocator had given out while `run` worked, with those of `held`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = sum(tensor.numel() * tensor.element_size() for tensor in held)
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="leave out so many of the sizes")
    first = parser.parse_args().first
    torch.set_num_threads(1)
    print("| twin | blocks | clip | type | memory | predicted MB | live MB | error | allocator MB | error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, kind, blocks, size, level) in enumerate(SIZES[first:]):
            base = write_deep_twin(Path(folder) / f"twin{index}.safetensors", name, kind, blocks)
            for compute in (torch.float32, torch.bfloat16):
                said = predicted(base, size, level, compute=compute)
                steps, held = real_steps(base, size, level, compute)
                live = peak_bytes(steps, CPU, held)
                steps, held = real_steps(base, size, level, compute)
                given_out = allocator_peak(steps, held)
                print(
                    f"| {' '.join(filter(None, (name, kind)))} | {blocks} | {'x'.join(map(str, size))} | "
                    f"{str(compute).removeprefix('torch.')} | {describe(level, blocks)} | {said / 1e6:.1f} | "
                    f"{live / 1e6:.1f} | {said / live - 1:+.1%} | {given_out / 1e6:.1f} | "
                    f"{said / given_out - 1:+.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
