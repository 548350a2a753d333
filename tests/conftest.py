"""What every test may use: the files beside this one are importable by their plain names."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent

for folder in (TESTS, TESTS / "comfy"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
