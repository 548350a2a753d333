"""Wan models that start from frames: told of them exactly as diffusers' own pipelines tell them."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from PIL import Image
from tiny import StandInImageEncoder, StandInTextEncoder, StandInVae, write_twin

from video_lora_studio.loaders.feature_cache import FeatureCache
from video_lora_studio.training.config import RecipeConfig, RunConfig
from video_lora_studio.training.dataset.precompute import prepare
from video_lora_studio.training.dataset.scan import scan
from video_lora_studio.training.demo import draw_clips
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model
from video_lora_studio.training.families.model_family import DecodedClip, Encoders
from video_lora_studio.training.families.wan import KINDS, LATENTS
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.loop import micro_step_loss
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.run import attach_adapter, fit, set_up

CPU = torch.device("cpu")
FAMILY = next(family for family in FAMILIES if family.name == "Wan")
SHOWN = [kind for kind, facts in KINDS.items() if facts.shown]


class TinyVae:
    """diffusers' own class for Wan's VAEs, thin and random."""

    identity = "tiny"

    def __init__(self, latents):
        grid = latents.grid
        shape = {"z_dim": grid.channels, "latents_mean": list(latents.mean), "latents_std": list(latents.std)}
        if grid.space_stride == 16:
            shape |= {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
                      "scale_factor_spatial": 16}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.module = AutoencoderKLWan(base_dim=8, num_res_blocks=1, **shape).eval()

    @torch.no_grad()
    def encode(self, frames):
        return self.module.encode((frames * 2 - 1).permute(3, 0, 1, 2)[None]).latent_dist.mode()[0]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A kind's base model, its transformer as the engine loads it, and the same weights in the class as diffusers has
    it.
    """
    kept = {}

    def get(kind):
        if kind not in kept:
            path = tmp_path_factory.mktemp("twin") / "x.safetensors"
            write_twin(path, kind=kind)
            base = open_base_model(path)
            loaded = FAMILY.load_transformer(base, dtype=torch.float32, device=CPU)
            kept[kind] = base, loaded, FAMILY.twin(kind)[1], TinyVae(LATENTS[base.grid.channels])
        return kept[kind]

    return get


def clip_of(base, frames=9, seed=0):
    """A clip of 4 x 6 latent pixels."""
    side = base.grid.space_stride
    return torch.rand(frames, 4 * side, 6 * side, 3, generator=torch.Generator().manual_seed(seed))


def prepared(base, frames, vae, image=None):
    return FAMILY.prepare_clip(base, DecodedClip(frames=frames), Encoders(clip=vae, caption=None, image=image))


def as_image(frame):
    return frame.permute(2, 0, 1)[None]


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def pipeline_calls(base, transformer, vae, frames, text, images, *, steps=3):
    """Each call that diffusers' own image-to-video pipeline makes of its transformers: which, arguments, answer."""
    calls = []
    kind = KINDS["2.2 I2V"]
    two = base.form == kind.form

    class Embeds(WanImageToVideoPipeline):
        def encode_image(self, image, device=None):
            chosen = image if isinstance(image, list) else [image]
            return torch.stack([images.encode(one[0].permute(1, 2, 0)) for one in chosen])

    pipeline = Embeds(
        tokenizer=None, text_encoder=None, vae=vae.module, transformer=transformer,
        transformer_2=FAMILY.twin("2.2 I2V")[1] if two else None, boundary_ratio=kind.boundary if two else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0), expand_timesteps=base.grid.channels == 48,
    )
    pipeline.set_progress_bar_config(disable=True)
    for name in ("transformer", "transformer_2"):
        if (module := getattr(pipeline, name)) is not None:
            module.register_forward_hook(
                lambda module, args, kwargs, output, name=name: calls.append((name, kwargs, output[0])),
                with_kwargs=True,
            )
    last = {"last_image": as_image(frames[-1])} if base.config.get("pos_embed_seq_len") else {}
    pipeline(image=as_image(frames[0]), **last, prompt_embeds=text, height=frames.shape[1], width=frames.shape[2],
             num_frames=len(frames), num_inference_steps=steps, guidance_scale=1.0, output_type="latent",
             generator=torch.Generator().manual_seed(2))
    return calls


