"""LTX-Video: recognised from its header, filled exactly, and equal to its own pipelines."""

import json

import pytest
import torch
from checkpoints import hollow_file, real
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from tiny import STORED_FORMS, StandInTextEncoder, StandInVae, write_twin

from video_lora_studio.loaders.module_weights import build_without_storage, fill
from video_lora_studio.loaders.safetensors_file import read_header, read_tensors, write_tensors
from video_lora_studio.training.config import RecipeConfig
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model
from video_lora_studio.training.families.ltx import NAMES
from video_lora_studio.training.families.model_family import DecodedClip, Encoders
from video_lora_studio.training.memory.recompute import recompute_blocks
from video_lora_studio.training.objective import FlowMatching, ShiftedLogitNormal
from video_lora_studio.training.seeds import generator

FAMILY = next(family for family in FAMILIES if family.name == "LTX-Video")
SIZE = {"height": 64, "width": 96, "num_frames": 17}
LATENTS = (128, 3, 2, 3)
REAL = ("ltxv_2B", "ltxv_13B")


def header_of(**stated):
    """Metadata as Lightricks' files carry it."""
    return {"config": json.dumps({"transformer": stated, "vae": {}})}


class Given:
    """An encoder that gives what it is told to give."""

    identity = "given"

    def __init__(self, output):
        self.output = output

    def encode(self, _):
        return self.output


@pytest.fixture(scope="module", params=[False, True], ids=["first files", "causal files"])
def twin_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "tiny_ltx.safetensors"
    write_twin(path, family=FAMILY)
    if request.param:
        write_tensors(path, read_tensors(path)[0], header_of(causal_temporal_positioning=True))
    return path


@pytest.fixture(scope="module")
def loaded(twin_file):
    base = open_base_model(twin_file)
    return base, FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))


def conditions(base, words=(5, 9)):
    """Noisy latents, levels and text of some samples."""
    source = torch.Generator().manual_seed(1)
    samples = [{"video": torch.randn(LATENTS, generator=source),
                "text": torch.randn(count, base.text_width, generator=source)} for count in words]
    noisy, features = FAMILY.collate(base, samples)
    return noisy, {"video": torch.linspace(0.25, 0.8, len(words))}, features


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("checkpoint", REAL)
def test_the_configuration_of_real_checkpoints_is_the_official_one(tmp_path, checkpoint):
    shapes, official = real(checkpoint)
    assert open_base_model(hollow_file(tmp_path / "x.safetensors", shapes)).config == official


@pytest.mark.parametrize("checkpoint", REAL)
def test_the_real_checkpoints_fill_exactly(tmp_path, checkpoint):
    shapes, _ = real(checkpoint)
    config = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes)).config
    module = build_without_storage(lambda: LTXVideoTransformer3DModel(**config))
    fill(module, shapes, lambda name: torch.empty(shapes[name], device="meta"), NAMES, dtype=torch.bfloat16,
         device="meta")
    assert [NAMES.back(NAMES.forward(name)) for name in shapes] == list(shapes)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model."])
@pytest.mark.parametrize("checkpoint, title", [("ltxv_2B", "LTX-Video 2B"), ("ltxv_13B", "LTX-Video 13B")])
def test_checkpoints_are_recognised_with_any_prefix_and_a_vae_beside_them(tmp_path, checkpoint, title, prefix):
    shapes, _ = real(checkpoint)
    entries = {prefix + name: shape for name, shape in shapes.items()}
    if prefix:
        entries |= {"vae.decoder.conv_in.conv.weight": [8, 8], "vae.per_channel_statistics.mean-of-means": [128]}
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", entries))
    assert base.family is FAMILY
    assert (base.title, base.key_prefix, base.stored_as, base.causal) == (title, prefix, "bf16", False)
    assert (base.text_tokens, base.text_width, base.grid.channels, base.grid.fps) == (128, 4096, 128, 25)
    base.grid.check(base.defaults.width, base.defaults.height, base.defaults.frames)


