"""ComfyUI's VAE and CLIP as the engine's encoders, over stand-ins of the same shape."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from video_lora_studio.training.families.model_family import Grid


def module(seed=0, width=8, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 40), nn.Linear(40, width)).to(dtype)


def vae_of(model, dim=3, channels=16):
    return SimpleNamespace(
        first_stage_model=model, patcher=SimpleNamespace(backup={}, patches={}), vae_dtype=torch.float32,
        latent_dim=dim, latent_channels=channels, encode=lambda frames: frames.movedim(-1, 0)[None] * 2,
    )


def identity(load, model, **patcher):
    vae = vae_of(model)
    vae.patcher = SimpleNamespace(**{"backup": {}, "patches": {}, **patcher})
    return load("host_encoders").HostVae(vae).identity


def test_the_same_weights_have_the_same_identity(load):
    assert identity(load, module()) == identity(load, module())


def test_other_weights_types_names_and_sizes_have_another(load):
    changed = module()
    with torch.no_grad():
        changed[1].weight.mul_(1.001)
    renamed = nn.ModuleDict({"a": module()[0], "b": module()[1]})
    wide, half = module(width=9), module(dtype=torch.bfloat16)
    every = [identity(load, model) for model in (module(), module(seed=1), changed, renamed, wide, half)]
    assert len(set(every)) == len(every)


def test_fp8_weights_have_an_identity(load):
    model = module()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    assert identity(load, model) != identity(load, module())


def test_identity_is_that_of_the_patches_whether_they_are_applied_or_not(load):
    plain, applied = module(), module()
    patches = {"0.weight": [(0.5, ("diff", (torch.ones(40, 8),)), 1.0, None, None)]}
    backup = {"0.weight": SimpleNamespace(weight=applied[0].weight.detach().clone())}
    with torch.no_grad():
        applied[0].weight.add_(0.5)
    patched = identity(load, plain, patches=patches)
    assert patched == identity(load, applied, patches=patches, backup=backup)
    stronger = {"0.weight": [(0.6, *patches["0.weight"][0][1:])]}
    other = {"0.weight": [(0.5, SimpleNamespace(weights=(torch.ones(40, 1), torch.ones(1, 8), None)), 1.0, None, None)]}
    every = [identity(load, plain), patched, *(identity(load, plain, patches=each) for each in (stronger, other))]
    assert len(set(every)) == 4


def test_a_clip_comes_back_as_float32_that_autograd_may_use(load):
    encoder = load("host_encoders").HostVae(vae_of(module()))
    with torch.inference_mode():
        latents = encoder.encode(torch.rand(5, 4, 6, 3, dtype=torch.float64))
    assert latents.shape == (3, 5, 4, 6) and latents.dtype == torch.float32 and not latents.is_inference()
    assert latents.is_contiguous()
    (latents * torch.ones(1, requires_grad=True)).sum().backward()


def test_a_caption_comes_back_as_tokens_by_width(load):
    asked = []
    clip = SimpleNamespace(
        cond_stage_model=module(), patcher=SimpleNamespace(backup={}, patches={}), tokenizer=object(), layer_idx=None,
        tokenizer_options={}, tokenize=lambda text: asked.append(text) or {"t5": [[(1, 1.0)]]},
        encode_from_tokens_scheduled=lambda tokens: [[torch.ones(1, 7, 12, dtype=torch.bfloat16), {}]],
    )
    encoder = load("host_encoders").HostClip(clip)
    with torch.inference_mode():
        text = encoder.encode("a cat")
    assert asked == ["a cat"] and text.shape == (7, 12) and text.dtype == torch.float32 and not text.is_inference()
    before, clip.layer_idx = encoder.identity, -2
    assert load("host_encoders").HostClip(clip).identity != before


def test_sound_is_filled_up_with_silence_so_that_the_vae_crops_none_of_it(load):
    came = []
    vae = vae_of(module())
    vae.patcher, vae.vae_dtype, vae.spacial_compression_encode = SimpleNamespace(), torch.float32, lambda: 4096
    vae.encode = lambda sound: came.append(sound) or torch.ones(1, 8, 3, 16)
    encoder, sound = load("host_encoders").HostAudioVae(vae), torch.rand(2, 5000)
    assert encoder.rate == 44100 and encoder.encode(sound).shape == (8, 3, 16)
    assert came[0].shape == (1, 8192, 2)
    assert torch.equal(came[0][0, :5000].T, sound) and not came[0][0, 5000:].any()
    encoder.encode(sound[:, :4096])
    assert came[1].shape == (1, 4096, 2)


@pytest.mark.parametrize(("dim", "channels", "words"), [
    (3, 48, ("48", "16", "Wan twin")), (2, 16, ("picture", "Wan twin")), (3, 128, ("128",)), (2, 4, ("4 channels",)),
])
def test_another_models_vae_is_refused_before_it_encodes(load, dim, channels, words):
    grid = Grid(fps=16, time_stride=4, space_stride=8, size_multiple=16, channels=16)
    base = SimpleNamespace(title="Wan twin", grid=grid)
    encoders = load("host_encoders")
    encoders.check_vae(vae_of(module()), base)
    with pytest.raises(ValueError) as error:
        encoders.check_vae(vae_of(module(), dim, channels), base)
    for word in words:
        assert word in str(error.value)