@pytest.mark.parametrize("count", [1, 5, 9])
@pytest.mark.parametrize("kind", SHOWN)
def test_the_cached_condition_is_the_one_that_diffusers_pipeline_makes(opened, kind, count):
    base, _, transformer, vae = opened(kind)
    frames = clip_of(base, count)
    got = prepared(base, frames, vae, StandInImageEncoder())["condition"]
    two = len(KINDS[kind].shown) == 2
    if two and count == 1:  # the pipeline cannot put two images into one frame
        assert torch.equal(got, prepared(opened("I2V")[0], frames, vae, StandInImageEncoder())["condition"])
        return
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae.module, transformer=transformer, scheduler=None)
    last = {"last_image": as_image(frames[-1]) * 2 - 1} if two else {}
    with torch.no_grad():
        _, want = pipeline.prepare_latents(
            as_image(frames[0]) * 2 - 1, 1, 16, frames.shape[1], frames.shape[2], count, torch.float32, CPU, **last)
    assert got.shape == want[0].shape == (20, (count - 1) // 4 + 1, 4, 6)
    assert torch.equal(got[:4], want[0, :4]) and distance(got[4:], want[0, 4:]) < 1e-6


@pytest.mark.parametrize("kind, mask", [
    ("I2V", [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]), ("2.2 I2V", [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]),
    ("FLF2V", [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]),
])
def test_the_mask_tells_which_frames_are_shown_and_the_others_do_not_matter(opened, kind, mask):
    base = opened(kind)[0]
    frames = clip_of(base)
    changed = frames.clone()
    changed[1:-1] = 1 - frames[1:-1]
    if kind != "FLF2V":
        changed[-1] = 0
    got, other = (prepared(base, clip, StandInVae(base.grid), StandInImageEncoder()) for clip in (frames, changed))
    assert torch.equal(got["condition"][:4], torch.tensor(mask)[:, :, None, None].expand(-1, -1, 4, 6).float())
    assert torch.equal(got["condition"], other["condition"]) and not torch.equal(got["video"], other["video"])
    if "image" in got:
        assert torch.equal(got["image"], other["image"])


@pytest.mark.parametrize("kind", [*SHOWN, "TI2V"])
def test_predict_equals_the_call_of_diffusers_own_pipeline(opened, kind):
    """From the same clip: the pipeline makes its inputs, the engine its own, and both models answer."""
    base, loaded, transformer, vae = opened(kind)
    frames, images = clip_of(base), StandInImageEncoder()
    features = prepared(base, frames, vae, images)
    features["text"] = torch.randn(7, base.text_width, generator=torch.Generator().manual_seed(4))
    clean, batch = FAMILY.collate(base, [features])
    calls = pipeline_calls(base, transformer, vae, frames, batch["text"], images)
    assert len(calls) == 3
    for name, kwargs, answer in calls:
        noisy, timestep, given = kwargs["hidden_states"][:, : base.grid.channels], kwargs["timestep"], {}
        if kind == "TI2V":
            given = FAMILY.given(base, clean, 1.0, torch.Generator())
            assert timestep.shape == (1, 3 * 2 * 3) and not timestep[:, :6].any()
            timestep = timestep[:, -1]
            assert distance(noisy[:, :, :1], clean["video"][:, :, :1]) < 1e-5
        else:
            assert distance(batch["condition"], kwargs["hidden_states"][:, 16:]) < 1e-6
        level = timestep / 1000
        with torch.no_grad():
            got = FAMILY.predict(loaded, {"video": noisy}, {"video": level}, given, batch)["video"]
        assert answer.std() > 0.1 and distance(got, answer) < 1e-5
        if kind == "2.2 I2V":
            expert = {"transformer": "high_noise", "transformer_2": "low_noise"}[name]
            low, high = FAMILY.one_expert(base, expert).levels
            assert low <= level <= high


def test_ti2v_without_a_first_frame_equals_the_text_to_video_pipeline(opened):
    base, loaded, transformer, vae = opened("TI2V")
    _, batch = FAMILY.collate(base, [{"video": torch.zeros(48, 3, 4, 6), "text": torch.randn(7, base.text_width)}])
    calls = []
    hook = transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=vae.module, transformer=transformer,
                           scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0), expand_timesteps=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(prompt_embeds=batch["text"], height=64, width=96, num_frames=9, num_inference_steps=2,
             guidance_scale=1.0, output_type="latent", generator=torch.Generator().manual_seed(2))
    hook.remove()
    for kwargs, answer in calls:
        with torch.no_grad():
            got = FAMILY.predict(loaded, {"video": kwargs["hidden_states"]},
                                 {"video": kwargs["timestep"][:, 0] / 1000}, {}, batch)["video"]
        assert got.shape == (1, 48, 3, 4, 6) and distance(got, answer) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_loads_and_a_batch_is_answered_sample_by_sample(opened, kind):
    base, loaded, _, vae = opened(kind)
    assert json.dumps(dict(FAMILY.twin(kind)[0]), sort_keys=True) == json.dumps(dict(base.config), sort_keys=True)
    assert file_tensors(FAMILY, loaded).keys() == file_tensors(FAMILY, FAMILY.twin(kind)[1]).keys()
    encoder = StandInTextEncoder(base.text_width)
    samples = [prepared(base, clip_of(base, 5, seed), vae, StandInImageEncoder())
               | {"text": encoder.encode("a ball " * (seed + 1))} for seed in range(2)]
    clean, features = FAMILY.collate(base, samples)
    given = FAMILY.given(base, clean, 1.0, torch.Generator())
    given = {name: torch.cat([mask[:1], torch.zeros_like(mask[:1])]) for name, mask in given.items()}
    levels = {"video": torch.tensor([0.9, 0.2])}
    with torch.no_grad():
        both = FAMILY.predict(loaded, clean, levels, given, features)["video"]
        for n in range(2):
            one = [{name: tensor[n:n + 1] for name, tensor in part.items()}
                   for part in (clean, levels, given, features)]
            assert distance(FAMILY.predict(loaded, *one)["video"][0], both[n]) < 1e-5
    told = {"T2V": set(), "TI2V": set(), "2.2 I2V": {"condition"}}.get(kind, {"condition", "image"})
    assert features.keys() - {"text"} == told and both.shape == clean["video"].shape


