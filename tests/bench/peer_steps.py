"""Seconds per training step, ours against musubi-tuner's Wan training, in one process, taking turns.

The same weights file (a random Wan, 512 wide), the same latents (1, 16, 5, 32, 32) and text features (512, 4096), rank
16 on the same layers, float32 on the CPU, AdamW, SDPA, recompute on both sides or on none. Both are called as a user
calls them: `training.train`, and the trainer's own `train` on the arguments of its command line and a cache in its own
format, with the model's size put into its own table of models. A step's time is what lies between two optimizer steps,
taken by PyTorch's own global hook, so loading and saving do not count.

    python tests/bench/peer_steps.py --musubi FOLDER [--site FOLDER] [--pairs 5] [--steps 6] [--layers 8] [--threads N]
        [--clock cpu] [--no-recompute]

FOLDER is a checkout; `--site` a folder with packages it needs and this Python lacks. Needs torchvision. Prints every
pair's ratio ours/theirs, and median, least and greatest.
"""

import argparse
import contextlib
import io
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from step_time import StepClock

sys.path += [str(Path(__file__).parents[1] / "comfy"), str(Path(__file__).parents[1])]
import wan_sides  # noqa: E402

from video_lora_studio.loaders.safetensors_file import read_tensors  # noqa: E402
from video_lora_studio.training import open_base_model  # noqa: E402


class Musubi:
    """Its trainer, its arguments and its cache."""

    def __init__(self, checkout: Path, site: Path | None):
        sys.path.append(str(checkout / "src"))
        if site:
            sys.path.append(str(site))
        with mock.patch.object(torch.cuda, "current_device", return_value=0):  # a default argument, asked for at import
            from musubi_tuner import wan_train_network
            from musubi_tuner.dataset import cache_io
        self._wan, self._cache_io = wan_train_network, cache_io

    def write_cache(self, folder: Path, wan: Path) -> Path:
        """Our random clip as its cache has it; the path of its dataset file."""
        (sample,) = wan_sides.data_for(open_base_model(wan), folder).samples
        video = read_tensors(sample.clip_features)[0]["video"]
        text = read_tensors(sample.captions[0].features)[0]["text"]
        cache = folder / "cache"
        cache.mkdir()
        _, frames, height, width = video.shape
        item = SimpleNamespace(
            item_key="clip", caption="", original_size=(width * 8, height * 8), frame_count=(frames - 1) * 4 + 1,
            latent_cache_path=str(cache / f"clip_00000-{(frames - 1) * 4 + 1:03d}_{width * 8:04d}x{height * 8:04d}_"
                                          f"{self._wan.ARCHITECTURE_WAN}.safetensors"),
            text_encoder_output_cache_path=str(cache / f"clip_{self._wan.ARCHITECTURE_WAN}_te.safetensors"),
        )
        self._cache_io.save_latent_cache_wan(item, video, None, None, None)
        self._cache_io.save_text_encoder_output_cache_wan(item, text)
        table = folder / "data.toml"
        table.write_text(
            f"[general]\nresolution = [{width * 8}, {height * 8}]\nbatch_size = 1\nenable_bucket = true\n"
            f"[[datasets]]\nvideo_directory = '{folder.as_posix()}'\ncache_directory = '{cache.as_posix()}'\n"
            f"target_frames = [{(frames - 1) * 4 + 1}]\n"
        )
        return table

    def side(self, folder: Path, wan: Path, layers: int, steps: int, recompute: bool):
        """A function that trains `steps` steps."""
        table = self.write_cache(folder, wan)
        self._wan.WAN_CONFIGS["t2v-1.3B"].update(
            dim=wan_sides.WIDTH, ffn_dim=wan_sides.FFN, num_heads=wan_sides.HEADS, num_layers=layers
        )
        parser = self._wan.wan_setup_parser(self._wan.setup_parser_common())
        given = [
            "--task", "t2v-1.3B", "--dit", str(wan), "--dataset_config", str(table), "--sdpa",
            "--mixed_precision", "no", "--optimizer_type", "AdamW", "--learning_rate", str(wan_sides.LEARNING_RATE),
            "--network_module", "networks.lora_wan", "--network_dim", str(wan_sides.RANK),
            "--network_alpha", str(wan_sides.RANK), "--max_train_steps", str(steps), "--seed", "0",
            "--timestep_sampling", "shift", "--discrete_flow_shift", "3.0", "--max_data_loader_n_workers", "0",
            "--output_dir", str(folder / "out"), "--output_name", "theirs",
        ]

        class Trainer(self._wan.WanNetworkTrainer):
            def load_transformer(self, *arguments, **named):
                model = super().load_transformer(*arguments, **named)
                assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
                return model

        def run() -> None:
            arguments = parser.parse_args([*given, *(["--gradient_checkpointing"] if recompute else [])])
            arguments.dit_dtype, arguments.vae_dtype = None, None  # its own main does so
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                Trainer().train(arguments)

        return run

    def layers_adapted(self, folder: Path) -> int:
        """How many layers the LoRA it wrote adapts."""
        return sum(name.endswith("lora_down.weight") for name in read_tensors(folder / "out/theirs.safetensors")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--musubi", type=Path, required=True)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu, with --threads 1: where other work shares the machine")
    parser.add_argument("--no-recompute", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["ACCELERATE_USE_CPU"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wan = folder / "wan.safetensors"
        wan_sides.write_wan(wan, given.layers)
        peer = Musubi(given.musubi, given.site)
        logging.disable(logging.WARNING)
        (folder / "theirs").mkdir()
        sides = {
            "ours": wan_sides.ours(wan, folder, given.steps, not given.no_recompute),
            "theirs": peer.side(folder / "theirs", wan, given.layers, given.steps, not given.no_recompute),
        }
        clock = StepClock({"wall": time.perf_counter, "cpu": time.process_time}[given.clock])
        for run in sides.values():
            clock.seconds_per_step(run)  # warm-up
        written = next((folder / "loras").glob("*.safetensors"))
        ours = sum(name.endswith("lora_A.weight") for name in read_tensors(written)[0])
        theirs = peer.layers_adapted(folder / "theirs")
        assert ours == theirs, f"not the same work: {ours} layers against {theirs}"
        ratios = []
        for pair, order in zip(range(given.pairs), itertools.cycle((("ours", "theirs"), ("theirs", "ours"))),
                               strict=False):
            seconds = {side: clock.seconds_per_step(sides[side]) for side in order}
            ratios.append(seconds["ours"] / seconds["theirs"])
            print(f"pair {pair + 1}, {order[0]} first: ours {seconds['ours']:.3f} s, theirs {seconds['theirs']:.3f} s, "
                  f"ratio {ratios[-1]:.3f}", flush=True)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.clock} time, {ours} layers "
              f"adapted, recompute {'off' if given.no_recompute else 'on'}; ratio ours/theirs: median "
              f"{statistics.median(ratios):.3f}, least {min(ratios):.3f}, greatest {max(ratios):.3f}")


if __name__ == "__main__":
    main()
