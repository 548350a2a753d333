"""Test-only nodes: what state the server's process is in, and failures put into the training that follows."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import nodes

DEVICES = ("cpu", "cuda")
BREAKS_AFTER = 3
"""Steps that go well before a failure that is put in."""
SECONDS_A_TENSOR = 0.5
"""How long reading a tensor takes on a disk that is made slow."""
IN_PLACE = contextlib.ExitStack()
"""What is put in at this moment."""


def facts() -> dict:
    """Everything in a process that a run could leave changed behind it; plain values."""
    everything = gc.get_objects()
    modules = [each for each in everything if issubclass(type(each), torch.nn.Module)]
    cuda = torch.backends.cuda
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [[torch.is_autocast_enabled(kind), str(torch.get_autocast_dtype(kind))] for kind in DEVICES],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "deterministic": [torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled()],
        "cudnn": [getattr(torch.backends.cudnn, name)
                  for name in ("enabled", "benchmark", "deterministic", "allow_tf32")],
        "matmul": [torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32,
                   cuda.matmul.allow_fp16_reduced_precision_reduction,
                   cuda.matmul.allow_bf16_reduced_precision_reduction],
        "attention": [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()],
        "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "anomaly mode": torch.is_anomaly_enabled(),
        "modes": [len(torch.overrides._get_current_function_mode_stack()), len(_get_current_dispatch_mode_stack())],
        "saved tensors' hooks": torch._C._autograd._top_saved_tensors_default_hooks(False) is not None,
        "random state": [zlib.crc32(torch.get_rng_state().numpy().tobytes()), hash(random.getstate())],
        "hooks of every module": sum(
            len(getattr(torch.nn.modules.module, name)) for name in dir(torch.nn.modules.module)
            if name.startswith("_global_") and name.endswith("_hooks")
        ),
        "hooks of modules": sum(
            len(getattr(module, f"_{name}_hooks")) for module in modules
            for name in ("forward", "forward_pre", "backward", "backward_pre")
        ),
        "modules of the engine": sum(type(each).__module__.split(".")[0] in ("diffusers", "peft") for each in modules),
        "optimizers": sum(issubclass(type(each), torch.optim.Optimizer) for each in everything),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "loaded models": [each.model.model.__class__.__name__ for each in comfy.model_management.current_loaded_models],
        "interrupt": comfy.model_management.processing_interrupted(),
        "folder": os.getcwd(),
        "environment": zlib.crc32(repr(sorted(os.environ.items())).encode()),
        "search path": list(sys.path),
    }


class Fresh(io.ComfyNode):
    """Passes anything on, as something new each time: what comes after runs again."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsFresh",
            category="tests",
            inputs=[io.AnyType.Input("value")],
            outputs=[io.AnyType.Output("value")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return time.monotonic_ns()

    @classmethod
    def execute(cls, value):
        return io.NodeOutput(value)


class Probe(io.ComfyNode):
    """The process as it is now, as JSON, once the failures that were put in are out again."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsProbe",
            category="tests",
            inputs=[],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return time.monotonic_ns()

    @classmethod
    def execute(cls):
        IN_PLACE.close()
        gc.collect()
        return io.NodeOutput(ui={"text": (json.dumps(facts()),)})


class Break(io.ComfyNode):
    """Lets the next training fail: its listener, a clip's latents, or memory in a step. Or slows its disk."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyPartsBreak",
            category="tests",
            inputs=[io.Custom("VLS_TRAINING_SET").Input("training_set"), io.Combo.Input("how", options=list(BREAKS))],
            outputs=[io.Custom("VLS_TRAINING_SET").Output("training_set")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return time.monotonic_ns()

    @classmethod
    def execute(cls, training_set, how):
        IN_PLACE.close()
        return io.NodeOutput(BREAKS[how](training_set) or training_set)


def spoil_clip(training_set):
    """The set with NaN in the latents of its last clip."""
    *samples, last = training_set.samples
    tensors = load_file(last.clip_features)
    tensors["video"][:, 0, 0, 0] = torch.nan
    path = Path(folder_paths.get_output_directory()) / "spoilt.safetensors"
    save_file(tensors, str(path))
    return replace(training_set, samples=(*samples, replace(last, clip_features=path, key="f" * 64)))


def part_of_the_pack(name: str):
    """A module of the pack as the server has imported it, such as `nodes.train`."""
    train = nodes.NODE_CLASS_MAPPINGS["VLSTrain"].__module__
    return sys.modules[f"{train.removesuffix('nodes.train')}{name}"]


def after_some_steps(error: BaseException):
    """A function that raises `error` once the training has made some steps."""
    listener = part_of_the_pack("nodes.train").RunListener
    report, made = listener.report, [0]

    def watched(self, progress):
        report(self, progress)
        made[0] = progress.done if progress.phase == "Training" else 0

    def fail(*_, **__):
        if made[0] >= BREAKS_AFTER:
            raise error

    IN_PLACE.enter_context(mock.patch.object(listener, "report", watched))
    return fail


def no_memory():
    """As torch's CPU allocator says it."""
    return after_some_steps(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."))


def break_listener(training_set):
    listener = part_of_the_pack("nodes.train").RunListener
    fail, check = after_some_steps(LookupError("a listener that fails")), listener.check

    def failing(self):
        check(self)
        fail()

    IN_PLACE.enter_context(mock.patch.object(listener, "check", failing))


def slow_disk(training_set):
    reader = part_of_the_pack("loaders.safetensors_file").TensorReader
    read = reader.read_bytes

    def slowly(self, name):
        raw = read(self, name)
        time.sleep(0 if raw.is_meta else SECONDS_A_TENSOR)
        return raw

    IN_PLACE.enter_context(mock.patch.object(reader, "read_bytes", slowly))


def break_forward(training_set):
    fail = no_memory()
    IN_PLACE.callback(torch.nn.modules.module.register_module_forward_pre_hook(fail).remove)


def break_backward(training_set):
    fail, backward = no_memory(), torch.Tensor.backward

    def failing(self, *args, **kwargs):
        backward(self, *args, **kwargs)
        fail()

    IN_PLACE.enter_context(mock.patch.object(torch.Tensor, "backward", failing))


def break_optimizer(training_set):
    fail = no_memory()
    IN_PLACE.callback(register_optimizer_step_pre_hook(fail).remove)


BREAKS = {
    "NaN in a clip": spoil_clip, "listener": break_listener, "memory in forward": break_forward,
    "memory in backward": break_backward, "memory in the optimizer": break_optimizer,
    "slow disk": slow_disk,
}
