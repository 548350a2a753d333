"""Previews: sampled as others sample, the same every time, and without a trace in what is learnt."""

import dataclasses
import json
import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from family_studio import TWIN_NAMES, TWINS, open_studio
from tiny import write_twin

from video_lora_studio.loaders.lora_file import RUN_KEY
from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors
from video_lora_studio.loaders.video_file import probe, read_frames
from video_lora_studio.training.config import AdapterConfig, PreviewConfig, RecipeConfig, RunConfig
from video_lora_studio.training.dataset.training_set import Caption, load_sample
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.listener import SilentListener
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.optimizers import build_optimizer
from video_lora_studio.training.preview import sampled, scenes_of
from video_lora_studio.training.run import attach_adapter, fit, set_up, train
from video_lora_studio.training.run_folder import list_previews
from video_lora_studio.training.run_output import Places

CPU = torch.device("cpu")
PREVIEW = PreviewConfig(every=2, steps=4, guidance=3.0, seed=7)


class Decoder:
    """Shows the first three channels of the latents as a grey clip of the right length, and keeps them."""

    def __init__(self):
        self.seen = []

    def decode(self, latents):
        self.seen.append(latents)
        frames = latents[:3].mean(0).repeat_interleave(4, 0)[3:]
        grey = frames.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., None].expand(-1, -1, -1, 3)
        return (grey / 6 + 0.5).clamp(0, 1)

    def decode_sound(self, latents):
        return latents.mean((0, 2)).repeat_interleave(640).clamp(-1, 1).expand(2, -1), 16000


def settings(steps=4, **more):
    given = {"preview": PREVIEW, "recipe": RecipeConfig(warmup_steps=0), "adapter": AdapterConfig(save_as="fp32")}
    return RunConfig(name="test", steps=steps, rank=4, learning_rate=1e-3, **{**given, **more})


@pytest.fixture
def start(tmp_path, base, training_set):
    """Start a run in a folder of this test's own; the decoder beside its result."""

    def go(config=None, *, place="here", data=training_set, decoder=None, **more):
        places = Places(lora_folder=tmp_path / place / "loras", run_folder=tmp_path / place / "run")
        return train(data, base, config or settings(), places=places, device=CPU, decoder=decoder, **more)

    go.folder = tmp_path
    return go


def names(folder):
    return sorted(path.name for path in folder.glob("*.mp4"))


def test_previews_are_videos_at_the_steps_where_they_are_due(start, base):
    decoder = Decoder()
    start(settings(5), decoder=decoder)
    folder = start.folder / "here/run/previews"
    assert names(folder) == [f"step-{step:06d}-1.mp4" for step in (0, 2, 4, 5)]
    footage = probe(folder / "step-000005-1.mp4")
    frames = 4 * (decoder.seen[0].shape[1] - 1) + 1
    assert len(footage.times) == frames and footage.fps == pytest.approx(base.grid.fps, rel=1e-3)
    shown = read_frames(footage, range(frames), footage.width, footage.height).float() / 255
    assert (shown - decoder.decode(decoder.seen[-1])).abs().mean() < 0.02
    assert list_previews(start.folder / "here/run") == [
        {"step": step, "expert": "", "number": 1, "path": folder / f"step-{step:06d}-1.mp4"} for step in (0, 2, 4, 5)
    ]


def test_a_preview_leaves_no_trace_in_what_is_learnt(start):
    config = settings(adapter=AdapterConfig(save_as="fp32", dropout=0.5))
    torch.manual_seed(1)
    shown = start(config, decoder=Decoder())
    plain = start(config, place="plain")
    assert shown.lora_files[0].read_bytes() == plain.lora_files[0].read_bytes() and shown.losses == plain.losses


def test_the_same_noise_and_prompt_every_time_and_another_lora(start):
    decoder, again = Decoder(), Decoder()
    start(decoder=decoder)
    start(place="again", decoder=again)
    assert len(decoder.seen) == 3
    assert all(map(torch.equal, decoder.seen, again.seen))
    assert not torch.equal(decoder.seen[0], decoder.seen[1])
    frozen = Decoder()
    start(dataclasses.replace(settings(), learning_rate=1e-9), place="frozen", decoder=frozen)
    assert (frozen.seen[-1] - decoder.seen[0]).abs().max() < 1e-4, "a LoRA that learnt nothing changes nothing"


