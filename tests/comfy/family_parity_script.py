"""Run by ComfyUI's Python: for each family and kind train a LoRA with the engine, keep the trained model, and compare
its answers with those of ComfyUI's own class with the saved file loaded by ComfyUI's own loader.

Arguments: ComfyUI's folder, the `tests` folder, a folder to work in. Prints one line of JSON: case to figures. `keys`:
how many of the file's pairs ComfyUI took, and how many there are; `deltas`: the largest relative difference between
what ComfyUI added to a weight and B A; `video`, `audio`: the relative difference of the answers with the LoRA;
`changed`: that between ComfyUI's with it and without; `condition`: that of what a model is told of its frames; `of
ComfyUI's order`: that between ComfyUI's answer as it is and the one compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parity_script import start_comfyui
from torch import Tensor

CPU = torch.device("cpu")
CAPTIONS = ("two people ride bicycles past parked cars", "a bear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One twin, the clips it learns from, and how ComfyUI's class is called."""

    family: str
    native: Callable[[Any, Given], dict[str, Tensor]]
    kind: str | None = None
    expert: str = ""
    header: dict | None = None
    """What the file's header says of the transformer."""
    told: dict[str, int] = dataclasses.field(default_factory=dict)
    """What ComfyUI takes for granted of real sizes and must be told of the twin's."""
    frames: int = 9
    width: int = 96
    height: int = 64
    tokens: int = 1
    """Tokens that the text encoder gives at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What both models are asked."""

    noisy: dict[str, Tensor]
    clean: dict[str, Tensor]
    levels: dict[str, Tensor]
    masks: dict[str, Tensor]
    """Of what is given clean, as `ModelFamily.given` gives them."""
    features: dict[str, Tensor]
    frames: list[Tensor]
    """Of the clips (T, P, Q, 3)."""
    texts: list[Tensor]
    """Of the captions (L, D), as the text encoder gave them."""
    figures: dict[str, Any]

    def denoise_mask(self) -> Tensor | None:
        """As ComfyUI has it: (B, 1, F, H, W), 0 where the frame is given."""
        if "video" not in self.masks:
            return None
        shape = self.noisy["video"].shape
        return (~self.masks["video"]).float().expand(shape[0], 1, *shape[2:])


class StandInSound:
    """What an audio VAE gives, by a fixed random matrix from short means of the waveform."""

    identity, rate = "stand-in audio VAE 1", 16000

    def encode(self, sound: Tensor) -> Tensor:
        steps = torch.nn.functional.avg_pool1d(sound[None], 640, ceil_mode=True)[0]
        mix = torch.randn(8 * 16, 2, generator=torch.Generator().manual_seed(4))
        return (mix @ steps * 10).unflatten(0, (8, 16)).transpose(1, 2)


def wan(model, given: Given) -> dict[str, Tensor]:
    """As comfy_extras/nodes_wan.py and comfy/model_base.py bring a prompt to the model."""
    noisy, features, level = given.noisy["video"], given.features, given.levels["video"] * 1000
    more = {}
    if "image" in features:
        more["clip_fea"] = features["image"].reshape(len(noisy), -1, features["image"].shape[-1])
    if "condition" in features:
        told = wan_condition(model, given)
        given.figures["condition"] = distance(features["condition"], told)
        noisy = torch.cat([noisy, told], dim=1)
    if (mask := given.denoise_mask()) is not None:
        level = model.process_timestep(level, noisy, denoise_mask=mask)
    return {"video": model.diffusion_model(noisy, level, context=features["text"], **more)}


