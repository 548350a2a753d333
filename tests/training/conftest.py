import pytest

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.demo import draw_clips, stand_ins, write_twin


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A tiny random base model, read back from a file."""
    return write_twin(tmp_path_factory.mktemp("models") / "twin.safetensors")


@pytest.fixture(scope="session")
def make_set(tmp_path_factory, base):
    """A training set of so many drawn clips of 64x64x9."""

    def make(count):
        folder = tmp_path_factory.mktemp("set")
        draw_clips(folder / "clips", count)
        cache = FeatureCache(folder / "features")
        return prepare(
            scan(folder / "clips"), base, stand_ins(base), width=64, height=64, frames=9, cache=cache
        ).training_set

    return make


@pytest.fixture(scope="session")
def training_set(make_set):
    return make_set(3)
