"""VLSCompare on a real server: every cell is what KSampler and VAEDecode give, with the LoRAs as VLSStack puts them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from comfy_server import ComfyServer, Result, comfyui_folder, run_script
from graphs import Graph, node, row, wan
from safetensors.torch import load_file, save_file
from server_parts import shift_weights, write_checkpoint

from video_lora_studio.loaders.lora_file import RUN_KEY
from video_lora_studio.loaders.safetensors_file import read_tensors
from video_lora_studio.training import ComparisonGrid

pytestmark = pytest.mark.comfy
LAYERS = ("self_attn.q", "self_attn.v", "cross_attn.q", "cross_attn.o")
SHAPE = (9, 64, 64)
"""Frames, height and width of what the latents decode to."""
HOW = {"seed": 3, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
STEPS = (2, 4, 6)
numbers = itertools.count()


def random_lora(seed: int, *, width: int = 128) -> dict[str, torch.Tensor]:
    """A LoRA of the tiny Wan that changes its answer plainly."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block, layer in itertools.product(range(2), LAYERS):
        module = f"diffusion_model.blocks.{block}.{layer}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, width, generator=generator) * width**-0.5
        tensors[f"{module}.lora_B.weight"] = torch.randn(width, 4, generator=generator) * 0.5
    return tensors


def write_run(server: ComfyServer, name: str, experts: tuple[str, ...] = ("",)) -> None:
    """A LoRA as a run leaves it, with copies at all steps but the last; the copies among the LoRAs as well."""
    folder = server.output / "video_lora" / name / "checkpoints"
    folder.mkdir(parents=True)
    for (place, expert), step in itertools.product(enumerate(experts), STEPS):
        tensors = random_lora(100 * place + step)
        header = {"ss_output_name": name, RUN_KEY: f"run of {name}", "ss_sd_model_name": f"{expert}.safetensors",
                  "ss_steps": str(step)}
        ending = f"_{expert}" if expert else ""
        loras = server.models / "loras"
        save_file(tensors, loras / f"{name}_at_{step}{ending}.safetensors", header)
        if step == STEPS[-1]:
            save_file(tensors, loras / f"{name}{ending}.safetensors", header)
        else:
            kept = "-".join(filter(None, (expert, f"step-{step:06d}")))
            save_file(tensors, folder / f"{kept}.safetensors", header)


@pytest.fixture(scope="module")
def server(comfy: ComfyServer) -> ComfyServer:
    """The server with LoRAs of the tiny Wan, a run with copies, a run of a pair with copies, and a second model."""
    models, loras = comfy.models / "diffusion_models", comfy.models / "loras"
    shift_weights(models / "tiny_wan.safetensors", models / "tiny_wan_low.safetensors")
    save_file(random_lora(1), loras / "compare_one.safetensors")
    save_file(random_lora(2), loras / "compare_two.safetensors")
    save_file({name.replace("blocks", "towers"): tensor for name, tensor in random_lora(3).items()},
              loras / "compare_other.safetensors")
    write_run(comfy, "compare_run")
    write_run(comfy, "compare_pair", ("high_noise", "low_noise"))
    return comfy


