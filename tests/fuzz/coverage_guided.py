"""Fuzz every border with inputs that a fuzzer makes by watching which lines they reach; print what came of them.

    pip install atheris
    python tests/fuzz/coverage_guided.py --inputs 100000          # in all, shared evenly by the targets
    python tests/fuzz/coverage_guided.py --inputs 20000 --only "GGUF headers"

Each target runs in a process of its own, for libFuzzer ends the process it runs in. Ends with 1 where an input did
anything but end well or be refused by one clear sentence.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parents[2])]
INSTRUMENTED = ["video_lora_studio"]
MOST_KINDS = 12
"""Different findings that are kept of a target."""


def fuzz(name: str, inputs: int, report: Path) -> None:
    """Feed one target and write what came of it; ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz_targets import TARGETS
    from fuzz_watch import Watch, attempt

    logging.disable()
    target = TARGETS[name]
    room = Path(tempfile.mkdtemp(prefix="fuzz_", dir=next(filter(os.path.isdir, ["/dev/shm"]), None)))
    (room / "roots").mkdir()
    watch = Watch(room / "roots")
    counts: collections.Counter[str] = collections.Counter()
    findings: dict[str, dict] = {}
    began = time.time()

    def one(data: bytes) -> None:
        outcome = attempt(watch, target.make(data, room / "roots"))
        kind = outcome.partition(":")[0] if outcome not in ("accepted", "refused") else outcome
        counts[kind] += 1
        if kind == "outside" or kind not in ("accepted", "refused"):
            where = re.sub(r"\d+|'.*'", "", outcome)[:120]
            if where not in findings and len(findings) < MOST_KINDS:
                findings[where] = {"outcome": outcome, "data": data.hex()[:4000]}
        done = counts.total()
        if done >= inputs:
            facts = {"counts": counts, "findings": list(findings.values()), "seconds": time.time() - began}
            report.write_text(json.dumps(facts))
            shutil.rmtree(room, ignore_errors=True)
            os._exit(0)

    corpus = room / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(seed)
    options = [
        "-seed=1",
        "-max_len=3000",
        "-timeout=60",
        "-rss_limit_mb=6000",
        f"-artifact_prefix={room}/",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--only", action="append", help="a target's name; more than once for several")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report:
        fuzz(arguments.only[0], arguments.inputs, arguments.report)
    from fuzz_targets import TARGETS

    names = arguments.only or list(TARGETS)
    shares = sum(TARGETS[name].share for name in names)
    print("| target | inputs | refused in words | accepted | other | files outside | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    total: collections.Counter[str] = collections.Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            facts = fuzz_apart(name, math.ceil(arguments.inputs * TARGETS[name].share / shares), Path(folder))
            counts = collections.Counter(facts["counts"])
            row = collections.Counter(
                inputs=counts.total(),
                refused=counts["refused"],
                accepted=counts["accepted"],
                outside=counts["outside"],
                other=counts.total() - counts["refused"] - counts["accepted"] - counts["outside"],
                seconds=round(facts["seconds"]),
            )
            print_row(name, row)
            total += row
            wrong += [(name, finding) for finding in facts["findings"]]
    print_row("**all**", total)
    for name, finding in wrong:
        print(f"\n{name}: {finding['outcome']}\n  input {finding['data'][:400]}")
    return 1 if wrong else 0


def fuzz_apart(name: str, inputs: int, folder: Path) -> dict:
    """Fuzz one target in a process of its own; what came of it."""
    report = folder / f"{abs(hash(name))}.json"
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--only",
        name,
        "--inputs",
        str(inputs),
        "--report",
        str(report),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if report.exists():
        return json.loads(report.read_text())
    last = done.stderr[-1500:]
    return {
        "counts": {"ended by itself": 1},
        "findings": [{"outcome": f"the process ended: {last}", "data": ""}],
        "seconds": 0,
    }


def print_row(name: str, row: collections.Counter) -> None:
    figures = [row[key] for key in ("inputs", "refused", "accepted", "other", "outside", "seconds")]
    print(f"| {name} | " + " | ".join(f"{figure:,}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
