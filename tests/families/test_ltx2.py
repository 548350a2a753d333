"""LTX-2: recognised from its header, filled exactly, equal to its pipeline and to the official modulation."""

import copy

import pytest
import torch
from checkpoints import hollow_file, real
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from ltx2_twin import FAMILY, header_of, write_ltx2_twin

from video_lora_studio.loaders.module_weights import build_without_storage, fill
from video_lora_studio.loaders.safetensors_file import read_header, read_tensors, write_tensors
from video_lora_studio.training.families import file_tensors, open_base_model
from video_lora_studio.training.families.ltx2 import CONNECTORS, NAMES, connect, infer_config, load_connectors
from video_lora_studio.training.memory.recompute import recompute_blocks

CPU = torch.device("cpu")
PREFIX = "model.diffusion_model."
KINDS = ("2.0", "2.3")
BESIDE = {
    "vae.encoder.conv_in.conv.weight": torch.ones(3), "audio_vae.decoder.conv_in.conv.weight": torch.ones(3),
    "vocoder.conv_pre.weight": torch.ones(3), "text_embedding_projection.aggregate_embed.weight": torch.ones(3),
}


def full(config):
    """A configuration with what the class takes where nothing is said."""
    shallow = build_without_storage(lambda: LTX2VideoTransformer3DModel(**config | {"num_layers": 1}))
    stated = {"num_layers": config["num_layers"], "vae_scale_factors": (8, 32, 32)}
    return {name: value for name, value in shallow.config.items() if not name.startswith("_")} | stated


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "tiny_ltx2.safetensors"
    write_ltx2_twin(path, request.param, beside=BESIDE)
    base = open_base_model(path)
    return base, FAMILY.load_transformer(base, dtype=torch.float32, device=CPU)


