"""Run by ComfyUI's Python: write what stands beside the transformer in LTX checkpoints, of ComfyUI's own classes, a few
channels wide, with seeded weights: the video VAE, the audio VAE and the vocoder.

Arguments: ComfyUI's folder, the file to write. Its header's `config` describes the parts as Lightricks' headers do.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

CHANNELS = 8
BLOCKS = [["res_x", 1], ["compress_all", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]]
VAE = {
    "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128,
    "encoder_blocks": BLOCKS, "decoder_blocks": BLOCKS, "encoder_base_channels": CHANNELS,
    "decoder_base_channels": CHANNELS, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform",
    "causal_decoder": False,
}
AUDIO = {
    "double_z": True, "mel_bins": 64, "z_channels": 8, "resolution": 256, "downsample_time": False, "in_channels": 2,
    "out_ch": 2, "ch": CHANNELS, "ch_mult": [1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    "mid_block_add_attention": False, "norm_type": "pixel", "causality_axis": "height",
}
CONFIG = {
    "vae": VAE,
    "audio_vae": {
        "model": {"params": {"ddconfig": AUDIO, "sampling_rate": 16000}},
        "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
    },
    "vocoder": {"upsample_initial_channel": 32, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]},
}


def main(comfyui: str, target: str) -> None:
    sys.path.insert(0, comfyui)
    sys.path.insert(0, str(Path(__file__).parent / "tiny_parts_pack"))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.ldm.lightricks.vae.audio_vae import AudioVAE
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
    from weights import seeded

    video = {f"vae.{name}": tensor for name, tensor in seeded(VideoVAE(config=VAE)).items()}
    sound = seeded(AudioVAE({"config": CONFIG}))
    sound = {name.replace("autoencoder.", "audio_vae.", 1): tensor for name, tensor in sound.items()}
    tensors = video | sound
    for name in tensors:
        if name.endswith("std-of-means"):
            tensors[name] = 1 + tensors[name].abs()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target,
              {"config": json.dumps(CONFIG)})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