@pytest.mark.parametrize("stated, causal", [
    ({}, False), ({"causal_temporal_positioning": False}, False), ({"causal_temporal_positioning": True}, True),
    ({"causal_temporal_positioning": True, "num_attention_heads": 32, "attention_head_dim": 64,
      "positional_embedding_max_pos": [20, 2048, 2048], "positional_embedding_theta": 10000.0,
      "timestep_scale_multiplier": 1000}, True),
])
def test_the_header_says_how_time_is_counted(tmp_path, stated, causal):
    path = hollow_file(tmp_path / "x.safetensors", real("ltxv_2B")[0], metadata=header_of(**stated))
    assert open_base_model(path).causal is causal


@pytest.mark.parametrize("stated, sentence", [
    ({"rope_type": "split"}, r"is an LTX model of another kind \(rope_type is split\)"),
    ({"positional_embedding_max_pos": [20, 512, 512]}, "is an LTX model of another kind"),
    ({"num_attention_heads": 12}, "has the names of an LTX-Video model but not its shapes"),
])
def test_a_header_that_asks_for_another_model_is_refused(tmp_path, stated, sentence):
    path = hollow_file(tmp_path / "odd.safetensors", real("ltxv_2B")[0], metadata=header_of(**stated))
    with pytest.raises(ValueError, match=f"^odd.safetensors {sentence}"):
        open_base_model(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"transformer": 3}'])
def test_a_damaged_header_is_refused(tmp_path, text):
    path = hollow_file(tmp_path / "odd.safetensors", real("ltxv_2B")[0], metadata={"config": text})
    with pytest.raises(ValueError, match=r"^odd.safetensors has a damaged description in its header"):
        open_base_model(path)


@pytest.mark.parametrize("lacking", ["caption_projection", "transformer_blocks"])
def test_a_part_of_a_split_model_is_refused(tmp_path, lacking):
    shapes = {name: shape for name, shape in real("ltxv_2B")[0].items() if not name.startswith(lacking)}
    with pytest.raises(ValueError, match="or is one part of a split model"):
        open_base_model(hollow_file(tmp_path / "x.safetensors", shapes))


def test_a_model_with_sound_is_left_to_others(tmp_path):
    shapes = {"patchify_proj.weight": [4096, 128], "audio_patchify_proj.weight": [2048, 128]}
    assert FAMILY.recognise(read_header(hollow_file(tmp_path / "x.safetensors", shapes))) is None


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("stored", STORED_FORMS)
def test_every_stored_form_loads_and_equals_what_was_stored(tmp_path, stored, prefix):
    truth = write_twin(tmp_path / "x.safetensors", stored=stored, prefix=prefix, family=FAMILY)
    base = open_base_model(tmp_path / "x.safetensors")
    transformer = FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))
    got = file_tensors(FAMILY, transformer)
    assert base.title == "LTX-Video (dim 128, 2 layers)"
    assert base.stored_as == " ".join(stored.split()[:2]).removesuffix(" e5m2")
    assert got.keys() == truth.keys()
    assert all(torch.equal(got[name], truth[name]) for name in truth)
    assert not transformer.training and not any(tensor.requires_grad for tensor in transformer.parameters())


def pipeline_calls(pipeline_class, transformer_file, folder, base, features, **inputs):
    """What diffusers' pipeline asks of its transformer in three steps, and the answers."""
    (folder / "config.json").write_text(json.dumps(dict(base.config)))
    reference = LTXVideoTransformer3DModel.from_single_file(
        str(transformer_file), config=str(folder), torch_dtype=torch.float32)
    calls = []
    reference.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True)
    pipeline = pipeline_class(tokenizer=None, text_encoder=None, transformer=reference, vae=tiny_vae(),
                              scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=not base.causal))
    pipeline.set_progress_bar_config(disable=True)
    padding = 128 - features["text"].shape[1]
    text = torch.cat([features["text"], torch.randn(len(features["text"]), padding, base.text_width)], dim=1)
    mask = torch.nn.functional.pad(
        features.get("text_mask", torch.ones(features["text"].shape[:2], dtype=torch.bool)), (0, padding))
    pipeline(prompt_embeds=text, prompt_attention_mask=mask, num_inference_steps=3, guidance_scale=1.0,
             output_type="latent", generator=torch.Generator().manual_seed(2), frame_rate=25, **SIZE, **inputs)
    assert len(calls) == 3
    return calls


