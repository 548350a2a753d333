"""Clips that were computed, as files that every browser plays: H.264 in an mp4, with sound as stereo AAC.

T frames, P Q height and width in pixels, N samples of sound.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from torch import Tensor

from .video_writer import BT_709, ENCODER, LIMITED, SOUND_RATE, mux_sound, sound_stream
from .whole_file import whole_file

OPTIONS = {"crf": "18", "preset": "veryfast"}


def write_clip(path: Path, frames: Tensor, fps: float, sound: Tensor | None = None, rate: int = SOUND_RATE) -> None:
    """Frames (T, P, Q, 3) in 0..1, P and Q even, as a video of `fps` frames a second, whole or not at all.

    `sound`: (2, N) in -1..1, with `rate` samples a second. OSError where the disk cannot be written, ValueError where
    this build of PyAV cannot write H.264 or the encoder refuses the frames.
    """
    pictures = frames.clamp(0, 1).mul(255).round().byte().cpu().numpy()
    try:
        with whole_file(path) as file, av.open(file.name, "w", format="mp4", options={"movflags": "faststart"}) as made:
            stream = made.add_stream(ENCODER, rate=Fraction(fps).limit_denominator(1001), options=dict(OPTIONS))
            stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
            stream.codec_context.colorspace, stream.codec_context.color_range = BT_709, LIMITED
            heard = sound_stream(made, rate) if sound is not None else None
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                made.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=BT_709)))
            made.mux(stream.encode(None))
            if heard is not None:
                mux_sound(made, heard, sound.clamp(-1, 1))
    except av.FFmpegError as error:
        raise ValueError(f"{path.name} could not be encoded as a video: {error}.") from error
