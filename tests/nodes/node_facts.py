"""Run by ComfyUI's Python, with ComfyUI's and the project's folders first. Prints JSON on the last line:

    schemas                 what /object_info would say of each of our nodes
    keys [BASE LORA]...     for each pair of files, how many keys of LORA ComfyUI's model for BASE loads, of how many
"""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

comfyui, project, task, *files = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

place = Path(project, "__init__.py")
spec = importlib.util.spec_from_file_location("pack", place, submodule_search_locations=[project])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)


async def schemas():
    extension = await pack.comfy_entrypoint()
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in await extension.get_node_list()}


def keys(*files):
    from pack.nodes.key_check import check_keys
    from pack.training import open_base_model

    pairs = zip(files[::2], files[1::2], strict=True)
    found = [check_keys(Path(lora), open_base_model(base)) for base, lora in pairs]
    return [[match.matched, match.total] for match in found]


print(json.dumps(asyncio.run(schemas()) if task == "schemas" else keys(*files)))
