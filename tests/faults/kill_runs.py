"""Kill small runs of three families at random moments, start them again, and compare with runs that were left alone.

    python tests/faults/kill_runs.py --kills 25 [--seed 1]

A kill is Process.kill(): SIGKILL, or TerminateProcess on Windows. The moments: half of a file written, just before and
just after a rename, before a file is removed, in a step (forward, backward, before and after the optimizer), at any
time; while clips are cached and while the LoRA is trained.
"""

import argparse
import collections
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from small_run import FAMILIES, SmallRun, half_written, outcome, work, write_sources

ANY = "at any time"
PLACES = (
    "training: in a step", "training: in a write", "training: just before a rename", "training: just after a rename",
    "training: before a removal", ANY, "caching: in a write", "caching: just before a rename",
    "caching: just after a rename",
)
MOST = 3
"""Kills of one run at most, one start after another."""
IMPORTS = (
    "small_run", "peft", "diffusers.models.transformers.transformer_wan",
    "diffusers.models.transformers.transformer_ltx2", "diffusers.models.transformers.cogvideox_transformer_3d",
)


def processes():
    """How processes are made: forked from one that has imported everything, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    return context


@dataclass
class Tally:
    """What was seen of runs that were killed."""

    kills: collections.Counter = field(default_factory=collections.Counter)
    """How many, by place."""
    broken: list[str] = field(default_factory=list)
    """Files that could not be read whole after a kill or at the end."""
    different: list[str] = field(default_factory=list)
    """Files that a run which was left alone does not have, or has with other bytes."""
    left: list[str] = field(default_factory=list)
    """Temporary files that were still there at the end."""


def start(context, run, chosen=None, seconds=None):
    """One process; killed at the `chosen` moment or after so many `seconds`. What it said at the end."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(run, theirs, chosen))
    process.start()
    theirs.close()
    try:
        said = ours.recv()
        if seconds is not None and not ours.poll(seconds):
            said = "now"
        elif said == "begun":
            said = ours.recv()
    except EOFError:
        raise AssertionError(f"The process ended by itself with {process.exitcode}.") from None
    finally:
        if said == "now":
            process.kill()
        process.join()
    return None if said == "now" else said


class Killer:
    """Kills runs of one family. `folder` is empty or not there."""

    def __init__(self, family, folder, seed=0):
        self._context, self._folder, self._runs = processes(), folder, 0
        self._random = random.Random(f"{family}/{seed}")
        self._sources = folder / "sources"
        self._sources.mkdir(parents=True)
        write_sources(family, self._sources)
        whole = SmallRun(self._sources, folder / "whole")
        started = time.monotonic()
        _, self._counts = start(self._context, whole)
        self._seconds = time.monotonic() - started
        self._whole = outcome(whole)
        assert not half_written(whole) and not list(whole.folder.rglob("*.part"))

    def kill(self, places):
        """Kill a run at each of these places, one start after another, and let it finish; a Tally of it."""
        self._runs += 1
        tally, run = Tally(), SmallRun(self._sources, self._folder / f"run_{self._runs}")
        for number, place in enumerate(places):
            if start(self._context, run, **self._moment(place, again=bool(number))) is None:
                tally.kills[place] += 1
            tally.broken += half_written(run)
        report, _ = start(self._context, run)
        tally.broken += half_written(run) + ([report] if "damaged" in report else [])
        found = outcome(run)
        tally.different += [f"{run.folder}/{name}" for name in sorted({*found, *self._whole})
                            if found.get(name) != self._whole.get(name)]
        for path in run.cache.folder.rglob("*.part"):  # as if a day had gone by: until then they may be somebody's
            os.utime(path, (0, 0))
        run.cache.remove_orphans()
        tally.left += [str(path) for path in run.folder.rglob("*.part")]
        return tally

    def _moment(self, place, again):
        """A moment of a place by chance; an early one for a run that goes on, which has fewer of them."""
        if place == ANY:
            return {"seconds": self._random.uniform(0, self._seconds)}
        return {"chosen": (place, self._random.randint(1, max(1, self._counts[place] // (4 if again else 1))))}


def chains(kills, seed, first=0):
    """Places of so many kills, in turn from the `first` on, as kills of one run each."""
    chance = random.Random(seed)
    places = [PLACES[number % len(PLACES)] for number in range(first, first + kills)]
    chance.shuffle(places)
    while places:
        count = chance.randint(1, MOST)
        yield sorted(places[:count], reverse=chance.random() < 0.2)  # what is cached is not cached again
        places = places[count:]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="over all families")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    print("| family | kills | runs | at | half written | other bytes | left behind |\n|---|---|---|---|---|---|---|")
    fine, done = True, 0
    for index, family in enumerate(FAMILIES):
        goal = given.kills * (index + 1) // len(FAMILIES) - done
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            killer, total, runs = Killer(family, Path(folder) / "here", given.seed), Tally(), 0
            while total.kills.total() < goal:
                kills = total.kills.total()
                for places in chains(goal - kills, given.seed + 1000 * index + runs, done + kills):
                    tally, runs = killer.kill(places), runs + 1
                    total.kills += tally.kills
                    for name in ("broken", "different", "left"):
                        getattr(total, name).extend(getattr(tally, name))
        done += total.kills.total()
        wrong = [*total.broken, *total.different, *total.left]
        fine = fine and not wrong
        at = ", ".join(f"{place} {count}" for place, count in sorted(total.kills.items()))
        print(f"| {family} | {total.kills.total()} | {runs} | {at} | {len(total.broken)} | {len(total.different)} | "
              f"{len(total.left)} |", *wrong, sep="\n", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
