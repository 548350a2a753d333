"""A weights file written again with its blocks' matrices in few bits, as ComfyUI and ComfyUI-GGUF users have them."""

import json

import torch

from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors

STORED = ("fp8", "fp8 scaled", "int8", "GGUF Q8_0", "GGUF Q4_K")


BLOCKS = ("blocks", "transformer_blocks")


def write_in_few_bits(source, target, stored):
    """Write `source` as `target` with the matrices of its blocks stored so, the rest as it is; the numbers by name.

    Q4_K only where 256 divides a row, as its makers do; Q8_0 elsewhere.
    """
    tensors, metadata = read_tensors(source)
    matrices = {
        name for name, tensor in tensors.items()
        if name.removeprefix("model.diffusion_model.").startswith(BLOCKS) and name.endswith(".weight")
        and tensor.ndim == 2 and min(tensor.shape) >= 64
    }
    if stored.startswith("GGUF"):
        return write_gguf(target, tensors, metadata, {name: stored.split()[1] for name in matrices})
    written, numbers = {}, {name: tensor.float() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if name not in matrices:
            written[name] = tensor
            continue
        scale = {"fp8": torch.tensor(1.0), "fp8 scaled": tensor.abs().max() / 448,
                 "int8": tensor.abs().amax(1, keepdim=True) / 127}[stored]
        data = tensor / scale
        data = data.round().to(torch.int8) if stored == "int8" else data.to(torch.float8_e4m3fn)
        written[name], numbers[name] = data, data.float() * scale
        if stored != "fp8":
            format = {"format": "int8_tensorwise" if stored == "int8" else "float8_e4m3fn"}
            layer = name.removesuffix(".weight")
            written[f"{layer}.weight_scale"] = scale
            written[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(format).encode()), dtype=torch.uint8)
    write_tensors(target, written, metadata)
    return numbers


def write_gguf(path, tensors, metadata, types):
    """A GGUF file by its own library; tensors of more than four dimensions flattened as ComfyUI-GGUF's tool does."""
    import gguf
    from gguf import GGMLQuantizationType

    writer, numbers = gguf.GGUFWriter(path, "video"), {}
    for name, text in metadata.items():
        writer.add_string(name, text)
    for name, tensor in tensors.items():
        kind = types.get(name, "F32")
        if kind.endswith("_K") and tensor.shape[-1] % 256:
            kind = "Q8_0"
        kind = GGMLQuantizationType[kind]
        array = tensor.float().numpy()
        if array.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(array.shape))
            array = array.reshape(array.shape[0], -1)
        if kind == GGMLQuantizationType.Q4_K:
            data = q4_k_blocks(tensor)
        else:
            data = gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        numbers[name] = torch.from_numpy(gguf.quants.dequantize(data, kind).copy()).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def q4_k_blocks(tensor):
    """Q4_K blocks of about the size of these numbers: gguf's Python library reads this form and does not write it."""
    generator = torch.Generator().manual_seed(tensor.numel())
    blocks = torch.randint(0, 256, (tensor.numel() // 256, 144), dtype=torch.uint8, generator=generator)
    factor = (tensor.std() / 32 / 4.6).half()
    blocks[:, :4] = torch.stack([factor, 7 * factor]).view(torch.uint8)
    return blocks.reshape(len(tensor), -1).numpy()
