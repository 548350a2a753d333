"""Cancel in a real ComfyUI at random moments: how long it takes, and whether anything is lost or spoilt.

    python tests/bench/cancel_moments.py [--moments 20] [--steps 120] [--seed 6]

Each time a training of a tiny Wan is queued and /interrupt is posted at a drawn moment. Then: the node must be reported
as interrupted, every key of the LoRA left must be loaded by `VLSStack` and by ComfyUI's own loader, a prompt at a fixed
seed must give the same bytes as before, the same training queued again must go on at the step that was kept, and its
LoRA must in the end have the bytes of a run that nobody cancelled. Stops at the first time that it is otherwise. Prints
each cancel, then the median and worst latency: by the wall clock, beside it the load of the machine, and in seconds of
CPU time that the server took meanwhile, which is the latency of a machine that has nothing else to do. Needs psutil.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "comfy")]

import psutil
from comfy_server import ComfyServer, why_not
from repeated_runs import Moment, cancel_and_go_on, forget_run, lora_file, sampled, training_anew
from server_parts import put_clips, write_parts

NAME = "cancelled"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=6)
    wanted = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(Path(folder))
        write_parts(server)
        server.start()
        try:
            cancels(server, wanted)
        finally:
            server.stop()


def cancels(server: ComfyServer, wanted: argparse.Namespace) -> None:
    graph = training_anew(put_clips(server, "clips"), name=NAME, steps=wanted.steps)
    process = psutil.Process(server.process.pid)
    image = sampled(server)
    whole = server.queue(graph)
    assert whole.status == "success", whole.error
    lora = lora_file(server, NAME).read_bytes()
    forget_run(server, NAME)
    source, latencies, busy = random.Random(wanted.seed), [], []
    print(f"uninterrupted: {wanted.steps} steps, the whole prompt {whole.seconds:.1f} s")
    while len(latencies) < wanted.moments:
        moment = Moment.drawn(source, wanted.steps)
        cancelled = cancel_and_go_on(server, graph, moment, name=NAME, image=image, clock=lambda: cpu_seconds(process))
        assert lora_file(server, NAME).read_bytes() == lora, "another LoRA than that of the uninterrupted run"
        latencies.append(cancelled.latency)
        busy.append(cancelled.busy)
        load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        print(f"{len(latencies):3}  asked at {cancelled.at[:40]!r:44} obeyed in {cancelled.latency:5.2f} s "
              f"({cancelled.busy:.2f} s of CPU), {cancelled.kept:4} steps kept  {load}", flush=True)
    print(f"{len(latencies)} times: interrupted, LoRA usable, same picture after, went on to the same bytes")
    print(f"latency: median {median(latencies):.2f} s, worst {max(latencies):.2f} s by the wall clock; median "
          f"{median(busy):.2f} s, worst {max(busy):.2f} s of CPU; {os.cpu_count()} cores")


def cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


if __name__ == "__main__":
    main()