def tiny_vae():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        narrow = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
                  "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
        return AutoencoderKLLTXVideo(latent_channels=128, **narrow).eval()


def check_calls(calls, transformer, features, *, first_frame):
    """Our answer to each of the pipeline's questions is the pipeline's."""
    for kwargs, answer in calls:
        noisy, wanted = (tokens.transpose(1, 2).unflatten(2, LATENTS[1:]) for tokens in (kwargs["hidden_states"],
                                                                                         answer))
        timestep = kwargs["timestep"].reshape(len(noisy), -1)
        given = {}
        if first_frame:
            given["video"] = (timestep == 0).unflatten(1, LATENTS[1:])[:, None, :, :1, :1]
            assert given["video"].flatten(1).tolist() == [[True, False, False]] * len(noisy)
        levels = {"video": timestep.amax(1) / 1000.0}
        with torch.no_grad():
            got = FAMILY.predict(transformer, {"video": noisy}, levels, given, features)["video"]
        assert wanted.std() > 0.1 and got.shape == noisy.shape
        assert distance(got, wanted) < 1e-5


def test_predict_equals_the_call_of_diffusers_own_pipeline(tmp_path, twin_file, loaded):
    base, transformer = loaded
    _, _, features = conditions(base)
    if base.causal:
        image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1, -1)
        calls = pipeline_calls(LTXConditionPipeline, twin_file, tmp_path, base, features, image=image,
                               image_cond_noise_scale=0.0)
        check_calls(calls, transformer, features, first_frame=True)
        calls = pipeline_calls(LTXConditionPipeline, twin_file, tmp_path, base, features)
        return check_calls(calls, transformer, features, first_frame=False)
    calls = pipeline_calls(LTXPipeline, twin_file, tmp_path, base, features)
    check_calls(calls, transformer, features, first_frame=False)
    latents = torch.randn(2, 18, 128, generator=torch.Generator().manual_seed(4))
    calls = pipeline_calls(LTXImageToVideoPipeline, twin_file, tmp_path, base, features, latents=latents,
                           image=torch.zeros(2, 3, 64, 96))
    check_calls(calls, transformer, features, first_frame=True)


def test_the_two_kinds_of_files_answer_differently(tmp_path):
    answers = []
    for causal in (False, True):
        path = tmp_path / f"{causal}.safetensors"
        write_twin(path, family=FAMILY)
        write_tensors(path, read_tensors(path)[0], header_of(causal_temporal_positioning=causal))
        base = open_base_model(path)
        transformer = FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))
        noisy, levels, features = conditions(base)
        with torch.no_grad():
            answers.append(FAMILY.predict(transformer, noisy, levels, {}, features)["video"])
    assert distance(*answers) > 1e-3


def test_time_is_in_seconds_and_place_in_pixels(loaded):
    base, _ = loaded
    _, _, features = conditions(base)
    seconds, rows, columns = features["coordinates"][1].unflatten(1, LATENTS[1:])
    expected = [0.0, 1 / 25, 9 / 25] if base.causal else [0.0, 8 / 25, 16 / 25]
    assert seconds[:, 1, 2].tolist() == pytest.approx(expected)
    assert rows[2, :, 1].tolist() == [0, 32] and columns[1, 1].tolist() == [0, 32, 64]


