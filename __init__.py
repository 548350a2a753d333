"""Video LoRA Studio: train video LoRAs from a folder of footage, inside ComfyUI's graph."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls once at start: the extension that lists our nodes."""
    from .nodes import VideoLoraStudio

    return VideoLoraStudio()
