"""The three sides of preprocess.py: what each tool calls to bring a clip, and a folder of clips, to a model's size."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch


@dataclass(frozen=True)
class Job:
    """What clips are brought to, and the rates of the clips."""

    name: str
    frames: int
    fps: int
    width: int
    height: int
    rates: tuple[int, ...]


WAN = Job("Wan", 81, 16, 832, 480, rates=(16, 24, 30, 60))
LTX = Job("LTX", 49, 24, 960, 544, rates=(24, 30, 60))


class TinyVae(torch.nn.Module):
    """Pictures (B, 3, T, P, Q) in -1..1, pooled by 4 in time after the first and 8 in space, mixed into 16 channels."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool3d(video, (1, 8, 8))
        times = torch.cat([small[:, :, :1], small[:, :, 1:].unflatten(2, (-1, 4)).mean(3)], dim=2)
        return torch.einsum("ck,bkthw->bcthw", self.mix, times)

    def encode(self, video: torch.Tensor) -> list[torch.Tensor]:
        """As musubi-tuner calls it."""
        return list(self(video))


class Ours:
    name = "ours"

    def __init__(self, folder: Path):
        from video_lora_studio.training import demo

        folder.mkdir(exist_ok=True)
        self._base = demo.write_twin(folder / "twin.safetensors")
        vae = TinyVae().requires_grad_(False)
        clip = SimpleNamespace(
            identity="tiny", encode=lambda frames: vae(frames.permute(3, 0, 1, 2)[None] * 2 - 1)[0]
        )
        self._encoders = dataclasses.replace(demo.stand_ins(self._base), clip=clip)

    def decode(self, clip: Path, rate: float, job: Job, start: float = 0.0) -> torch.Tensor:
        """Frames (T, P, Q, 3) uint8. `start`: seconds into the clip."""
        from video_lora_studio.loaders.video_file import probe, read_frames
        from video_lora_studio.training.dataset.sampling import nearest

        os.utime(clip)  # a file that was looked into is remembered until it changes
        footage = probe(clip)
        indexes = [nearest(footage.times, start + number / job.fps) for number in range(job.frames)]
        return read_frames(footage, indexes, job.width, job.height)

    def whole(self, clips: Path, rate: float, job: Job, target: Path) -> int:
        """A folder of clips to features in `target`; how many clips were encoded."""
        from video_lora_studio.loaders.feature_cache import FeatureCache
        from video_lora_studio.training.config import CutConfig
        from video_lora_studio.training.dataset.precompute import prepare
        from video_lora_studio.training.dataset.scan import scan

        for clip in clips.glob("*.mp4"):
            os.utime(clip)
        return prepare(
            scan(clips), self._base, self._encoders, width=job.width, height=job.height, frames=job.frames,
            cut=CutConfig(fit="crop to this size"), cache=FeatureCache(target),
        ).encoded_clips


class Musubi:
    name = "musubi-tuner"

    def __init__(self, folder: Path):
        sys.path.append(str(folder / "src"))
        with mock.patch.object(torch.cuda, "current_device", return_value=0):  # a default argument, asked for at import
            from musubi_tuner import cache_latents, wan_cache_latents
            from musubi_tuner.dataset import image_video_dataset, media_utils
        self._commands, self._wan = cache_latents, wan_cache_latents
        self._datasets, self._media = image_video_dataset, media_utils

    def decode(self, clip: Path, rate: float, job: Job) -> torch.Tensor:
        frames = self._media.load_video(
            str(clip), 0, job.frames, bucket_reso=(job.width, job.height), source_fps=rate, target_fps=float(job.fps)
        )
        return torch.from_numpy(self._datasets.np.stack(frames))

    def whole(self, clips: Path, rate: float, job: Job, target: Path) -> int:
        data = self._datasets.VideoDataset(
            resolution=(job.width, job.height), caption_extension=".txt", batch_size=1, num_repeats=1,
            enable_bucket=True, bucket_no_upscale=False, target_frames=[job.frames], source_fps=rate,
            video_directory=str(clips), cache_directory=str(target), architecture=self._datasets.ARCHITECTURE_WAN,
        )
        vae = TinyVae()
        options = SimpleNamespace(num_workers=None, batch_size=None, skip_existing=False, keep_cache=True)
        target.mkdir()
        self._commands.encode_datasets(
            [data], lambda batch: self._wan.encode_and_save_batch(vae, None, False, batch), options
        )
        return len(list(target.iterdir()))


class Lightricks:
    name = "LTX-2 trainer"

    def __init__(self, folder: Path):
        packages = folder / "packages"
        sys.path += [str(packages / place) for place in ("ltx-trainer/src", "ltx-trainer/scripts", "ltx-core/src")]
        import process_videos

        self._script = process_videos

    def decode(self, clip: Path, rate: float, job: Job) -> torch.Tensor:
        """Frames (T, P, Q, 3) float 0..1: they are made so before they are resized."""
        video, _ = self._script.read_video(clip, max_frames=job.frames)
        resizer = SimpleNamespace(reshape_mode="center")
        return self._script.MediaDataset._resize_and_crop(resizer, video, job.height, job.width).permute(0, 2, 3, 1)

    def whole(self, clips: Path, rate: float, job: Job, target: Path) -> int:
        table = clips / "clips.jsonl"
        table.write_text("".join(json.dumps({"media_path": clip.name}) + "\n" for clip in sorted(clips.glob("*.mp4"))))
        stand_ins = {
            "load_video_vae_encoder": lambda *_, **__: TinyVae(),
            "read_video_scale_factors": lambda *_: self._script.VIDEO_SCALE_FACTORS,
            "resolve_video_vae_path": lambda *_: "",
        }
        with mock.patch.multiple(self._script, **stand_ins):
            self._script.compute_latents(
                table, "media_path", [(job.frames, job.height, job.width)], str(target), "", device="cpu"
            )
        table.unlink()
        return len(list(target.glob("*.pt")))