def test_prompts_of_the_set_come_before_captions(training_set):
    captions = [sample.captions[0].text for sample in training_set.samples]
    assert [scene.text for scene in scenes_of(training_set, 2)] == captions[:2]
    features = training_set.samples[1].captions[0].features
    asked = dataclasses.replace(
        training_set, prompts=tuple(Caption(text=text, features=features) for text in ("one", "two", "three"))
    )
    scenes = scenes_of(asked, 2)
    assert [scene.text for scene in scenes] == ["one", "two"] and scenes[0].caption == features
    assert [scene.sample.clip for scene in scenes] == [sample.clip for sample in training_set.samples[:2]]


@pytest.mark.parametrize("kind", [RuntimeError, AttributeError, AssertionError, KeyError])
def test_whatever_the_vae_raises_is_said_once_and_the_run_goes_on(start, kind):
    class Broken:
        def decode(self, latents):
            raise kind("out of memory")

        decode_sound = decode

    result = start(decoder=Broken())
    assert len(result.losses) == 4
    (said,) = [line for line in result.report.splitlines() if line.startswith("No preview")]
    assert said.startswith("No preview at step 0: the VAE cannot decode it: ") and "out of memory" in said


def test_a_place_that_cannot_be_written_is_said_once(start):
    folder = start.folder / "here/run"
    folder.mkdir(parents=True)
    (folder / "previews").write_text("a file where the folder should be")
    report = start(settings(6), decoder=Decoder()).report
    assert report.count("No preview at step") == report.count(f"{folder / 'previews'} could not be written") == 1


def test_whoever_stops_is_heard_within_a_preview(start):
    class Stop(BaseException):
        pass

    class Stops(SilentListener):
        making = 0

        def check(self):
            if self.making == 2:
                raise Stop

        def report(self, progress):
            self.making += progress.phase == "Making a preview, step" and progress.preview is None

    with pytest.raises(Stop):
        start(decoder=Decoder(), listener=Stops())
    went_on = start(decoder=Decoder())
    assert "Went on from step 2." in went_on.report
    assert names(start.folder / "here/run/previews") == [f"step-{step:06d}-1.mp4" for step in (0, 2, 4)]
    assert went_on.lora_files[0].read_bytes() == start(place="whole").lora_files[0].read_bytes()


def test_previews_of_another_run_are_put_aside_and_come_back_with_it(start):
    folder = start.folder / "here/run"
    start(decoder=Decoder())
    before = names(folder / "previews")
    start(settings(2, seed=1), decoder=Decoder())
    assert names(folder / "previews") == ["step-000000-1.mp4", "step-000002-1.mp4"]
    (kept,) = (folder / "replaced").glob("previews-*")
    assert names(kept) == before
    start()
    assert names(folder / "previews") == before
    (kept,) = (folder / "replaced").glob("previews-*")
    assert names(kept) == ["step-000000-1.mp4", "step-000002-1.mp4"]


def test_a_key_from_a_file_names_no_place(start):
    folder = start.folder / "here/run"
    start(settings(2), decoder=Decoder())
    key = "/../../x"
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"key": key}))
    lora = start.folder / "here/loras/test.safetensors"
    tensors, header = read_tensors(lora)
    write_tensors(lora, tensors, header | {RUN_KEY: key})
    for trap in ("previews-", "test-"):
        (folder / "replaced" / trap).mkdir(parents=True)
    start(settings(2))
    assert {path.name for path in (folder / "replaced").iterdir()} == {
        "previews-", "test-", "previews-unknown", "test-unknown.safetensors"
    }
    assert not [*(folder / "replaced/test-").iterdir(), *(folder / "replaced/previews-").iterdir()]


def test_what_is_no_preview_is_not_listed(tmp_path):
    folder = tmp_path / "previews"
    folder.mkdir()
    for name in ("step-000002-1.mp4", "low_noise-step-000001-2.mp4", "step-2.mp4", "step-000002-1.mp4.part", "x.mp4"):
        (folder / name).touch()
    (folder / "step-000003-1.mp4").mkdir()
    (folder / "step-000004-1.mp4").symlink_to(tmp_path / "nowhere")
    found = [(each["expert"], each["step"], each["number"]) for each in list_previews(tmp_path)]
    assert found == [("", 2, 1), ("low_noise", 1, 2)]


