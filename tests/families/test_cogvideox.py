"""CogVideoX: recognised from its header, filled exactly, and equal to its own pipelines."""

import pytest
import torch
from checkpoints import DATA, hollow_file, real
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from tiny import StandInVae, write_twin

from video_lora_studio.loaders.module_weights import build_without_storage, fill
from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.training.config import RecipeConfig
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model
from video_lora_studio.training.families.cogvideox import NAMES
from video_lora_studio.training.families.model_family import DecodedClip, Encoders
from video_lora_studio.training.objective import VPrediction, mean_squared_error, timestep_of

REAL = sorted(path.stem for path in DATA.glob("cogvideox_*.json"))
KINDS = ("2b", "5b", "5b I2V", "1.5", "1.5 I2V")
FAMILY = next(family for family in FAMILIES if family.name == "CogVideoX")
CPU = torch.device("cpu")
SCHEDULE = {"beta_schedule": "scaled_linear", "clip_sample": False, "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


class Encoder:
    """Gives what it is told to give."""

    identity = "given"

    def __init__(self, output):
        self.output = output

    def encode(self, _):
        return self.output


class RealVae:
    """diffusers' own VAE, tiny, in the host's shapes."""

    identity = "real"

    def __init__(self, **config):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.vae = AutoencoderKLCogVideoX(
                block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1, latent_channels=16, **config,
            ).eval()

    @torch.no_grad()
    def encode(self, frames):
        return self.vae.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1).latent_dist.mode()[0]


def full(config):
    """A configuration with what the class takes where nothing is said; sizes that cost memory left out."""
    small = {"num_layers": 1, "sample_width": 2, "sample_height": 2, "sample_frames": 1}
    shallow = build_without_storage(lambda: CogVideoXTransformer3DModel(**config | small))
    return {name: value for name, value in shallow.config.items() if not name.startswith("_")} | {
        name: config[name] for name in small}


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def loaded(path, kind):
    write_twin(path, family=FAMILY, kind=kind)
    base = open_base_model(path)
    return base, FAMILY.load_transformer(base, dtype=torch.float32, device=CPU)


def captions(count, width=4096, seed=3):
    return torch.randn(count, 226, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("checkpoint, title", [
    ("cogvideox_2b", "CogVideoX 2b T2V"), ("cogvideox_5b", "CogVideoX 5b T2V"),
    ("cogvideox_5b_i2v", "CogVideoX 5b I2V"), ("cogvideox_1.5_5b", "CogVideoX 1.5 5b T2V"),
    ("cogvideox_1.5_5b_i2v", "CogVideoX 1.5 5b I2V"),
])
@pytest.mark.parametrize("prefix, forward", [
    ("", False), ("model.diffusion_model.", False), ("diffusion_model.", False), ("", True),
])
def test_models_are_recognised_with_any_prefix_and_by_both_sets_of_names(tmp_path, checkpoint, title, prefix, forward):
    shapes, official = real(checkpoint)
    if forward:
        shapes = {NAMES.forward(name): shape for name, shape in shapes.items()}
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes, prefix))
    assert (base.family, base.title, base.key_prefix, base.stored_as) == (FAMILY, title, prefix, "bf16")
    assert (base.text_tokens, base.text_width, base.grid.channels) == (226, 4096, 16)
    assert base.grid.fps == (16 if "1.5" in checkpoint else 8)
    suits = base.defaults
    base.grid.check(suits.width, suits.height, suits.frames)
    assert (suits.width, suits.height, suits.rank, suits.learning_rate, suits.steps) == (720, 480, 64, 1e-4, 2000)
    assert suits.frames == (45 if "1.5" in checkpoint else 49)
    shift = FAMILY.objective(base, RecipeConfig()).snr_shift
    assert shift == (3.0 if checkpoint == "cogvideox_2b" else 1.0)
    assert full(base.config) == full(official)


@pytest.mark.parametrize("checkpoint", REAL)
def test_the_configuration_of_real_checkpoints_is_the_official_one(tmp_path, checkpoint):
    shapes, official = real(checkpoint)
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes))
    assert full(base.config) == full(official)


