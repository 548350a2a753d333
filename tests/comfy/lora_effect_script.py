"""Run by ComfyUI's Python: what ComfyUI's model for BASE makes of LoRA files, COMFYUI PROJECT OUT (BASE LORA)...

Writes OUT/<number>.safetensors with the change of each weight; prints JSON on the last line: for each pair what is
matched, by ComfyUI alone, of how many, the form, what was not matched, and the report and triggers of Inspect LoRA.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

comfyui, project, out, *files = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path[:0] = [comfyui, str(Path(project, "tests"))]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

place = Path(project, "__init__.py")
spec = importlib.util.spec_from_file_location("pack", place, submodule_search_locations=[project])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

import comfy.lora  # noqa: E402
import folder_paths  # noqa: E402
from lora_files import weight_of  # noqa: E402
from pack.nodes.key_check import fit, model_without_storage, read_for  # noqa: E402
from pack.nodes.lora_info import InspectLora  # noqa: E402
from pack.training import open_base_model, read_lora  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

folder_paths.add_model_folder_path("loras", str(Path(files[1]).parent))
folder_paths.set_temp_directory(out)

models = {base: model_without_storage(open_base_model(base)) for base in dict.fromkeys(files[::2])}
found = []
for number, (base, file) in enumerate(zip(files[::2], files[1::2], strict=True)):
    model = models[base]
    read = read_for(Path(file), model)
    fitted, alone = fit(read.tensors, model), fit(read_lora(Path(file))[0], model)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    changes = {}
    for target, patch in fitted.patches.items():
        before = weight_of(shapes[target])
        after = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], before.clone(), target)
        changes[target.removeprefix("diffusion_model.")] = after - before
    save_file(changes, Path(out, f"{number}.safetensors"))
    node = InspectLora.execute(lora_name=Path(file).name, model=SimpleNamespace(model=model))
    report, picture, triggers = node.result
    assert picture.shape[2:] == (1024, 3) and node.ui["images"] and node.ui["text"] == (report,)
    found.append([fitted.matched, alone.matched, fitted.total, str(read.form), list(fitted.left), report, triggers])
print(json.dumps(found))
