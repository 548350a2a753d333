"""What happens to a run when something goes wrong: steps lost, what is said, whether the next run ends as it should.

    python tests/faults/fault_table.py

Every fault is a real one where it can be: a small file system that is full (mounted, where this user may mount), a
process that is killed, files that are damaged. Memory that runs out is raised where it would be. The undisturbed run
and the one that goes on are compared file by file, byte by byte.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from disturbed_run import AT, Bench, CannotMount, Seen, Told, fill
from kill_runs import processes, start

from video_lora_studio.loaders.feature_cache import CHECKSUM
from video_lora_studio.loaders.safetensors_file import checksum, read_tensors, write_tensors
from video_lora_studio.training import disk
from video_lora_studio.training.optimizers import Stepper
from video_lora_studio.training.run_output import Places

FAULTS = {}
"""By name: what makes it happen, a function of a `Bench` that gives a `Seen`."""


def fault(name):
    """Put a function into the table: a bench to what came of the fault."""
    def put(function):
        FAULTS[name] = function
        return function

    return put


@fault("Full disk in the middle, then room is made")
def full_disk(bench):
    with bench.small_disk() as folder:
        run = bench.fresh(folder / "here")
        run.go(Told(act=lambda: fill(folder, leave=disk.LEFT_TO_OTHERS),
                    when_waiting=lambda: (folder / "ballast").unlink()))
        return run.seen()


@fault("Quota used up in the middle (the disk says that it has room), then room is made")
def used_up_quota(bench):
    with bench.small_disk() as folder, mock.patch.object(disk, "free", lambda folder: 1 << 40):
        run = bench.fresh(folder / "here")
        run.go(Told(act=lambda: fill(folder), when_waiting=lambda: (folder / "ballast").unlink()))
        return run.seen()


@fault("Full disk and Cancel while it waits; room is made afterwards")
def full_disk_and_cancel(bench):
    with bench.small_disk() as folder, mock.patch.object(disk, "free", lambda folder: 1 << 40):
        run, spare = bench.fresh(folder / "here"), bench.folder / "spare"
        spare.mkdir()
        told = Told(act=lambda: fill(folder))
        told.when_waiting = lambda: setattr(told, "cancel", True)
        run.go(told, places=Places(**{**vars(run.run.places), "spare": (spare,)}))
        run.said.append("In the spare folder: " + ", ".join(sorted(path.name for path in spare.iterdir())))
        (folder / "ballast").unlink()
        return run.again()


@fault("Full disk before the start")
def full_disk_before_start(bench):
    with bench.small_disk() as folder:
        run = bench.fresh(folder / "here")
        ballast = fill(folder, leave=disk.LEFT_TO_OTHERS)
        run.go()
        ballast.unlink()
        return run.again()


@fault("Full disk while clips are prepared")
def full_disk_while_caching(bench):
    with bench.small_disk() as folder:
        cache = folder / "here/cache"
        cache.mkdir(parents=True)
        ballast = fill(folder, leave=16384)
        try:
            bench.fresh(folder / "here")
        except OSError as error:
            said = str(error)
        ballast.unlink()
        whole = {name: data for name, data in bench.whole.items() if name.startswith("cache/")}
        run = bench.fresh(folder / "here").run
        made = {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in cache.rglob("*.safetensors")}
        return Seen(0, (said,), "goes on with the next clip", made == whole)


@fault("SIGKILL while a resume point is written")
def killed(bench):
    run = bench.fresh()
    counts = start(processes(), bench.fresh().run)[1]
    start(processes(), run.run, chosen=("training: in a write", counts["training: in a write"] // 2))
    reached = int(run.points()[-1].stem.split("-")[-1])
    seen = run.again("goes on")
    return Seen(max(0, reached - (run.steps[0] - 1)), (*seen.said, "(nothing)"), seen.next_run, seen.same)


@fault("Newest resume point cut off")
def truncated_point(bench):
    run = stopped(bench)
    newest = run.points()[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    return run.again()


@fault("Both resume points damaged by one bit")
def flipped_points(bench):
    run = stopped(bench)
    for path in run.points():
        flip(path)
    return run.again("begins anew")


@fault("run.json emptied")
def emptied_record(bench):
    run = stopped(bench)
    (run.run.places.run_folder / "run.json").write_bytes(b"")
    return run.again()


@fault("One bit flipped in cached features, in the middle")
def flipped_features(bench):
    run = bench.fresh()
    run.go(Told(act=lambda: flip(run.features()[0])))
    return run.again()


@fault("Cached features removed in the middle")
def removed_features(bench):
    run = bench.fresh()
    run.go(Told(act=lambda: run.features()[0].unlink()))
    return run.again()


@fault("Clips themselves removed in the middle")
def removed_clips(bench):
    run = bench.fresh()
    clips, away = run.run.sources / "clips", run.run.sources / "away"
    run.go(Told(act=lambda: clips.rename(away)))
    away.rename(clips)
    return run.seen()


@fault("NaN in a cached latent")
def nan_in_features(bench):
    run = bench.fresh()
    run.go(Told(act=lambda: [put_nan(path) for path in run.features()]))
    for path in run.features():
        path.unlink()
    return run.again("goes on, once the features are made again")


def raises_once(place, error):
    """Raise in the forward pass, in the backward pass, or halfway through a step of the optimizer, once, after `AT`."""
    def put(bench):
        run, family, left = bench.fresh(), type(bench.base.family), [error]
        predict, step = family.predict, Stepper.step

        def fail(now):
            if now == place and len(told.done) == AT and left:
                raise left.pop()

        def predicted(self, *given):
            fail("forward")
            answer = predict(self, *given)
            for stream in answer.values():
                stream.register_hook(lambda gradient: fail("backward"))
            return answer

        def stepped(self, done):
            step(self, done)
            fail("optimizer")

        told = Told()
        with mock.patch.object(family, "predict", predicted), mock.patch.object(Stepper, "step", stepped):
            ended = run.go(told)
        return run.seen() if ended else run.again()

    return put


for where in ("forward", "backward", "optimizer"):
    memory = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
    fault(f"Out of memory, {where}")(raises_once(where, memory))
    fault(f"Driver error, {where}")(raises_once(where, RuntimeError("CUDA error: unspecified launch failure")))


@fault("Out of memory, and nothing is left to save it")
def no_memory_left(bench):
    run, family, predict = bench.fresh(), type(bench.base.family), type(bench.base.family).predict

    def predicted(self, *given):
        if len(told.done) >= AT:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return predict(self, *given)

    told = Told()
    with mock.patch.object(family, "predict", predicted):
        run.go(told)
    return run.again()


@fault("File system of the LoRA folder turns read-only in the middle")
def read_only(bench):
    with bench.small_disk() as folder:
        run, spare = bench.fresh(), bench.folder / "spare_of_read_only"
        spare.mkdir()
        run.run.places.lora_folder.symlink_to(folder)

        def turn(how):
            subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)

        run.go(Told(act=lambda: turn("ro")), places=Places(**{**vars(run.run.places), "spare": (spare,)}))
        run.said.append("In the spare folder: " + ", ".join(sorted(path.name for path in spare.iterdir())))
        turn("rw")
        return run.again()


@fault("A file in place of the LoRA folder, in the middle")
def no_folder(bench):
    run = bench.fresh()
    loras = run.run.places.lora_folder

    def replace():
        loras.rmdir()
        loras.write_bytes(b"")

    run.go(Told(act=replace))
    loras.unlink()
    run.said.append("(and where it is instead, where there is a spare folder)")
    return run.again()


@fault("Cancel")
def cancelled(bench):
    run = stopped(bench)
    run.said = ["(the host says it)"]
    return run.again()


def stopped(bench):
    """A run that was cancelled in the middle."""
    run, told = bench.fresh(), Told()
    told.act = lambda: setattr(told, "cancel", True)
    assert not run.go(told)
    return run


def flip(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)


def put_nan(path):
    tensors, metadata = read_tensors(path)
    tensors["video"].view(-1)[0] = torch.nan
    write_tensors(path, tensors, {**metadata, CHECKSUM: checksum(tensors)})


def main():
    print("| fault | steps lost | what is said | next run | same bytes at the end |\n|---|---|---|---|---|")
    fine = True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder) / "here")
        for name, function in FAULTS.items():
            try:
                seen = function(bench)
            except CannotMount as error:
                print(f"| {name} | not shown: {error} | | | |", flush=True)
                continue
            said = " / ".join(line.replace(folder, "…").replace("|", "\\|") for line in seen.said)
            print(f"| {name} | {seen.lost} | {said} | {seen.next_run} | {'yes' if seen.same else 'NO'} |", flush=True)
            fine = fine and seen.same
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