def conditions(base, batch=2, frames=3, steps=17):
    """Streams of `batch` samples and what conditions them, all random."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    widths = (120, 120) if base.config["use_prompt_embeddings"] else (128, 64)
    samples = [{"video": draw(128, frames, 4, 6), "audio": draw(8, steps, 16), "text": draw(128, widths[0]),
                "text_audio": draw(128, widths[1])} for _ in range(batch)]
    return FAMILY.collate(base, samples)


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("checkpoint, kind, title, width", [
    ("ltx-2_19B", "2.0", "LTX-2 19B", 3840), ("ltx-2.3_22B", "2.3", "LTX-2.3 22B", 6144),
])
def test_the_configuration_of_real_checkpoints_is_the_official_one(
        tmp_path, checkpoint, kind, title, width, lost):
    shapes, official = real(checkpoint)
    metadata = None if lost else header_of(official, kind)
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes, PREFIX, metadata=metadata))
    assert (base.title, base.key_prefix, base.stored_as, base.text_width) == (title, PREFIX, "bf16", width)
    assert base.streams == ("video", "audio") and base.family is FAMILY and base.identity in base.caption_form
    base.grid.check(base.defaults.width, base.defaults.height, base.defaults.frames)
    assert full(base.config) == full(official)


@pytest.mark.parametrize("checkpoint", ["ltx-2_19B", "ltx-2.3_22B"])
def test_the_real_checkpoints_fill_exactly(tmp_path, checkpoint):
    shapes, _ = real(checkpoint)
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes, PREFIX))
    module = build_without_storage(lambda: LTX2VideoTransformer3DModel(**base.config))
    own = {name: shape for name, shape in shapes.items() if not name.startswith(CONNECTORS)}
    fill(module, own, lambda name: torch.empty(shapes[name], device="meta"), NAMES, dtype=torch.bfloat16, device="meta")
    assert [NAMES.back(NAMES.forward(name)) for name in shapes] == list(shapes)


def test_the_real_connectors_fill_exactly(tmp_path):
    for checkpoint, heads in (("ltx-2_19B", (30, 30)), ("ltx-2.3_22B", (32, 32))):
        shapes, official = real(checkpoint)
        header = header_of(official, connector_num_attention_heads=30, audio_connector_num_attention_heads=30)
        base = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes, PREFIX, metadata=header))
        connectors = load_connectors(base, torch.bfloat16, torch.device("meta"))
        assert tuple(connectors[part].num_attention_heads for part in CONNECTORS) == heads
        assert sum(parameter.numel() for parameter in connectors.parameters()) == sum(
            torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(CONNECTORS))


@pytest.mark.parametrize("prefix", ["", PREFIX, "diffusion_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_loads_and_what_lies_beside_is_left_alone(tmp_path, kind, prefix):
    truth = write_ltx2_twin(tmp_path / "x.safetensors", kind, prefix=prefix, beside=BESIDE)
    base = open_base_model(tmp_path / "x.safetensors")
    transformer = FAMILY.load_transformer(base, dtype=torch.float32, device=CPU)
    got = file_tensors(FAMILY, transformer)
    assert got.keys() == {name for name in truth if not name.startswith(CONNECTORS)}
    assert all(torch.equal(got[name], truth[name]) for name in got)
    assert not transformer.training and not any(tensor.requires_grad for tensor in transformer.parameters())
    connectors = file_tensors(FAMILY, load_connectors(base, torch.float32, CPU))
    assert all(torch.equal(connectors[name], truth[name]) for name in connectors)
    assert got.keys() | connectors.keys() == truth.keys()


def test_lightricks_own_fp8_files_load(tmp_path):
    """Scaled matrices in the blocks, with `.weight_scale` and `.input_scale` and no mark of the format."""
    write_ltx2_twin(tmp_path / "plain.safetensors")
    tensors, metadata = read_tensors(tmp_path / "plain.safetensors")
    truth = {}
    for name, weight in list(tensors.items()):
        if "transformer_blocks" in name and weight.ndim == 2 and name.endswith(".weight"):
            scale = weight.abs().max() / 448
            tensors |= {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale,
                        f"{name.removesuffix('weight')}input_scale": torch.tensor(1.0)}
            truth[name.removeprefix(PREFIX)] = tensors[name].float() * scale
    write_tensors(tmp_path / "fp8.safetensors", tensors, metadata)
    base = open_base_model(tmp_path / "fp8.safetensors")
    got = file_tensors(FAMILY, FAMILY.load_transformer(base, dtype=torch.float32, device=CPU))
    assert base.stored_as == "fp8 scaled" and len(truth) == 2 * 28
    assert all(torch.equal(got[name], weight) for name, weight in truth.items())


def test_the_twin_needs_no_header_but_a_header_is_heeded(tmp_path):
    for kind in KINDS:
        config, twin = FAMILY.twin(kind)
        write_tensors(tmp_path / "x.safetensors", file_tensors(FAMILY, twin), {})
        assert full(open_base_model(tmp_path / "x.safetensors").config) == full(config)
    write_ltx2_twin(tmp_path / "y.safetensors", av_ca_timestep_scale_multiplier=1.0, num_attention_heads=16)
    config = open_base_model(tmp_path / "y.safetensors").config
    assert (config["cross_attn_timestep_scale_multiplier"], config["attention_head_dim"]) == (1.0, 8)


@pytest.mark.parametrize("kind, without, changes, sentence", [
    ("2.3", CONNECTORS, {}, "x.safetensors is LTX-2.3 without video_embeddings_connector and "
     "audio_embeddings_connector, which captions go through: choose a file of the model that holds its connectors."),
    ("2.0", CONNECTORS[1:], {}, "x.safetensors is LTX-2 without audio_embeddings_connector, which captions"),
    ("2.0", ("transformer_blocks.0.ff.net.0.proj.bias", "transformer_blocks.1.ff.net.0.proj.bias"), {},
     "x.safetensors is LTX-2.5, which cannot be trained so far"),
    ("2.0", (), {"causal_temporal_positioning": False}, "x.safetensors is an LTX-2 model that counts time in another"),
    ("2.0", ("transformer_blocks.0",), {}, "x.safetensors has the names of an LTX-2 model but not its shapes"),
    ("2.0", (), {"num_attention_heads": 24}, "x.safetensors has the names of an LTX-2 model but not its shapes"),
])
def test_files_that_cannot_be_trained_are_refused(tmp_path, kind, without, changes, sentence):
    write_ltx2_twin(tmp_path / "x.safetensors", kind, without=without, **changes)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        open_base_model(tmp_path / "x.safetensors")


def test_predict_equals_the_call_of_diffusers_own_pipeline(loaded):
    base, transformer = loaded
    newer = not base.config["use_prompt_embeddings"]
    tensors = file_tensors(FAMILY, FAMILY.twin("2.3" if newer else "2.0")[1])
    reference = LTX2VideoTransformer3DModel(**base.config)
    reference.load_state_dict({NAMES.forward(name): tensor for name, tensor in tensors.items()
                               if not name.startswith(CONNECTORS)})
    connectors = LTX2TextConnectors(
        caption_channels=120, text_proj_in_factor=2, rope_type="split", per_modality_projections=newer,
        video_hidden_dim=128, audio_hidden_dim=64,
        **{f"{part}_connector_num_attention_heads": 32 if newer else 30 for part in ("video", "audio")},
        video_connector_attention_head_dim=4, audio_connector_attention_head_dim=2 if newer else 4,
        video_connector_num_layers=1, audio_connector_num_layers=1, video_gated_attn=newer, audio_gated_attn=newer)
    connectors.load_state_dict({
        NAMES.forward(name).replace("_embeddings", "", 1): tensor for name, tensor in tensors.items()
        if name.startswith(CONNECTORS)}, strict=False)
    before, calls = [], []
    for part in (connectors.video_connector, connectors.audio_connector):
        part.register_forward_pre_hook(lambda module, args: before.append(args[0]))
    reference.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output)), with_kwargs=True)
    pipeline = LTX2Pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, None, connectors, reference,
                            None)
    pipeline.set_progress_bar_config(disable=True)
    prompt = torch.randn(2, 1024, 240, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(2, 1024, dtype=torch.int64)
    mask[0, -7:] = mask[1, -30:] = 1
    with pytest.raises(AttributeError, match="latents_mean"):  # it has no VAE to bring its latents back with
        pipeline(prompt_embeds=prompt, prompt_attention_mask=mask, height=64, width=96, num_frames=17,
                 num_inference_steps=3, guidance_scale=1.0, audio_guidance_scale=1.0, stg_scale=0.0,
                 audio_stg_scale=0.0, modality_scale=1.0, audio_modality_scale=1.0, output_type="latent",
                 generator=torch.Generator().manual_seed(2))
    host = [torch.cat([part[row, -int(mask[row].sum()):] for part in (before if newer else before[:1])], 1)
            for row in range(2)]
    own = load_connectors(base, torch.float32, CPU)
    samples = [dict(zip(("text", "text_audio"), connect(own, text), strict=True)) for text in host]
    _, features = FAMILY.collate(base, samples)
    assert len(calls) == 3
    for kwargs, answers in calls:
        assert distance(features["text"], kwargs["encoder_hidden_states"]) < 1e-5
        assert distance(features["text_audio"], kwargs["audio_encoder_hidden_states"]) < 1e-5
        steps = kwargs["audio_num_frames"]
        noisy = {"video": kwargs["hidden_states"].transpose(1, 2).reshape(2, 128, 3, 2, 3),
                 "audio": kwargs["audio_hidden_states"].reshape(2, steps, 8, 16).transpose(1, 2)}
        level = kwargs["timestep"] / 1000.0
        with torch.no_grad():
            got = FAMILY.predict(transformer, noisy, {"video": level, "audio": level}, {}, features)
        assert distance(got["video"].flatten(2).transpose(1, 2), answers[0]) < 1e-5
        assert distance(got["audio"].transpose(1, 2).flatten(2), answers[1]) < 1e-5


def official(transformer, noisy, levels, given, features):
    """The official modulation, by hand around the blocks.

    With own timesteps t (a given token's is 0), own sigma s and the other stream's sigma o, all times 1000: timestep
    embeddings and the output's scale and shift from t; scale and shift of what joins the streams from t; its gate from
    o times the ratio of the two multipliers; the text's scale and shift (2.3) from s.
    """
    model, config, (B, _, F, H, W) = transformer, transformer.config, noisy["video"].shape
    x = model.proj_in(noisy["video"].permute(0, 2, 3, 4, 1).reshape(B, F * H * W, 128))
    y = model.audio_proj_in(noisy["audio"].permute(0, 2, 1, 3).reshape(B, -1, 128))
    s, o = levels["video"] * 1000.0, levels["audio"] * 1000.0
    hidden = given["video"].expand(B, 1, F, H, W).reshape(B, -1) if given else torch.zeros(B, F * H * W).bool()
    t, u = s[:, None].repeat(1, F * H * W).masked_fill(hidden, 0.0), o[:, None].repeat(1, y.shape[1])
    ratio = config.cross_attn_timestep_scale_multiplier / config.timestep_scale_multiplier

    def embedded(module, time, part=0):
        return module(time.flatten(), batch_size=B, hidden_dtype=x.dtype)[part].view(B, time.numel() // B, -1)

    where = model.rope.prepare_video_coords(B, F, H, W, CPU, fps=24.0)
    when = model.audio_rope.prepare_audio_coords(B, y.shape[1], CPU)
    texts = [features["text"], features["text_audio"]]
    if config.use_prompt_embeddings:
        texts = [project(text) for project, text in
                 zip((model.caption_projection, model.audio_caption_projection), texts, strict=True)]
    prompts = [embedded(model.prompt_adaln, s), embedded(model.audio_prompt_adaln, o)] if config.cross_attn_mod else []
    for block in model.transformer_blocks:
        x, y = block(
            x, y, *texts, embedded(model.time_embed, t), embedded(model.audio_time_embed, u),
            embedded(model.av_cross_attn_video_scale_shift, t), embedded(model.av_cross_attn_audio_scale_shift, u),
            embedded(model.av_cross_attn_video_a2v_gate, o * ratio),
            embedded(model.av_cross_attn_audio_v2a_gate, s * ratio), *(prompts or (None, None)),
            video_rotary_emb=model.rope(where), audio_rotary_emb=model.audio_rope(when),
            ca_video_rotary_emb=model.cross_attn_rope(where[:, 0:1]),
            ca_audio_rotary_emb=model.cross_attn_audio_rope(when[:, 0:1]))
    shift, scale = (model.scale_shift_table + embedded(model.time_embed, t, 1)[:, :, None]).unbind(2)
    video = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
    shift, scale = (model.audio_scale_shift_table + embedded(model.audio_time_embed, u, 1)[:, :, None]).unbind(2)
    audio = model.audio_proj_out(model.audio_norm_out(y) * (1 + scale) + shift)
    return {"video": video.reshape(B, F, H, W, 128).permute(0, 4, 1, 2, 3),
            "audio": audio.reshape(B, -1, 8, 16).permute(0, 2, 1, 3)}


def without_hooks(transformer):
    plain = copy.deepcopy(transformer)
    for module in plain.modules():
        module._forward_pre_hooks.clear()
    return plain


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("levels", [((0.3, 0.9), (0.8, 0.15)), ((0.5, 0.5), (0.5, 0.5))])
def test_modulation_is_the_official_one_where_levels_differ_and_frames_are_given(loaded, levels, share):
    base, transformer = loaded
    noisy, features = conditions(base)
    levels = {name: torch.tensor(level) for name, level in zip(("video", "audio"), levels, strict=True)}
    given = FAMILY.given(base, noisy, share, torch.Generator().manual_seed(0))
    assert bool(given) == bool(share)
    plain = without_hooks(transformer)
    with torch.no_grad():
        want = official(plain, noisy, levels, given, features)
        for model in (transformer, copy.deepcopy(transformer)):
            got = FAMILY.predict(model, noisy, levels, given, features)
            assert max(distance(got[name], want[name]) for name in want) < 1e-6
        if share or levels["video"][0] != levels["audio"][0]:
            off = FAMILY.predict(plain, noisy, levels, given, features)
            assert max(distance(off[name], want[name]) for name in want) > 1e-5


def test_one_stream_alone_does_not_hear_the_other(loaded):
    base, transformer = loaded
    noisy, features = conditions(base)
    levels = {"video": torch.tensor([0.3, 0.9]), "audio": torch.tensor([0.8, 0.2])}
    given = FAMILY.given(base, noisy, 1.0, torch.Generator())
    with torch.no_grad():
        joined = FAMILY.predict(transformer, noisy, levels, given, features)
        for name, own in (("video", "text"), ("audio", "text_audio")):
            alone = FAMILY.predict(transformer, {name: noisy[name]}, levels, given, features)
            foreign = features | {key: features[key] + 1 for key in ("text", "text_audio") if key != own}
            again = FAMILY.predict(transformer, {name: noisy[name]}, {name: levels[name]}, given, foreign)
            assert list(alone) == [name] and torch.equal(alone[name], again[name])
            assert alone[name].shape == noisy[name].shape and distance(alone[name], joined[name]) > 1e-4


def test_a_sample_is_answered_the_same_alone_and_in_a_batch(loaded):
    base, transformer = loaded
    noisy, _ = conditions(base)
    generator = torch.Generator().manual_seed(6)
    texts = [{name: torch.randn(length, width, generator=generator) for name, width in
              zip(("text", "text_audio"), (120, 120) if base.config["use_prompt_embeddings"] else (128, 64),
                  strict=True)} for length in (128, 256)]
    samples = [{name: stream[n] for name, stream in noisy.items()} | texts[n] for n in range(2)]
    levels = {"video": torch.tensor([0.3, 0.9]), "audio": torch.tensor([0.8, 0.2])}
    with torch.no_grad():
        clean, features = FAMILY.collate(base, samples)
        both = FAMILY.predict(transformer, clean, levels, {}, features)
        for n in range(2):
            clean, features = FAMILY.collate(base, samples[n:n + 1])
            one = FAMILY.predict(transformer, clean, {name: level[n:n + 1] for name, level in levels.items()}, {},
                                 features)
            assert max(distance(one[name][0], both[name][n]) for name in one) < 1e-5


@pytest.mark.parametrize("streams", [("video", "audio"), ("video",), ("audio",)])
def test_gradients_are_the_same_with_and_without_recompute(loaded, streams):
    base, transformer = loaded
    noisy, features = conditions(base)
    noisy = {name: noisy[name] for name in streams}
    levels = {name: torch.tensor([0.3, 0.9]) for name in streams}
    given = FAMILY.given(base, noisy, 1.0, torch.Generator())
    gradients = []
    for recompute in (False, True):
        model = copy.deepcopy(transformer)
        ending = "attn1.to_q.weight" if streams != ("audio",) else "audio_attn1.to_q.weight"
        weights = [weight.requires_grad_() for name, weight in model.named_parameters() if name.endswith(ending)]
        if recompute:
            recompute_blocks(model, keep_random_state=False)
        answer = FAMILY.predict(model, noisy, levels, given, features)
        sum(stream.square().mean() for stream in answer.values()).backward()
        gradients.append([weight.grad for weight in weights if weight.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) >= 2
    assert all(distance(a, b) < 1e-5 and a.norm() > 0 for a, b in zip(*gradients, strict=True))


def test_a_gradient_is_the_slope_of_the_loss(loaded):
    base, transformer = loaded
    noisy, features = conditions(base)
    noisy, features = ({name: value.double() for name, value in part.items()} for part in (noisy, features))
    levels = {"video": torch.tensor([0.3, 0.9]).double(), "audio": torch.tensor([0.8, 0.2]).double()}
    model = copy.deepcopy(transformer).double()
    weight = model.transformer_blocks[0].audio_to_video_attn.to_k.weight.requires_grad_()

    def loss():
        return sum(stream.square().mean() for stream in FAMILY.predict(model, noisy, levels, {}, features).values())

    loss().backward()
    step = 1e-2 * weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += step
        above = loss()
        weight -= 2 * step
        slope = (above - loss()) / 2e-2
    assert slope.item() == pytest.approx(weight.grad.norm().item(), rel=2e-3)


def test_bfloat16_under_autocast_stays_close(loaded):
    base, exact = loaded
    transformer = FAMILY.load_transformer(base, dtype=torch.bfloat16, device=CPU)
    noisy, features = conditions(base)
    levels = {"video": torch.tensor([0.3, 0.9]), "audio": torch.tensor([0.8, 0.2])}
    given = FAMILY.given(base, noisy, 1.0, torch.Generator())
    with torch.no_grad():
        want = FAMILY.predict(exact, noisy, levels, given, features)
        with torch.autocast("cpu", torch.bfloat16):
            got = FAMILY.predict(transformer, noisy, levels, given, features)
    assert all(distance(got[name].float(), want[name]) < 0.05 for name in want)


@pytest.mark.parametrize("streams, default, modules", [
    (("video",), "attention", ["attn1", "attn2"]),
    (("audio",), "attention and feed-forward", ["audio_attn1", "audio_attn2", "audio_ff"]),
    (("video", "audio"), "attention",
     ["attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"]),
])
def test_only_what_serves_the_trained_streams_is_adapted(loaded, streams, default, modules):
    base, transformer = loaded
    presets = FAMILY.adapter_targets(base, streams)
    names = [NAMES.back(name) for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    found = [name for name in names if f".{name}".endswith(tuple(f".{ending}" for ending in presets[default]))]
    assert next(iter(presets)) == default and len(presets) == 2
    assert {name.split(".")[2] for name in found} == set(modules)
    assert len(found) == 2 * sum(2 if module.endswith("ff") else 4 for module in modules)


def test_the_twin_is_the_same_each_time_and_its_layers_matter():
    state = torch.random.get_rng_state()
    (config, first), (_, second) = FAMILY.twin(), FAMILY.twin()
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(first, LTX2VideoTransformer3DModel) and len(FAMILY.blocks(first)) == config["num_layers"] == 2
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.std() > 0.005 for parameter in first.parameters())


def test_infer_config_of_a_headerless_real_file_keeps_the_official_multipliers(tmp_path):
    header = read_header(hollow_file(tmp_path / "x.safetensors", real("ltx-2_19B")[0], PREFIX))
    assert infer_config(header, PREFIX)["cross_attn_timestep_scale_multiplier"] == 1000
