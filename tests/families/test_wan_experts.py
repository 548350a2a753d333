"""Wan 2.2's two experts: recognised, paired, and trained one after the other in one run."""

import dataclasses
import gc
import weakref

import pytest
import torch
from checkpoints import hollow_file, real
from tiny import StandInTextEncoder, StandInVae, write_twin

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.loaders.lora_file import read_lora
from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.config import AdapterConfig, RecipeConfig, RunConfig
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.demo import draw_clips
from video_lora_studio.training.families import FAMILIES, open_base_model
from video_lora_studio.training.families.model_family import Encoders
from video_lora_studio.training.families.wan import Wan
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.objective import FlowMatching
from video_lora_studio.training.run import train
from video_lora_studio.training.run_output import Places
from video_lora_studio.training.seeds import generator

CPU = torch.device("cpu")
FAMILY = next(family for family in FAMILIES if family.name == "Wan")


def hollow(tmp_path, checkpoint, name):
    return hollow_file(tmp_path / f"{name}.safetensors", real(checkpoint)[0])


@pytest.mark.parametrize("name, expert", [
    ("wan2.2_t2v_high_noise_14B_fp8_scaled", "high_noise"), ("wan2.2_t2v_low_noise_14B_fp16", "low_noise"),
    ("Wan2_2-T2V-A14B-HIGH_fp8_e4m3fn_scaled_KJ", "high_noise"), ("Wan2_2-T2V-A14B-LOW", "low_noise"),
    ("wan22-highnoise", "high_noise"), ("mine low noise", "low_noise"),
    ("wan2.1_t2v_14B", ""), ("wan2.1_t2v_14B_low_vram", ""), ("high_quality_wan", ""), ("wan2.2_slow_follow", ""),
    ("wan2.2_high_noise_and_low_noise_merged", ""),
])
def test_the_official_names_say_which_expert_a_file_is(tmp_path, name, expert):
    base = open_base_model(hollow(tmp_path, "wan2.1_t2v_14B", name))
    assert base.expert == expert and base.low_noise is None
    assert base.title == ("Wan 2.2 T2V A14B" if expert else "Wan 2.1 / 2.2 T2V 14B")
    assert base.levels == {"high_noise": (0.875, 1.0), "low_noise": (0.0, 0.875), "": (0.0, 1.0)}[expert]


@pytest.mark.parametrize("checkpoint", ["wan2.1_t2v_1.3B", "wan2.1_i2v_14B", "wan2.1_flf2v_14B", "wan2.2_ti2v_5B"])
def test_models_of_one_file_have_no_experts(tmp_path, checkpoint):
    one = hollow(tmp_path, checkpoint, "wan2.2_high_noise")
    base = open_base_model(one)
    assert base.expert == "" and base.levels == (0, 1)
    with pytest.raises(ValueError, match="^wan2.2_high_noise.safetensors is Wan .*, which is one file: choose no low-"):
        open_base_model(one, hollow(tmp_path, checkpoint, "wan2.2_low_noise"))
    with pytest.raises(ValueError, match="which has no high-noise and low-noise experts.$"):
        open_base_model(one, expert="high_noise")


@pytest.mark.parametrize("checkpoint, kind, boundary", [
    ("wan2.1_t2v_14B", "T2V", 0.875), ("wan2.2_i2v_14B", "I2V", 0.9),
])
@pytest.mark.parametrize("names", [("wan2.2_high_noise", "wan2.2_low_noise"), ("a", "b")])
def test_two_experts_share_the_levels_and_all_that_is_cached(tmp_path, checkpoint, kind, boundary, names):
    files = [hollow(tmp_path, checkpoint, name) for name in names]
    single = open_base_model(files[0])
    high = open_base_model(*files)
    low = high.low_noise
    assert (high.path, low.path) == tuple(files)
    assert high.title == low.title == f"Wan 2.2 {kind} A14B"
    assert (high.expert, low.expert) == ("high_noise", "low_noise")
    assert (high.levels, low.levels) == ((boundary, 1.0), (0.0, boundary))
    assert (high.form, high.caption_form) == (low.form, low.caption_form) == (single.form, single.caption_form)
    assert high.defaults.shift == low.defaults.shift == 5.0
    assert high.defaults.steps == 2 * low.defaults.steps and low.low_noise is None


@pytest.mark.parametrize("checkpoint, kind", [("wan2.1_t2v_14B", "T2V"), ("wan2.2_i2v_14B", "I2V")])
@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_one_expert_alone_is_as_in_the_pair(tmp_path, checkpoint, kind, expert):
    file, other = (hollow(tmp_path, checkpoint, name) for name in ("one", "other"))
    alone = open_base_model(file, expert=expert)
    paired = open_base_model(*((file, other) if expert == "high_noise" else (other, file)))
    part = paired if expert == "high_noise" else paired.low_noise
    assert alone == dataclasses.replace(part, low_noise=None, defaults=alone.defaults)
    assert alone.title == f"Wan 2.2 {kind} A14B" and alone.defaults.shift == 5.0


