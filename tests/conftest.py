"""What every test may use: the files beside this one are importable by their plain names."""

import sys
from pathlib import Path

import torch

# The models here are so small that threads would mostly wait for each other.
torch.set_num_threads(1)

TESTS = Path(__file__).parent

for folder in (TESTS, TESTS / "comfy"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