@pytest.mark.parametrize("checkpoint", REAL)
def test_the_real_checkpoints_fill_exactly(tmp_path, checkpoint):
    shapes, _ = real(checkpoint)
    config = open_base_model(hollow_file(tmp_path / "x.safetensors", shapes)).config
    module = build_without_storage(lambda: CogVideoXTransformer3DModel(**config))
    fill(module, shapes, lambda name: torch.empty(shapes[name], device="meta"), NAMES, dtype=torch.bfloat16,
         device="meta")
    assert sum(tensor.numel() for tensor in module.state_dict().values()) == sum(
        torch.Size(shape).numel() for shape in shapes.values())
    assert [NAMES.back(NAMES.forward(name)) for name in shapes] == list(shapes)


@pytest.mark.parametrize("checkpoint, channels_in", [
    ("cogvideox_5b", 33), ("cogvideox_5b", 32), ("cogvideox_1.5_5b", 48), ("cogvideox_2b", 32),
])
def test_models_that_take_other_inputs_are_named_and_refused(tmp_path, checkpoint, channels_in):
    shapes, _ = real(checkpoint)
    dim, *patch = shapes["patch_embed.proj.weight"]
    shapes["patch_embed.proj.weight"] = [dim, channels_in, 2, 2] if len(patch) > 1 else [dim, channels_in * 8]
    with pytest.raises(ValueError, match=rf"^x.safetensors is a CogVideoX model of another kind \({channels_in} ch"):
        open_base_model(hollow_file(tmp_path / "x.safetensors", shapes))


@pytest.mark.parametrize("change", [
    lambda shapes: shapes.pop("patch_embed.proj.weight"),
    lambda shapes: shapes.update({"patch_embed.proj.weight": [3072, 16, 4, 4]}),
    lambda shapes: shapes.update({"patch_embed.pos_embedding": [1, 1000, 3072]}),
])
def test_a_part_of_a_split_model_is_refused(tmp_path, change):
    shapes, _ = real("cogvideox_5b_i2v")
    change(shapes)
    with pytest.raises(ValueError, match="or is one part of a split model"):
        open_base_model(hollow_file(tmp_path / "x.safetensors", shapes))


def test_the_model_with_a_learnt_table_takes_one_picture_size(tmp_path):
    base = open_base_model(hollow_file(tmp_path / "x.safetensors", real("cogvideox_5b_i2v")[0]))
    base.grid.check(720, 480, 1)
    with pytest.raises(ValueError, match="^Size 640 x 480 does not fit this model: it knows 720 x 480 only.$"):
        base.grid.check(640, 480, 49)


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_is_the_same_each_time_and_loads_from_its_file_in_both_sets_of_names(tmp_path, kind):
    (config, twin), (_, again) = FAMILY.twin(kind), FAMILY.twin(kind)
    assert all(torch.equal(one, other) for one, other in zip(twin.parameters(), again.parameters(), strict=True))
    base, transformer = loaded(tmp_path / "x.safetensors", kind)
    assert base.config == config and not any(tensor.requires_grad for tensor in transformer.parameters())
    own = {name: tensor.contiguous() for name, tensor in twin.state_dict().items()}
    write_tensors(tmp_path / "y.safetensors", own, {})
    other = FAMILY.load_transformer(open_base_model(tmp_path / "y.safetensors"), dtype=torch.float32, device=CPU)
    for name, tensor in own.items():
        assert torch.equal(transformer.state_dict()[name], tensor) and torch.equal(other.state_dict()[name], tensor)
    assert len(FAMILY.blocks(transformer)) == 2


@pytest.mark.parametrize("stored", ["bf16", "fp16", "fp8", "fp8 scaled old", "fp8 scaled new", "fp8 scaled header"])
def test_stored_forms_load_and_equal_what_was_stored(tmp_path, stored):
    truth = write_twin(tmp_path / "x.safetensors", stored=stored, family=FAMILY, kind="1.5")
    base = open_base_model(tmp_path / "x.safetensors")
    got = file_tensors(FAMILY, FAMILY.load_transformer(base, dtype=torch.float32, device=CPU))
    assert base.stored_as == " ".join(stored.split()[:2]) and got.keys() == truth.keys()
    assert all(torch.equal(got[name], truth[name]) for name in truth)


