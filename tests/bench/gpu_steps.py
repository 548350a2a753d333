"""Seconds a step and peak memory of real-size models with random weights, on this machine's GPU.

    python tests/bench/gpu_steps.py [--cases 1.3B:832x480x49,14B:512x512x81] [--steps 6]

The engine's own loop, adapter and recompute; features are drawn, not encoded. "of matmul" is the rate of the operations
that forward, recompute and backward need, over the rate of an 8192-cubed bf16 matrix product measured on the same card
in the same run. Operations: 2 per weight and token for each of forward, recompute and the backward towards the input
(the weights are frozen), and for attention 4 L^2 D per layer forward, the same again, and twice that backward.
"""

import argparse
import platform
import statistics
import time
from types import SimpleNamespace

import torch
from diffusers import WanTransformer3DModel

from video_lora_studio.loaders.key_map import KeyMap
from video_lora_studio.loaders.module_weights import build_without_storage, fill
from video_lora_studio.training.adapter import Adapter
from video_lora_studio.training.config import RunConfig
from video_lora_studio.training.families import FAMILIES
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import RunState, StepContext, run_steps
from video_lora_studio.training.memory.recompute import recompute_blocks
from video_lora_studio.training.objective import FlowMatching
from video_lora_studio.training.optimizers import build_optimizer

SIZES = {
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
DEFAULT_CASES = "1.3B:832x480x49,1.3B:832x480x81,14B:512x512x81,14B:832x480x81"


class DrawnBatches:
    """One batch of random features, the same at every position."""

    def __init__(self, width, height, frames):
        self.clean = {"video": torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)}
        self.features = {"text": torch.randn(1, 512, 4096)}

    def read(self, position):
        return self.clean, self.features

    def samples(self, position):
        return []


def build(size, device):
    """A random model of a real size, bfloat16, drawn on the device."""
    config = {"in_channels": 16, "out_channels": 16, "text_dim": 4096, **SIZES[size]}
    model = build_without_storage(lambda: WanTransformer3DModel(**config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def draw(name):
        scale = shapes[name][-1] ** -0.5 if len(shapes[name]) > 1 else 0.02
        return torch.randn(shapes[name], device=device, dtype=torch.bfloat16) * scale

    fill(
        model, shapes, draw, KeyMap(()), dtype=torch.bfloat16, keep_fp32=WanTransformer3DModel._keep_in_fp32_modules,
        device=device,
    )
    return model.eval()


def operations(model, tokens):
    """Floating-point operations of one step, as the module's docstring counts them."""
    blocks = sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2 and "lora" not in name)
    width, layers, text = model.config.num_attention_heads * 128, model.config.num_layers, 512
    keys = sum(p.numel() for name, p in model.blocks.named_parameters() if "attn2.to_k" in name or "attn2.to_v" in name)
    linear = 2 * ((blocks - keys) * tokens + keys * text)
    attention = 4 * layers * width * (tokens * tokens + tokens * text)
    return 3 * linear + 4 * attention


def matmul_rate(device):
    """Operations a second of a large bf16 matrix product on random data."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def measure(size, width, height, frames, steps, rate, device):
    """One row of the table."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = build(size, device)
    weights = torch.cuda.memory_allocated()
    run = RunConfig(name="bench", steps=steps + 2, rank=32)
    recompute_blocks(model, keep_random_state=False)
    base = SimpleNamespace(family=FAMILIES[0])
    adapter = Adapter(model, base, run.adapter, rank=run.rank, seed="0", streams=("video",))
    context = StepContext(
        transformer=model, base=base, objective=FlowMatching(shift=3.0), first_frame=0.0,
        batches=DrawnBatches(width, height, frames), device=device,
        autocast=lambda: torch.autocast(device.type, dtype=torch.bfloat16), seed="0",
    )
    ends = []
    parameters = list(adapter.parameters())
    run_steps(
        context, run, parameters=parameters, optimizer=build_optimizer(parameters, run), state=RunState(),
        listener=SilentListener(), after_step=lambda state: ends.append(time.perf_counter()),
    )
    seconds = [later - sooner for sooner, later in zip(ends[1:], ends[2:], strict=False)]
    tokens = (height // 16) * (width // 16) * ((frames - 1) // 4 + 1)
    median = statistics.median(seconds)
    share = operations(model, tokens) / median / rate
    print(
        f"| {size} | {width}x{height}x{frames} | {tokens:,} | {median:.3f} | {min(seconds):.3f}-{max(seconds):.3f} | "
        f"{weights / 2**30:.1f} | {torch.cuda.max_memory_allocated() / 2**30:.1f} | "
        f"{torch.cuda.max_memory_reserved() / 2**30:.1f} | {share:.2f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=DEFAULT_CASES)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    device = torch.device("cuda")
    rate = matmul_rate(device)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"bf16 matrix product, 8192 cubed: {rate / 1e12:.0f} TFLOP/s. Rank 32, all linear layers of the blocks,")
    print("batch 1, bf16 autocast, recompute per block, AdamW; weights resident. GiB: weights, peak allocated, peak")
    print("reserved.\n")
    print("| model | clip | tokens | s/step | range | weights | allocated | reserved | of matmul |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in arguments.cases.split(","):
        size, _, shape = case.partition(":")
        measure(size, *map(int, shape.split("x")), arguments.steps, rate, device)


if __name__ == "__main__":
    main()
