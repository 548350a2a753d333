"""Wan: recognised from its header, filled exactly, and equal to its own pipeline."""

import copy
import json

import pytest
import torch
from checkpoints import DATA, hollow_file, real
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tiny import STORED_FORMS, write_twin

from video_lora_studio.loaders.module_weights import build_without_storage, fill
from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model
from video_lora_studio.training.families.wan import NAMES

REAL = sorted(path.stem for path in DATA.glob("wan2*.json"))
FAMILY = next(family for family in FAMILIES if family.name == "Wan")


def full(config):
    """A configuration with what the class takes where nothing is said."""
    shallow = build_without_storage(lambda: WanTransformer3DModel(**config | {"num_layers": 1}))
    stated = {"num_layers": config["num_layers"], "patch_size": tuple(config["patch_size"])}
    return {name: value for name, value in shallow.config.items() if not name.startswith("_")} | stated


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "tiny_wan.safetensors"
    write_twin(path)
    return path


@pytest.fixture(scope="module")
def loaded(twin_file):
    base = open_base_model(twin_file)
    return base, FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))


def conditions(base, words=(5, 9)):
    """Noisy latents, levels and text of two samples."""
    generator = torch.Generator().manual_seed(1)
    samples = [{"video": torch.randn(16, 3, 8, 10, generator=generator),
                "text": torch.randn(count, base.text_width, generator=generator)} for count in words]
    noisy, features = FAMILY.collate(base, samples)
    return noisy, {"video": torch.tensor([0.25, 0.8])}, features


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("checkpoint", REAL)
def test_the_configuration_of_real_checkpoints_is_the_official_one(tmp_path, checkpoint):
    shapes, official = real(checkpoint)
    base = open_base_model(hollow_file(tmp_path / "x_high_noise.safetensors", shapes))
    assert full(base.config) == full(official)


@pytest.mark.parametrize("checkpoint", REAL)
def test_the_real_checkpoints_fill_exactly(tmp_path, checkpoint):
    shapes, _ = real(checkpoint)
    config = open_base_model(hollow_file(tmp_path / "x_high_noise.safetensors", shapes)).config
    module = build_without_storage(lambda: WanTransformer3DModel(**config))
    fill(module, shapes, lambda name: torch.empty(shapes[name], device="meta"), NAMES, dtype=torch.bfloat16,
         device="meta")
    assert sum(parameter.numel() for parameter in module.parameters()) == sum(
        torch.Size(shape).numel() for shape in shapes.values())
    assert [NAMES.back(NAMES.forward(name)) for name in shapes] == list(shapes)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model."])
@pytest.mark.parametrize("checkpoint, title, shift, needs, form", [
    ("wan2.1_t2v_1.3B", "Wan 2.1 T2V 1.3B", 3, set(), "Wan 2.1 video"),
    ("wan2.1_t2v_14B", "Wan 2.1 / 2.2 T2V 14B", 3, set(), "Wan 2.1 video"),
    ("wan2.1_i2v_14B", "Wan 2.1 I2V 14B", 3, {"image"}, "Wan 2.1 video, first frame, CLIP vision"),
    ("wan2.1_flf2v_14B", "Wan 2.1 FLF2V 14B", 3, {"image"}, "Wan 2.1 video, first and last frame, CLIP vision"),
    ("wan2.2_i2v_14B", "Wan 2.2 I2V 14B", 5, set(), "Wan 2.1 video, first frame"),
    ("wan2.2_ti2v_5B", "Wan 2.2 TI2V 5B", 5, set(), "Wan 2.2 video"),
])
def test_every_kind_is_recognised_with_any_prefix(tmp_path, checkpoint, title, shift, needs, form, prefix):
    shapes, _ = real(checkpoint)
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes, prefix))
    assert (base.title, base.key_prefix, base.stored_as) == (title, prefix, "bf16")
    assert base.family is FAMILY and base.expert == "" and base.levels == (0, 1) and base.low_noise is None
    assert (base.text_tokens, base.text_width) == (512, 4096)
    assert (base.defaults.shift, base.needs, base.form) == (shift, needs, form)
    base.grid.check(base.defaults.width, base.defaults.height, base.defaults.frames)


@pytest.mark.parametrize("checkpoint, channels, fps, stride, multiple, first_frame", [
    ("wan2.1_i2v_14B", 16, 16, 8, 16, 0), ("wan2.2_i2v_14B", 16, 16, 8, 16, 0), ("wan2.2_ti2v_5B", 48, 24, 16, 32, 0.5),
])
def test_the_grid_is_that_of_the_models_own_vae(
    tmp_path, checkpoint, channels, fps, stride, multiple, first_frame
):
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", real(checkpoint)[0]))
    grid = base.grid
    assert (grid.channels, grid.fps, grid.space_stride, grid.size_multiple) == (channels, fps, stride, multiple)
    assert (grid.time_stride, base.defaults.first_frame) == (4, first_frame)


