"""What a run promises: the file, the same numbers again, and nothing lost."""

import dataclasses
import json
import math

import pytest
import torch

from video_lora_studio.loaders.lora_file import read_lora
from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.config import AdapterConfig, MemoryConfig, RecipeConfig, RunConfig
from video_lora_studio.training.evaluate import fixed_noise_loss, merge_lora
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.run import check_writable, set_up, train
from video_lora_studio.training.run_output import KeyMatch, Places
from video_lora_studio.training.watch import LossNotFinite

CPU = torch.device("cpu")


def settings(steps=3, **more):
    adapter = {"save_as": "fp32", **more.pop("adapter", {})}
    return RunConfig(
        name=more.pop("name", "test"), steps=steps, rank=more.pop("rank", 4),
        learning_rate=more.pop("learning_rate", 1e-3), adapter=AdapterConfig(**adapter), **more,
    )


@pytest.fixture
def run(tmp_path, base, training_set):
    """Train in a folder of this test's own."""

    def go(config=None, data=training_set, **more):
        places = Places(lora_folder=tmp_path / "loras", run_folder=tmp_path / "runs" / "test")
        return train(data, base, config or settings(), places=places, device=CPU, **more)

    go.lora_file = tmp_path / "loras" / "test.safetensors"
    return go


class StopsAfter(SilentListener):
    """Asks to stop once `steps` steps are reported, as a host does: by raising what is no ordinary Exception."""

    class Stop(BaseException):
        pass

    def __init__(self, steps):
        self.left = steps

    def check(self):
        if not self.left:
            raise self.Stop

    def report(self, progress):
        self.left -= progress.phase == "Training"


def test_a_run_writes_one_lora_file_with_the_form_both_hosts_read(run):
    result = run()
    assert result.lora_files[0].name == "test.safetensors" and len(result.losses) == 3
    tensors, header = read_lora(result.lora_files[0])
    assert len(tensors) == 2 * 10 * 2
    modules = {name.rsplit(".", 2)[0] for name in tensors}
    assert "diffusion_model.blocks.0.self_attn.q" in modules and "diffusion_model.blocks.1.ffn.2" in modules
    for name, tensor in tensors.items():
        assert name.endswith((".lora_A.weight", ".lora_B.weight"))
        assert torch.equal(tensor, result.loras[0][name]) and tensor.isfinite().all()
        assert 4 in tensor.shape and tensor.abs().max() > 0
    assert header["ss_network_dim"] == "4" and header["ss_steps"] == "3"
    assert json.loads(header["video_lora.settings"])["learning_rate"] == 1e-3
    assert not any("/" in value and "lora" not in value for value in header.values())


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first = run().lora_files[0].read_bytes()
    (tmp_path / "loras" / "test.safetensors").unlink()
    again = run()
    assert not again.reused and again.lora_files[0].read_bytes() == first


def test_a_finished_run_is_returned_and_not_run_again(run):
    first = run()
    again = run(listener=StopsAfter(0))
    assert again.reused and again.losses == pytest.approx(first.losses)
    assert all(torch.equal(again.loras[0][name], tensor) for name, tensor in first.loras[0].items())


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ({"seed": 1}, False), ({"learning_rate": 2e-3}, False), ({"steps": 2}, False),
        ({"adapter": {"alpha": 8.0}}, False), ({"recipe": RecipeConfig(shift=5.0)}, False),
        ({"memory": MemoryConfig(recompute=False)}, True), ({"recipe": RecipeConfig(save_every=2)}, True),
    ],
)
def test_only_what_decides_the_numbers_makes_a_new_run(run, change, reused):
    run()
    assert run(settings(**change)).reused is reused


def test_a_lora_that_was_changed_or_is_gone_is_trained_again(run):
    path = run().lora_files[0]
    tensors, header = read_tensors(path)
    write_tensors(path, {name: tensor * 2 for name, tensor in tensors.items()}, header)
    assert not run().reused
    path.unlink()
    assert not run().reused and path.is_file()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_stop_keeps_exactly_the_steps_that_were_done(run, steps):
    with pytest.raises(StopsAfter.Stop):
        run(settings(5), listener=StopsAfter(steps))
    kept, header = read_lora(run.lora_file)
    assert header["ss_steps"] == str(steps)
    whole = run(settings(steps)).loras[0]
    assert all(torch.equal(kept[name], tensor) for name, tensor in whole.items())


def test_a_stop_before_the_first_step_leaves_an_earlier_lora_alone(run):
    earlier = run().lora_files[0].read_bytes()
    with pytest.raises(StopsAfter.Stop):
        run(settings(9), listener=StopsAfter(0))
    with pytest.raises(StopsAfter.Stop):
        run(settings(9, seed=1), listener=StopsAfter(0))
    assert run.lora_file.read_bytes() == earlier


def test_a_replaced_lora_is_kept_in_the_run_folder(run, tmp_path):
    earlier = run().lora_files[0].read_bytes()
    run(settings(seed=1))
    (kept,) = (tmp_path / "runs" / "test" / "replaced").iterdir()
    assert kept.read_bytes() == earlier


def test_a_file_of_somebody_else_is_never_replaced(run, tmp_path):
    theirs = tmp_path / "loras" / "test.safetensors"
    theirs.parent.mkdir()
    write_tensors(theirs, {"diffusion_model.x.lora_A.weight": torch.ones(1, 1)}, {})
    before = theirs.read_bytes()
    with pytest.raises(ValueError, match="not made by this pack: choose another name"):
        run()
    assert theirs.read_bytes() == before


