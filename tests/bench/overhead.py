"""What the framework costs: seconds per step of the engine's loop over the bare forward and backward, taking turns.

Both sides are the same diffusers model (a random Wan, 512 wide) with the same adapter, rank 16, float32 on
the CPU, in one process. The bare side calls the model on tensors that are there and goes backward from the mean squared
error, nothing else. Ours is `run_steps`: reading, drawing noise, noising, the same, clipping, AdamW, reporting.

    python tests/bench/overhead.py [--pairs 7] [--steps 6] [--layers 8] [--threads N] [--clock cpu] [--no-recompute]

Prints every pair's ratio ours/bare, and median, least and greatest; then where the time went that the bare side does
not need.
"""

import tempfile
from pathlib import Path

import torch
from our_side import CPU, config_for
from pairs import CLOCKS, StepClock, arguments, compare
from wan_sides import LATENTS, TOKENS, data_for, model_of

from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import RunState, draw, run_steps
from video_lora_studio.training.optimizers import build_optimizer
from video_lora_studio.training.run import attach_adapter, fit, level_by_hand, set_up


class Sides:
    """The two ways to make steps with one model."""

    def __init__(self, folder, layers, steps, recompute, clock):
        base = model_of(folder / "wan.safetensors", layers)
        self.config = config_for(steps + 1, recompute)
        self.context = set_up(data_for(base, folder), base, self.config, CPU, torch.float32, SilentListener())
        self.parameters = list(attach_adapter(self.context, self.config).parameters())
        fit(self.context, self.config, level_by_hand(self.config.memory))
        self.optimizer = build_optimizer(self.parameters, self.config)
        self.clock = clock

    def ours(self):
        run_steps(
            self.context, self.config, parameters=self.parameters, optimizer=self.optimizer, state=RunState(),
            listener=SilentListener(), after_step=lambda state: None,
        )

    def bare(self):
        generator = torch.Generator().manual_seed(1)
        noisy, target = (torch.randn(1, *LATENTS, generator=generator) for _ in range(2))
        text = torch.randn(1, TOKENS, 4096, generator=generator)
        for _ in range(self.config.steps):
            for parameter in self.parameters:
                parameter.grad = None
            (answer,) = self.context.transformer(
                hidden_states=noisy, timestep=torch.full((1,), 500.0), encoder_hidden_states=text, return_dict=False
            )
            torch.nn.functional.mse_loss(answer, target).backward()
            self.clock.stamp()

    def parts(self):
        """Milliseconds of what only our side does, each alone."""

        def milliseconds(action, stamp):
            def twelve():
                for _ in range(12):
                    action()
                    stamp()

            return 1000 * self.clock.seconds_per_step(twelve)

        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        by_hand = self.clock.stamp
        return {
            "reading and drawing": milliseconds(lambda: draw(self.context, 0), by_hand),
            "clipping": milliseconds(lambda: torch.nn.utils.clip_grad_norm_(self.parameters, 1.0), by_hand),
            "AdamW": milliseconds(lambda: self.optimizer.step(0), lambda: None),
        }


def main():
    given = arguments(__doc__, pairs=7).parse_args()
    torch.set_num_threads(given.threads)
    clock = StepClock(CLOCKS[given.clock])
    with tempfile.TemporaryDirectory() as name:
        sides = Sides(Path(name), given.layers, given.steps, given.recompute, clock)
        compare({"ours": sides.ours, "bare": sides.bare}, clock, given)
        print("; ".join(f"{part} {milliseconds:.1f} ms" for part, milliseconds in sides.parts().items()))


if __name__ == "__main__":
    main()
