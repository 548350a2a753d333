"""Colours: by the stream's own matrix and range, transparent parts white, HDR brought to SDR as stated."""

import av
import numpy as np
import pytest
import torch
from footage import QUADRANTS, corners, quadrants, write_video
from nasty_footage import transparent

from video_lora_studio.loaders.video_colour import to_sdr
from video_lora_studio.loaders.video_file import glance, probe, read_frames


@pytest.mark.parametrize(
    ("matrix", "full", "pix_fmt", "size"),
    [
        (1, False, "yuv420p", (64, 64)),
        (1, True, "yuv420p", (64, 64)),
        (6, False, "yuv420p", (64, 64)),
        (5, True, "yuv444p", (64, 64)),
        (9, False, "yuv420p10le", (64, 64)),
        (2, False, "yuv420p", (64, 64)),  # says nothing: BT.601
        (2, False, "yuv420p", (1280, 720)),  # says nothing: BT.709
    ],
)
def test_colours_follow_the_streams_matrix_and_range(tmp_path, matrix, full, pix_fmt, size):
    truth = matrix if matrix != 2 else 1 if size[0] == 1280 else 6
    path = write_yuv(tmp_path / "colour.mkv", truth, matrix, full, pix_fmt, size)
    (frame,) = read_frames(probe(path), [0], 64, 64)
    assert torch.allclose(corners(frame), torch.from_numpy(QUADRANTS).float(), atol=3)