def test_a_file_with_other_tensors_is_refused(tmp_path):
    write_twin(tmp_path / "x.safetensors", family=FAMILY, kind="1.5")
    tensors, _ = read_tensors(tmp_path / "x.safetensors")
    del tensors["blocks.1.ff_out.bias"]
    write_tensors(tmp_path / "odd.safetensors", tensors, {})
    base = open_base_model(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="it lacks blocks.1.ff_out.bias"):
        FAMILY.load_transformer(base, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("kind, size, frames", [
    ("2b", (720, 480), 1), ("2b", (64, 96), 9), ("5b", (64, 96), 9), ("5b", (80, 64), 5), ("5b I2V", (48, 32), 49),
    ("5b I2V", (48, 32), 9), ("1.5", (64, 96), 13), ("1.5", (80, 64), 9), ("1.5 I2V", (64, 96), 13),
    ("1.5 I2V", (80, 64), 9), ("1.5 I2V", (80, 64), 1),
])
def test_predict_equals_the_call_of_diffusers_own_pipeline(tmp_path, kind, size, frames):
    """The clip goes through VAE, prepare_clip and collate here, and only its noisy latents come from the pipeline."""
    (width, height), (base, transformer) = size, loaded(tmp_path / "x.safetensors", kind)
    _, reference = FAMILY.twin(kind)
    calls, text = [], captions(1)
    reference.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True)
    vae = RealVae(scaling_factor=1.15258426 if kind == "2b" else 0.7, invert_scale_latents=kind.startswith("1.5"))
    scheduler = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=3.0 if kind == "2b" else 1.0)
    parts = {"tokenizer": None, "text_encoder": None, "vae": vae.vae, "transformer": reference, "scheduler": scheduler}
    clip = torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))
    asked = {"prompt_embeds": text, "height": height, "width": width, "num_frames": frames, "num_inference_steps": 3,
             "guidance_scale": 1.0, "output_type": "latent", "generator": torch.Generator().manual_seed(2)}
    if kind.endswith("I2V"):
        vae.vae.encode, encode = (lambda frames: _Mode(encode(frames))), vae.vae.encode
        pipeline = CogVideoXImageToVideoPipeline(**parts)
        asked["image"] = clip[0].permute(2, 0, 1)[None]
    else:
        pipeline = CogVideoXPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(**asked)
    sample = FAMILY.prepare_clip(base, DecodedClip(frames=clip), Encoders(clip=vae, caption=None))
    clean, features = FAMILY.collate(base, [sample | {"text": text[0]}])
    assert [kwargs["timestep"].item() for kwargs, _ in calls] == [999, 666, 332]
    for kwargs, answer in calls:
        noisy = {"video": kwargs["hidden_states"][:, :, :16].transpose(1, 2)}
        assert noisy["video"].shape == clean["video"].shape
        with torch.no_grad():
            got = FAMILY.predict(transformer, noisy, {"video": kwargs["timestep"] / 1000}, {}, features)["video"]
        assert answer.std() > 0.1 and got.shape == clean["video"].shape
        assert distance(got.transpose(1, 2), answer) < 1e-5


class _Mode:
    """An encoder's answer whose samples are its means, so that a pipeline draws no noise of its own."""

    def __init__(self, answer):
        self.latent_dist = self
        self.mode = answer.latent_dist.mode

    def sample(self, generator=None):
        return self.mode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_answered_the_same_alone_and_in_a_batch(tmp_path, kind):
    base, transformer = loaded(tmp_path / "x.safetensors", kind)
    generator = torch.Generator().manual_seed(1)
    samples = [{"video": torch.randn(16, 3, 4, 6, generator=generator), "text": text} for text in captions(2)]
    if kind.endswith("I2V"):
        samples = [sample | {"image": torch.randn(16, 1, 4, 6, generator=generator)} for sample in samples]
    levels = torch.tensor([0.25, 0.8])
    both, features = FAMILY.collate(base, samples)
    with torch.no_grad():
        together = FAMILY.predict(transformer, both, {"video": levels}, {}, features)["video"]
        for n, sample in enumerate(samples):
            one, features = FAMILY.collate(base, [sample])
            alone = FAMILY.predict(transformer, one, {"video": levels[n:n + 1]}, {}, features)["video"]
            assert distance(alone[0], together[n]) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_and_target_are_those_of_diffusers_scheduler_and_its_weighted_loss(shift):
    objective, scheduler = VPrediction(snr_shift=shift), CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=shift)
    timesteps = torch.tensor([0, 1, 17, 500, 998, 999])
    generator = torch.Generator().manual_seed(0)
    clean, noise, answer = torch.randn(3, 6, 4, 2, 3, 3, generator=generator)
    noisy = objective.noisy(clean, noise, timesteps / 1000)
    target = objective.target(clean, noise, timesteps / 1000)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps), rtol=0, atol=1e-5)
    torch.testing.assert_close(target, scheduler.get_velocity(clean, noise, timesteps), rtol=0, atol=1e-5)
    assert torch.equal(noisy[-1], noise[-1]) and torch.equal(target[-1], -clean[-1])
    x0 = scheduler.get_velocity(answer, noisy, timesteps)
    weight = (1 / (1 - scheduler.alphas_cumprod[timesteps])).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(mean_squared_error(answer, target), (weight * (x0 - clean) ** 2).mean().float(),
                               rtol=1e-4, atol=0)


