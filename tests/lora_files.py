"""The same changes of the same layers as every trainer would write them, and what they add up to."""

import json

import torch

RANK, ALPHA = 4, 6.0


def _random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def flat(name):
    return name.replace(".", "_")


class Layers:
    """Layers of one model: their sizes, their names in files, and in the class by `names`."""

    def __init__(self, sizes, names):
        self.sizes, self.names = sizes, names

    def named(self, prefix, *, of_class=False, flattened=False):
        """(layer, what it is called in a file) of each."""
        for layer in self.sizes:
            name = self.names.forward(layer) if of_class else layer
            yield layer, prefix + (flat(name) if flattened else name)

    def matrices(self, layer):
        """lora_down (rank, in) and lora_up (out, rank) of a layer."""
        rows, columns = self.sizes[layer]
        seed = sorted(self.sizes).index(layer)
        return _random(RANK, columns, seed=seed), _random(rows, RANK, seed=100 + seed)


def pairs(prefix, ends=("lora_A.weight", "lora_B.weight"), *, alpha=None, header=None, scale=None, **naming):
    """A form with two matrices a layer; `scale`: by what their product is multiplied."""
    scale = scale if scale is not None else alpha / RANK if alpha else 1.0

    def write(layers):
        tensors, truth = {}, {}
        for layer, name in layers.named(prefix, **naming):
            down, up = layers.matrices(layer)
            tensors |= {f"{name}.{ends[0]}": down, f"{name}.{ends[1]}": up}
            tensors |= {f"{name}.alpha": torch.tensor(alpha)} if alpha else {}
            truth[f"{layer}.weight"] = scale * up @ down
        return tensors, header or {}, truth

    return write