def test_a_sample_is_answered_the_same_alone_and_in_a_batch(loaded):
    base, transformer = loaded
    noisy, levels, features = conditions(base)
    given = {"video": torch.zeros(2, 1, 3, 1, 1, dtype=torch.bool)}
    given["video"][1, :, 0] = True
    with torch.no_grad():
        both = FAMILY.predict(transformer, noisy, levels, given, features)["video"]
        for n, words in enumerate((5, 9)):
            own = {"text": features["text"][n:n + 1, :words], "coordinates": features["coordinates"][n:n + 1]}
            one = [{name: tensor[n:n + 1] for name, tensor in part.items()} for part in (noisy, levels, given)]
            one[2] = one[2] if n else {}
            assert distance(FAMILY.predict(transformer, *one, own)["video"][0], both[n]) < 1e-5


def test_gradients_are_the_same_with_and_without_recompute(loaded):
    base, _ = loaded
    noisy, levels, features = conditions(base)
    given = {"video": torch.tensor([True, False, False]).view(1, 1, 3, 1, 1).expand(2, 1, 3, 1, 1)}
    gradients = []
    for recompute in (False, True):
        transformer = FAMILY.load_transformer(base, dtype=torch.float32, device=torch.device("cpu"))
        transformer.requires_grad_(True)
        if recompute:
            recompute_blocks(transformer, keep_random_state=False)
        FAMILY.predict(transformer, noisy, levels, given, features)["video"].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in transformer.named_parameters()})
    assert all(distance(gradients[1][name], gradients[0][name]) < 1e-5 for name in gradients[0])
    assert all(gradient.norm() > 0 for name, gradient in gradients[0].items() if not name.endswith("to_k.bias"))


def test_bfloat16_under_autocast_stays_close(loaded):
    base, transformer = loaded
    half = FAMILY.load_transformer(base, dtype=torch.bfloat16, device=torch.device("cpu"))
    noisy, levels, features = conditions(base)
    with torch.no_grad():
        exact = FAMILY.predict(transformer, noisy, levels, {}, features)["video"]
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(FAMILY.predict(half, noisy, levels, {}, features)["video"], exact) < 0.03


@pytest.mark.parametrize("frames, share, chosen", [(3, 0.0, 0.0), (3, 0.5, 0.5), (3, 1.0, 1.0), (1, 1.0, 0.0)])
def test_the_first_frame_is_given_to_its_share_of_the_clips(loaded, frames, share, chosen):
    given = FAMILY.given(loaded[0], {"video": torch.zeros(2000, 128, frames, 1, 1)}, share, generator(0, "given"))
    if not chosen:
        assert given == {}
        return
    mask = given["video"]
    assert mask.dtype == torch.bool and mask.shape == (2000, 1, frames, 1, 1) and not mask[:, :, 1:].any()
    assert mask[:, :, 0].float().mean().item() == pytest.approx(chosen, abs=0.05)


@pytest.mark.parametrize("recipe, objective", [
    (RecipeConfig(shift=3.0), FlowMatching(shift=3.0)),
    (RecipeConfig(timesteps="uniform"), FlowMatching(timesteps="uniform", shift=1.0)),
    (RecipeConfig(timesteps="uniform", shift=2.0), FlowMatching(timesteps="uniform", shift=2.0)),
])
def test_a_recipe_that_asks_for_levels_gets_them(loaded, recipe, objective):
    assert FAMILY.objective(loaded[0], recipe) == objective


def test_levels_follow_the_models_own_distribution_by_default(loaded):
    objective = FAMILY.objective(loaded[0], RecipeConfig(logit_mean=0.2, logit_std=0.9))
    assert isinstance(objective, ShiftedLogitNormal)
    assert (objective.logit_mean, objective.logit_std) == (0.2, 0.9)
    assert objective.tokens(torch.Size([2, 128, 7, 16, 24])) == 7 * 16 * 24


@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (9, 2), (17, 3)])
def test_latents_are_kept_as_the_host_gives_them(loaded, frames, latent_frames):
    base, _ = loaded
    vae, clip = StandInVae(base.grid), torch.rand(frames, 64, 96, 3)
    video = FAMILY.prepare_clip(base, DecodedClip(frames=clip), Encoders(clip=vae, caption=None))["video"]
    assert torch.equal(video, vae.encode(clip)) and video.is_contiguous()
    assert video.shape == (128, latent_frames, 2, 3) == base.grid.latent_shape(96, 64, frames)