@pytest.mark.parametrize("high, low, sentence", [
    (("wan2.1_t2v_14B", "a_high_noise"), ("wan2.2_i2v_14B", "b_low_noise"),
     "a_high_noise.safetensors is Wan 2.2 T2V A14B and b_low_noise.safetensors is Wan 2.2 I2V A14B: they do not belong "
     "together; choose the high-noise and the low-noise file of one model."),
    (("wan2.2_i2v_14B", "a"), ("wan2.1_i2v_14B", "b"),
     "a.safetensors is Wan 2.2 I2V 14B and b.safetensors is Wan 2.1 I2V 14B: they do not belong together; choose the "
     "high-noise and the low-noise file of one model."),
    (("wan2.1_t2v_14B", "a"), ("wan2.1_t2v_1.3B", "b"),
     "a.safetensors is Wan 2.1 / 2.2 T2V 14B and b.safetensors is Wan 2.1 T2V 1.3B: they do not belong together; "
     "choose the high-noise and the low-noise file of one model."),
    (("wan2.1_t2v_14B", "a"), ("wan2.1_t2v_14B", "a"),
     "a.safetensors is chosen twice: choose the high-noise and the low-noise file of one model."),
    (("wan2.1_t2v_14B", "my_low_noise"), ("wan2.1_t2v_14B", "my_high_noise"),
     "my_low_noise.safetensors is chosen as the high-noise expert, and its name says that it is the low-noise one: "
     "exchange the files, or rename it."),
    (("wan2.1_t2v_14B", "a"), ("wan2.1_t2v_14B", "my_high_noise"),
     "my_high_noise.safetensors is chosen as the low-noise expert, and its name says that it is the high-noise one: "
     "exchange the files, or rename it."),
])
def test_files_that_do_not_belong_together_are_refused(tmp_path, high, low, sentence):
    with pytest.raises(ValueError) as caught:
        open_base_model(hollow(tmp_path, *high), hollow(tmp_path, *low))
    assert str(caught.value) == sentence


def test_one_expert_must_be_one_of_the_two_and_agree_with_its_name(tmp_path):
    file = hollow(tmp_path, "wan2.2_i2v_14B", "mine_high_noise")
    with pytest.raises(ValueError, match="^mine_high_noise.safetensors is chosen as the low-noise expert, and its"):
        open_base_model(file, expert="low_noise")
    with pytest.raises(ValueError, match="^Expert is 'both'; choose one of: high_noise, low_noise.$"):
        open_base_model(file, expert="both")


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform"])
@pytest.mark.parametrize("checkpoint", ["wan2.1_t2v_14B", "wan2.2_i2v_14B"])
def test_every_level_of_400_steps_lies_in_its_experts_range(tmp_path, checkpoint, timesteps):
    high = open_base_model(hollow(tmp_path, checkpoint, "a"), hollow(tmp_path, checkpoint, "b"))
    boundary = high.levels[0]
    recipe = RecipeConfig(timesteps=timesteps)
    drawn = {}
    for base in (high, high.low_noise):
        objective = FAMILY.objective(base, recipe)
        shape = torch.Size([1, 16, 3, 4, 4])
        drawn[base.expert] = torch.cat(
            [objective.draw(shape, generator(base.expert, "level/video", step)) for step in range(400)])
        assert objective == FlowMatching(timesteps=timesteps, shift=5.0, levels=base.levels)
    edge = torch.tensor(boundary)
    assert (drawn["high_noise"] >= edge).all() and (drawn["high_noise"] <= 1).all()
    assert (drawn["low_noise"] <= edge).all() and (drawn["low_noise"] >= 0).all()
    assert drawn["high_noise"].std() > 0.01 and drawn["low_noise"].std() > 0.1


class Watch(SilentListener):
    """What a run loads and draws; stops after so many steps."""

    class Stop(BaseException):
        pass

    def __init__(self, monkeypatch, stop_after=10**9):
        self.left, self.phases, self.loaded, self.levels = stop_after, [], [], []
        load, predict = Wan.load_transformer, Wan.predict

        def watched_load(family, base, **more):
            if more["device"].type == "meta":  # the memory plan, which looks at shapes alone
                return load(family, base, **more)
            gc.collect()
            alive = [one for _, reference in self.loaded if (one := reference()) is not None]
            assert all(parameter.is_meta for module in alive for parameter in module.parameters())
            transformer = load(family, base, **more)
            self.loaded.append((base.expert, weakref.ref(transformer)))
            return transformer

        def watched_predict(family, transformer, noisy, levels, given, features):
            if type(levels["video"]) is torch.Tensor:  # and not the plan's
                self.levels.append((self.loaded[-1][0], levels["video"].clone()))
            return predict(family, transformer, noisy, levels, given, features)

        monkeypatch.setattr(Wan, "load_transformer", watched_load)
        monkeypatch.setattr(Wan, "predict", watched_predict)

    def check(self):
        if not self.left:
            raise self.Stop

    def report(self, progress):
        self.left -= progress.phase == "Training"


