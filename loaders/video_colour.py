"""Decoded frames to 8-bit RGB at a wanted size: YUV, 10 bits, transparency, and HDR brought to SDR.

P height and Q width in pixels.
"""

from __future__ import annotations

import functools

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Numbers of FFmpeg's own, since older PyAV names only some of them.
# libswscale/swscale.h: Lanczos, accurate rounding, full chroma in and out. Measured on a zone plate brought from
# 1920x1080 to 854x480, against Pillow's Lanczos: off by 0.5 of 255, area by 14; without accurate rounding
# all are two levels too dark.
LANCZOS = 0x200 | 0x40000 | 0x4000 | 0x2000
AREA = 0x20
# Matrix coefficients in a stream (ISO/IEC 23001-8) to libswscale's: BT.709, FCC, BT.601 in two guises, SMPTE 240M and
# BT.2020 in two.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT_709, BT_601 = 1, 5
LIMITED, FULL = 1, 2  # libavutil/pixfmt.h, AVColorRange
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ISO/IEC 23001-8, transfer characteristics
WIDE_PRIMARIES = 9  # ISO/IEC 23001-8, colour primaries: BT.2020

HDR_PEAK, SDR_WHITE = 1000.0, 203.0
"""cd/m²: the brightest light kept apart, and the SDR display's white (ITU-R BT.2408's reference white)."""
BT_2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Light in BT.2020 primaries to BT.709 primaries: ITU-R BT.2407, 2.2.
TO_BT_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def light_of(context) -> str:
    """What a stream's values mean, as `Footage.light`, by what its codec context declares."""
    wide = context.color_primaries == WIDE_PRIMARIES
    return HDR_TRANSFERS.get(context.color_trc, "BT.2020" if wide else "")


def to_rgb(frame, width: int, height: int, scaler: VideoReformatter, light: str = "") -> np.ndarray:
    """The frame as uint8 RGB (height, width, 3), transparent parts white, HDR and wide gamut as `to_sdr` says.

    YUV becomes RGB by the frame's own matrix and range; where it names none, by BT.709 from 720 lines up and BT.601
    below. 10 bits and more are rounded to 8 once, after scaling.
    """
    if has_alpha(frame):
        frame = _on_white(frame)
    if light:
        return to_sdr(_reformat(frame, width, height, "rgb48le", scaler), light)
    return _reformat(frame, width, height, "gbrp", scaler)  # the same pixels as rgb24, in 0.6 of its time


def to_grey(frame, width: int, height: int, scaler: VideoReformatter, light: str = "") -> np.ndarray:
    """The frame's luma, 0 black to 255 white, as uint8 (height, width). Quick: its pixels are means of areas."""
    if light:
        grey = _reformat(frame, width, height, "gray16le", scaler, AREA)
        return to_sdr(grey[..., None].repeat(3, -1), light)[..., 0]
    return _reformat(frame, width, height, "gray", scaler, AREA)


def has_alpha(frame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def is_transparent(frame) -> bool:
    """Whether any of it is."""
    return has_alpha(frame) and _whole(frame, "rgba")[..., 3].min() < 255


def to_sdr(values: np.ndarray, light: str) -> np.ndarray:
    """HDR or wide-gamut RGB, uint16 (P, Q, 3) at full range, to uint8 RGB of BT.709.

    PQ becomes light by SMPTE ST 2084; HLG by ITU-R BT.2100 with the system gamma 1.2 of a display of 1000 cd/m².
    The light's brightest component is rolled off from `HDR_PEAK` to `SDR_WHITE` by the EETF of Report ITU-R BT.2390
    (up to about 86 cd/m² nothing changes), the others in proportion, which keeps the hue. Then BT.2020 primaries become
    BT.709's, what lies outside is clipped, and light becomes values by ITU-R BT.1886, gamma 2.4.
    `BT.2020` is SDR in wide primaries: its light comes by gamma 2.4, and nothing is rolled off.
    """
    linear = _light(light)[values]
    if light == "HLG":
        linear *= (linear @ BT_2020_LUMA)[..., None] ** 0.2
    if light != "BT.2020":
        linear *= HDR_PEAK if light == "HLG" else 10000.0
        brightest = linear.max(-1)
        linear *= np.interp(np.sqrt(brightest), *_roll_off())[..., None].astype(np.float32)
    linear = (linear @ TO_BT_709.T).clip(0, 1)
    return _values()[(np.sqrt(linear) * 65535).round().astype(np.uint16)]


@functools.cache
def _light(light: str) -> np.ndarray:
    """Light of each of the 65536 values: of 10000 cd/m² for PQ, of the scene's white for HLG, of white for SDR."""
    value = np.linspace(0, 1, 65536)
    if light == "PQ":
        linear = _pq_light(value)
    elif light == "HLG":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        linear = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        linear = value**2.4
    return linear.astype(np.float32)


def _pq_light(value):
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.asarray(value) ** (1 / m2)
    return (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _pq_value(light):
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.asarray(light) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


@functools.cache
def _roll_off() -> tuple[np.ndarray, np.ndarray]:
    """Square roots of light in cd/m², and what to multiply it with to get parts of `SDR_WHITE`: BT.2390, 5.4.1."""
    light = np.linspace(0.1, 100, 4096) ** 2
    peak = _pq_value(HDR_PEAK / 10000)
    value = np.minimum(_pq_value(light / 10000) / peak, 1)
    top = _pq_value(SDR_WHITE / 10000) / peak
    knee = 1.5 * top - 0.5
    t = np.maximum(value - knee, 0) / (1 - knee)
    rolled = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    target = _pq_light(np.where(value < knee, value, rolled) * peak) * 10000
    return np.sqrt(light), target / light / SDR_WHITE


@functools.cache
def _values() -> np.ndarray:
    """The 8-bit value of light given as the square root of it in 65535ths: dark values stay apart."""
    return (np.linspace(0, 1, 65536) ** (2 / 2.4) * 255).round().astype(np.uint8)


def _on_white(frame) -> av.VideoFrame:
    """The frame without transparency, at its own size, RGB."""
    rgba = _whole(frame, "rgba").astype(np.uint16)
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    return av.VideoFrame.from_ndarray(((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8), "rgb24")


def _whole(frame, form: str) -> np.ndarray:
    return _reformat(frame, frame.width, frame.height, form, VideoReformatter())


def _reformat(
    frame, width: int, height: int, form: str, scaler: VideoReformatter, interpolation: int = LANCZOS
) -> np.ndarray:
    high_definition = frame.width >= 1280 or frame.height >= 720
    matrix = MATRICES.get(frame.colorspace, BT_709 if high_definition else BT_601)
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
    other = BT_601 if matrix == BT_709 else BT_709  # RGB has no matrix, but before 17 PyAV heeds only a change of it
    return scaler.reformat(
        frame, width=width, height=height, format=form, src_colorspace=matrix, dst_colorspace=other,
        src_color_range=FULL if full else LIMITED, dst_color_range=FULL, interpolation=interpolation,
    ).to_ndarray()