def test_every_timestep_is_drawn_alike_and_comes_back_exactly():
    assert torch.equal(timestep_of(torch.arange(1000) / 1000), torch.arange(1000))
    assert timestep_of(torch.tensor([1.0])).item() == 999
    objective, shape = VPrediction(snr_shift=1.0), torch.Size((200_000, 16, 2, 4, 4))
    levels = objective.draw(shape, torch.Generator().manual_seed(0))
    counts = timestep_of(levels).bincount(minlength=1000)
    assert levels.shape == (200_000,) and levels.dtype == torch.float32
    assert len(counts) == 1000 and counts.min() > 130 and counts.max() < 270
    assert torch.equal(levels, objective.draw(shape, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind, scale", [("2b", 1.15258426), ("5b", 0.7), ("1.5", 0.7)])
@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (5, 2), (9, 3)])
def test_latents_are_scaled_as_the_model_was_trained(tmp_path, kind, scale, frames, latent_frames):
    write_twin(tmp_path / "x.safetensors", family=FAMILY, kind=kind)
    base = open_base_model(tmp_path / "x.safetensors")
    clip, vae = torch.rand(frames, 32, 48, 3, generator=torch.Generator().manual_seed(0)), StandInVae(base.grid)
    features = FAMILY.prepare_clip(base, DecodedClip(frames=clip), Encoders(clip=vae, caption=None))
    assert features.keys() == {"video"} and features["video"].dtype == torch.float32
    assert features["video"].shape == (16, latent_frames, 4, 6)
    torch.testing.assert_close(features["video"], vae.encode(clip) * scale)


@pytest.mark.parametrize("kind, scale, image_scale", [("5b I2V", 0.7, 0.7), ("1.5 I2V", 0.7, 1 / 0.7)])
def test_the_first_frame_is_encoded_alone_and_stands_before_zeros(tmp_path, kind, scale, image_scale):
    write_twin(tmp_path / "x.safetensors", family=FAMILY, kind=kind)
    base = open_base_model(tmp_path / "x.safetensors")
    clip, vae = torch.rand(9, 32, 48, 3, generator=torch.Generator().manual_seed(0)), RealVae()
    features = FAMILY.prepare_clip(base, DecodedClip(frames=clip), Encoders(clip=vae, caption=None))
    torch.testing.assert_close(features["video"], vae.encode(clip) * scale)
    torch.testing.assert_close(features["image"], vae.encode(clip[:1]) * image_scale)
    clean, batch = FAMILY.collate(base, [features | {"text": captions(1)[0]}])
    assert batch["image"].shape == clean["video"].shape == (1, 16, 4 if "1.5" in kind else 3, 4, 6)
    assert torch.equal(batch["image"][0, :, :1], features["image"]) and not batch["image"][:, :, 1:].any()


@pytest.mark.parametrize("kind, frames, want", [
    ("5b", 3, [0, 1, 2]), ("1.5", 1, [0, 0]), ("1.5", 2, [0, 1]), ("1.5", 3, [0, 0, 1, 2]),
])
def test_an_odd_clip_of_the_newer_model_begins_twice(tmp_path, kind, frames, want):
    write_twin(tmp_path / "x.safetensors", family=FAMILY, kind=kind)
    base = open_base_model(tmp_path / "x.safetensors")
    video = torch.arange(frames).view(1, -1, 1, 1).expand(16, frames, 2, 2).float()
    clean, _ = FAMILY.collate(base, [{"video": video, "text": captions(1)[0]}])
    assert clean["video"][0, 3, :, 1, 1].tolist() == want