@pytest.fixture(scope="module", params=["T2V", "2.2 I2V"])
def pair(request, tmp_path_factory):
    """Two tiny experts with weights of their own, and a set prepared for them with one cache."""
    folder = tmp_path_factory.mktemp("pair")
    high, low = folder / "high_noise.safetensors", folder / "low_noise.safetensors"
    write_twin(high, kind=request.param)
    tensors, _ = read_tensors(high)
    write_tensors(low, {name: tensor * 0.9 for name, tensor in tensors.items()}, {})
    base = open_base_model(high, low)
    draw_clips(folder / "clips", 2)
    encoders = Encoders(clip=StandInVae(base.grid), caption=StandInTextEncoder(base.text_width))
    cache = FeatureCache(folder / "features")

    def prepared(model):
        return prepare(scan(folder / "clips"), model, encoders, width=64, height=64, frames=9, cache=cache)

    first = prepared(base)
    again = prepared(base.low_noise)
    assert (first.encoded_clips, again.encoded_clips, again.encoded_captions) == (2, 0, 0)
    assert first.training_set.data_hash == again.training_set.data_hash
    return base, first.training_set


def settings(steps, share=0.5, name="two"):
    return RunConfig(
        name=name, steps=steps, rank=4, learning_rate=1e-3, adapter=AdapterConfig(save_as="fp32"),
        recipe=RecipeConfig(high_noise_share=share),
    )


def places(tmp_path):
    return Places(lora_folder=tmp_path / "loras", run_folder=tmp_path / "run")


@pytest.mark.parametrize("steps, share, wanted", [(8, 0.5, (4, 4)), (10, 0.3, (3, 7))])
def test_one_run_trains_each_expert_on_its_own_range_with_only_one_in_memory(
    tmp_path, monkeypatch, pair, steps, share, wanted
):
    base, data = pair
    watch = Watch(monkeypatch)
    result = train(data, base, settings(steps, share), places=places(tmp_path), device=CPU, listener=watch)
    assert [file.name for file in result.lora_files] == ["two_high_noise.safetensors", "two_low_noise.safetensors"]
    assert [expert for expert, _ in watch.loaded] == ["high_noise", "low_noise"]
    taken = {name: [levels for expert, levels in watch.levels if expert == name] for name, _ in watch.loaded}
    assert tuple(map(len, taken.values())) == wanted and len(result.losses) == steps
    edge = torch.tensor(base.levels[0])
    assert torch.cat(taken["high_noise"]).ge(edge).all() and torch.cat(taken["low_noise"]).le(edge).all()
    for file, lora, count in zip(result.lora_files, result.loras, wanted, strict=True):
        tensors, header = read_lora(file)
        assert header["ss_steps"] == str(count) and header["ss_base_model_version"] == base.title
        assert tensors.keys() == lora.keys() and all(tensor.abs().max() > 0 for tensor in tensors.values())
    names = [set(lora) for lora in result.loras]
    assert names[0] == names[1] and any(
        not torch.equal(result.loras[0][name], result.loras[1][name]) for name in names[0])

    again = train(data, base, settings(steps, share), places=places(tmp_path), device=CPU, listener=watch)
    assert again.reused and len(watch.loaded) == 2 and again.lora_files == result.lora_files
    assert all(torch.equal(a[name], b[name]) for a, b in zip(again.loras, result.loras, strict=True) for name in a)


def test_an_expert_alone_gives_the_lora_that_the_pair_gives(tmp_path, pair):
    base, data = pair
    both = train(data, base, settings(6), places=places(tmp_path / "both"), device=CPU)
    for number, path in enumerate((base.path, base.low_noise.path)):
        alone = train(data, open_base_model(path), settings(3), places=places(tmp_path / "one"), device=CPU)
        assert alone.lora_files[0].name == both.lora_files[number].name
        assert all(torch.equal(tensor, both.loras[number][name]) for name, tensor in alone.loras[0].items())


def test_a_stop_in_the_second_part_keeps_the_first_file_and_the_steps_done(tmp_path, monkeypatch, pair):
    base, data = pair
    whole = train(data, base, settings(8), places=places(tmp_path / "whole"), device=CPU)
    with pytest.raises(Watch.Stop):
        train(data, base, settings(8), places=places(tmp_path), device=CPU, listener=Watch(monkeypatch, 6))
    high, low = (tmp_path / "loras" / f"two_{expert}.safetensors" for expert in ("high_noise", "low_noise"))
    tensors, header = read_lora(high)
    assert header["ss_steps"] == "4"
    assert all(torch.equal(tensor, whole.loras[0][name]) for name, tensor in tensors.items())
    assert read_lora(low)[1]["ss_steps"] == "2"
    finished = train(data, base, settings(8), places=places(tmp_path), device=CPU)
    assert not finished.reused
    for kept, wanted in zip(finished.loras, whole.loras, strict=True):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in kept.items())


def test_a_stop_in_the_first_part_leaves_no_second_file(tmp_path, monkeypatch, pair):
    base, data = pair
    with pytest.raises(Watch.Stop):
        train(data, base, settings(8), places=places(tmp_path), device=CPU, listener=Watch(monkeypatch, 2))
    assert [path.name for path in (tmp_path / "loras").iterdir()] == ["two_high_noise.safetensors"]
