"""How a run will fit into memory: what each way takes, and the cheapest one that fits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..config import CARDS
from .block_swap import AHEAD
from .footprint import PLAIN, Footprints
from .level import Level

GIB = 2**30

PRESETS = {f"{size} GB": (size - 1) * GIB for size in CARDS}
"""What can be used of a card of each size: all but a gibibyte for the screen, the driver and PyTorch's own."""

MARGIN, FIXED_MARGIN = 0.05, GIB // 4
"""What is kept free on the device: a share of the need for gaps between tensors, and what libraries allocate."""
HOST_MARGIN = 2 * GIB
"""What is left of host memory to the system and to loading."""

EFFICIENCY = 0.5
"""Share of the rate of one large matrix product that a step reaches; `tests/bench/gpu_steps.py` measures it."""

FEWER_BITS = ("fp8", "nf4")
"""Ways to keep weights that are tried last, and only where they are stored in full."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Free bytes: of the device, and of the host for what waits beside it."""

    device: int
    host: int

    @classmethod
    def of(cls, device: torch.device, preset: str = "") -> Room:
        """What is free now. `preset`: at most what one of `PRESETS` has."""
        import psutil

        host = psutil.virtual_memory().available
        free = host
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + unused
        elif device.type == "mps":
            free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return cls(device=min(free, PRESETS.get(preset, free)), host=host)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the device does in a second: operations of a large matrix product, bytes copied from the host."""

    operations: float
    copies: float

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Speed:
        """Measured in about 50 ms each."""
        side = 512 if device.type == "cpu" else 4096
        left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
        host = torch.empty(2**26, dtype=torch.uint8, pin_memory=device.type == "cuda")
        there = torch.empty_like(host, device=device)
        return cls(
            operations=2 * side**3 / _seconds(lambda: torch.mm(left, right), device),
            copies=host.numel() / _seconds(lambda: there.copy_(host, non_blocking=True), device),
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one level takes."""

    level: Level
    device: int
    """Most bytes on the device."""
    host: int
    """Bytes that wait in host memory."""
    seconds: float
    """Of a step. An estimate."""

    def fits(self, room: Room) -> bool:
        return self.need <= room.device and (not self.host or self.host + HOST_MARGIN <= room.host)

    @property
    def need(self) -> int:
        """Bytes that have to be free on the device."""
        return round(self.device * (1 + MARGIN)) + FIXED_MARGIN


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chosen level, what was considered on the way to it, and what to tell people."""

    chosen: Forecast
    considered: tuple[Forecast, ...]
    """In the order of preference, the chosen one last."""
    room: Room
    blocks: int
    unstepped: int
    """Bytes that are there from the second step on, and are not in a first micro-step."""

    @property
    def level(self) -> Level:
        return self.chosen.level

    @property
    def lines(self) -> tuple[str, ...]:
        """For the report: one sentence, and a table where there was a choice."""
        chosen, room = self.chosen, self.room
        waits = f", {_gib(chosen.host)} in host memory" if chosen.host else ""
        first = (
            f"Memory: {describe(self.level, self.blocks)}; about {_gib(chosen.device)} of {_gib(room.device)} on the "
            f"device{waits}, about {chosen.seconds:.3g} s a step (estimates)."
        )
        if not chosen.fits(room):
            first += " That is more than there is: it may run out of memory."
        if self.level.weights in FEWER_BITS:
            first += f" Weights in {self.level.weights} are not quite those of the file: the LoRA learns beside them."
        if len(self.considered) == 1:
            return (first,)
        rows = [
            f"| {describe(each.level, self.blocks)} | {_gib(each.device)} | {_gib(each.host)} | {each.seconds:.3g} | "
            f"{'yes' if each.fits(self.room) else 'no'} |"
            for each in self.considered
        ]
        return first, "", "| Memory | device | host | s a step | fits |", "|---|---|---|---|---|", *rows

    def corrected(self, measured: int) -> Plan:
        """The plan with what a dry run of the largest batch took on the device, before the optimizer's first step."""
        chosen = dataclasses.replace(self.chosen, device=measured + self.unstepped)
        return dataclasses.replace(self, chosen=chosen, considered=(*self.considered[:-1], chosen))