@pytest.mark.parametrize("key, title", [
    ("vace_blocks.0.after_proj.weight", "Wan VACE 1.3B"),
    ("face_adapter.fuser_blocks.0.k_norm.weight", "Wan Animate 1.3B"),
    ("pose_patch_embedding.weight", "Wan Animate 1.3B"),
    ("casual_audio_encoder.encoder.final_linear.weight", "Wan S2V 1.3B"),
    ("audio_injector.injector.0.q.weight", "Wan S2V 1.3B"),
    ("audio_proj.audio_proj_glob_1.layer.bias", "Wan HuMo 1.3B"),
    ("control_adapter.conv.weight", "Wan Fun-Camera 1.3B"),
    ("ref_conv.weight", "Wan Fun-Control 1.3B"),
    ("cam_projector.weight", r"a Wan model with parts of its own \(cam_projector\)"),
])
def test_wan_models_with_parts_of_their_own_are_named_and_refused(tmp_path, key, title):
    shapes = real("wan2.1_t2v_1.3B")[0] | {key: [4]}
    path = hollow_file(tmp_path / "other.safetensors", shapes, "model.diffusion_model.")
    with pytest.raises(ValueError, match=f"^other.safetensors is {title}; of Wan, only T2V, I2V, FLF2V"):
        open_base_model(path)


@pytest.mark.parametrize("channels_in, title", [
    (48, "Wan Fun-Control 14B"),
    (52, r"a Wan model of another kind \(52 channels in, 16 out\)"),
    (16, r"a Wan model of another kind \(16 channels in, 16 out\)"),
])
def test_wan_models_that_take_other_inputs_are_named_and_refused(tmp_path, channels_in, title):
    shapes = real("wan2.1_i2v_14B")[0] | {"patch_embedding.weight": [5120, channels_in, 1, 2, 2]}
    with pytest.raises(ValueError, match=f"^other.safetensors is {title}; of Wan, only T2V, I2V, FLF2V"):
        open_base_model(hollow_file(tmp_path / "other.safetensors", shapes))


def test_a_part_of_a_split_model_is_refused(tmp_path):
    shapes = {name: shape for name, shape in real("wan2.1_t2v_1.3B")[0].items() if "patch" not in name}
    with pytest.raises(ValueError, match="or is one part of a split model"):
        open_base_model(hollow_file(tmp_path / "x.safetensors", shapes))


def test_what_else_lies_in_an_all_in_one_file_is_left_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    write_twin(path, prefix="model.diffusion_model.")
    tensors, _ = read_tensors(path)
    write_tensors(path, tensors | {"first_stage_model.decoder.conv1.weight": torch.ones(3)}, {})
    base = open_base_model(path)
    FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("stored", STORED_FORMS)
def test_every_stored_form_loads_and_equals_what_was_stored(tmp_path, stored, prefix):
    truth = write_twin(tmp_path / "x.safetensors", stored=stored, prefix=prefix)
    base = open_base_model(tmp_path / "x.safetensors")
    transformer = FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))
    got = file_tensors(FAMILY, transformer)
    assert base.title == "Wan T2V (dim 128, 2 layers)"
    assert base.stored_as == " ".join(stored.split()[:2]).removesuffix(" e5m2")
    assert got.keys() == truth.keys()
    assert all(torch.equal(got[name], truth[name]) for name in truth)


@pytest.mark.parametrize("change, sentence", [
    (lambda t: t.pop("blocks.1.ffn.2.bias"), "it lacks blocks.1.ffn.2.bias"),
    (lambda t: t.update({"blocks.0.ffn.3.bias": torch.ones(1)}), "it has blocks.0.ffn.3.bias too many"),
    (lambda t: t.update({"blocks.0.ffn.2.bias": torch.ones(5)}),
     r"it has blocks.0.ffn.2.bias as \[5\] instead of \[128\]"),
])
def test_a_file_with_other_tensors_is_refused(tmp_path, twin_file, change, sentence):
    tensors, _ = read_tensors(twin_file)
    change(tensors)
    write_tensors(tmp_path / "odd.safetensors", tensors, {})
    base = open_base_model(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=f"^odd.safetensors does not hold this model's weights exactly: {sentence}"):
        FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))


