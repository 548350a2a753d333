"""Still images: upright, 8 bits, white behind them, one picture each."""

import subprocess

import numpy as np
import pytest
import torch
from footage import QUADRANTS, corners, quadrants
from PIL import Image

from video_lora_studio.loaders.video_file import FootageError, probe, read_frames


def test_images(tmp_path):
    picture = Image.fromarray(quadrants(0, 64, 32))
    picture.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to be upright
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    cutout = picture.convert("RGBA")
    cutout.putalpha(0)
    cutout.save(tmp_path / "cutout.webp", lossless=True)
    deep = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    deep.save(tmp_path / "deep.tiff")
    frames = [picture.rotate(turn) for turn in (0, 90, 180)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "still.gif")
    picture.save(tmp_path / "plain.bmp")

    found = {path.name: probe(path) for path in tmp_path.iterdir()}
    assert {footage.kind for footage in found.values()} == {"image"}
    assert all(footage.times == (0.0,) and footage.seconds == 0 for footage in found.values())
    assert (found["turned.jpg"].width, found["turned.jpg"].height) == (32, 64)
    assert found["moving.webp"].notes == ("animated: only its first picture is used",)
    assert found["cutout.webp"].notes == ("transparent parts become white",)
    truth = torch.from_numpy(QUADRANTS).float()
    for name in ("plain.png", "moving.webp", "plain.bmp"):
        assert torch.equal(corners(read_frames(found[name], [0], 64, 32)[0]), truth)
    turned = read_frames(found["turned.jpg"], [0, 0], 32, 64)
    assert torch.allclose(corners(turned[1]), torch.from_numpy(np.rot90(QUADRANTS, -1).copy()).float(), atol=12)
    assert (read_frames(found["cutout.webp"], [0], 64, 32) == 255).all()
    assert (read_frames(found["deep.tiff"], [0], 16, 16) == 100).all()


def test_no_program_is_run_for_a_picture_that_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript was run"))
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(FootageError, match=r"a.png: not an image"):
        probe(tmp_path / "a.png")