def choose(
    footprints: Footprints, room: Room, speed: Speed, *, by_hand: Level | None = None, weights: str | None = None
) -> Plan:
    """The first way, from the cheapest on, that fits into `room`; or what `by_hand` takes, whether it fits or not.

    `weights`: the only way to keep these that is considered, as a run that goes on has to keep its numbers. Raises
    ValueError in one sentence where none fits.
    """
    considered: list[Forecast] = []
    ways = _ladder(footprints, room, speed, weights) if by_hand is None else [forecast(footprints, speed, by_hand)]
    for each in ways:
        considered.append(each)
        if by_hand is not None or each.fits(room):
            found = footprints.of(each.level)
            return Plan(
                chosen=each, considered=tuple(considered), room=room, blocks=found.blocks, unstepped=found.optimizer
            )
    least = min(considered, key=lambda each: each.need)
    base, host = footprints.workload.base, ""
    if least.host:
        host = f" and {_gib(least.host + HOST_MARGIN)} of host memory, of which {_gib(room.host)} are free"
    raise ValueError(
        f"{base.title} with clips of this size needs at least {_gib(least.need)} on the device, of which "
        f"{_gib(room.device)} are free{host}: lower Width, Height, Frames or Batch size, or close other programs."
    )


def forecast(footprints: Footprints, speed: Speed, level: Level) -> Forecast:
    """What one level takes. Left out: what turning few bits into numbers costs, and what compiling saves."""
    found, micro_steps = footprints.of(level), footprints.workload.config.recipe.gradient_accumulation
    compute = found.operations / (speed.operations * EFFICIENCY)
    return Forecast(
        level=level,
        device=found.on_device(level, accumulated=micro_steps > 1),
        host=found.on_host(level),
        seconds=micro_steps * max(compute, found.copied(level) / speed.copies),
    )


def describe(level: Level, blocks: int) -> str:
    """A level in plain words."""
    parts = {"as stored": [], "full": ["weights in full"]}.get(level.weights, [f"weights in {level.weights}"])
    parts += ["recompute"] if level.recompute else []
    parts += ["attention kept"] if level.keep_attention else []
    parts += [f"{level.swapped} of {blocks} blocks wait in host memory"] if level.swapped else []
    parts += ["activations wait in host memory"] if level.offload_activations else []
    parts += ["blocks compiled"] if level.compiled else []
    return ", ".join(parts) or "everything on the device"


def _ladder(footprints: Footprints, room: Room, speed: Speed, weights: str | None) -> Iterator[Forecast]:
    """Ways to save memory, from the cheapest on. Of numbers of swapped blocks the least that fits, or the greatest."""
    compiled = footprints.workload.config.memory.compile
    kinds = ("as stored", *(FEWER_BITS if footprints.workload.base.stored_as in PLAIN else ()))
    for kind in (weights,) if weights else kinds:
        of = partial(_of, footprints, speed, weights=kind, compiled=compiled)
        if kind == "as stored" or weights:
            yield of()
            if not compiled:
                yield of(recompute=True, keep_attention=True)
        yield of(recompute=True)
        if footprints.workload.device.type == "cpu":  # there is no other memory to wait in
            continue
        blocks = footprints.of(Level(weights=kind, recompute=True)).blocks
        for offload in (False, True):
            last = None
            for swapped in (0, *range(2 + AHEAD, blocks + 1)) if offload else range(2 + AHEAD, blocks + 1):
                last = of(recompute=True, offload_activations=offload, swapped=swapped)
                if last.fits(room):
                    break
            if last is not None:
                yield last


def _of(footprints: Footprints, speed: Speed, **level: Any) -> Forecast:
    return forecast(footprints, speed, Level(**level))


def _seconds(work, device: torch.device, budget: float = 0.05) -> float:
    """Seconds that one call takes, over as many calls as there is time for."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    work()
    wait()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < budget:
        for _ in range(5):
            work()
        wait()
        count += 5
    return (time.perf_counter() - started) / count


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
