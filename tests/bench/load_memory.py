"""Peak memory of loading a real-size model: a 1.3B-shaped random bf16 file (2.8 GB), written and loaded apart.

    python tests/bench/load_memory.py [--folder FOLDER] [--dtype bf16|fp32]

Prints the file's size, the peak of resident memory above the process's start and above its imports, and both as
multiples of the file. Linux (VmHWM) and Windows (peak working set).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GB = 10**9
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def resident():
    """Bytes of this process now in memory, and the most so far."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    import psutil

    info = psutil.Process().memory_info()
    return info.rss, info.peak_wset


def write(path):
    """The file: names and shapes of Wan 2.1 T2V 1.3B, random values."""
    import torch

    from video_lora_studio.loaders.safetensors_file import write_tensors

    sys.path.append(str(Path(__file__).parents[1]))
    from checkpoints import real

    shapes, _ = real("wan2.1_t2v_1.3B")
    generator = torch.Generator().manual_seed(0)
    write_tensors(
        path, {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}, {}
    )


def load(path, dtype):
    """The model, loaded once; prints the figures."""
    start, _ = resident()
    import diffusers  # noqa: F401
    import torch

    from video_lora_studio.training.families import FAMILIES, open_base_model

    FAMILIES[0].twin()
    imported, before = resident()
    began = time.perf_counter()
    base = open_base_model(path)
    transformer = base.family.load_transformer(base, dtype=getattr(torch, DTYPES[dtype]), device=torch.device("cpu"))
    seconds = time.perf_counter() - began
    after, peak = resident()
    held = sum(tensor.numel() * tensor.element_size() for tensor in transformer.state_dict().values())
    size = path.stat().st_size
    print(f"{base.title}, file {size / GB:.3f} GB, model in {dtype} {held / GB:.3f} GB, loaded in {seconds:.1f} s")
    print(f"resident: {start / GB:.3f} GB at the start, {imported / GB:.3f} GB after imports (peak {before / GB:.3f}), "
          f"{after / GB:.3f} GB after loading, peak {peak / GB:.3f} GB")
    for label, origin in (("process start", start), ("imports", imported)):
        print(f"peak above {label}: {(peak - origin) / GB:.3f} GB = {(peak - origin) / size:.3f} x the file")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the file is written (default: the temporary folder)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="what the weights are loaded as")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write)
    elif options.load:
        load(options.load, options.dtype)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "wan_1.3B_shaped.safetensors"
            for step in (["--write", str(path)], ["--load", str(path), "--dtype", options.dtype]):
                subprocess.run([sys.executable, __file__, *step], check=True)


if __name__ == "__main__":
    main()
