"""Cleaning the feature cache through the queue: by itself, every time anew, and only when it is asked for."""

from __future__ import annotations

import os
import time

import pytest
import torch
from comfy_server import ComfyServer
from graphs import node

from video_lora_studio.loaders.feature_cache import FeatureCache

pytestmark = pytest.mark.comfy


def test_the_cache_is_listed_then_cleaned(comfy: ComfyServer):
    cache = FeatureCache(comfy.output / "video_lora" / "_features")
    key = "0123" * 16
    cache.store(key, {"video": torch.zeros(9)}, {})
    os.utime(cache.path(key), (time.time() - 2 * 86400,) * 2)
    for _ in range(2):
        listed = comfy.queue({"clean": node("VLSCleanCache", action="list")})
        assert listed.status == "success" and "Not needed: 1 file" in listed.text("clean"), listed.error
        assert listed.executed == ["clean"] and cache.has(key)
        os.utime(cache.path(key), (time.time() - 2 * 86400,) * 2)
    removed = comfy.queue({"clean": node("VLSCleanCache", action="remove")})
    assert "Removed: 1 file" in removed.text("clean") and not cache.has(key)
