"""Every node, once, in menu order."""

from comfy_api.latest import ComfyExtension, io

from .adapter_settings import AdapterSettings
from .base_model import ChooseBaseModel
from .captions import CaptionClips, CaptionerClip, CaptionerLocal, CaptionerService
from .clean_cache import CleanCache
from .clips import LoadClips
from .compare import CompareLora
from .lora_info import InspectLora
from .memory_settings import MemorySettings
from .prepare import Prepare
from .preview_settings import PreviewSettings
from .recipe_settings import RecipeSettings
from .scenes import SplitScenes
from .stack import StackLoras
from .train import ContinueTraining, Train

NODES: tuple[type[io.ComfyNode], ...] = (
    SplitScenes,
    LoadClips,
    CaptionClips,
    CaptionerClip,
    CaptionerLocal,
    CaptionerService,
    ChooseBaseModel,
    Prepare,
    AdapterSettings,
    RecipeSettings,
    MemorySettings,
    PreviewSettings,
    Train,
    ContinueTraining,
    StackLoras,
    CompareLora,
    InspectLora,
    CleanCache,
)


class VideoLoraStudio(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)

    async def on_load(self) -> None:
        """Called once when ComfyUI has taken the pack in, before its server starts."""
        from server import PromptServer

        from .lora_routes import add_lora_routes
        from .review_routes import add_review_routes
        from .train_routes import add_train_routes

        add_review_routes(PromptServer.instance.routes)
        add_lora_routes(PromptServer.instance.routes)
        add_train_routes(PromptServer.instance.routes)