@pytest.mark.parametrize("kind", ["I2V", "FLF2V", "2.2 I2V"])
def test_every_condition_changes_the_answer(opened, kind):
    base, loaded, _, vae = opened(kind)
    sample = prepared(base, clip_of(base), vae, StandInImageEncoder()) | {"text": torch.randn(3, base.text_width)}
    clean, features = FAMILY.collate(base, [sample])
    levels = {"video": torch.tensor([0.7])}
    with torch.no_grad():
        answer = FAMILY.predict(loaded, clean, levels, {}, features)["video"]
        for name in features:
            part = features[name].clone()
            part[:, -1:] = 0.5 * torch.randn(part[:, -1:].shape, generator=torch.Generator().manual_seed(8))
            other = FAMILY.predict(loaded, clean, levels, {}, features | {name: part})["video"]
            assert distance(other, answer) > 2e-5, name


def test_first_and_last_image_are_told_apart(opened):
    base, loaded, _, vae = opened("FLF2V")
    sample = prepared(base, clip_of(base), vae, StandInImageEncoder()) | {"text": torch.randn(3, base.text_width)}
    assert sample["image"].shape == (514, 1280)
    clean, features = FAMILY.collate(base, [sample])
    swapped = features | {"image": features["image"].roll(257, dims=1)}
    levels = {"video": torch.tensor([0.7])}
    with torch.no_grad():
        a, b = (FAMILY.predict(loaded, clean, levels, {}, told)["video"] for told in (features, swapped))
    assert distance(a, b) > 1e-4


@pytest.mark.parametrize("kind", ["I2V", "FLF2V"])
def test_captions_beyond_512_tokens_are_cut_for_models_that_see_an_image(opened, kind, caplog):
    base, loaded, _, vae = opened(kind)
    long = torch.randn(600, base.text_width, generator=torch.Generator().manual_seed(5))

    class Encoder:
        def encode(self, caption):
            return long

    (cached,) = FAMILY.prepare_captions(base, ["a long one"], Encoder(), CPU)
    assert len(cached["text"]) == 600 and "has 600 tokens" in caplog.text and "reads the first 512" in caplog.text
    sample = prepared(base, clip_of(base, 5), vae, StandInImageEncoder())
    _, features = FAMILY.collate(base, [sample | cached])
    assert torch.equal(features["text"][0], long[:512])


