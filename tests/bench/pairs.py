"""What benchmarks of two sides share: their arguments, a clock of steps, and runs by turns."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments(about: str, *, pairs: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=pairs, help="runs of each side that are compared")
    parser.add_argument("--steps", type=int, default=6, help="steps of a run, the first of which is not timed")
    parser.add_argument("--layers", type=int, default=8, help="blocks of the model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall",
                        help="cpu, with --threads 1: where other work shares the machine")
    parser.add_argument("--no-recompute", dest="recompute", action="store_false")
    return parser


class StepClock:
    """Seconds between one step and the next: any optimizer's, by PyTorch's own global hook, and those stamped by hand.

    `now` is a clock's reading in seconds.
    """

    def __init__(self, now: Callable[[], float]):
        self._now = now
        self._stamps: list[float] = []
        register_optimizer_step_post_hook(self.stamp)

    def stamp(self, *_) -> None:
        self._stamps.append(self._now())

    def steps(self, run: Callable[[], object]) -> list[float]:
        """The seconds of every step of `run()` but the first."""
        self._stamps.clear()
        run()
        assert len(self._stamps) > 1, "fewer than two steps were seen"
        return [after - before for before, after in itertools.pairwise(self._stamps)]

    def seconds_per_step(self, run: Callable[[], object]) -> float:
        """Their median."""
        return statistics.median(self.steps(run))


def compare(sides: Mapping[str, Callable[[], object]], clock: StepClock, given: argparse.Namespace) -> None:
    """Run the two sides by turns, after one run each that does not count.

    Prints every pair's seconds per step and their ratio, first side over second; then median, least and greatest.
    """
    first, second = sides
    for run in sides.values():
        run()
    ratios = []
    for pair in range(given.pairs):
        order = (first, second) if pair % 2 == 0 else (second, first)
        seconds = {side: clock.seconds_per_step(sides[side]) for side in order}
        ratios.append(seconds[first] / seconds[second])
        print(f"pair {pair + 1}, {order[0]} first: {first} {seconds[first]:.3f} s, {second} {seconds[second]:.3f} s, "
              f"ratio {ratios[-1]:.3f}", flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.clock} time, recompute "
          f"{'on' if given.recompute else 'off'}; ratio {first}/{second}: median {statistics.median(ratios):.3f}, "
          f"least {min(ratios):.3f}, greatest {max(ratios):.3f}")
