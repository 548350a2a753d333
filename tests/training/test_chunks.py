"""Training in chunks: pauses change nothing of what is learnt, and each keeps its LoRA."""

import dataclasses

import pytest
import torch
from tiny import write_twin

from video_lora_studio.loaders.lora_file import read_lora, read_lora_header
from video_lora_studio.training.config import AdapterConfig, RecipeConfig, RunConfig
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.run import train
from video_lora_studio.training.run_curve import read_curve
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")
WHOLE = RunConfig(
    name="test", steps=6, rank=4, learning_rate=1e-3, adapter=AdapterConfig(save_as="fp32", dropout=0.25),
    recipe=RecipeConfig(schedule="cosine", warmup_steps=2, ema=0.5, gradient_accumulation=2),
)


def until(step, config=WHOLE):
    return dataclasses.replace(config, pause_at=step)


@pytest.fixture
def pair(base):
    """The base as a pair of experts."""
    low = base.path.with_name("low.safetensors")
    if not low.exists():
        write_twin(low)
    return base.family.pair(base, open_base_model(low))


@pytest.fixture
def start(tmp_path, base, training_set):
    def go(config, *, place="here", base=base, data=training_set):
        places = Places(lora_folder=tmp_path / place / "loras", run_folder=tmp_path / place / "run")
        return train(data, base, config, places=places, device=CPU)

    go.folder = tmp_path
    return go


def files(start, folder, place="here"):
    return sorted(path.name for path in (start.folder / place / folder).glob("*.safetensors"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_chunks_end_with_the_bytes_of_an_undivided_run(start):
    whole = start(WHOLE, place="whole")
    first, second = start(until(2)), start(until(5))
    last = start(WHOLE)
    assert last.lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()
    assert start(until(9), place="by number").lora_files[0].read_bytes() == whole.lora_files[0].read_bytes()
    assert first.losses == whole.losses[:2] and second.losses == whole.losses[:5] and last.losses == whole.losses
    assert "2 steps of 6, paused" in first.report and "Went on from step 2." in second.report
    assert files(start, "run/checkpoints") == ["step-000002.safetensors", "step-000005.safetensors"]
    assert same(first.loras[0], read_lora(start.folder / "here/run/checkpoints/step-000002.safetensors")[0])
    assert not same(first.loras[0], second.loras[0])


def test_the_lora_of_a_pause_is_the_one_that_a_stop_there_would_have_kept(start):
    start(until(3))
    header = read_lora_header(start.folder / "here/run/checkpoints/step-000003.safetensors")
    assert header["ss_steps"] == "3" and header["ss_max_train_steps"] == "6"
    assert read_curve(start.folder / "here/run").status == "paused"
    assert read_curve(start.folder / "here/run").total == 6


def test_a_chunk_asked_for_again_gives_its_own_lora_and_trains_nothing(start):
    first, second, last = (start(until(step)) for step in (2, 4, 6))
    again = [start(until(step)) for step in (2, 4, 6)]
    assert all(result.reused for result in again)
    for earlier, now in zip((first, second, last), again, strict=True):
        assert same(earlier.loras[0], now.loras[0]) and earlier.losses == now.losses
        assert now.report.startswith("Nothing to do")
    assert again[0].lora_files == last.lora_files


def test_a_pause_that_was_passed_without_a_copy_trains_nothing_and_loses_nothing(start):
    start(until(4))
    earlier = start(until(3))
    assert "Of this run 4 steps were done before: nothing was trained." in earlier.report
    assert len(earlier.losses) == 4
    tensors, _ = read_lora(start.folder / "here/loras/test.safetensors")
    start(until(4), place="other")
    assert same(tensors, read_lora(start.folder / "other/loras/test.safetensors")[0])
    assert start(WHOLE).losses == start(WHOLE, place="whole").losses


def test_where_a_shorter_run_ended_a_longer_one_can_pause(start):
    short = start(dataclasses.replace(WHOLE, steps=4))
    paused = start(until(4))
    assert paused.report.startswith("Nothing to do: this run has ended at this step before.")
    assert start(WHOLE).losses[:4] == short.losses
    again = start(until(4))
    assert again.reused and same(again.loras[0], short.loras[0]) and same(again.loras[0], paused.loras[0])


def test_copies_of_more_steps_are_not_those_of_fewer(start):
    copied = dataclasses.replace(WHOLE, recipe=dataclasses.replace(WHOLE.recipe, save_every=2))
    start(copied)
    shorter = until(2, dataclasses.replace(copied, steps=4))
    anew = start(shorter)
    assert not anew.reused and same(anew.loras[0], start(shorter, place="fresh").loras[0])


@pytest.mark.parametrize("pause", [6, 7, 0])
def test_a_pause_at_or_after_the_end_is_none(start, pause):
    result = start(until(pause))
    assert len(result.losses) == 6 and "paused" not in result.report and files(start, "run/checkpoints") == []


def test_of_two_experts_each_gets_its_share_of_a_chunk(start, pair):
    config = dataclasses.replace(WHOLE, recipe=dataclasses.replace(WHOLE.recipe, high_noise_share=0.34))
    whole = start(config, place="whole", base=pair)
    first = start(until(3, config), base=pair)
    assert files(start, "run/checkpoints") == [
        "high_noise-step-000001.safetensors", "low_noise-step-000002.safetensors"
    ]
    assert first.losses == [whole.losses[0], *whole.losses[2:4]]
    curve = read_curve(start.folder / "here/run")
    assert [step for step, *_ in curve.points] == [1, 3, 4] and curve.experts == (("high_noise", 0), ("low_noise", 2))
    last = start(config, base=pair)
    assert [file.read_bytes() for file in last.lora_files] == [file.read_bytes() for file in whole.lora_files]
    assert last.losses == whole.losses
    again = start(until(3, config), base=pair)
    assert again.reused and all(map(same, again.loras, first.loras)) and again.losses == first.losses


def test_an_expert_of_one_step_is_whole_at_the_first_pause(start, pair):
    config = dataclasses.replace(WHOLE, recipe=dataclasses.replace(WHOLE.recipe, high_noise_share=0.84))
    first = start(until(2, config), base=pair)
    assert files(start, "run/checkpoints") == ["high_noise-step-000002.safetensors"]
    curve = read_curve(start.folder / "here/run")
    assert (curve.made, curve.last, curve.total) == (3, 6, 6)
    last = start(config, base=pair)
    assert last.losses == start(config, place="whole", base=pair).losses
    assert read_curve(start.folder / "here/run").made == 6, "the loss of the expert that was whole is still there"
    again = start(until(2, config), base=pair)
    assert again.reused and all(map(same, again.loras, first.loras)) and again.losses == first.losses
