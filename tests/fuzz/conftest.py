"""The files beside this one are importable by their plain names, in tests as in the scripts run by hand."""

import sys
from pathlib import Path

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))
