"""Run by ComfyUI's Python: train a LoRA with the engine, keep the trained model, and compare its velocity with that of
ComfyUI's own Wan with the saved file loaded by ComfyUI's own loader.

Arguments: ComfyUI's folder, a Wan file, a folder to work in. Prints one line of JSON: how the file was stored to the
relative difference, and what the LoRA itself changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


def start_comfyui(folder: str) -> None:
    sys.path.insert(0, folder)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management

    comfy.model_management.in_training = True


def trained(wan: Path, folder: Path, save_as: str):
    """(context, lora file): the engine's model after six steps, its adapter still on it, and what it saved."""
    from prepared_set import random_set

    from video_lora_studio.loaders.lora_file import write_lora
    from video_lora_studio.training import AdapterConfig, RecipeConfig, RunConfig, SilentListener, open_base_model
    from video_lora_studio.training.loop import RunState, run_steps
    from video_lora_studio.training.optimizers import build_optimizer
    from video_lora_studio.training.run import attach_adapter, set_up
    from video_lora_studio.training.run_output import SAVED_DTYPES

    base = open_base_model(wan)
    config = RunConfig(
        name="parity", steps=6, rank=4, learning_rate=2e-2, adapter=AdapterConfig(save_as=save_as, alpha=6.0),
        recipe=RecipeConfig(warmup_steps=0),
    )
    data = random_set(folder, base, clips=2, latent_shape=(16, 3, 8, 8), tokens=20)
    context = set_up(data, base, config, torch.device("cpu"), torch.float32, SilentListener())
    adapter = attach_adapter(context, config)
    parameters = list(adapter.parameters())
    run_steps(context, config, parameters=parameters, optimizer=build_optimizer(parameters, config), state=RunState(),
              listener=SilentListener(), after_step=lambda state: None)
    lora = folder / f"parity_{save_as}.safetensors"
    write_lora(lora, adapter.tensors(SAVED_DTYPES[save_as]), {})
    return context, lora


def native_velocity(wan: Path, lora: Path | None, noisy, level, text) -> torch.Tensor:
    import comfy.sd
    import comfy.utils

    patcher = comfy.sd.load_diffusion_model(str(wan), model_options={"dtype": torch.float32})
    if lora is not None:
        tensors = comfy.utils.load_torch_file(str(lora), safe_load=True)
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
        assert len(patcher.patches) == len(tensors) // 2
    patcher.patch_model()
    model = patcher.model.diffusion_model
    answer = model(noisy, level * 1000, context=text).double()
    patcher.unpatch_model()
    return answer


def main(comfyui: str, wan: Path, folder: Path) -> None:
    start_comfyui(comfyui)
    generator = torch.Generator().manual_seed(11)
    noisy = torch.randn(2, 16, 3, 8, 12, generator=generator)
    level = torch.tensor([0.93, 0.21])
    text = torch.zeros(2, 512, 4096)
    text[0, :20] = torch.randn(20, 4096, generator=generator)
    text[1, :7] = torch.randn(7, 4096, generator=generator)
    figures = {}
    for save_as in ("fp32", "bf16"):
        context, lora = trained(wan, folder, save_as)
        with torch.no_grad():
            ours = context.family.predict(
                context.transformer, {"video": noisy}, {"video": level}, {}, {"text": text}
            )
            ours = ours["video"].double()
            theirs, bare = (native_velocity(wan, file, noisy, level, text) for file in (lora, None))
        figures[save_as] = ((ours - theirs).norm() / theirs.norm()).item()
        figures["changed"] = ((theirs - bare).norm() / bare.norm()).item()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
