"""Peak memory of quantising a model as it is read: a 14B-shaped bf16 file (28 GB, sparse, zeros) to fp8, int8 or nf4.

    python tests/bench/quantise_memory.py [--folder FOLDER] [--layers 40] [--weights fp8 nf4]

Prints for each form the file's size, the result's size, and the peak of resident memory above the process's imports
and the result: at most 4 GiB. Fewer layers make a smaller file. Linux (VmHWM) and Windows (peak working set).
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load_memory import GB, resident

CHECKPOINT = "wan2.1_t2v_14B"
ALLOWED = 4 * 2**30


def write(path, layers):
    """The file: names and shapes of the checkpoint with this many of its blocks, no room on the disk."""
    sys.path.append(str(Path(__file__).parents[1]))
    from checkpoints import hollow_file, real

    def kept(name):
        block = re.match(r"blocks\.(\d+)\.", name)
        return block is None or int(block[1]) < layers

    hollow_file(path, {name: shape for name, shape in real(CHECKPOINT)[0].items() if kept(name)})


def load(path, weights):
    """The model, loaded once; prints the figures."""
    import diffusers  # noqa: F401
    import torch

    from video_lora_studio.loaders.module_weights import Storage
    from video_lora_studio.training.families import FAMILIES, open_base_model

    FAMILIES[0].twin()
    imported, _ = resident()
    began = time.perf_counter()
    base = open_base_model(path)
    transformer = base.family.load_transformer(
        base, dtype=torch.bfloat16, device=torch.device("cpu"), storage=Storage(weights=weights)
    )
    seconds = time.perf_counter() - began
    _, peak = resident()
    held = sum(tensor.numel() * tensor.element_size() for tensor in transformer.state_dict().values())
    above = peak - imported - held
    print(f"{base.title}, {len(base.family.blocks(transformer))} layers, file {path.stat().st_size / GB:.2f} GB -> "
          f"{weights} {held / GB:.2f} GB in {seconds:.0f} s, peak {peak / GB:.2f} GB: {above / 2**30:.2f} GiB above "
          f"the result ({'within' if above <= ALLOWED else 'MORE THAN'} 4 GiB)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the file is written (default: the temporary folder)")
    parser.add_argument("--layers", type=int, default=40, help="blocks in the file; 40 make 28 GB")
    parser.add_argument("--weights", nargs="+", default=["fp8", "nf4"], help="fp8, int8, nf4, as stored")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(options.load, options.weights[0])
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "14B_shaped.safetensors"
        write(path, options.layers)
        for weights in options.weights:
            command = [sys.executable, __file__, "--load", str(path), "--weights", weights]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