def parts(length: int = SHAPE[0]) -> Graph:
    return {
        **wan(),
        "low": node("UNETLoader", unet_name="tiny_wan_low.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "text": node("TinyPartsTextEncoder", seed=0, width=4096, count=False),
        "positive": node("CLIPTextEncode", clip=("text", 0), text="two people ride bicycles"),
        "negative": node("CLIPTextEncode", clip=("text", 0), text=""),
        "noise": node("EmptyHunyuanLatentVideo", width=SHAPE[2], height=SHAPE[1], length=length, batch_size=1),
    }


def comparing(rows: list[dict] | None = None, **inputs) -> Graph:
    """`VLSCompare` over the rows of a stack; its grid is written to output/compare_grid.safetensors."""
    given = {"strengths": "0, 1", "checkpoints": "last only", "cell_width": 0, **HOW,
             "model": ("unet", 0), "positive": ("positive", 0), "negative": ("negative", 0), "latent": ("noise", 0),
             "vae": ("vae", 0)}
    stack = {} if rows is None else {"rows": node("VLSStack", loras=json.dumps(rows))}
    linked = {} if rows is None else {"stack": ("rows", 4)}
    return {
        **parts(), **stack, "compare": node("VLSCompare", **{**given, **linked, **inputs}),
        "written": node("TinyPartsWrite", value=("compare", 0), name="compare_grid"),
        "facts": node("GetVideoComponents", video=("compare", 1)),
        "video_frames": node("TinyPartsWrite", value=("facts", 0), name="compare_video"),
        "fps": node("PreviewAny", source=("facts", 2)),
    }


def compared(server: ComfyServer, graph: Graph) -> tuple[torch.Tensor, Result]:
    result = server.queue(graph)
    assert result.status == "success", result.error
    return load_file(server.output / "compare_grid.safetensors")["value"], result


def alone(server: ComfyServer, rows: list[dict], *, two_models: bool = False, switch: int = 1) -> torch.Tensor:
    """The frames that KSampler and VAEDecode give for the model with rows of VLSStack on it; the bare one for none."""
    name = f"compare_alone_{next(numbers)}"
    graph = parts()
    models = [("unet", 0), ("low", 0)]
    if rows:
        low = {"model_low": ("low", 0)} if two_models else {}
        graph["stack"] = node("VLSStack", model=("unet", 0), loras=json.dumps(rows), **low)
        models = [("stack", 0), ("stack", 1)]
    shared = {"positive": ("positive", 0), "negative": ("negative", 0)}
    if two_models:
        how = {("noise_seed" if key == "seed" else key): value for key, value in HOW.items()}
        graph["first"] = node(
            "KSamplerAdvanced", model=models[0], latent_image=("noise", 0), add_noise="enable", start_at_step=0,
            end_at_step=switch, return_with_leftover_noise="enable", **how, **shared)
        graph["sampler"] = node(
            "KSamplerAdvanced", model=models[1], latent_image=("first", 0), add_noise="disable", start_at_step=switch,
            end_at_step=10000, return_with_leftover_noise="disable", **how, **shared)
    else:
        graph["sampler"] = node("KSampler", model=models[0], latent_image=("noise", 0), denoise=1.0, **HOW, **shared)
    graph["frames"] = node("VAEDecode", samples=("sampler", 0), vae=("vae", 0))
    graph["write"] = node("TinyPartsWrite", value=("frames", 0), name=name)
    result = server.queue(graph)
    assert result.status == "success", result.error
    return load_file(server.output / f"{name}.safetensors")["value"]


def grid_of(title: str, columns: list[str], rows: list[str], cells: list[list[torch.Tensor]], **more) -> torch.Tensor:
    grid = ComparisonGrid(title=title, note="seed 3", columns=columns, rows=rows, shape=SHAPE,
                          **{"cell_width": 0, **more})
    for row_number, each in enumerate(cells):
        for column, frames in enumerate(each):
            grid.put(frames, [(row_number, column)])
    return grid.images


def test_cells_are_what_the_samplers_give_without_and_with_the_lora(server: ComfyServer):
    rows = [row("compare_one.safetensors", 0.8)]
    grid, result = compared(server, comparing(rows, strengths="0, 0.5, 1"))
    cells = [alone(server, []), alone(server, [row("compare_one.safetensors", 0.4)]), alone(server, rows)]
    assert cells[0].shape == (*SHAPE, 3)
    assert min((one - other).abs().max() for one, other in itertools.combinations(cells, 2)) > 0.01
    assert grid.equal(grid_of("compare_one", ["without", "strength 0.4", "strength 0.8"], [""], [cells]))
    video = load_file(server.output / "compare_video.safetensors")["value"]
    assert video.equal(grid) and result.text("fps") == "16.0"
    lines = result.text("compare").splitlines()
    assert [line.split(",")[0] for line in lines] == ["without", "strength 0.4", "strength 0.8"]
    assert lines[0].endswith(": no LoRA")
    assert "compare_one.safetensors: strength 0.4, 16 of 16 keys match, merged" in lines[1]


def test_several_rows_keep_their_proportions(server: ComfyServer):
    grid, _ = compared(server, comparing(
        [row("compare_one.safetensors", 0.8), row("compare_two.safetensors", -0.5)], strengths="1, -0.5"))
    cells = [alone(server, [row("compare_one.safetensors", first), row("compare_two.safetensors", second)])
             for first, second in ((0.8, -0.5), (-0.4, 0.25))]
    title = "compare_one 0.8 + compare_two -0.5"
    assert grid.equal(grid_of(title, ["strength × 1", "strength × -0.5"], [""], [cells]))


def test_two_models_share_the_steps(server: ComfyServer):
    inputs = {"lora_name": "compare_pair_high_noise.safetensors", "model_low": ("low", 0)}
    grid, result = compared(server, comparing(**inputs))
    rows = [row("compare_pair_high_noise.safetensors")]
    cells = [alone(server, [], two_models=True), alone(server, rows, two_models=True)]
    assert grid.equal(grid_of("compare_pair_high_noise", ["without", "strength 1"], [""], [cells]))
    assert "low noise: compare_pair_low_noise.safetensors, strength 1, 16 of 16" in result.text("compare")
    grid, _ = compared(server, comparing(**inputs, low_noise_from=2))
    later = [alone(server, [], two_models=True, switch=2), alone(server, rows, two_models=True, switch=2)]
    assert not later[0].equal(cells[0])
    assert grid.equal(grid_of("compare_pair_high_noise", ["without", "strength 1"], [""], [later]))


def test_rows_are_the_copies_that_were_kept(server: ComfyServer):
    grid, result = compared(server, comparing(lora_name="compare_run.safetensors", checkpoints="all that were kept"))
    bare = alone(server, [])
    cells = [[bare, alone(server, [row(f"compare_run_at_{step}.safetensors")])] for step in STEPS]
    labels = ["step 2", "step 4", "step 6\nlast"]
    assert grid.equal(grid_of("compare_run", ["without", "strength 1"], labels, cells))
    lines = [line.split(", ")[:3] for line in result.text("compare").splitlines()]
    assert lines[0][:2] == ["without", "shown 3 times"] and len(lines) == 4, "cells that are the same are sampled once"
    assert [line[0] for line in lines[1:]] == ["step 2", "step 4", "step 6"]
    assert result.progress("compare")[-1][1] == 4 * HOW["steps"]


def test_copies_of_two_experts_go_together(server: ComfyServer):
    grid, _ = compared(server, comparing(lora_name="compare_pair_high_noise.safetensors", strengths="1",
                                         model_low=("low", 0), checkpoints="all that were kept"))
    rows = [[row(f"compare_pair_at_{step}_high_noise.safetensors")] for step in STEPS]
    cells = [[alone(server, each, two_models=True)] for each in rows]
    labels = ["step 2", "step 4", "step 6\nlast"]
    assert grid.equal(grid_of("compare_pair_high_noise", ["strength 1"], labels, cells))


def test_the_node_shows_the_video_it_gives(server: ComfyServer):
    import av

    grid, result = compared(server, comparing([row("compare_one.safetensors")], cell_width=32, fps=12.0, steps=1))
    cells = [torch.zeros(*SHAPE, 3)] * 2
    title, columns = "compare_one", ["without", "strength 1"]
    assert grid.shape == grid_of(title, columns, [""], [cells], cell_width=32).shape
    assert grid.shape[1] < grid_of(title, columns, [""], [cells]).shape[1]
    (shown,) = result.outputs["compare"]["images"]
    assert result.outputs["compare"]["animated"] == [True] and shown["type"] == "temp"
    with av.open(str(server.folder / "temp" / shown["filename"])) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert float(file.streams.video[0].average_rate) == 12.0
    assert (len(frames), *frames[0].shape) == tuple(grid.shape)
    played = torch.stack([torch.from_numpy(frame) for frame in frames]).float() / 255
    assert (played - grid).abs().mean() < 0.04


def test_sound_is_sampled_with_the_picture_and_not_compared(server: ComfyServer):
    """LTX-2, whose latents hold both."""
    file, layers = write_ltx2(server)
    save_file({f"diffusion_model.{layer}.lora_{side}.weight": torch.randn(shape) * 0.3 for layer, (rows, columns)
               in layers.items() for side, shape in (("A", (4, columns)), ("B", (rows, 4)))},
              server.models / "loras" / "compare_sound.safetensors")
    rows = json.dumps([row("compare_sound.safetensors")])
    shared = {"positive": ("rate", 0), "negative": ("rate", 1)}
    graph = {
        "model": node("CheckpointLoaderSimple", ckpt_name=file),
        "audio_vae": node("LTXVAudioVAELoader", ckpt_name=file),
        "clip": node("TinyPartsFamilyTextEncoder", family="ltx-2.0"),
        "positive": node("CLIPTextEncode", clip=("clip", 0), text="two people ride bicycles"),
        "negative": node("CLIPTextEncode", clip=("clip", 0), text=""),
        "rate": node("LTXVConditioning", positive=("positive", 0), negative=("negative", 0), frame_rate=24.0),
        "picture": node("EmptyLTXVLatentVideo", width=64, height=64, length=17, batch_size=1),
        "sound": node("LTXVEmptyLatentAudio", frames_number=17, frame_rate=24.0, batch_size=1,
                      audio_vae=("audio_vae", 0)),
        "noise": node("LTXVConcatAVLatent", video_latent=("picture", 0), audio_latent=("sound", 0)),
        "rows": node("VLSStack", loras=rows),
        "stack": node("VLSStack", model=("model", 0), loras=rows),
        "compare": node("VLSCompare", model=("model", 0), latent=("noise", 0), vae=("model", 2), stack=("rows", 4),
                        strengths="0, 1", checkpoints="last only", cell_width=0, **HOW, **shared),
        "written": node("TinyPartsWrite", value=("compare", 0), name="compare_grid"),
    }
    for name, model in (("bare", "model"), ("lora", "stack")):
        graph[f"{name}_sampler"] = node("KSampler", model=(model, 0), latent_image=("noise", 0), denoise=1.0, **HOW,
                                        **shared)
        graph[f"{name}_frames"] = node("VAEDecode", samples=(f"{name}_sampler", 0), vae=("model", 2))
        graph[f"{name}_write"] = node("TinyPartsWrite", value=(f"{name}_frames", 0), name=f"compare_{name}")
    grid, result = compared(server, graph)
    cells = [load_file(server.output / f"compare_{name}.safetensors")["value"] for name in ("bare", "lora")]
    assert not cells[0].equal(cells[1])
    expected = ComparisonGrid(title="compare_sound", note="seed 3", columns=["without", "strength 1"], rows=[""],
                              shape=tuple(cells[0].shape[:3]), cell_width=0)
    for column, frames in enumerate(cells):
        expected.put(frames, [(0, column)])
    assert grid.equal(expected.images)
    assert result.text("compare").endswith("The sound was sampled with the picture; it is not compared.")


def write_ltx2(server: ComfyServer) -> tuple[str, dict[str, tuple[int, ...]]]:
    """A tiny LTX-2 checkpoint, with its VAEs: its name, and sizes of layers that make picture and sound."""
    from ltx2_twin import FAMILY, header_of

    file, beside_file = "tiny_compare_ltx2.safetensors", server.folder / "compare_ltx_parts.safetensors"
    script = Path(__file__).with_name("write_tiny_ltx_parts.py")
    run_script(script, comfyui_folder(), beside_file, folder=server.folder)
    beside, metadata = read_tensors(beside_file)
    config, _ = FAMILY.twin("2.0")
    path = server.models / "checkpoints" / file
    path.parent.mkdir(exist_ok=True)
    write_checkpoint(path, FAMILY, "2.0", beside,
                     json.loads(metadata["config"]) | json.loads(header_of(config, "2.0")["config"]))
    tensors, _ = read_tensors(path)
    layers = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.audio_attn1.to_v",
              "transformer_blocks.0.audio_to_video_attn.to_q")
    return file, {layer: tuple(tensors[f"model.diffusion_model.{layer}.weight"].shape) for layer in layers}


