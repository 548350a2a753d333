"""Seconds per training step and memory, ours against another trainer, in one process, taking turns.

`--musubi`: musubi-tuner's Wan training, a random Wan, 512 wide, latents (1, 16, 5, 32, 32), text features (512, 4096).
`--ltx`: Lightricks' trainer for LTX-2, a random LTX-2, 512 and 256 wide, latents (1, 128, 5, 16, 16) with sound of 34
steps, text features (1024, 3840), all attention adapted.
The same weights file, the same features, rank 16 on the same layers, float32 on the CPU, AdamW, SDPA, recompute on both
sides or on none. Both are called as a user calls them: `training.train`, and the trainer's own `train` on its arguments
and a cache in its own format. A step's time is what lies between two optimizer steps, taken by PyTorch's own global
hook, so loading and saving do not count; memory is that of tensors alive between them, in a run that is not timed.

    python tests/bench/peer_steps.py --musubi FOLDER | --ltx FOLDER [--site FOLDER] [--pairs 5] [--steps 6]
        [--layers 8] [--threads N] [--clock cpu] [--no-recompute]

FOLDER is a checkout; `--site` a folder with packages it needs and this Python lacks. Prints every pair's ratio
ours/theirs, and median, least and greatest; then the memory.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import torch
from our_side import config_for, layers_adapted, ours, peak_of_steps
from pairs import CLOCKS, StepClock, arguments, compare


def main() -> None:
    parser = arguments(__doc__)
    peers = parser.add_mutually_exclusive_group(required=True)
    peers.add_argument("--musubi", type=Path)
    peers.add_argument("--ltx", type=Path)
    parser.add_argument("--site", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["ACCELERATE_USE_CPU"] = "1"
    if given.site:
        sys.path.append(str(given.site))
    if given.musubi:
        from musubi_side import Musubi
        from wan_sides import data_for, model_of

        peer = Musubi(given.musubi)
    else:
        from ltx2_side import LtxTrainer, data_for, model_of

        peer = LtxTrainer(given.ltx)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder, config = Path(name), config_for(given.steps, given.recompute)
        base = model_of(folder / "model.safetensors", given.layers)
        data = data_for(base, folder)
        sides = {
            "ours": ours(base, data, folder, config),
            "theirs": peer.theirs(base, data, folder / "theirs", config),
        }
        compare(sides, StepClock(CLOCKS[given.clock]), given)
        adapted = layers_adapted(folder), peer.layers_adapted(folder / "theirs")
        assert adapted[0] == adapted[1], f"not the same work: {adapted[0]} layers against {adapted[1]}"
        peaks = {side: peak_of_steps(run) / 2**20 for side, run in sides.items()}
        print(f"{adapted[0]} layers adapted; tensors alive at most: ours {peaks['ours']:.0f} MiB, theirs "
              f"{peaks['theirs']:.0f} MiB, ratio {peaks['ours'] / peaks['theirs']:.3f}")


if __name__ == "__main__":
    main()
