"""Seeded weights and a vocabulary for the test-only encoders."""

from __future__ import annotations

import functools
import io as bytes_io

import sentencepiece
import torch

VOCABULARY = 400
SENTENCES = (
    "a brown bear walks over wet stones while the camera follows",
    "two people ride bicycles past parked cars on a sunny street",
    "a man in a suit speaks in a moving car, trees pass behind him",
    "the rabbit stretches in front of its burrow and looks at a butterfly",
    "close shot of hands, soft light, slow movement, film grain",
    "Wide view of the valley at dawn. Nothing moves but the grass.",
)


@functools.cache
def tokenizer_model(bos_id: int = -1) -> torch.Tensor:
    """A sentencepiece model with T5's special tokens, as the bytes that text encoders carry in `spiece_model`."""
    letters = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "aeiourstln"]
    out = bytes_io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, *letters]), model_writer=out, vocab_size=VOCABULARY, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=bos_id, num_threads=1, minloglevel=2,
    )
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def fill(module: torch.nn.Module, seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "layer_norm" in name:
                parameter.copy_(1 + 0.1 * values)
            elif "shared" in name:
                parameter.copy_(values)
            else:
                parameter.copy_(values * width**-0.5)


def seeded(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights for a convolutional model, of a size that keeps its values near 1."""
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim < 2:
            weights[name] = 0.05 * noise + (name.endswith(("gamma", "norm.weight", "norm_layer.weight")))
        else:
            weights[name] = noise * value[0].numel() ** -0.5
    return weights