def write_yuv(path, truth, tagged, full, pix_fmt, size):
    """The four quadrants as YUV computed here from the standards' own coefficients, lossless, tagged as told."""
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[truth]
    rgb = quadrants(0, *size).astype(float) / 255
    luma = rgb @ [red, 1 - red - blue, blue]
    cb, cr = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
    bits = 10 if "10" in pix_fmt else 8
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    planes = (luma * top, cb * top + 128 * unit, cr * top + 128 * unit) if full else (
        (16 + 219 * luma) * unit, (128 + 224 * cb) * unit, (128 + 224 * cr) * unit
    )
    kind = np.uint16 if bits == 10 else np.uint8
    frame = av.VideoFrame(*size, pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        values = values if plane.width == size[0] else values[::2, ::2]
        row = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        row[:, : plane.width] = values.round()
        plane.update(row.tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range = tagged, 2 if full else 1
        frame.colorspace, frame.color_range = tagged, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_transparent_video_is_laid_on_white(tmp_path):
    footage = probe(transparent(tmp_path / "alpha.mov"))
    frame = read_frames(footage, [0], 64, 64)[0]
    assert footage.notes == ("transparent parts become white",)
    assert (frame[:, :30] == 255).all() and (frame[:, 34:] - torch.tensor([200, 0, 0])).float().abs().max() <= 1


def pq(nits):
    """The PQ value 0..1 of light in cd/m²: SMPTE ST 2084, written out here on its own."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (nits / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg(scene):
    """The HLG value 0..1 of a scene's light 0..1: ITU-R BT.2100."""
    return (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073


def grey(value):
    return np.full((1, 1, 3), round(value * 65535), np.uint16)


@pytest.mark.parametrize("nits", [0, 0.5, 5, 20, 50, 80])
def test_light_below_the_knee_is_kept_as_it_is(nits):
    expected = round((nits / 203) ** (1 / 2.4) * 255)
    assert np.abs(to_sdr(grey(pq(nits)), "PQ").astype(int) - expected).max() <= 1
    scene = (nits / 1000) ** (1 / 1.2)  # the display shows scene ** 1.2 of 1000 cd/m²
    assert np.abs(to_sdr(grey(hlg(scene)), "HLG").astype(int) - expected).max() <= 1


def test_brighter_light_is_rolled_off_to_white():
    steps = [int(to_sdr(grey(pq(nits)), "PQ")[0, 0, 1]) for nits in (80, 100, 203, 300, 500, 1000, 4000, 10000)]
    assert steps == sorted(steps) and steps[-3:] == [255, 255, 255] and len(set(steps[:6])) == 6
    assert 215 < steps[2] < 240  # the white of an HDR page leaves room for what shines
    same = to_sdr(grey(0.58), "PQ").astype(int) - to_sdr(grey(0.75), "HLG")  # BT.2408: both are 203 cd/m²
    assert np.abs(same).max() <= 1


@pytest.mark.parametrize("light", ["PQ", "HLG", "BT.2020"])
def test_greys_stay_grey_and_hues_stay_hues(light):
    ramp = np.linspace(0, 65535, 1000).astype(np.uint16)[None, :, None].repeat(3, -1)
    greys = to_sdr(ramp, light).astype(int)
    assert np.ptp(greys, axis=-1).max() <= 1 and (np.diff(greys[0, :, 1]) >= 0).all()
    assert greys.min() == 0 and greys.max() == 255
    red = to_sdr(np.array([[[30000, 25000, 25000]]], np.uint16), light)[0, 0].astype(int)
    assert red[0] > red[1] + 10 and abs(red[1] - red[2]) < 15


def test_wide_gamut_keeps_what_both_have(tmp_path):
    """A BT.709 colour, brought to BT.2020 by the matrix of ITU-R BT.2087, comes back."""
    wide = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    truth = QUADRANTS.reshape(-1, 3)
    values = (wide @ (truth / 255).T ** 2.4).T ** (1 / 2.4)
    back = to_sdr((values * 65535).round().astype(np.uint16)[None], "BT.2020")[0]
    assert np.abs(back.astype(int) - truth).max() <= 2


@pytest.mark.parametrize(("transfer", "value"), [(16, pq), (18, lambda nits: hlg((nits / 1000) ** (1 / 1.2)))])
@pytest.mark.parametrize("nits", [10, 80])
def test_hdr_footage_comes_out_as_sdr(tmp_path, transfer, value, nits):
    path = tmp_path / "hdr.mkv"
    write_grey(path, round(64 + 876 * value(nits)), transfer)
    footage = probe(path)
    assert footage.notes == (f"HDR ({'PQ' if transfer == 16 else 'HLG'}) brought to SDR BT.709",)
    expected = (nits / 203) ** (1 / 2.4) * 255
    frame = read_frames(footage, [0], 48, 32)
    assert (frame.float() - expected).abs().max() <= 1.5
    ((_, small),) = glance(footage)
    assert np.abs(small - expected).max() <= 2


def write_grey(path, value, transfer):
    """One lossless 10-bit frame, 64x48, of this luma and no colour, tagged BT.2020."""
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, level in zip(frame.planes, (value, 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, level, np.uint16).tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, transfer, 9
        frame.colorspace, frame.color_range = 9, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_ten_bits_are_rounded_once(tmp_path):
    levels = range(64, 941, 73)
    for level in levels:
        write_grey(tmp_path / f"{level}.mkv", level, 1)
        frame = read_frames(probe(tmp_path / f"{level}.mkv"), [0], 64, 48)
        truth = (level - 64) / 876  # wide gamut, SDR: greys are the same in both
        assert (frame.float() - truth * 255).abs().max() <= 1


@pytest.mark.parametrize("transfer", [1, 16, 18])
def test_glance_is_the_luma_of_the_frame(tmp_path, transfer):
    path = write_video(
        tmp_path / "x.mkv", frames=3, codec="ffv1", pix_fmt="yuv420p10le", size=(128, 64), colour=(9, 1, transfer)
    )
    footage = probe(path)
    small = [grey for _, grey in glance(footage)]
    frames = read_frames(footage, range(3), 64, 32).float().mean(-1).numpy()
    assert all(grey.shape == (32, 64) for grey in small)
    assert np.abs(np.stack(small) - frames).mean() < 6