@pytest.mark.parametrize("shape", [(16, 3, 8, 12), (128, 3, 2, 3), (128, 2, 4, 6), (128, 2, 3)])
def test_another_models_vae_is_named_by_its_shape(loaded, shape):
    encoders = Encoders(clip=Given(torch.zeros(shape)), caption=None)
    with pytest.raises(ValueError) as caught:
        FAMILY.prepare_clip(loaded[0], DecodedClip(frames=torch.zeros(9, 64, 96, 3)), encoders)
    assert str(caught.value) == (
        f"This VAE gives latents of shape {list(shape)} for 9 frames of 96 x 64; LTX-Video needs [128, 2, 2, 3]: "
        "choose the VAE of an LTX-Video model.")


@pytest.mark.parametrize("shape", [(77, 768), (1, 128, 4096), (4096,), (0, 4096)])
def test_another_models_text_encoder_is_named_by_its_shape(loaded, shape):
    with pytest.raises(ValueError) as caught:
        next(FAMILY.prepare_captions(loaded[0], [""], Given(torch.zeros(shape)), torch.device("cpu")))
    assert str(caught.value) == (
        f"This text encoder gives features of shape {list(shape)}; LTX-Video needs (tokens, 4096): choose t5xxl, with "
        "the type ltxv.")


@pytest.mark.parametrize("words, mask", [((3,), None), ((4, 4), None), ((3, 200), [3, 200])])
def test_a_batch_says_which_of_its_text_is_padding(loaded, words, mask):
    base, _ = loaded
    texts = [torch.randn(count, 4096).half() for count in words]
    streams, features = FAMILY.collate(base, [{"video": torch.full((128, 1, 2, 2), float(n)), "text": text}
                                              for n, text in enumerate(texts)])
    assert streams["video"].shape == (len(words), 128, 1, 2, 2) and streams["video"][-1].eq(len(words) - 1).all()
    assert features["text"].shape == (len(words), max(words), 4096) and features["text"].dtype == torch.float32
    assert ("text_mask" in features) == bool(mask)
    for n, text in enumerate(texts):
        assert torch.equal(features["text"][n, :len(text)], text.float())
        if mask:
            assert features["text_mask"][n].nonzero().flatten().tolist() == list(range(mask[n]))


def test_what_the_stand_in_encoders_give_can_be_prepared_and_batched(loaded):
    base, _ = loaded
    encoders = Encoders(clip=StandInVae(base.grid), caption=StandInTextEncoder(base.text_width))
    texts = list(FAMILY.prepare_captions(base, ["", "a red ball"], encoders.caption, torch.device("cpu")))
    clip = FAMILY.prepare_clip(base, DecodedClip(frames=torch.rand(9, 32, 32, 3)), encoders)
    streams, features = FAMILY.collate(base, [clip | text for text in texts])
    assert streams["video"].shape == (2, 128, 2, 1, 1) and features["text"].shape == (2, 3, 4096)


def test_the_twin_is_the_same_each_time_and_its_layers_matter():
    state = torch.random.get_rng_state()
    (config, first), (_, second) = FAMILY.twin(), FAMILY.twin()
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(first, LTXVideoTransformer3DModel) and len(FAMILY.blocks(first)) == config["num_layers"] == 2
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.std() > 0.01 for parameter in first.parameters())


def test_adapter_targets_are_modules_of_every_block():
    presets = FAMILY.adapter_targets(None, {"video"})
    names = [NAMES.back(name) for name, module in FAMILY.twin()[1].named_modules()
             if isinstance(module, torch.nn.Linear)]
    assert list(presets) == ["attention", "attention and feed-forward"]
    for preset, per_block in (("attention", 8), ("attention and feed-forward", 10)):
        endings = tuple(f".{ending}" for ending in presets[preset])
        found = [name for name in names if name.endswith(endings)]
        assert len(found) == 2 * per_block and all(name.startswith("transformer_blocks.") for name in found)
