"""What the framework costs: seconds per step of the engine's loop over the bare forward and backward, taking turns.

Both sides are the same diffusers model (a random Wan, 512 wide) with the same adapter, rank 16, float32 on
the CPU, in one process. The bare side calls the model on tensors that are there and goes backward from the mean squared
error, nothing else. Ours is `run_steps`: reading, drawing noise, noising, the same, clipping, AdamW, reporting.

    python tests/bench/overhead.py [--pairs 7] [--steps 6] [--layers 8] [--threads N] [--clock cpu] [--no-recompute]

Prints every pair's ratio ours/bare, and median, least and greatest; then where the time went that the bare side does
not need.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path += [str(Path(__file__).parents[1] / "comfy"), str(Path(__file__).parents[1])]
from wan_sides import LATENTS, TOKENS, config_for, data_for, write_wan  # noqa: E402

from video_lora_studio.training import open_base_model  # noqa: E402
from video_lora_studio.training.listener import SilentListener  # noqa: E402
from video_lora_studio.training.loop import RunState, draw, run_steps  # noqa: E402
from video_lora_studio.training.optimizers import build_optimizer  # noqa: E402
from video_lora_studio.training.run import attach_adapter, fit, level_by_hand, set_up  # noqa: E402


def median_gap(stamps):
    return statistics.median(later - sooner for sooner, later in zip(stamps, stamps[1:], strict=False))


class Sides:
    """The two ways to make steps with one model."""

    def __init__(self, folder, layers, steps, recompute, now):
        wan = folder / "wan.safetensors"
        write_wan(wan, layers)
        base = open_base_model(wan)
        self.config = config_for(0, steps + 1, recompute)
        self.context = set_up(
            data_for(base, folder), base, self.config, torch.device("cpu"), torch.float32, SilentListener()
        )
        self.parameters = list(attach_adapter(self.context, self.config).parameters())
        fit(self.context, self.config, level_by_hand(self.config.memory))
        self.optimizer = build_optimizer(self.parameters, self.config)
        self.now = now

    def ours(self):
        """Seconds of one step: the median over all but the first."""
        stamps = []
        run_steps(
            self.context, self.config, parameters=self.parameters, optimizer=self.optimizer, state=RunState(),
            listener=SilentListener(), after_step=lambda state: stamps.append(self.now()),
        )
        return median_gap(stamps)

    def bare(self):
        """The same for a forward and a backward."""
        generator = torch.Generator().manual_seed(1)
        noisy, target = (torch.randn(1, *LATENTS, generator=generator) for _ in range(2))
        text = torch.randn(1, TOKENS, 4096, generator=generator)
        stamps = []
        for _ in range(self.config.steps):
            for parameter in self.parameters:
                parameter.grad = None
            (answer,) = self.context.transformer(
                hidden_states=noisy, timestep=torch.full((1,), 500.0), encoder_hidden_states=text, return_dict=False
            )
            torch.nn.functional.mse_loss(answer, target).backward()
            stamps.append(self.now())
        return median_gap(stamps)

    def parts(self):
        """Milliseconds of what only our side does, each alone."""

        def timed(action):
            stamps = []
            for _ in range(12):
                action()
                stamps.append(self.now())
            return 1000 * median_gap(stamps)

        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return {
            "reading and drawing": timed(lambda: draw(self.context, 0)),
            "clipping": timed(lambda: torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)),
            "AdamW": timed(lambda: self.optimizer.step(0)),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu, with --threads 1: where other work shares the machine")
    parser.add_argument("--no-recompute", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    now = {"wall": time.perf_counter, "cpu": time.process_time}[given.clock]
    with tempfile.TemporaryDirectory() as name:
        sides = Sides(Path(name), given.layers, given.steps, not given.no_recompute, now)
        sides.bare()
        sides.ours()
        ratios = []
        for pair in range(given.pairs):
            order = ("ours", "bare") if pair % 2 == 0 else ("bare", "ours")
            seconds = {side: getattr(sides, side)() for side in order}
            ratios.append(seconds["ours"] / seconds["bare"])
            print(f"pair {pair + 1}, {order[0]} first: ours {seconds['ours']:.3f} s, bare {seconds['bare']:.3f} s, "
                  f"ratio {ratios[-1]:.3f}", flush=True)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.clock} time, recompute "
              f"{'off' if given.no_recompute else 'on'}; ratio ours/bare: median {statistics.median(ratios):.3f}, "
              f"least {min(ratios):.3f}, greatest {max(ratios):.3f}")
        print("; ".join(f"{part} {milliseconds:.1f} ms" for part, milliseconds in sides.parts().items()))


if __name__ == "__main__":
    main()
