"""What a person is told of the feature cache, and what is taken out of it."""

import os
import time

import pytest
import torch

from video_lora_studio.training import FeatureCache, clean_cache


@pytest.fixture
def cache(tmp_path):
    """Two sets that share a file, the first recorded ten days ago, and a file of none; all files are three days old."""
    cache = FeatureCache(tmp_path / "features")
    keys = [f"{number:02x}" * 32 for number in range(4)]
    for key in keys:
        cache.store(key, {"video": torch.zeros(300_000)}, {})
        os.utime(cache.path(key), (time.time() - 3 * 86400,) * 2)
    cache.record("cats for Wan", keys[:2])
    record = next(cache.folder.glob("sets/*.json"))
    stored = cache.sets()[0]
    record.write_text(record.read_text(encoding="utf-8").replace(
        f"{stored.recorded}", f"{stored.recorded - 10 * 86400}"), encoding="utf-8")
    cache.record("dogs for LTX", [keys[1], keys[2], "ff" * 32])
    return cache


def there(cache):
    return [int(path.stem[:2], 16) for path in sorted(cache.folder.glob("??/*.safetensors"))]


def test_a_list_names_the_sets_and_removes_nothing(cache):
    report = clean_cache(cache)
    assert report.splitlines() == [
        "Feature cache: 4 files, 4.8 MB", f"Folder: {cache.folder}", "",
        "dogs for LTX: 2 files, 2.4 MB, last prepared today, 1 file missing (Prepare makes them anew)",
        "cats for Wan: 2 files, 2.4 MB, last prepared 10 days ago",
        'Not needed: 1 file, 1.2 MB; "remove" deletes them',
    ]
    assert there(cache) == [0, 1, 2, 3]


def test_only_what_no_set_needs_is_removed(cache):
    report = clean_cache(cache, remove=True)
    assert "Feature cache: 3 files, 3.6 MB" in report and report.endswith("Removed: 1 file, 1.2 MB")
    assert there(cache) == [0, 1, 2]
    assert clean_cache(cache).endswith("Not needed: 0 files, 0 kB")


def test_old_sets_are_forgotten_only_when_that_is_asked_for(cache):
    report = clean_cache(cache, forget_after=7)
    assert "10 days ago, would be forgotten" in report and "Not needed: 2 files, 2.4 MB" in report
    assert len(cache.sets()) == 2 and there(cache) == [0, 1, 2, 3]
    report = clean_cache(cache, remove=True, forget_after=7)
    assert "10 days ago, forgotten" in report and report.endswith("Removed: 2 files, 2.4 MB")
    assert [stored.name for stored in cache.sets()] == ["dogs for LTX"] and there(cache) == [1, 2]


def test_an_empty_cache_is_no_error(tmp_path):
    assert "0 files, 0 kB" in clean_cache(FeatureCache(tmp_path / "none"), remove=True)
