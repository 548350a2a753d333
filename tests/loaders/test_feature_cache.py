"""Features on disk: whole or absent, whoever else writes."""

import logging
import multiprocessing
import shutil

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
    spoil(cache.path(KEY))
    with pytest.raises(ValueError, match=f"{words} .*queue Prepare again"):
        read_features(cache.path(KEY))
    assert not cache.path(KEY).exists()


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