def loha(prefix, **naming):
    def write(layers):
        tensors, truth = {}, {}
        for layer, name in layers.named(prefix, **naming):
            down, up = layers.matrices(layer)
            parts = {"w1_a": up, "w1_b": down, "w2_a": up.flip(1) + 1, "w2_b": down.flip(1)}
            tensors |= {f"{name}.hada_{part}": tensor.contiguous() for part, tensor in parts.items()}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
            truth[f"{layer}.weight"] = (
                ALPHA / RANK * (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
            )
        return tensors, {}, truth

    return write


def lokr(prefix, *, whole, **naming):
    """`whole`: the second factor as one matrix, for which alpha does not count, or as two."""
    def write(layers):
        tensors, truth = {}, {}
        for layer, name in layers.named(prefix, **naming):
            rows, columns = layers.sizes[layer]
            first = _random(2, 2, seed=7) * 10
            left, right = _random(rows // 2, RANK, seed=8), _random(RANK, columns // 2, seed=9)
            second = {"lokr_w2": left @ right} if whole else {"lokr_w2_a": left, "lokr_w2_b": right}
            found = {"lokr_w1": first, **second, "alpha": torch.tensor(ALPHA)}
            tensors |= {f"{name}.{part}": tensor for part, tensor in found.items()}
            truth[f"{layer}.weight"] = (1.0 if whole else ALPHA / RANK) * torch.kron(first, left @ right)
        return tensors, {}, truth

    return write


def with_biases(prefix, *, ends, bias, **naming):
    """Pairs, and a change of the bias; multiplied by alpha / rank where it is `lora_B`'s."""
    def write(layers):
        tensors, header, truth = pairs(prefix, ends, alpha=ALPHA, **naming)(layers)
        for layer, name in layers.named(prefix, **naming):
            change = _random(layers.sizes[layer][0], seed=11)
            tensors[f"{name}.{bias}"] = change
            truth[f"{layer}.bias"] = change * (ALPHA / RANK if bias.endswith(".bias") else 1.0)
        return tensors, header, truth

    return write


def differences(layers):
    tensors, truth = {}, {}
    for layer, name in layers.named("diffusion_model."):
        weight, bias = _random(*layers.sizes[layer], seed=12), _random(layers.sizes[layer][0], seed=13)
        tensors |= {f"{name}.diff": weight, f"{name}.diff_b": bias}
        truth |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
    return tensors, {}, truth


def dora(prefix, magnitude, *, upright, **naming):
    """Pairs, and one magnitude for each output, upright or flat. The truth is that for a weight of `WEIGHT`."""
    def write(layers):
        ends = ("lora_down.weight", "lora_up.weight") if upright else ("lora_A.weight", "lora_B.weight")
        tensors, header, truth = pairs(prefix, ends, **naming)(layers)
        for layer, name in layers.named(prefix, **naming):
            scale = 1 + _random(layers.sizes[layer][0], seed=14)
            tensors[f"{name}.{magnitude}"] = scale[:, None].clone() if upright else scale
            weight = weight_of(layers.sizes[layer])
            truth[f"{layer}.weight"] = (
                (weight + truth[f"{layer}.weight"]) * (scale / weight.norm(dim=1))[:, None] - weight
            )
        return tensors, header, truth

    return write


def weight_of(shape):
    """The weight that a change is put on."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count).reshape(shape)


HEADER_ALPHA = {"lora_adapter_metadata": json.dumps({
    "transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.use_rslora": False})}
HEADER_STABLE = {"lora_adapter_metadata": json.dumps({
    "transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.use_rslora": True})}
KOHYA, DEFAULT = ("lora_down.weight", "lora_up.weight"), ("lora_A.default.weight", "lora_B.default.weight")

FORMS = {
    "ours": (pairs("diffusion_model."), "ComfyUI (ai-toolkit, diffusion-pipe and others): LoRA"),
    "lora_down and lora_up": (
        pairs("diffusion_model.", KOHYA, alpha=ALPHA), "ComfyUI (ai-toolkit, diffusion-pipe and others): LoRA"),
    "kohya": (
        pairs("lora_unet_", KOHYA, alpha=ALPHA, flattened=True), "kohya (musubi-tuner, sd-scripts): LoRA"),
    "kohya, two underscores": (
        pairs("lora_unet__", KOHYA, alpha=ALPHA, flattened=True), "kohya with two underscores (VideoX-Fun): LoRA"),
    "diffusers": (pairs("transformer.", of_class=True), "diffusers{}: LoRA"),
    "diffusers, alpha in the header": (
        pairs("transformer.", of_class=True, header=HEADER_ALPHA, scale=ALPHA / RANK), "diffusers{}: LoRA"),
    "diffusers, rank-stabilised": (
        pairs("transformer.", of_class=True, header=HEADER_STABLE, scale=ALPHA / RANK**0.5), "diffusers{}: LoRA"),
    "SimpleTuner for ComfyUI": (
        pairs("diffusion_model.", alpha=ALPHA, of_class=True),
        "ComfyUI (ai-toolkit, diffusion-pipe and others){}: LoRA"),
    "SimpleTuner LoKr": (
        lokr("lycoris_", whole=True, of_class=True, flattened=True), "LyCORIS (SimpleTuner){}: LoKr"),
    "OneTrainer": (
        pairs("lora_transformer_", KOHYA, alpha=ALPHA, of_class=True, flattened=True), "OneTrainer{}: LoRA"),
    "PEFT": (pairs("base_model.model.", of_class=True), "PEFT{}: LoRA"),
    "PEFT with its adapter's name": (pairs("base_model.model.", DEFAULT, of_class=True), "PEFT{}: LoRA"),
    "PEFT around the whole model": (pairs("base_model.model.diffusion_model."), "PEFT: LoRA"),
    "DiffSynth-Studio": (pairs("", DEFAULT), "module names alone (DiffSynth-Studio, training scripts): LoRA"),
    "module names alone, no .weight": (
        pairs("", ("lora_A", "lora_B")), "module names alone (DiffSynth-Studio, training scripts): LoRA"),
    "old diffusers": (
        pairs("transformer.", ("lora.down.weight", "lora.up.weight"), of_class=True), "diffusers{}: LoRA"),
    "names as in checkpoints": (pairs("model.diffusion_model."), "names as in checkpoints: LoRA"),
    "kohya LoHa": (loha("lora_unet_", flattened=True), "kohya (musubi-tuner, sd-scripts): LoHa"),
    "PEFT LoHa": (loha("base_model.model.", of_class=True), "PEFT{}: LoHa"),
    "ai-toolkit LoKr": (
        lokr("diffusion_model.", whole=False), "ComfyUI (ai-toolkit, diffusion-pipe and others): LoKr"),
    "biases beside": (
        with_biases("diffusion_model.", ends=KOHYA, bias="diff_b"),
        "ComfyUI (ai-toolkit, diffusion-pipe and others): LoRA, differences of weights and biases"),
    "PEFT with biases": (
        with_biases("transformer.", ends=("lora_A.weight", "lora_B.weight"), bias="lora_B.bias", of_class=True),
        "diffusers{}: LoRA, differences of weights and biases"),
    "differences": (
        differences, "ComfyUI (ai-toolkit, diffusion-pipe and others): differences of weights and biases"),
    "kohya DoRA": (
        dora("lora_unet_", "dora_scale", upright=True, flattened=True),
        "kohya (musubi-tuner, sd-scripts): LoRA, DoRA"),
    "PEFT DoRA": (
        dora("base_model.model.", "lora_magnitude_vector", upright=False, of_class=True), "PEFT{}: LoRA, DoRA"),
}
"""How each form is written, and what it is called; {} is where layers named as in diffusers are told, where they are
others."""
NATIVE = {"ours", "lora_down and lora_up", "kohya", "kohya LoHa", "ai-toolkit LoKr", "biases beside", "differences",
          "kohya DoRA"}
"""Forms of which ComfyUI's own loaders read all keys for every model."""