def test_a_loaded_transformer_is_frozen_and_keeps_what_diffusers_keeps_in_full_precision(twin_file):
    base = open_base_model(twin_file)
    transformer = FAMILY.load_transformer(base, dtype=torch.bfloat16, device=torch.device("cpu"))
    kept = {name for name, tensor in transformer.named_parameters() if tensor.dtype == torch.float32}
    assert not transformer.training and not any(tensor.requires_grad for tensor in transformer.parameters())
    assert kept == {name for name in transformer.state_dict()
                    if {"time_embedder", "scale_shift_table", "norm2"} & set(name.split("."))}
    assert transformer.rope.freqs_cos.dtype == torch.float32 and not transformer.rope.freqs_cos.is_meta


def test_predict_equals_the_call_of_diffusers_own_pipeline(tmp_path, twin_file, loaded):
    base, transformer = loaded
    (tmp_path / "config.json").write_text(json.dumps(dict(base.config)))
    reference = WanTransformer3DModel.from_single_file(str(twin_file), config=str(tmp_path), torch_dtype=torch.float32)
    calls = []
    reference.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=reference,
                           scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipeline.set_progress_bar_config(disable=True)
    _, _, features = conditions(base, (7, 7))
    pipeline(prompt_embeds=features["text"], height=64, width=80, num_frames=9, num_inference_steps=3,
             guidance_scale=1.0, output_type="latent", generator=torch.Generator().manual_seed(2))
    assert len(calls) == 3
    for kwargs, answer in calls:
        levels = {"video": kwargs["timestep"] / 1000.0}
        with torch.no_grad():
            got = FAMILY.predict(transformer, {"video": kwargs["hidden_states"]}, levels, {}, features)["video"]
        assert answer.std() > 0.1 and got.shape == kwargs["hidden_states"].shape == (2, 16, 3, 8, 10)
        assert distance(got, answer) < 1e-5


def test_a_sample_is_answered_the_same_alone_and_in_a_batch(loaded):
    base, transformer = loaded
    noisy, levels, features = conditions(base)
    with torch.no_grad():
        both = FAMILY.predict(transformer, noisy, levels, {}, features)["video"]
        for n in range(2):
            one = [{name: tensor[n:n + 1] for name, tensor in part.items()} for part in (noisy, levels, {}, features)]
            assert distance(FAMILY.predict(transformer, *one)["video"][0], both[n]) < 1e-5


@pytest.mark.parametrize("copied", [False, True])
def test_the_time_is_embedded_in_full_precision_under_autocast(twin_file, copied):
    base = open_base_model(twin_file)
    transformer = FAMILY.load_transformer(base, dtype=torch.bfloat16, device=torch.device("cpu"))
    if copied:
        transformer = copy.deepcopy(transformer)
    embedder, seen = transformer.condition_embedder.time_embedder, []
    embedder.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        noisy, levels, features = conditions(base)
        velocity = FAMILY.predict(transformer, noisy, levels, {}, features)["video"]
        rounded = type(embedder).forward(embedder, transformer.condition_embedder.timesteps_proj(levels["video"] * 1e3))
    with torch.no_grad():
        exact = embedder(transformer.condition_embedder.timesteps_proj(levels["video"] * 1e3))
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], exact)
    assert distance(rounded, exact) > 1e-4
    full_precision = FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        assert distance(velocity, FAMILY.predict(full_precision, noisy, levels, {}, features)["video"]) < 0.03


def test_the_twin_is_the_same_each_time_and_its_layers_matter():
    state = torch.random.get_rng_state()
    (config, first), (_, second) = FAMILY.twin(), FAMILY.twin()
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(first, WanTransformer3DModel) and len(FAMILY.blocks(first)) == config["num_layers"] == 2
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.std() > 0.01 for parameter in first.parameters())


@pytest.mark.parametrize("kind, layers", [
    ("T2V", 10), ("I2V", 12), ("FLF2V", 12), ("2.2 I2V", 10), ("TI2V", 10),
])
def test_adapter_targets_are_modules_of_every_block(tmp_path, kind, layers):
    write_twin(tmp_path / "x.safetensors", kind=kind)
    presets = FAMILY.adapter_targets(open_base_model(tmp_path / "x.safetensors"), {"video"})
    names = [NAMES.back(name) for name, module in FAMILY.twin(kind)[1].named_modules()
             if isinstance(module, torch.nn.Linear)]
    for preset, per_block in (("attention and feed-forward", layers), ("attention", layers - 2)):
        found = [name for name in names if name.endswith(tuple(f".{ending}" for ending in presets[preset]))]
        assert len(found) == 2 * per_block and all(name.startswith("blocks.") for name in found)
        assert all(any(name.endswith(ending) for name in found) for ending in presets[preset])
    assert next(iter(presets)) == "attention and feed-forward"