@pytest.mark.parametrize("shape", [(48, 2, 4, 6), (16, 3, 8, 12), (16, 8, 12)])
def test_another_models_vae_is_named_by_its_shape(tmp_path, shape):
    write_twin(tmp_path / "x.safetensors", family=FAMILY, kind="1.5")
    base, given = open_base_model(tmp_path / "x.safetensors"), Encoder(torch.zeros(shape))
    with pytest.raises(ValueError) as caught:
        FAMILY.prepare_clip(base, DecodedClip(frames=torch.zeros(5, 64, 96, 3)), Encoders(clip=given, caption=None))
    assert str(caught.value) == (
        f"This VAE gives latents of shape {list(shape)} for 5 frames of 96 x 64; CogVideoX needs [16, 2, 8, 12]: "
        "choose the CogVideoX VAE.")


def test_captions_keep_the_padding_that_the_text_encoder_has_encoded(tmp_path):
    write_twin(tmp_path / "x.safetensors", family=FAMILY, kind="1.5")
    base, text = open_base_model(tmp_path / "x.safetensors"), torch.randn(300, 4096)
    for length in (226, 300):
        got = next(FAMILY.prepare_captions(base, ["a"], Encoder(text[:length]), CPU))["text"]
        assert torch.equal(got, text[:226]) and got.is_contiguous()
    for shape in ((77, 4096), (226, 768), (1, 226, 4096)):
        with pytest.raises(ValueError) as caught:
            next(FAMILY.prepare_captions(base, ["a"], Encoder(torch.zeros(shape)), CPU))
        assert str(caught.value) == (
            f"This text encoder gives features of shape {list(shape)}; CogVideoX needs (226 tokens, 4096): load t5xxl "
            "with type cogvideox.")


def test_models_share_cached_clips_only_where_they_are_the_same(tmp_path):
    forms = {}
    for kind in KINDS:
        write_twin(tmp_path / "x.safetensors", family=FAMILY, kind=kind)
        forms[kind] = open_base_model(tmp_path / "x.safetensors").form
    assert forms["5b"] == forms["1.5"]
    assert len(set(forms.values())) == 4


def test_adapter_targets_are_modules_of_every_block():
    names = [NAMES.back(name) for name, module in FAMILY.twin()[1].named_modules()
             if isinstance(module, torch.nn.Linear)]
    targets = FAMILY.adapter_targets(None, {"video"})
    for preset, per_block in (("attention", 4), ("attention and feed-forward", 6)):
        endings = tuple(f".{ending}" for ending in targets[preset])
        found = [name for name in names if name.endswith(endings)]
        assert len(found) == 2 * per_block and all(name.startswith("blocks.") for name in found)
    assert next(iter(targets)) == "attention"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_adapted_layer(tmp_path, kind):
    base, transformer = loaded(tmp_path / "x.safetensors", kind)
    layers = {name: module for name, module in transformer.named_modules()
              if NAMES.back(name).endswith(tuple(f".{part}" for part in ("q", "k", "v", "attn_out")))}
    for module in layers.values():
        module.weight.requires_grad_()
    sample = {"video": torch.randn(16, 2, 4, 6), "text": captions(1)[0]}
    if kind.endswith("I2V"):
        sample["image"] = torch.randn(16, 1, 4, 6)
    clean, features = FAMILY.collate(base, [sample])
    objective, level = FAMILY.objective(base, RecipeConfig()), torch.tensor([0.5])
    noise = torch.randn_like(clean["video"])
    noisy = {"video": objective.noisy(clean["video"], noise, level)}
    answer = FAMILY.predict(transformer, noisy, {"video": level}, {}, features)["video"]
    loss = mean_squared_error(answer, objective.target(clean["video"], noise, level))
    loss.backward()
    assert loss.isfinite() and len(layers) == 8
    assert all(module.weight.grad.isfinite().all() and module.weight.grad.any() for module in layers.values())


