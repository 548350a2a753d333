"""Run by ComfyUI's Python: print what /object_info would say of each of our nodes. Arguments: ComfyUI, the project."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

comfyui, project = map(Path, sys.argv[1:3])
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, str(comfyui))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

place = project / "__init__.py"
spec = importlib.util.spec_from_file_location("pack", place, submodule_search_locations=[str(project)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)


async def facts():
    extension = await pack.comfy_entrypoint()
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in await extension.get_node_list()}


print(json.dumps(asyncio.run(facts())))