def other_samplers(base, steps, shift):
    """diffusers' schedulers of the same levels: Euler along a straight path, DDIM for v-prediction."""
    if base.family.name == "CogVideoX":
        scheduler = CogVideoXDDIMScheduler(
            beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", rescale_betas_zero_snr=True,
            snr_shift_scale=1.0 if base.config["use_rotary_positional_embeddings"] else 3.0, set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        return scheduler, (scheduler.timesteps / 1000).tolist()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    levels = (shift * even / (1 + (shift - 1) * even)).float()
    scheduler.set_timesteps(sigmas=levels.tolist())
    return scheduler, levels.tolist()


@pytest.mark.parametrize("twin", TWINS, ids=TWIN_NAMES)
def test_every_family_samples_as_diffusers_does(twin, tmp_path):
    studio = open_studio(twin, tmp_path)
    base, data, steps = studio.base, studio.data, 5
    config = settings(preview=PreviewConfig(steps=steps, guidance=2.5, seed=11))
    context = set_up(data, base, config, CPU, torch.float32, SilentListener())
    adapter = attach_adapter(context, config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    fit(context, config, Level())
    optimizer = build_optimizer(adapter.parameters(), config)
    scene = scenes_of(data, 1)[0]
    made = sampled(context, data, scene, config.preview, 0, optimizer, SilentListener(), lambda error: None)
    found = made["video"]

    clean, prompted = base.family.collate(base, [load_sample(scene.sample, scene.caption)])
    _, empty = base.family.collate(base, [load_sample(scene.sample, data.no_caption)])
    source = torch.Generator().manual_seed(11)
    now = {name: torch.randn(clip.shape, generator=source) for name, clip in clean.items()}
    if base.levels == (0.0, 1.0):
        schedulers = {name: other_samplers(base, steps, base.defaults.sampler_shift) for name in now}
        context.transformer.eval()
        for place, level in enumerate(next(iter(schedulers.values()))[1]):
            levels = {name: torch.full((1,), level) for name in now}
            with torch.no_grad():
                with_, without = (
                    base.family.predict(context.transformer, now, levels, {}, asked) for asked in (prompted, empty)
                )
            for name, (scheduler, _) in schedulers.items():
                answer = without[name] + 2.5 * (with_[name] - without[name])
                now[name] = scheduler.step(answer, scheduler.timesteps[place], now[name], return_dict=False)[0]
        frames = dict(scene.sample.shapes)["video"][1]
        wanted = base.family.decodable(base, now["video"][0][:, -frames:])
        for name, one in {**{name: stream[0] for name, stream in now.items()}, "video": wanted}.items():
            assert (made[name] - one).abs().max() <= 2e-4 * one.abs().max()
    assert tuple(found.shape) == dict(scene.sample.shapes)["video"] and found.isfinite().all()
    assert all(parameter.grad is None for parameter in adapter.parameters())
    assert math.isfinite(found.std()) and found.std() > 0


def test_of_two_experts_each_shows_its_own_noise_levels(tmp_path, base, training_set, monkeypatch):
    low_file = tmp_path / "low.safetensors"
    write_twin(low_file)
    pair = base.family.pair(base, open_base_model(low_file))
    asked, decoder, predict = [], Decoder(), type(base.family).predict

    def listening(self, transformer, noisy, levels, given, features):
        if not torch.is_grad_enabled():
            asked.append(levels["video"].item())
        return predict(self, transformer, noisy, levels, given, features)

    monkeypatch.setattr(type(base.family), "predict", listening)
    config = settings(4, preview=PreviewConfig(every=0, steps=8, guidance=1.0))
    places = Places(lora_folder=tmp_path / "loras", run_folder=tmp_path / "run")
    train(training_set, pair, config, places=places, device=CPU, decoder=decoder)
    assert names(tmp_path / "run/previews") == [
        f"{expert}-step-00000{step}-1.mp4" for expert in ("high_noise", "low_noise") for step in (0, 2)
    ]
    levels = base.family.objective(base, config.recipe).schedule(8, base.defaults.sampler_shift)[:-1].tolist()
    boundary = pair.levels[0]
    high, low = [one for one in levels if one >= boundary], [one for one in levels if one <= boundary]
    assert high and low and asked == pytest.approx([*high, *high, *low, *low])
    clip = load_sample(training_set.samples[0])["video"]
    shown = [base.family.decodable(pair, clip), *decoder.seen]
    apart = [(one - shown[0]).norm() for one in shown[1:]]
    assert max(apart[2:]) < min(apart[:2]), "the low-noise expert begins from the clip"
