"""Twins of more than two blocks, steps with them as the engine makes them, and what these are predicted to take."""

import torch
from ltx2_twin import write_ltx2_twin

from video_lora_studio.loaders.module_weights import Storage, build_without_storage, fill_at_random
from video_lora_studio.loaders.safetensors_file import write_tensors
from video_lora_studio.training.adapter import Adapter
from video_lora_studio.training.config import RunConfig
from video_lora_studio.training.families import FAMILIES, file_tensors, open_base_model
from video_lora_studio.training.loop import StepContext, micro_step_loss
from video_lora_studio.training.memory.footprint import Footprints
from video_lora_studio.training.memory.level import Level
from video_lora_studio.training.memory.recompute import recompute_blocks
from video_lora_studio.training.memory.workload import Workload
from video_lora_studio.training.optimizers import build_optimizer

CPU = torch.device("cpu")
BY_NAME = {family.name: family for family in FAMILIES}
RUN = RunConfig(name="sizes", steps=2, rank=8)
KEPT, AGAIN = Level(), Level(recompute=True)
ATTENTION_KEPT = Level(recompute=True, keep_attention=True)
SIZES = [
    ("Wan", "T2V", 6, (256, 256, 9), AGAIN), ("Wan", "T2V", 6, (256, 256, 9), ATTENTION_KEPT),
    ("Wan", "T2V", 6, (256, 256, 9), KEPT), ("Wan", "T2V", 5, (64, 64, 5), AGAIN),
    ("Wan", "T2V", 6, (256, 256, 9), Level(recompute=True, weights="fp8")),
    ("Wan", "T2V", 5, (64, 64, 5), Level(recompute=True, weights="nf4")),
    ("Wan", "TI2V", 4, (512, 512, 9), AGAIN), ("LTX-Video", None, 6, (512, 512, 17), AGAIN),
    ("LTX-Video", None, 6, (512, 512, 17), ATTENTION_KEPT), ("LTX-2", "2.0", 2, (256, 256, 17), AGAIN),
    ("LTX-2", "2.0", 2, (256, 256, 17), ATTENTION_KEPT), ("CogVideoX", "5b", 6, (256, 256, 9), KEPT),
    ("CogVideoX", "5b", 6, (256, 256, 9), ATTENTION_KEPT),
]
"""Family, kind, blocks, clip, level."""


def write_deep_twin(path, name, kind, blocks):
    """A twin with so many blocks, as a file that is recognised; LTX-2's has two whatever is asked."""
    family = BY_NAME[name]
    if name == "LTX-2":
        write_ltx2_twin(path, kind)
        return open_base_model(path)
    config, twin = family.twin() if kind is None else family.twin(kind=kind)
    deep = build_without_storage(lambda: type(twin)(**{**config, "num_layers": blocks}))
    fill_at_random(deep)
    write_tensors(path, file_tensors(family, deep), {})
    return open_base_model(path)


def sample_shapes(base, size):
    """Shapes of the cached features of a clip of this size and its caption."""
    width, height, frames = size
    shapes = {
        "video": base.grid.latent_shape(width, height, frames), "text": (base.text_tokens, base.text_width),
    }
    if "audio" in base.streams:
        shapes |= {"text_audio": shapes["text"], "audio": (8, round(frames / base.grid.fps * 25), 16)}
    return shapes


def workload(base, size, run=RUN, device=CPU, compute=torch.float32):
    return Workload.of(base, run, sample_shapes(base, size), frozenset(base.streams), device, compute)


def predicted(base, size, level, compute=torch.float32):
    """Peak bytes of a step on the CPU."""
    return Footprints(workload(base, size, compute=compute)).of(level).on_device(level)


class DrawnBatches:
    """One batch of random features, the same at every position."""

    def __init__(self, work):
        self.streams = frozenset(work.clean)
        self._work = work

    def read(self, position):
        clean = {name: torch.randn(stream.shape) for name, stream in self._work.clean.items()}
        return clean, {name: torch.randn(tensor.shape) if tensor.is_floating_point() else tensor
                       for name, tensor in self._work.features.items()}

    def samples(self, position):
        return []


def real_steps(base, size, level, compute=torch.float32, run=RUN):
    """Two of the engine's own steps, to be called, and the tensors that are there before them."""
    work = workload(base, size)
    storage = Storage(weights=level.weights)
    transformer = base.family.load_transformer(base, dtype=compute, device=CPU, storage=storage)
    if level.recompute:
        recompute_blocks(transformer, keep_random_state=False, keep_attention=level.keep_attention)
    adapter = Adapter(transformer, base, run.adapter, rank=run.rank, seed="0", streams=work.clean)
    context = StepContext(
        transformer=transformer, base=base, objective=base.family.objective(base, run.recipe),
        batches=DrawnBatches(work), device=CPU, seed="0", first_frame=float(base.defaults.first_frame > 0),
        autocast=lambda: torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32),
    )
    parameters = list(adapter.parameters())

    optimizer = build_optimizer(parameters, run)

    def steps():
        for step in range(run.steps):
            for parameter in parameters:
                parameter.grad = None
            micro_step_loss(context, step).backward()
            optimizer.step(step)

    return steps, [*transformer.parameters(), *transformer.buffers()]
