"""Wan: what is cached of clips and captions, and batches of it."""

import re

import pytest
import torch
from diffusers import AutoencoderKLWan
from tiny import StandInTextEncoder, StandInVae, write_twin

from video_lora_studio.loaders.module_weights import build_without_storage
from video_lora_studio.training.families import FAMILIES, open_base_model
from video_lora_studio.training.families.model_family import DecodedClip, Encoders

FAMILY = next(family for family in FAMILIES if family.name == "Wan")


class Encoder:
    """Gives what it is told to give."""

    identity = "given"

    def __init__(self, output):
        self.output = output

    def encode(self, _):
        return self.output


def clip_features(base, frames, vae):
    return FAMILY.prepare_clip(base, DecodedClip(frames=frames), Encoders(clip=vae, caption=None))


def caption_features(base, caption, encoder):
    return next(FAMILY.prepare_captions(base, [caption], encoder, torch.device("cpu")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "tiny_wan.safetensors"
    write_twin(path)
    return open_base_model(path)


@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (5, 2), (9, 3)])
def test_latents_are_normalised_with_the_vaes_own_figures(base, frames, latent_frames):
    clip = torch.rand(frames, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    vae = StandInVae(base.grid)
    video = clip_features(base, clip, vae)["video"]
    assert video.shape == (16, latent_frames, 4, 6) == base.grid.latent_shape(48, 32, frames)
    assert video.dtype == torch.float32 and video.is_contiguous()
    config = build_without_storage(AutoencoderKLWan).config
    mean, std = (torch.tensor(config[name]).view(16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(video, (vae.encode(clip) - mean) / std)


def test_half_precision_latents_are_normalised_in_full_precision(base):
    raw = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    video = clip_features(base, torch.zeros(1, 16, 16, 3), Encoder(raw))["video"]
    want = clip_features(base, torch.zeros(1, 16, 16, 3), Encoder(raw.float()))["video"]
    assert torch.equal(video, want)


@pytest.mark.parametrize("shape, fault", [
    ((48, 2, 4, 6), "gives 48 channels at 1/16 size"),
    ((128, 1, 2, 3), "gives 128 channels at 1/32 size"),
    ((16, 3, 8, 12), "gives 3 latent frames for 5 frames"),
    ((16, 8, 12), r"gives latents of shape \[16, 8, 12\]"),
])
def test_another_models_vae_is_named_by_its_shape(base, shape, fault):
    wanted = "needs 16 channels at 1/8 size and 2 latent frames for 5 frames: choose wan_2.1_vae."
    with pytest.raises(ValueError, match=f"^This VAE {fault}; {re.escape(base.title)} {wanted}$"):
        clip_features(base, torch.zeros(5, 64, 96, 3), Encoder(torch.zeros(shape)))


@pytest.mark.parametrize("filled, padded", [(1, 512), (7, 512), (7, 7), (600, 600)])
def test_padding_of_a_caption_is_not_kept(base, filled, padded):
    text = torch.zeros(padded, 4096)
    text[:filled] = torch.randn(filled, 4096)
    text[filled // 2, :] = 0 if filled > 2 else text[filled // 2, :]
    got = caption_features(base, "", Encoder(text))["text"]
    assert torch.equal(got, text[:filled]) and got.is_contiguous()


def test_an_empty_caption_keeps_one_row(base):
    assert caption_features(base, "", Encoder(torch.zeros(512, 4096)))["text"].shape == (1, 4096)


@pytest.mark.parametrize("shape", [(77, 768), (1, 512, 4096), (4096,)])
def test_another_models_text_encoder_is_named_by_its_shape(base, shape):
    with pytest.raises(ValueError) as caught:
        caption_features(base, "", Encoder(torch.zeros(shape)))
    assert str(caught.value) == (
        f"This text encoder gives features of shape {list(shape)}; Wan needs (tokens, 4096): choose umt5_xxl.")


@pytest.mark.parametrize("lengths, tokens", [((3,), 512), ((3, 512), 512), ((3, 600), 600)])
def test_a_batch_pads_its_captions_with_zeros_to_at_least_512(base, lengths, tokens):
    texts = [torch.randn(length, 4096).half() for length in lengths]
    samples = [{"video": torch.full((16, 1, 2, 2), float(n)), "text": text} for n, text in enumerate(texts)]
    streams, features = FAMILY.collate(base, samples)
    assert streams["video"].shape == (len(lengths), 16, 1, 2, 2) and streams["video"][-1].eq(len(lengths) - 1).all()
    assert features["text"].shape == (len(lengths), tokens, 4096) and features["text"].dtype == torch.float32
    for row, text in zip(features["text"], texts, strict=True):
        assert torch.equal(row[: len(text)], text.float()) and not row[len(text):].any()


def test_what_the_stand_in_encoders_give_can_be_prepared_and_batched(base):
    encoder = StandInTextEncoder(base.text_width)
    samples = [clip_features(base, torch.rand(5, 32, 32, 3), StandInVae(base.grid))
               | caption_features(base, caption, encoder) for caption in ("", "a red ball")]
    assert [len(sample["text"]) for sample in samples] == [1, 3]
    streams, features = FAMILY.collate(base, samples)
    assert streams["video"].shape == (2, 16, 2, 4, 4) and features["text"].shape == (2, 512, 4096)
