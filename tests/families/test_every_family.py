"""What holds for every family and every kind of model in it, on twins of two layers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from family_studio import TWIN_NAMES, TWINS, open_studio
from few_bits import write_in_few_bits
from torch import nn

from video_lora_studio.loaders.lora_file import write_lora
from video_lora_studio.loaders.low_bits_linear import LowBitsLinear
from video_lora_studio.loaders.module_weights import Storage
from video_lora_studio.loaders.safetensors_file import read_header
from video_lora_studio.training.config import RecipeConfig, RunConfig
from video_lora_studio.training.evaluate import merge_lora
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import micro_step_loss
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.run import attach_adapter, fit, set_up, train
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", params=TWINS, ids=TWIN_NAMES)
def studio(request, tmp_path_factory):
    return open_studio(request.param, tmp_path_factory.mktemp("family"))


def attached(studio, **more):
    config = RunConfig(rank=4, **more)
    context = set_up(studio.data, studio.base, config, CPU, torch.float32, SilentListener())
    return context, attach_adapter(context, config)


def perturb(adapter):
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))


def test_its_header_is_recognised_by_no_other_family(studio):
    header = read_header(studio.base.path)
    for family in FAMILIES:
        assert (family.recognise(header) is not None) == (family is studio.base.family), family.name


def test_a_fresh_adapter_changes_nothing(studio):
    config = RunConfig(rank=4)
    context = set_up(studio.data, studio.base, config, CPU, torch.float32, SilentListener())
    with torch.no_grad():
        bare = micro_step_loss(context, 0)
        attach_adapter(context, config)
        assert torch.equal(micro_step_loss(context, 0), bare) and bare.isfinite()


def test_only_the_adapter_gets_gradients_and_all_of_it_does(studio):
    context, adapter = attached(studio)
    perturb(adapter)
    for position in range(len(context.batches)):
        micro_step_loss(context, position).backward()
    trained = {id(parameter) for parameter in adapter.parameters()}
    for name, parameter in context.transformer.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_recompute_gives_the_same_loss_and_gradients(studio):
    found = []
    for recompute in (True, False):
        context, adapter = attached(studio, recipe=RecipeConfig(first_frame=1.0))
        fit(context, RunConfig(rank=4), Level(recompute=recompute))
        perturb(adapter)
        loss = micro_step_loss(context, 0)
        loss.backward()
        gradients = [p.grad for p in adapter.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    (loss, gradient), (plain_loss, plain) = found
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    assert ((gradient - plain).norm() / plain.norm()).item() < 1e-5


def loss_and_gradient(studio, transformer):
    config = RunConfig(rank=4, recipe=RecipeConfig(first_frame=1.0))
    context = set_up(studio.data, studio.base, config, CPU, torch.float32, SilentListener())
    context = dataclasses.replace(context, transformer=transformer)
    adapter = attach_adapter(context, config)
    perturb(adapter)
    loss = micro_step_loss(context, 0)
    loss.backward()
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    return loss.item(), torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])


def in_few_bits(transformer):
    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, LowBitsLinear)}


def spelled_out(transformer):
    """Every layer in few bits replaced by a plain one with its numbers."""
    for name, layer in in_few_bits(transformer).items():
        plain = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(layer.numbers(torch.float32), requires_grad=False)
        plain.bias = layer.bias
        transformer.set_submodule(name, plain)
    return transformer


def test_weights_quantised_as_they_are_read_train_as_the_numbers_they_stand_for(studio):
    weights = "nf4"  # tests/memory has all forms, together with everything else that saves memory

    def load():
        storage = Storage(weights=weights)
        return studio.base.family.load_transformer(studio.base, dtype=torch.float32, device=CPU, storage=storage)

    layers = in_few_bits(load())
    assert layers and {layer.form for layer in layers.values()} == {weights}
    assert not any(part.startswith("norm") for name in layers for part in name.split("."))
    loss, gradient = loss_and_gradient(studio, load())
    plain_loss, plain = loss_and_gradient(studio, spelled_out(load()))
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert ((gradient - plain).norm() / plain.norm()).item() < 1e-6


@pytest.mark.parametrize("stored", ["fp8 scaled", "GGUF Q4_K"])
def test_a_file_in_few_bits_stays_so_and_trains_as_the_numbers_it_stands_for(studio, tmp_path, stored):
    if "GGUF" in stored:
        pytest.importorskip("gguf")
    file = tmp_path / ("few.gguf" if "GGUF" in stored else "few.safetensors")
    numbers = write_in_few_bits(studio.base.path, file, stored)
    base = open_base_model(file)
    assert base.stored_as in (stored, "GGUF Q8_0") and dict(base.config) == dict(studio.base.config)
    kept, full = (
        base.family.load_transformer(base, dtype=torch.float32, device=CPU, storage=Storage(weights=weights))
        for weights in ("as stored", "full")
    )
    assert in_few_bits(kept) and not in_few_bits(full)
    with pytest.raises(ValueError, match="is kept in few bits: load the model with its weights in full"):
        layer = next(iter(in_few_bits(kept)))
        key = f"diffusion_model.{base.family.original_name(layer)}"
        write_lora(tmp_path / "x.safetensors", {f"{key}.lora_A.weight": torch.ones(1, 1),
                                                f"{key}.lora_B.weight": torch.ones(1, 1)}, {})
        merge_lora(kept, base.family, tmp_path / "x.safetensors")
    for transformer in (kept, full):
        for name, tensor in file_tensors(base.family, transformer).items():
            assert torch.equal(tensor, numbers[base.key_prefix + name]), name
    loss, gradient = loss_and_gradient(studio, kept)
    plain_loss, plain = loss_and_gradient(studio, full)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert ((gradient - plain).norm() / plain.norm()).item() < 1e-6


def test_a_clip_is_learnt_and_the_file_has_the_effect(studio, tmp_path):
    config = RunConfig(
        name="learnt", steps=40, rank=8, learning_rate=1e-2, recipe=RecipeConfig(warmup_steps=0),
    )
    result = train(
        studio.data, studio.base, config, places=Places(lora_folder=tmp_path, run_folder=tmp_path / "run"), device=CPU
    )
    context = set_up(studio.data, studio.base, config, CPU, torch.float32, SilentListener())

    def loss():
        with torch.no_grad():
            return sum(micro_step_loss(context, position).item() for position in range(40)) / 40

    before = loss()
    assert merge_lora(context.transformer, studio.base.family, result.lora_files[0]) == len(result.loras[0]) / 2
    assert loss() < before


def test_losses_are_the_golden_ones(studio, tmp_path, request):
    """Ten steps, float32, fixed seed. A change that alters these numbers alters every user's LoRA: say why."""
    config = RunConfig(name="golden", steps=10, rank=4, learning_rate=1e-3)
    places = Places(lora_folder=tmp_path, run_folder=tmp_path / "run")
    losses = train(studio.data, studio.base, config, places=places, device=CPU).losses
    golden = GOLDEN / f"{request.node.callspec.id.lower().replace(' ', '_')}.txt"
    if not golden.exists():
        golden.write_text("".join(f"{loss:.6f}\n" for loss in losses))
        pytest.fail(f"{golden.name} was missing and has been written: look at it and commit it")
    assert losses == pytest.approx([float(line) for line in golden.read_text().split()], rel=5e-4)
