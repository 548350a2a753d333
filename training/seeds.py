"""Random numbers that depend on a seed, a purpose and a position only.

A run draws nothing from a shared stream, so that step 500 draws the same whether or not the 499 before it ran in this
process: resuming is exact without saving any generator's state.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int | str, purpose: str, position: int = 0) -> torch.Generator:
    """A CPU generator for one draw. CPU, so that every machine draws the same numbers."""
    return torch.Generator().manual_seed(number(seed, purpose, position))


def number(seed: int | str, purpose: str, position: int = 0) -> int:
    """A seed for one draw, of 63 bits."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
