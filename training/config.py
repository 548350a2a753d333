"""Settings of a run: frozen values whose limits are checked where they are declared.

A node reads its defaults, limits and tooltips from here, so that nothing is typed twice.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .run_name import check_name

LONGEST_TEXT = 20_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one setting may be, in words and numbers. `low` and `high` are inclusive."""

    label: str
    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()


def setting(default: Any, label: str, help: str, **limits: Any) -> Any:
    """A dataclass field that carries its own `Limits`."""
    return dataclasses.field(default=default, metadata={"limits": Limits(label=label, help=help, **limits)})


def limits_of(config: type, name: str) -> Limits:
    """The limits declared for a field."""
    return config.__dataclass_fields__[name].metadata["limits"]


def check(config: Any) -> None:
    """ValueError, naming the setting by its label, unless every setting is of its kind and within its limits."""
    for field in dataclasses.fields(config):
        limits: Limits | None = field.metadata.get("limits")
        value = getattr(config, field.name)
        if limits is None:
            if not isinstance(value, type(field.default)):
                raise ValueError(f"{field.name} must be a {type(field.default).__name__}, not {shown(value)}.")
        elif limits.choices:
            if value not in limits.choices:
                raise ValueError(f"{limits.label} is {shown(value)}; choose one of: {', '.join(limits.choices)}.")
        elif isinstance(field.default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{limits.label} must be true or false, not {shown(value)}.")
        elif isinstance(field.default, str):
            if not _is_text(value):
                raise ValueError(f"{limits.label} must be text of at most {LONGEST_TEXT:,} letters: {shown(value)}.")
        else:
            _check_number(limits, value, int if isinstance(field.default, int) else (int, float))


def _is_text(value: Any) -> bool:
    """Whether a value is text that is not too long and can be written to a file."""
    return (
        isinstance(value, str) and len(value) <= LONGEST_TEXT
        and value == value.encode("utf-8", errors="ignore").decode()
    )


def _check_number(limits: Limits, value: Any, wanted: type | tuple[type, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, wanted) or not -1e300 < value < 1e300:
        kind = "a whole number" if wanted is int else "a number"
        raise ValueError(f"{limits.label} must be {kind}, not {shown(value)}.")
    if limits.low is not None and value < limits.low or limits.high is not None and value > limits.high:
        raise ValueError(f"{limits.label} is {value}; it must lie between {limits.low:g} and {limits.high:g}.")


def shown(value: Any) -> str:
    """A value in a message: whatever it is, a few words."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of too many digits"


PRECISIONS = ("auto", "bf16", "fp32")
"""What a run may compute in. `auto`: float32 on a CPU, bfloat16 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """How clips are cut to size and length before they are encoded."""

    fit: str = setting(
        "keep proportions", "Fit", "keep proportions: every clip keeps its shape, at about as many pixels as Width x "
        "Height. crop to this size: every clip is cut to Width x Height from its middle.",
        choices=("keep proportions", "crop to this size"),
    )
    windows: str = setting(
        "head", "Windows", "Which part of each clip is used. head: its start. middle: its middle. whole clip: as few "
        "windows of Frames as cover all of it. several windows: some, spread evenly. sliding windows: one every so "
        "many seconds.", choices=("head", "middle", "whole clip", "several windows", "sliding windows"),
    )
    window_count: int = setting(
        3, "Window count", "For several windows: how many of each clip. Short clips give fewer: no two share more than "
        "half of their frames.", low=1, high=100,
    )
    window_step: float = setting(
        1.0, "Window step", "For sliding windows: seconds from the start of one window to the start of the next.",
        low=0.1, high=600.0, step=0.1,
    )
    upscale: bool = setting(
        False, "Enlarge small clips", "Bring clips that are smaller than asked for up to the size. Without it they are "
        "used as small as they are, because enlarging teaches blur.",
    )
    more_sizes: str = setting(
        "", "More sizes", "Further sizes that every clip is prepared at as well, as width x height x frames, with "
        "commas between: 512x512x33, 960x544x17",
    )

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What the LoRA adapts, and how strongly. Rank is on `RunConfig`: it is asked of everybody."""

    alpha: float = setting(
        0.0, "Alpha", "Scale of the LoRA: its effect is multiplied by alpha / rank. 0 means the same as rank, "
        "which is what most recipes use.", low=0.0, high=4096.0, step=1.0,
    )
    targets: str = setting(
        "", "Layers", "Which layers the LoRA adapts. Empty: the model's own default. "
        "Otherwise a preset's name, or endings of layer names separated by commas, as they stand in LoRA files: "
        "self_attn.q, self_attn.v, ffn.0",
    )
    dropout: float = setting(
        0.0, "Dropout", "Share of the LoRA's inputs dropped at random in each step. 0 is usual.",
        low=0.0, high=0.95, step=0.05,
    )
    save_as: str = setting(
        "bf16", "Save as", "How the numbers of the LoRA file are stored. bf16 is small and what ComfyUI computes in; "
        "fp32 keeps every digit.", choices=("bf16", "fp16", "fp32"),
    )

    def __post_init__(self):
        check(self)

    def scale(self, rank: int) -> float:
        """alpha / rank, what the adapter's product is multiplied by."""
        return (self.alpha or rank) / rank


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How the LoRA is trained, beyond what `RunConfig` asks of everybody."""

    batch_size: int = setting(
        1, "Batch size", "Clips per micro-step. Larger needs more memory.", low=1, high=64,
    )
    gradient_accumulation: int = setting(
        1, "Gradient accumulation", "Micro-steps per step: the effect of a larger batch without its memory.",
        low=1, high=1024,
    )
    schedule: str = setting(
        "constant", "Schedule", "How the learning rate goes after warm-up: it stays, falls in a line, or falls in "
        "half a cosine to 0 at the last step.", choices=("constant", "linear", "cosine"),
    )
    warmup_steps: int = setting(
        10, "Warm-up steps", "Steps over which the learning rate rises from 0 at the start.", low=0, high=100000,
    )
    weight_decay: float = setting(
        0.01, "Weight decay", "AdamW's pull of the LoRA's numbers towards 0.", low=0.0, high=10.0, step=0.001,
    )
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Longest gradient allowed; longer ones are shortened to it. 0 switches it off.",
        low=0.0, high=1000.0, step=0.1,
    )
    timesteps: str = setting(
        "logit-normal", "Timesteps", "How noise levels are drawn before the shift: logit-normal prefers the middle, "
        "uniform takes all alike.", choices=("logit-normal", "uniform"),
    )
    logit_mean: float = setting(
        0.0, "Logit mean", "Centre of the logit-normal distribution: above 0 trains noisier levels more.",
        low=-10.0, high=10.0, step=0.1,
    )
    logit_std: float = setting(
        1.0, "Logit width", "Width of the logit-normal distribution.", low=0.01, high=10.0, step=0.1,
    )
    shift: float = setting(
        0.0, "Shift", "Timestep shift: above 1 trains noisier levels more. 0 means the model's own default.",
        low=0.0, high=100.0, step=0.5,
    )
    first_frame: float = setting(
        -1.0, "First frame given", "Share of the clips whose first frame the model is given clean, so that the LoRA "
        "also works from an image. -1 means what suits the model; models that cannot take a first frame ignore it.",
        low=-1.0, high=1.0, step=0.1,
    )
    learn: str = setting(
        "everything", "Learn from", "Picture and sound of the clips, or one of them alone. Models without sound ignore "
        "it.", choices=("everything", "picture", "sound"),
    )
    high_noise_share: float = setting(
        0.5, "High-noise share", "For models of two experts: the share of the steps that the high-noise one gets; the "
        "other gets the rest.", low=0.0, high=1.0, step=0.05,
    )
    save_every: int = setting(
        250, "Save every", "Steps between copies of the LoRA kept in the run's folder. 0 keeps none.",
        low=0, high=1000000,
    )
    caption_dropout: float = setting(
        0.0, "Caption dropout", "Share of the clips shown without any caption, so that the LoRA also works where "
        "little is said. 0.05 to 0.1 is usual where it is used; too much weakens the trigger word.",
        low=0.0, high=1.0, step=0.05,
    )
    caption_shuffle: str = setting(
        "off", "Caption shuffle", "Show the sentences or the tags (parted by commas) of a caption in other orders, so "
        "that their order is not learnt. A trigger word that stands first stays first. Connect this node to Prepare as "
        "well, which encodes the orders.", choices=("off", "sentences", "tags"),
    )
    caption_orders: int = setting(
        4, "Caption orders", "How many further orders of each caption are encoded where captions are shuffled.",
        low=1, high=32,
    )
    optimizer: str = setting(
        "AdamW", "Optimizer", "What turns gradients into steps. AdamW is the usual one. AdamW 8-bit and Adafactor need "
        "less memory beside the LoRA, Prodigy finds the learning rate by itself (set Learning rate to 1), "
        "schedule-free AdamW needs no schedule. AdamW 8-bit, Prodigy and schedule-free AdamW need a package each.",
        choices=("AdamW", "AdamW 8-bit", "Adafactor", "Prodigy", "schedule-free AdamW"),
    )
    ema: float = setting(
        0.0, "EMA", "Save a running average of the LoRA instead of its last state: each step keeps this share of the "
        "average. 0.99 to 0.999 calm a restless LoRA; 0 switches it off.", low=0.0, high=0.99999, step=0.001,
    )
    lora_plus: float = setting(
        1.0, "LoRA+", "How many times faster the half of the LoRA that starts at 0 learns than the other. 16 is the "
        "authors' choice, with a lower learning rate; 1 switches it off.", low=1.0, high=1000.0, step=1.0,
    )
    resume_every: float = setting(
        10.0, "Resume point every", "Minutes between resume points, from which the run goes on after a crash or a "
        "power cut. Cancel and errors make one by themselves.", low=0.0, high=1440.0, step=1.0,
    )
    held_out: int = setting(
        -1, "Held-out clips", "Clips that are not trained on: how well the LoRA does on them tells whether it learns "
        "or only memorises, and which step is best. -1: one clip in twenty, none where there are fewer than twenty, at "
        "most four. 0: all are trained on.", low=-1, high=1000,
    )
    judge_every: int = setting(
        250, "Judge every", "Steps between looks at the held-out clips. A look takes about as long as eight steps. 0: "
        "only at the end.", low=0, high=1000000,
    )

    def __post_init__(self):
        check(self)

    def trained(self, streams: Collection[str]) -> frozenset[str]:
        """Those of the streams that are noised, predicted and judged."""
        return frozenset(streams) & {"picture": {"video"}, "sound": {"audio"}}.get(self.learn, frozenset(streams))


BY_HAND = "by hand"
CARDS = (12, 16, 24, 32, 48, 80)
"""Sizes of cards, in GB, that memory can be planned for."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """How the run is fitted into memory: by itself, for a card of some size, or as it is set here."""

    recompute: bool = setting(
        True, "Recompute", "By hand only. Forget each block's activations and compute them again on the way back: "
        "about a third slower, several times less memory. Also known as gradient checkpointing.",
    )
    level: str = setting(
        "auto", "Level", "auto: the fastest way that fits into the memory that is free now. A size: the fastest way "
        "that fits a card of that size. by hand: as the settings below say.",
        choices=("auto", *(f"{size} GB" for size in CARDS), BY_HAND),
    )
    weights: str = setting(
        "as stored", "Weights", "By hand only. How the model's own weights are kept while the LoRA learns. as stored: "
        "as in the file. full: fp8 and the like brought to bf16. fp8, int8, nf4: in fewer bits, which takes a half or "
        "a quarter of the memory and changes the numbers slightly.",
        choices=("as stored", "full", "fp8", "int8", "nf4"),
    )
    blocks_to_swap: int = setting(
        0, "Blocks to swap", "By hand only. How many of the model's blocks wait in host memory until they are next. "
        "Needs Recompute.", low=0, high=200,
    )
    offload_activations: bool = setting(
        False, "Offload activations", "By hand only. What Recompute keeps between the blocks waits in host memory. For "
        "long or large clips.",
    )
    keep_attention: bool = setting(
        False, "Keep attention", "By hand only. Recompute everything but attention, which costs the most to compute "
        "again: faster for long clips, a little more memory. Needs Recompute.",
    )
    compile: bool = setting(
        False, "Compile", "Compile the model's blocks with torch.compile: the first steps take minutes, all others "
        "less time. Needs a compiler (Triton on a GPU); where there is none the run goes on without, and says so. The "
        "numbers change in their last digits. Not together with Keep attention.",
    )

    def __post_init__(self):
        check(self)
        needy = self.blocks_to_swap or self.offload_activations or self.keep_attention
        if self.level == BY_HAND and not self.recompute and needy:
            raise ValueError(
                "Blocks to swap, Offload activations and Keep attention need Recompute: switch Recompute on."
            )
        if self.level == BY_HAND and self.keep_attention and self.compile:
            raise ValueError("Keep attention does not work in compiled blocks: switch Keep attention or Compile off.")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Clips that are made while the LoRA is trained, to look at."""

    every: int = setting(
        250, "Every", "Steps between previews. One is made before the first step and one at the end as well; 0: only "
        "these.", low=0, high=1000000,
    )
    clips: int = setting(
        1, "Clips", "How many previews are made each time, of the first captions of the training set. Where Prepare "
        "has Preview prompts, each of them gives one, at most so many.", low=1, high=16,
    )
    steps: int = setting(
        20, "Sampler steps", "Steps in which a preview is made. More look better and take longer.", low=1, high=200,
    )
    guidance: float = setting(
        0.0, "CFG", "How closely a preview follows its prompt, against the empty prompt. 1 takes half the time and "
        "suits distilled models; 0 means what suits the model.", low=0.0, high=30.0, step=0.5,
    )
    shift: float = setting(
        0.0, "Sampler shift", "As Shift of ComfyUI's ModelSampling nodes: above 1 spends more steps on noisy levels. "
        "0 means what ComfyUI does without such a node.", low=0.0, high=100.0, step=0.5,
    )
    seed: int = setting(
        0, "Preview seed", "Noise that the first preview begins with; the next have the next seeds. The same at every "
        "step, so that only the LoRA changes.", low=0, high=0xFFFFFFFFFFFFFF00,
    )

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: what is asked of everybody, and the groups of settings beside it."""

    name: str = setting(
        "my_video_lora", "Name", "Name of the LoRA file and of the run's folder, without folder or ending."
    )
    steps: int = setting(
        2000, "Steps", "How many times the LoRA is improved. A few hundred show a tendency; 1,500 to 3,000 are usual.",
        low=1, high=1000000,
    )
    rank: int = setting(
        32, "Rank", "Size of the LoRA: higher holds more detail, takes more memory and learns accidents sooner.",
        low=1, high=1024,
    )
    learning_rate: float = setting(
        1e-4, "Learning rate", "How far each step goes. Lower it if the loss jumps, for motion try half.",
        low=1e-9, high=1.0, step=1e-6,
    )
    seed: int = setting(
        0, "Seed", "Start of every random choice: the same seed, settings and clips give the same LoRA.",
        low=0, high=0xFFFFFFFFFFFFFFFF,
    )
    pause_at: int = setting(
        0, "Pause at step", "Stop at this step and keep a copy of the LoRA: Continue Training goes on from there, and "
        "so does queueing again with a later step. Of two experts each gets its share. 0: train all Steps.",
        low=0, high=1000000,
    )
    adapter: AdapterConfig = AdapterConfig()
    recipe: RecipeConfig = RecipeConfig()
    memory: MemoryConfig = MemoryConfig()
    preview: PreviewConfig = PreviewConfig()

    def __post_init__(self):
        check(self)
        check_name(self.name)

    @property
    def last_step(self) -> int:
        """The step after which training ends or pauses."""
        return min(self.steps, self.pause_at or self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
