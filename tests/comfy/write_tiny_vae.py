"""Run by ComfyUI's Python: write a Wan 2.1 VAE of ComfyUI's own class, a few channels wide, with seeded weights.

Arguments: ComfyUI's folder, the file to write.
"""

import sys

import torch
from safetensors.torch import save_file

WIDTH = 8


def main(comfyui: str, target: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(7)
    vae = WanVAE(dim=WIDTH, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                 temperal_downsample=[False, True, True], dropout=0.0)
    weights = {}
    for name, value in vae.state_dict().items():
        weights[name] = (torch.ones_like(value) if name.endswith("gamma") else torch.randn_like(value) * 0.05
                         if value.ndim < 2 else torch.randn_like(value) * value[0].numel() ** -0.5)
    save_file({name: value.contiguous() for name, value in weights.items()}, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