@pytest.mark.parametrize("shape", [(257, 1024), (50, 1280), (1, 257, 1280)])
def test_another_clip_vision_model_is_named_by_its_shape(opened, shape):
    base, _, _, vae = opened("I2V")

    class Encoder:
        def encode(self, image):
            return torch.zeros(shape)

    with pytest.raises(ValueError) as caught:
        prepared(base, clip_of(base, 1), vae, Encoder())
    assert str(caught.value) == (
        f"This CLIP vision model gives features of shape {list(shape)}; {base.title} needs (257, 1280): choose "
        "clip_vision_h.")


def test_the_2_1_vae_is_refused_for_ti2v_and_the_right_one_named(opened):
    base = opened("TI2V")[0]
    with pytest.raises(ValueError) as caught:
        prepared(base, clip_of(base, 5), StandInVae(LATENTS[16].grid))
    assert str(caught.value) == (
        f"This VAE gives 16 channels at 1/8 size; {base.title} needs 48 channels at 1/16 size and 2 latent frames for "
        "5 frames: choose wan2.2_vae.")


@pytest.mark.parametrize("kind", KINDS)
def test_only_ti2v_is_given_its_first_frame_and_an_image_never(opened, kind):
    base = opened(kind)[0]
    channels = base.grid.channels
    clip, image = ({"video": torch.zeros(4, channels, frames, 4, 6)} for frames in (3, 1))
    mask = FAMILY.given(base, clip, 1.0, torch.Generator()).get("video")
    assert (mask is not None) == (kind == "TI2V")
    assert FAMILY.given(base, image, 1.0, torch.Generator()) == {}
    assert FAMILY.given(base, clip, 0.0, torch.Generator()) == {}
    if mask is not None:
        full = mask.expand_as(clip["video"])
        assert full[:, :, 0].all() and not full[:, :, 1:].any()


def test_the_first_frame_is_drawn_for_each_sample_alone(opened):
    base = opened("TI2V")[0]
    clean = {"video": torch.zeros(400, 48, 2, 2, 2)}
    masks = [FAMILY.given(base, clean, 0.5, torch.Generator().manual_seed(seed))["video"] for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert 150 < masks[0][:, 0, 0].sum() < 250


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_on_clips_and_images_mixed(tmp_path, kind):
    """Finite losses and gradients, on the adapter only, the same with and without recompute."""
    write_twin(tmp_path / "x.safetensors", kind=kind)
    base = open_base_model(tmp_path / "x.safetensors")
    draw_clips(tmp_path / "clips", 1)
    Image.new("RGB", (80, 80), "teal").save(tmp_path / "clips" / "still.png")
    encoders = Encoders(
        clip=StandInVae(base.grid), caption=StandInTextEncoder(base.text_width), image=StandInImageEncoder())
    prepared_set = prepare(scan(tmp_path / "clips"), base, encoders, width=64, height=64, frames=9,
                           cache=FeatureCache(tmp_path / "features")).training_set
    assert {dict(sample.shapes)["video"][1] for sample in prepared_set.samples} == {1, 3}
    found = []
    for recompute in (True, False):
        config = RunConfig(rank=4, recipe=RecipeConfig(first_frame=1.0))
        context = set_up(prepared_set, base, config, CPU, torch.float32, SilentListener())
        adapter = attach_adapter(context, config)
        fit(context, config, Level(recompute=recompute))
        with torch.no_grad():
            for index, parameter in enumerate(adapter.parameters()):
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        losses = [micro_step_loss(context, position) for position in range(2)]
        sum(losses).backward()
        trained = {id(parameter) for parameter in adapter.parameters()}
        for name, parameter in context.transformer.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained), name
        gradients = torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()])
        assert gradients.isfinite().all() and all(parameter.grad.any() for parameter in adapter.parameters())
        found.append((torch.stack(losses).detach(), gradients))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    assert found[0][0].gt(0).all() and distance(found[0][1], found[1][1]) < 1e-5