def test_cancel_is_obeyed_within_a_cell_and_all_is_as_before(server: ComfyServer):
    graph = comparing([row("compare_one.safetensors")], strengths="0, 1, 2", steps=100)
    seen = []

    def cancel(message: dict) -> None:
        if message["type"] == "progress" and message["data"].get("node") == "compare":
            seen.append(message["data"]["value"])
            if seen[-1] > 110:  # within the second cell, whose LoRA is in the model's weights now
                server.interrupt()

    result = server.queue(graph, on_message=cancel)
    assert (result.status, result.error_node) == ("interrupted", "compare")
    assert 110 < seen[-1] < 200, "not before the end of the cell"
    bare = alone(server, [])
    grid, _ = compared(server, comparing([row("compare_one.safetensors")]))
    cells = [[bare, alone(server, [row("compare_one.safetensors")])]]
    assert grid.equal(grid_of("compare_one", ["without", "strength 1"], [""], cells))


EARLY = ("word", "too_many", "no_lora", "no_choice")
"""What ComfyUI's validation refuses, before any node has run."""


@pytest.mark.parametrize(("change", "words"), [
    ({"strengths": "0, much"}, "Strengths: 'much' is not a number; write numbers as in \"0, 0.5, 1\"."),
    ({"strengths": ",".join(["1"] * 101)}, "101 strengths are 101 cells, and at most 100 can be compared"),
    ({"stack": None}, "Compare LoRA has no LoRA: connect the stack of Stack LoRAs, or lora_name from Train LoRA."),
    ({"checkpoints": "some"}, "'some' not in"),
    ({"checkpoints": "all that were kept"}, "No copies of compare_one.safetensors were kept: compare the last only"),
    ({"lora_name": "compare_gone.safetensors"}, "compare_gone.safetensors was not found in ComfyUI's LoRA folders"),
    ({"rows": []}, "No LoRA of the stack is on at a strength other than 0: switch one on."),
    ({"rows": [row("compare_one.safetensors", on=False)]}, "No LoRA of the stack is on"),
    ({"rows": [row("compare_other.safetensors")]}, "compare_other.safetensors fits none of this model's layers"),
    ({"picture": node("EmptyLatentImage", width=64, height=64, batch_size=1)}, "The latent is not a video's: connect"),
    ({"picture": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=2)}, "holds 2 videos"),
    ({"picture": node("EmptyHunyuanLatentVideo", width=2048, height=2048, length=81, batch_size=1),
      "strengths": ",".join(["1"] * 100)}, "A grid of 1 × 100 cells takes 422.8 GB of memory, and "),
    ({"model_low": ("low", 0), "low_noise_from": 3}, "Of 3 steps the low-noise model would get those from 3 on"),
], ids=["word", "too_many", "no_lora", "no_choice", "no_copies", "gone", "empty_stack", "off", "other_model", "image",
        "two_videos", "memory", "no_step"])
def test_what_cannot_be_compared_is_said_before_anything_is_sampled(request, server: ComfyServer, change, words):
    graph = comparing(change.get("rows", [row("compare_one.safetensors")]))
    graph["noise"] = change.get("picture", graph["noise"])
    given = graph["compare"]["inputs"]
    given |= {name: list(value) if isinstance(value, tuple) else value for name, value in change.items()
              if name not in ("rows", "picture")}
    graph["compare"]["inputs"] = {name: value for name, value in given.items() if value is not None}
    result = server.queue(graph)
    assert result.status == ("refused" if request.node.callspec.id in EARLY else "error")
    assert words in result.error
    assert not result.progress("compare")