def test_a_loss_that_is_not_a_number_stops_before_it_spoils_the_lora(run, make_set):
    data = make_set(3)
    poisoned = data.samples[1]
    features, _ = read_tensors(poisoned.clip_features)
    write_tensors(poisoned.clip_features, features | {"video": features["video"] * math.nan}, {})
    with pytest.raises(LossNotFinite) as error:
        run(settings(50), data=data)
    assert poisoned.name in str(error.value) and "step" in str(error.value)
    steps = int(str(error.value).split("The LoRA of step ")[1].split()[0])
    if steps:
        kept, header = read_lora(run.lora_file)
        assert header["ss_steps"] == str(steps) and all(tensor.isfinite().all() for tensor in kept.values())


def test_a_learning_rate_far_too_high_does_not_end_in_a_broken_file(run):
    try:
        result = run(settings(30, learning_rate=1.0, recipe=RecipeConfig(max_grad_norm=0.0, warmup_steps=0)))
    except LossNotFinite:
        tensors, _ = read_lora(run.lora_file)
    else:
        tensors = result.loras[0]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_copies_are_kept_every_so_many_steps(run, tmp_path):
    run(settings(5, recipe=RecipeConfig(save_every=2)))
    kept = sorted((tmp_path / "runs" / "test" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-000002.safetensors", "step-000004.safetensors"]
    whole = run(settings(2)).loras[0]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in read_lora(kept[0])[0].items())


def test_keys_that_the_host_does_not_match_are_an_error(run):
    with pytest.raises(ValueError, match="Only 3 of 40 keys"):
        run(check_file=lambda path, base: KeyMatch(matched=3, total=40))


def test_the_report_says_how_many_keys_match(run):
    result = run(check_file=lambda path, base: KeyMatch(matched=40, total=40))
    assert "40 of 40 keys match" in result.report and "3 steps" in result.report


def test_a_set_for_another_model_is_refused_before_anything_is_loaded(run, training_set):
    for other in ({"form": "other latents"}, {"caption_form": "captions through other weights"}):
        with pytest.raises(ValueError, match="prepared for another Wan model than Wan T2V"):
            run(data=dataclasses.replace(training_set, **other))
    with pytest.raises(ValueError, match="prepared for Other"):
        run(data=dataclasses.replace(training_set, family="Other"))
    with pytest.raises(ValueError, match="no clip"):
        run(data=dataclasses.replace(training_set, samples=()))


def test_layers_that_are_not_there_are_refused_before_anything_is_loaded(run):
    with pytest.raises(ValueError, match="nothing in this model ends with 'self_attn.x'"):
        run(settings(adapter={"targets": "self_attn.q, self_attn.x"}), listener=StopsAfter(0))


def test_only_the_layers_asked_for_are_adapted(run):
    names = run(settings(adapter={"targets": "self_attn.q, ffn.2"})).loras[0]
    assert {name.split("blocks.")[1][2:].rsplit(".", 2)[0] for name in names} == {"self_attn.q", "ffn.2"}


def test_a_folder_that_cannot_be_written_is_said_first(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="Cannot write in .*file"):
        check_writable(file / "loras")


@pytest.mark.parametrize("alpha", [0.0, 2.0, 12.0])
def test_the_file_has_the_effect_that_training_had(run, base, training_set, alpha):
    """Merged into the weights, the file answers as the adapter's last step would have."""
    config = settings(12, learning_rate=1e-2, adapter={"alpha": alpha})
    result = run(config)
    context = set_up(training_set, base, config, CPU, torch.float32, SilentListener())
    before = fixed_noise_loss(context, 2)
    assert merge_lora(context.transformer, base.family, result.lora_files[0]) == 20
    assert fixed_noise_loss(context, 2) < before


def test_the_loss_of_one_clip_at_fixed_noise_at_least_halves(base, make_set, run):
    data = make_set(1)
    config = settings(250, rank=16, learning_rate=4e-3)
    result = run(config, data=data)
    context = set_up(data, base, config, CPU, torch.float32, SilentListener())
    before = fixed_noise_loss(context, 1)
    merge_lora(context.transformer, base.family, result.lora_files[0])
    after = fixed_noise_loss(context, 1)
    assert after < before / 2, f"{before:.4f} to {after:.4f}"


def test_bf16_autocast_trains_float32_adapters(run):
    result = run(precision="bf16")
    exact = run(settings(seed=0, name="exact"), precision="fp32")
    assert result.losses == pytest.approx(exact.losses, rel=0.05)
    assert result.losses != exact.losses


def test_sound_that_no_clip_has_is_said_before_anything_is_loaded(run, base, training_set, tmp_path):
    hearing = dataclasses.replace(base, streams=("video", "audio"))
    places = Places(lora_folder=tmp_path / "loras", run_folder=tmp_path / "run")
    config = settings(recipe=RecipeConfig(learn="sound"))
    with pytest.raises(ValueError, match="none of the 3 clips has it: set it to 'picture'"):
        train(training_set, hearing, config, places=places, device=CPU, listener=StopsAfter(0))
    assert run(settings(recipe=RecipeConfig(learn="sound"))).losses, "a model without sound ignores it"
