"""Features on disk: whole or absent, whoever else writes."""

import json
import logging
import multiprocessing
import os
import shutil
import time

import pytest
import torch

from video_lora_studio.loaders.feature_cache import FeatureCache, file_digest, read_features

KEY = "ab" + "0" * 62


def test_what_is_stored_comes_back(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    assert not cache.has(KEY) and cache.size() == (0, 0)
    tensors = {"video": torch.randn(16, 3, 4, 5), "text": torch.randn(7, 8).bfloat16()}
    cache.store(KEY, tensors, {"kind": "clip"})
    assert cache.has(KEY) and cache.path(KEY) == tmp_path / "cache" / "ab" / f"{KEY}.safetensors"
    assert all(torch.equal(cache.load(KEY)[name], tensor) for name, tensor in tensors.items())
    assert cache.header(KEY).metadata["kind"] == "clip"
    count, size = cache.size()
    assert count == 1 and size == cache.path(KEY).stat().st_size
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [f"{KEY}.safetensors"]


@pytest.mark.parametrize("broken", [b"", b"nonsense" * 9, None])
def test_a_broken_file_counts_as_absent(tmp_path, caplog, broken):
    cache = FeatureCache(tmp_path)
    cache.store(KEY, {"video": torch.ones(100)}, {})
    path = cache.path(KEY)
    path.write_bytes(path.read_bytes()[:-50] if broken is None else broken)
    with caplog.at_level(logging.WARNING):
        assert not cache.has(KEY)
    assert not path.exists() and "removed a broken file" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(lambda path: path.unlink(), "was removed"), (lambda path: path.write_bytes(b""), "is broken")],
)
def test_reading_what_is_not_whole_says_what_to_do(tmp_path, spoil, words):
    cache = FeatureCache(tmp_path)
    cache.store(KEY, {"video": torch.ones(3)}, {})
    token = cache.token()
    assert cache.token() == token
    spoil(cache.path(KEY))
    with pytest.raises(ValueError, match=f"{words} .*queue Prepare again"):
        read_features(cache.path(KEY))
    assert not cache.path(KEY).exists() and cache.token() != token


@pytest.mark.parametrize("place", [-1, -300, -790])
def test_one_changed_byte_is_found_when_features_are_read(tmp_path, place):
    cache = FeatureCache(tmp_path)
    cache.store(KEY, {"video": torch.ones(150), "text": torch.zeros(50)}, {"kind": "clip"})
    data = bytearray(cache.path(KEY).read_bytes())
    data[place] ^= 1
    cache.path(KEY).write_bytes(data)
    assert cache.has(KEY)
    with pytest.raises(ValueError, match="is broken .*queue Prepare again"):
        cache.load(KEY)
    assert not cache.has(KEY)
    cache.store(KEY, {"video": torch.ones(150)}, {"kind": "clip"})
    assert cache.load(KEY)["video"].sum() == 150


def aged(cache, key, days):
    """Store features and make them this old."""
    cache.store(key, {"video": torch.ones(10)}, {})
    stamp = time.time() - days * 24 * 3600
    os.utime(cache.path(key), (stamp, stamp))
    return key


def test_orphans_are_what_no_training_set_needs_and_nobody_used_within_a_day(tmp_path):
    cache = FeatureCache(tmp_path)
    first, second, dropped, young = (aged(cache, f"{n:02x}" * 32, days) for n, days in enumerate((9, 9, 9, 0.5)))
    cache.record("cats 512x512", [first, dropped])
    cache.record("dogs", [second])
    assert cache.orphans() == []
    cache.record("cats 512x512", [first, young])
    assert cache.orphans() == [cache.path(dropped)]
    assert [(stored.name, stored.keys) for stored in cache.sets()] == [
        ("cats 512x512", {first, young}), ("dogs", {second}),
    ]
    size = cache.path(dropped).stat().st_size
    assert cache.remove_orphans() == (1, size) and cache.remove_orphans() == (0, 0)
    assert [cache.path(key).exists() for key in (first, second, dropped, young)] == [True, True, False, True]
    cache.forget("dogs")
    cache.forget("was never there")
    assert cache.orphans() == [cache.path(second)]


@pytest.mark.parametrize("use", [FeatureCache.has, FeatureCache.load], ids=["asked for", "read"])
def test_what_is_used_is_no_orphan_for_a_day(tmp_path, use):
    cache = FeatureCache(tmp_path)
    aged(cache, KEY, 3)
    assert cache.orphans() == [cache.path(KEY)]
    use(cache, KEY)
    assert cache.orphans() == []


def test_left_over_parts_go_with_the_orphans(tmp_path):
    cache = FeatureCache(tmp_path)
    aged(cache, KEY, 3)
    cache.record("set", [KEY])
    for name, days in (("old", 2), ("new", 0)):
        part = cache.path(KEY).with_name(f"{KEY}.safetensors.{name}.part")
        part.write_bytes(b"12345")
        os.utime(part, (time.time() - days * 24 * 3600,) * 2)
    assert [path.name for path in cache.orphans()] == [f"{KEY}.safetensors.old.part"]
    assert cache.remove_orphans() == (1, 5)
    assert cache.has(KEY)


@pytest.mark.parametrize("broken", ["", "[]", "{}", json.dumps({"name": "a", "keys": 3, "recorded": 1})])
def test_a_record_that_cannot_be_read_stops_cleaning(tmp_path, broken):
    cache = FeatureCache(tmp_path)
    aged(cache, KEY, 3)
    cache.record("set", [])
    record = next(tmp_path.glob("sets/*.json"))
    record.write_text(broken, encoding="utf-8")
    with pytest.raises(ValueError, match="queue Prepare again"):
        cache.remove_orphans()
    assert cache.path(KEY).exists()
    cache.record("set", [KEY])
    assert cache.orphans() == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file")
    with pytest.raises(OSError, match="The feature cache in .* cannot be written"):
        cache.store(KEY, {"video": torch.ones(3)}, {})


def store_often(folder, value):
    cache = FeatureCache(folder)
    for number in range(20):
        cache.store(f"{number % 2:02x}" + "1" * 62, {"video": torch.full((2000,), float(value))}, {})


def test_two_processes_may_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=store_often, args=(tmp_path, value)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = FeatureCache(tmp_path)
    for number in range(2):
        video = cache.load(f"{number:02x}" + "1" * 62)["video"]
        assert video[0] in (1, 2) and (video == video[0]).all()
    assert cache.size()[0] == 2 and not list(tmp_path.rglob("*.part"))


def test_a_digest_follows_the_content(tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(b"a" * 3_000_000)
    first = file_digest(path)
    assert file_digest(path) == first and len(first) == 64
    path.write_bytes(b"b" * 3_000_001)
    assert file_digest(path) != first


def test_the_token_stays_until_the_folder_is_deleted(tmp_path):
    cache = FeatureCache(tmp_path / "features")
    first = cache.token()
    cache.store("ab" * 32, {"video": torch.ones(1)}, {})
    assert FeatureCache(tmp_path / "features").token() == first
    shutil.rmtree(cache.folder)
    assert cache.token() != first


@pytest.mark.parametrize("name", ["xl/style.safetensors", "xl/style.part", "ab/abc.safetensors", "ab/abc.part"])
def test_files_of_others_are_never_removed(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(b"somebody's")
    os.utime(path, (0, 0))
    assert FeatureCache(tmp_path).remove_orphans() == (0, 0) and path.exists()
