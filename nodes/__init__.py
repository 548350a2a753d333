"""Every node, once, in menu order."""

from comfy_api.latest import ComfyExtension, io

from .adapter_settings import AdapterSettings
from .base_model import ChooseBaseModel
from .clips import LoadClips
from .memory_settings import MemorySettings
from .prepare import Prepare
from .recipe_settings import RecipeSettings
from .stack import StackLoras
from .train import Train

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadClips,
    ChooseBaseModel,
    Prepare,
    AdapterSettings,
    RecipeSettings,
    MemorySettings,
    Train,
    StackLoras,
)


class VideoLoraStudio(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
