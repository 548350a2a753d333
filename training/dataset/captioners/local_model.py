"""A vision language model from a folder on this machine, as transformers loads it.

T frames, P height and Q width in pixels, L tokens of the question, N samples of sound.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....loaders.safetensors_file import read_header
from .captioner import CaptionError, Shown

HEARING = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
"""Models that hear, by `model_type`, and the part of each that writes text: the part that speaks is not loaded."""
OLDEST = (4, 57)
"""The first transformers in which a video's true time reaches the models."""
GIB = 1024**3


class LocalModel:
    """A Captioner over a folder with `config.json`, safetensors weights and the files of a processor.

    The weights are read at the first caption and let go by `close`. Code that a folder brings along is never run,
    and weights in pickles are never read. `bits` 8 and 4 quantise while loading (bitsandbytes); 16 does not.
    `check` is called at every token and may raise to stop.
    """

    def __init__(
        self, folder: Path, *, bits: int = 16, device: torch.device, check: Callable[[], None] = lambda: None
    ):
        if bits not in (16, 8, 4):
            raise ValueError(f"bits is {bits}: a captioner's weights are kept in 16, 8 or 4.")
        config = read_config(folder)
        if bits != 16 and "quantization_config" in config:
            raise ValueError(f"{folder.name} is stored quantised already: choose 16 bits, which leaves it as it is.")
        self._folder, self._bits, self._device, self._check = folder, bits, device, check
        self._kind = str(config.get("model_type"))
        self._model: Any = None
        self._processor: Any = None
        self.hears = self._kind in HEARING
        self.title = f"{folder.name}, on this machine"

    def before(self, clips: int, shown: Shown) -> str:
        """What is loaded, and from how large files. ValueError where files or packages are missing."""
        size = sum(read_header(path).size for path in weight_files(self._folder))
        check_packages(self._folder.name, self._kind, self._bits)
        return f"{self.title}: {size / GIB:.1f} GiB of weights, loaded in {self._bits} bits on {self._device}."

    def caption(self, shown: Shown) -> str:
        """One caption; the same for the same seed. ValueError where the model cannot be loaded."""
        if self._model is None:
            self._load()
        try:
            inputs = self._inputs(shown)
            text = self._write(inputs, shown)
        except torch.cuda.OutOfMemoryError as error:
            self._free()
            raise CaptionError(
                f"{self.title}: no memory left on {self._device} for {len(shown.frames)} frames; show fewer."
            ) from error
        if not text:
            raise CaptionError(f"{self.title} wrote nothing.")
        return text

    def close(self) -> None:
        self._model = self._processor = None
        self._free()

    def _load(self) -> None:
        name = self._folder.name
        check_packages(name, self._kind, self._bits)
        import transformers

        wanted = HEARING.get(self._kind, "AutoModelForImageTextToText")
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(
                str(self._folder), local_files_only=True, trust_remote_code=False
            )
            self._model = getattr(transformers, wanted).from_pretrained(
                str(self._folder), local_files_only=True, trust_remote_code=False, use_safetensors=True,
                device_map={"": self._device}, **precision(self._bits, self._device),
            )
        except torch.cuda.OutOfMemoryError as error:
            self.close()
            raise ValueError(
                f"{name} in {self._bits} bits does not fit on {self._device}: choose fewer bits, or a smaller model."
            ) from error
        except (ImportError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
            self.close()
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"transformers {transformers.__version__} cannot load {name}: {why}") from error

    def _inputs(self, shown: Shown) -> dict[str, Any]:
        """The question as tensors on the device: text (1, L) with places for the frames, and the frames in patches."""
        frames = shown.frames.movedim(-1, 1)  # (T, 3, P, Q)
        moves = len(frames) > 1 and shown.fps > 0
        given: dict[str, Any] = {}
        question = shown.instruction
        if moves and getattr(self._processor, "video_processor", None) is not None:
            content = [{"type": "video"}]
            given["videos"] = [frames]
            given["videos_kwargs"] = {
                "video_metadata": [clock(frames, shown.fps)], "do_sample_frames": False, "fps": shown.fps,
            }
        else:
            content = [{"type": "image"} for _ in frames]
            given["images"] = list(frames)
            question = shown.timed_instruction
        if shown.sound is not None and self.hears:
            content.append({"type": "audio"})
            given["audio"] = [shown.sound.mean(dim=0).numpy()]
            given["audio_kwargs"] = {"sampling_rate": shown.rate}
        content.append({"type": "text", "text": question})
        thinks = "enable_thinking" in str(self._processor.chat_template)
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True,
            **({"enable_thinking": False} if thinks else {}),
        )
        made = self._processor(text=[text], return_tensors="pt", **given)
        return {name: self._placed(name, value) for name, value in made.items() if name != "video_metadata"}

    def _placed(self, name: str, value: Any) -> Any:
        """A tensor on the device; what is seen and heard in the type of the weights, times as they are."""
        if not isinstance(value, Tensor):
            return value
        sensed = name.startswith(("pixel_values", "input_features"))
        return value.to(self._device, self._model.dtype if sensed else value.dtype)

    def _write(self, inputs: dict[str, Any], shown: Shown) -> str:
        """The model's answer, drawn as its own `generation_config.json` says."""
        cards = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(cards), torch.inference_mode():
            torch.manual_seed(shown.seed)
            tokens = self._model.generate(
                **inputs, max_new_tokens=shown.max_tokens, stopping_criteria=[self._go_on]
            )
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return self._processor.tokenizer.decode(answer, skip_special_tokens=True).strip()

    def _go_on(self, tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        self._check()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    def _free(self) -> None:
        gc.collect()
        backend = getattr(torch, self._device.type, None)  # torch.cuda, also for ROCm, torch.mps, torch.xpu
        if hasattr(backend, "empty_cache"):
            backend.empty_cache()


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model. ValueError where the folder holds none, or one that is not a vision model's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no config.json: choose the folder of a model as it is offered for transformers."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Download it again.") from error
    if not isinstance(config, dict) or not {"vision_config", "thinker_config"} & set(config):
        raise ValueError(f"{folder.name} is not a model that looks at pictures: choose a vision language model.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model. ValueError where there are none, or some that its index names are missing."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = [path.name for ending in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(ending)]
        found = f" {others[0]} is of a kind that is not read here." if others else ""
        raise ValueError(f"{folder.name} holds no safetensors weights.{found} Download the model's safetensors files.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} cannot be read: {error}. Download it again.") from error
        missing = sorted(named - {path.name for path in files})
        if missing:
            raise ValueError(f"{folder.name} lacks {missing[0]} ({len(missing)} of {len(named)} files): download it.")
    return files


def check_packages(name: str, kind: str, bits: int) -> None:
    """ValueError where a package is missing or too old for a model of this kind."""
    import transformers

    version = tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2]))
    if version < OLDEST:
        raise ValueError(
            f"A captioner from a folder needs transformers 4.57 or newer, and this is {transformers.__version__}: "
            "run pip install --upgrade transformers."
        )
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{name} is a model of the kind {kind!r}, which transformers {transformers.__version__} does not know: "
            "update transformers, or choose another model. Code from a model's folder is not run."
        )
    packages = ["torchvision", "accelerate", *(["bitsandbytes"] if bits != 16 else [])]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        advice = ", or choose 16 bits" if missing == ["bitsandbytes"] else ""
        raise ValueError(f"{name} needs {' and '.join(missing)}: run pip install {' '.join(missing)}{advice}.")


def precision(bits: int, device: torch.device) -> dict[str, Any]:
    """How weights are kept, as arguments of `from_pretrained`."""
    import transformers

    half = device.type == "mps" or (device.type == "cuda" and not torch.cuda.is_bf16_supported())
    dtype = torch.float16 if half else torch.bfloat16
    if bits == 16:
        return {"dtype": dtype}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    settings = transformers.BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    return {"dtype": dtype, "quantization_config": settings}


def clock(frames: Tensor, fps: float) -> dict[str, Any]:
    """What transformers calls a video's metadata: frames (T, 3, P, Q) that follow each other at `fps`."""
    count, _, height, width = frames.shape
    return {
        "total_num_frames": count, "fps": fps, "duration": count / fps, "frames_indices": list(range(count)),
        "height": height, "width": width,
    }