def wan_condition(model, given: Given) -> Tensor:
    from video_lora_studio.training.demo import StandInVae
    from video_lora_studio.training.families.wan import LATENTS_21

    told = []
    last = getattr(model.diffusion_model.img_emb, "emb_pos", None) is not None
    for frames in given.frames:
        noise = given.noisy["video"][:1]
        grey = torch.full_like(frames, 0.5)
        grey[:1] = frames[:1]
        mask = torch.ones(1, 1, noise.shape[2] * 4, *noise.shape[3:])
        mask[:, :, :4] = 0
        if last:
            grey[-1:] = frames[-1:]
            mask[:, :, -1:] = 0
        mask = mask.view(1, mask.shape[2] // 4, 4, *mask.shape[3:]).transpose(1, 2)
        latents = StandInVae(LATENTS_21.grid).encode(grey)[None]
        told.append(model.concat_cond(noise=noise, device=CPU, concat_latent_image=latents, concat_mask=mask))
    return torch.cat(told)


def ltx(model, given: Given) -> dict[str, Tensor]:
    """Text is padded to 128 tokens with noise behind a mask, so that a mask left out would show."""
    noisy, level = given.noisy["video"], given.levels["video"]
    generator = torch.Generator().manual_seed(6)
    text = torch.randn(len(noisy), 128, given.texts[0].shape[1], generator=generator)
    mask = torch.zeros(len(noisy), 128, dtype=torch.long)
    for row, tokens in enumerate(given.texts):
        text[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    if (denoise := given.denoise_mask()) is not None:
        level = model.process_timestep(level, noisy, denoise_mask=denoise)
    return {"video": model.diffusion_model(noisy.clone(), level, text, mask, 25)}


def ltx2(model, given: Given) -> dict[str, Tensor]:
    """With the official order within blocks; how far ComfyUI's own is from that goes into the figures."""
    as_it_is = ltx2_one_by_one(model, given)
    blocks = model.diffusion_model.transformer_blocks
    with contextlib.ExitStack() as patched:
        for block in blocks:
            patched.enter_context(mock.patch.object(block, "forward", in_official_order(block.forward)))
        official = ltx2_one_by_one(model, given)
    given.figures["of ComfyUI's order"] = {name: distance(as_it_is[name], official[name]) for name in official}
    return official


def ltx2_one_by_one(model, given: Given) -> dict[str, Tensor]:
    """One sample after the other: ComfyUI gates picture and sound by the highest level of a batch."""
    transformer, mask = model.diffusion_model, given.denoise_mask()
    answers = []
    for row, tokens in enumerate(given.texts):
        one = slice(row, row + 1)
        text = transformer.preprocess_text_embeds(tokens[None], unprocessed=True)
        masked = None if mask is None else mask[one]
        picture = model.process_timestep(given.levels["video"][one], None, denoise_mask=masked)[0]
        noisy = [given.noisy["video"][one].clone(), given.noisy["audio"][one].clone()]
        answers.append(transformer(
            noisy, (picture, given.levels["audio"][one]), context=text, frame_rate=24, denoise_mask=masked
        ))
    return {name: torch.cat(parts) for name, parts in zip(("video", "audio"), zip(*answers, strict=True), strict=True)}


def in_official_order(forward: Callable) -> Callable:
    """A block whose sound heeds the picture as it was before it heeded the sound, as in ltx-core and diffusers.

    ComfyUI updates the picture first. Here the sound comes from a run in which the picture does not heed it.
    """
    def both(x, *args, transformer_options, **kwargs):
        apart = {**transformer_options, "a2v_cross_attn": False}
        _, sound = forward(tuple(part.clone() for part in x), *args, transformer_options=apart, **kwargs)
        picture, _ = forward(x, *args, transformer_options=transformer_options, **kwargs)
        return picture, sound

    return both


def cogvideox(model, given: Given) -> dict[str, Tensor]:
    from video_lora_studio.training.families.cogvideox import OFS, timestep_of

    noisy, features = given.noisy["video"], given.features
    if "image" in features:
        noisy = torch.cat([noisy, features["image"]], dim=1)
    ofs = torch.full((1,), OFS) if model.diffusion_model.ofs_proj_dim is not None else None
    timestep = timestep_of(given.levels["video"]).float()
    return {"video": model.diffusion_model(noisy, timestep, features["text"], ofs=ofs)}


CASES = {
    **{f"Wan {kind}": Case(family="Wan", kind=kind, native=wan) for kind in ("T2V", "I2V", "FLF2V", "TI2V")},
    "Wan 2.2 I2V": Case(family="Wan", kind="2.2 I2V", expert="high_noise", native=wan),
    "LTX-Video": Case(family="LTX-Video", native=ltx, frames=17),
    "LTX-Video causal": Case(
        family="LTX-Video", native=ltx, frames=17, header={"causal_temporal_positioning": True},
    ),
    **{f"LTX-2 {kind}": Case(family="LTX-2", kind=kind, native=ltx2, frames=17) for kind in ("2.0", "2.3")},
    **{f"CogVideoX {kind}": Case(family="CogVideoX", kind=kind, native=cogvideox, tokens=226)
       for kind in ("2b", "1.5", "1.5 I2V")},
    "CogVideoX 5b": Case(
        family="CogVideoX", kind="5b", native=cogvideox, tokens=226,
        told={"num_attention_heads": 48, "attention_head_dim": 16},
    ),
    "CogVideoX 5b I2V": Case(
        family="CogVideoX", kind="5b I2V", native=cogvideox, tokens=226, frames=49, width=48, height=32,
        told={"sample_width": 6, "sample_height": 4, "sample_frames": 49},
    ),
}


def distance(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()


def write_case(case: Case, path: Path):
    """The case's model in a file; (family, base)."""
    from ltx2_twin import header_of

    from video_lora_studio.loaders.safetensors_file import write_tensors
    from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model

    family = next(family for family in FAMILIES if family.name == case.family)
    config, twin = family.twin() if case.kind is None else family.twin(kind=case.kind)
    metadata = {"config": json.dumps({"transformer": case.header})} if case.header else {}
    if case.family == "LTX-2":
        metadata = header_of(config, case.kind)
    write_tensors(path, file_tensors(family, twin), metadata)
    return family, open_base_model(path, expert=case.expert)


def prepared(case: Case, base) -> tuple[list[dict], list[dict], list[Tensor], list[Tensor]]:
    """Features of two clips and their captions; the clips' frames; the captions as the text encoder gives them."""
    from tiny import StandInImageEncoder, StandInTextEncoder, StandInVae

    from video_lora_studio.training.families.model_family import DecodedClip, Encoders

    generator = torch.Generator().manual_seed(8)
    text_encoder = StandInTextEncoder(base.text_width, case.tokens)
    encoders = Encoders(clip=StandInVae(base.grid), caption=text_encoder, image=StandInImageEncoder(),
                        sound=StandInSound() if "audio" in base.streams else None)
    clips, frames = [], []
    for _ in CAPTIONS:
        small = torch.rand(case.frames, 4, 4, 3, generator=generator)
        frames.append(small.repeat_interleave(case.height // 4, 1).repeat_interleave(case.width // 4, 2))
        sound = torch.randn(2, case.frames * StandInSound.rate // 24, generator=generator)
        clips.append(base.family.prepare_clip(base, DecodedClip(frames=frames[-1], sound=sound), encoders))
    captions = list(base.family.prepare_captions(base, CAPTIONS, text_encoder, CPU))
    return clips, captions, frames, [text_encoder.encode(caption) for caption in CAPTIONS]


def trained(base, clips: list[dict], captions: list[dict], folder: Path):
    """(context, training set, lora file): the engine's model after six steps with its adapter on it, what it learnt
    from, and what it saved.
    """
    from prepared_set import set_of

    from video_lora_studio.loaders.lora_file import write_lora
    from video_lora_studio.training import AdapterConfig, RecipeConfig, RunConfig, SilentListener
    from video_lora_studio.training.loop import RunState, run_steps
    from video_lora_studio.training.optimizers import build_optimizer
    from video_lora_studio.training.run import attach_adapter, set_up

    config = RunConfig(
        name="parity", steps=6, rank=4, learning_rate=2e-2, recipe=RecipeConfig(warmup_steps=0),
        adapter=AdapterConfig(save_as="fp32", alpha=6.0, targets="attention and feed-forward"),
    )
    training_set = set_of(folder, base, clips, captions)
    context = set_up(training_set, base, config, CPU, torch.float32, SilentListener())
    adapter = attach_adapter(context, config)
    parameters = list(adapter.parameters())
    run_steps(context, config, parameters=parameters, optimizer=build_optimizer(parameters, config), state=RunState(),
              listener=SilentListener(), after_step=lambda state: None)
    lora = folder / "lora.safetensors"
    write_lora(lora, adapter.tensors(torch.float32), {})
    return context, training_set, lora


def question(family, base, clips, captions, frames, texts) -> Given:
    generator = torch.Generator().manual_seed(11)
    clean, features = family.collate(base, [clip | caption for clip, caption in zip(clips, captions, strict=True)])
    only_the_second = torch.tensor([False, True])
    masks = {name: mask & only_the_second.view(-1, *[1] * (mask.ndim - 1))
             for name, mask in family.given(base, clean, 1.0, generator).items()}
    noisy = {name: torch.randn(stream.shape, generator=generator) for name, stream in clean.items()}
    for name, mask in masks.items():
        noisy[name] = torch.where(mask, clean[name], noisy[name])
    levels = {"video": torch.tensor([0.93, 0.21]), "audio": torch.tensor([0.4, 0.77])}
    return Given(noisy=noisy, clean=clean, levels={name: levels[name] for name in clean}, masks=masks,
                 features=features, frames=frames, texts=texts, figures={})


def compare(case: Case, folder: Path) -> dict[str, Any]:
    import comfy.lora
    import comfy.model_detection
    import comfy.sd
    import comfy.utils

    model_file = folder / "model.safetensors"
    family, base = write_case(case, model_file)
    clips, captions, frames, texts = prepared(case, base)
    context, _, lora = trained(base, clips, captions, folder)
    transformer = context.transformer
    given = question(family, base, clips, captions, frames, texts)
    detect = comfy.model_detection.detect_unet_config
    with mock.patch.object(comfy.model_detection, "detect_unet_config", lambda *a, **k: detect(*a, **k) | case.told):
        patcher = comfy.sd.load_diffusion_model(str(model_file), model_options={"dtype": torch.float32})
    tensors = comfy.utils.load_torch_file(str(lora), safe_load=True)
    with torch.no_grad():
        ours = family.predict(transformer, given.noisy, given.levels, given.masks, given.features)
        bare = case.native(patcher.model, given)
        before = {name: weight.clone() for name, weight in patcher.model.state_dict().items()}
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
        patcher.patch_model()
        theirs = case.native(patcher.model, given)
        after = patcher.model.state_dict()
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    deltas = [
        distance(after[keys[layer]] - before[keys[layer]], tensors[f"{layer}.lora_B.weight"] @ tensors[name])
        for name in tensors if (layer := name.removesuffix(".lora_A.weight")) != name
    ]
    return {
        "keys": (len(patcher.patches), len(tensors) // 2), "deltas": max(deltas),
        **{name: distance(ours[name], theirs[name]) for name in ours},
        "changed": {name: distance(theirs[name], bare[name]) for name in ours}, **given.figures,
    }


def main(comfyui: str, tests: str, folder: Path) -> None:
    start_comfyui(comfyui)
    torch.set_num_threads(1)
    sys.path.insert(0, tests)
    figures = {}
    for name, case in CASES.items():
        place = folder / name.replace(" ", "_")
        place.mkdir()
        figures[name] = compare(case, place)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
