"""musubi-tuner's Wan training as the other side of a step benchmark, from a checkout of it."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn

from video_lora_studio.loaders.safetensors_file import read_tensors
from video_lora_studio.training import BaseModel, RunConfig, TrainingSet


class Musubi:
    """Its trainer, its arguments and its cache."""

    def __init__(self, checkout: Path):
        sys.path.append(str(checkout / "src"))
        with mock.patch.object(torch.cuda, "current_device", return_value=0):  # a default argument, asked for at import
            from musubi_tuner import wan_train_network
            from musubi_tuner.dataset import cache_io
        self._wan, self._cache_io = wan_train_network, cache_io

    def theirs(
        self, base: BaseModel, data: TrainingSet, folder: Path, config: RunConfig, precision: str = "no",
        loaded: Callable[[nn.Module], object] = lambda model: None,
    ) -> Callable[[], None]:
        """A function that trains on the first clip, called as its command line calls it.

        `precision`: its word for the compute type; `loaded` is given the model before it is trained.
        """
        size, wan = base.config, self._wan
        wan.WAN_CONFIGS["t2v-14B"].update(
            dim=size["num_attention_heads"] * size["attention_head_dim"], ffn_dim=size["ffn_dim"],
            num_heads=size["num_attention_heads"], num_layers=size["num_layers"],
        )
        parser = wan.wan_setup_parser(wan.setup_parser_common())
        words = [
            "--task", "t2v-14B", "--dit", str(base.path), "--dataset_config", str(self._write_cache(folder, data)),
            "--sdpa", "--mixed_precision", precision, "--optimizer_type", "AdamW",
            "--learning_rate", str(config.learning_rate), "--network_module", "networks.lora_wan",
            "--network_dim", str(config.rank), "--network_alpha", str(config.rank),
            "--max_train_steps", str(config.steps), "--seed", "0", "--timestep_sampling", "shift",
            "--discrete_flow_shift", "3.0", "--max_data_loader_n_workers", "0", "--output_dir", str(folder / "out"),
            "--output_name", "theirs", *(["--gradient_checkpointing"] if config.memory.recompute else []),
        ]

        class Trainer(wan.WanNetworkTrainer):
            def load_transformer(self, *arguments, **named):
                model = super().load_transformer(*arguments, **named)
                loaded(model)
                return model

        def run() -> None:
            given = parser.parse_args(words)
            given.dit_dtype = None  # its own main does so
            given.vae_dtype = "bfloat16"
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                Trainer().train(given)

        return run

    def layers_adapted(self, folder: Path) -> int:
        """How many layers the LoRA it wrote adapts."""
        return sum(name.endswith("lora_down.weight") for name in read_tensors(folder / "out/theirs.safetensors")[0])

    def _write_cache(self, folder: Path, data: TrainingSet) -> Path:
        """Our first clip as its cache has it; the path of its dataset file."""
        sample = data.samples[0]
        cache = folder / "cache"
        cache.mkdir(parents=True)
        stem = f"clip_00000-{data.frames:03d}_{data.width:04d}x{data.height:04d}"
        item = SimpleNamespace(
            item_key="clip", caption="", original_size=(data.width, data.height), frame_count=data.frames,
            latent_cache_path=str(cache / f"{stem}_{self._wan.ARCHITECTURE_WAN}.safetensors"),
            text_encoder_output_cache_path=str(cache / f"clip_{self._wan.ARCHITECTURE_WAN}_te.safetensors"),
        )
        video, text = read_tensors(sample.clip_features)[0], read_tensors(sample.captions[0].features)[0]
        self._cache_io.save_latent_cache_wan(item, video["video"], None, None, None)
        self._cache_io.save_text_encoder_output_cache_wan(item, text["text"])
        table = folder / "data.toml"
        table.write_text(
            f"[general]\nresolution = [{data.width}, {data.height}]\nbatch_size = 1\nenable_bucket = true\n"
            f"[[datasets]]\nvideo_directory = '{folder.as_posix()}'\ncache_directory = '{cache.as_posix()}'\n"
            f"target_frames = [{data.frames}]\n"
        )
        return table
