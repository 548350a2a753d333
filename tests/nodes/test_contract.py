"""What workflows out in the world depend on: ids, sockets, their order and names; help on every one; the examples."""

import itertools
import json
import re
from pathlib import Path

import comfy_server
import pytest

from video_lora_studio.training import (
    AdapterConfig,
    CaptionConfig,
    CheckConfig,
    CutConfig,
    MemoryConfig,
    PreviewConfig,
    RecipeConfig,
    RunConfig,
    ServiceConfig,
    SplitConfig,
    limits_of,
)

PROJECT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PROJECT / "example_workflows").glob("*.json"))
EXAMPLES = {"wan_t2v_lora", "wan_i2v_lora", "wan22_pair_lora", "wan22_ti2v_lora", "ltx_video_lora", "ltx2_lora",
            "cogvideox_lora", "film_to_captioned_clips", "train_in_chunks", "compare_lora"}
TRAINING = [path for path in WORKFLOWS if path.stem.endswith("_lora") and path.stem != "compare_lora"]
FOLDERS = {
    "UNETLoader": {"unet_name": "diffusion_models"},
    "CheckpointLoaderSimple": {"ckpt_name": "checkpoints"},
    "VAELoader": {"vae_name": "vae"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "CLIPVisionLoader": {"clip_name": "clip_vision"},
    "LTXVAudioVAELoader": {"ckpt_name": "checkpoints"},
    "LTXAVTextEncoderLoader": {"text_encoder": "text_encoders", "ckpt_name": "checkpoints"},
    "VLSLoraInfo": {"lora": "loras"},
}
"""Widgets that name a model file, and the folder under models that it is in."""
TRAINED = {"lora": "LORA_MODEL", "lora_low": "LORA_MODEL", "loss": "LOSS_MAP", "lora_name": "STRING",
           "report": "STRING", "run": "VLS_RUN"}
CLIPS, CAPTIONER, BASE, SET = "VLS_CLIPS", "VLS_CAPTIONER", "VLS_BASE_MODEL", "VLS_TRAINING_SET"

CONTRACT = {
    "VLSSplitScenes": (
        {"video": "COMBO", "folder": "STRING", "trigger": "STRING"},
        {"shortest": "FLOAT", "longest": "FLOAT", "sensitivity": "FLOAT", "detector": "COMBO", "again": "BOOLEAN"},
        {"clips": CLIPS, "report": "STRING"},
    ),
    "VLSLoadClips": (
        {"folder": "COMBO", "trigger": "STRING"},
        {"subfolders": "BOOLEAN", "repeats": "INT", "unfit": "COMBO", "borders": "COMBO", "more": CLIPS},
        {"clips": CLIPS, "report": "STRING", "contact_sheet": "IMAGE"},
    ),
    "VLSCaptionClips": (
        {"clips": CLIPS, "captioner": CAPTIONER},
        {"overwrite": "BOOLEAN", "preset": "COMBO", "instruction": "STRING", "frames": "INT", "max_tokens": "INT",
         "seed": "INT", "also_write": "COMBO"},
        {"clips": CLIPS, "report": "STRING"},
    ),
    "VLSCaptionerClip": ({"clip": "CLIP"}, {}, {"captioner": CAPTIONER}),
    "VLSCaptionerLocal": ({"folder": "COMBO"}, {"bits": "COMBO"}, {"captioner": CAPTIONER}),
    "VLSCaptionerService": (
        {}, {"service": "COMBO", "model": "STRING", "address": "STRING"}, {"captioner": CAPTIONER},
    ),
    "VLSBaseModel": (
        {"model_file": "COMBO", "low_noise_file": "COMBO", "precision": "COMBO"}, {"expert": "COMBO"},
        {"base": BASE, "report": "STRING"},
    ),
    "VLSPrepare": (
        {"clips": CLIPS, "base": BASE, "vae": "VAE", "clip": "CLIP", "width": "INT", "height": "INT", "frames": "INT"},
        {"clip_vision": "CLIP_VISION", "audio_vae": "VAE", "fit": "COMBO", "windows": "COMBO",
         "window_count": "INT", "window_step": "FLOAT", "upscale": "BOOLEAN", "more_sizes": "STRING",
         "recipe": "VLS_RECIPE", "preview_prompts": "STRING"},
        {"training_set": SET, "report": "STRING", "contact_sheet": "IMAGE"},
    ),
    "VLSAdapter": ({}, {"alpha": "FLOAT", "targets": "STRING"}, {"adapter": "VLS_ADAPTER"}),
    "VLSRecipe": (
        {}, {"batch_size": "INT", "schedule": "COMBO", "caption_dropout": "FLOAT", "caption_shuffle": "COMBO"},
        {"recipe": "VLS_RECIPE"},
    ),
    "VLSMemory": ({}, {"recompute": "BOOLEAN"}, {"memory": "VLS_MEMORY"}),
    "VLSPreview": (
        {}, {"every": "INT", "clips": "INT", "steps": "INT", "guidance": "FLOAT"}, {"preview": "VLS_PREVIEW"},
    ),
    "VLSTrain": (
        {"base": BASE, "training_set": SET, "name": "STRING", "steps": "INT", "rank": "INT", "learning_rate": "FLOAT",
         "seed": "INT"},
        {"adapter": "VLS_ADAPTER", "recipe": "VLS_RECIPE", "memory": "VLS_MEMORY", "vae": "VAE", "audio_vae": "VAE",
         "preview": "VLS_PREVIEW", "pause_at": "INT"},
        TRAINED,
    ),
    "VLSContinue": ({"run": "VLS_RUN", "pause_at": "INT"}, {"after": "*"}, TRAINED),
    "VLSStack": (
        {"loras": "STRING"},
        {"model": "MODEL", "model_low": "MODEL", "lora_name": "STRING", "lora_strength": "FLOAT", "stack": "VLS_STACK"},
        {"model": "MODEL", "model_low": "MODEL", "triggers": "STRING", "report": "STRING", "stack": "VLS_STACK"},
    ),
    "VLSCompare": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT", "vae": "VAE",
         "strengths": "STRING", "checkpoints": "COMBO", "seed": "INT", "steps": "INT", "cfg": "FLOAT",
         "sampler_name": "COMBO", "scheduler": "COMBO"},
        {"model_low": "MODEL", "stack": "VLS_STACK", "lora_name": "STRING", "low_noise_from": "INT", "fps": "FLOAT",
         "cell_width": "INT"},
        {"grid": "IMAGE", "video": "VIDEO", "report": "STRING"},
    ),
    "VLSLoraInfo": (
        {}, {"lora": "COMBO", "lora_name": "STRING", "model": "MODEL"},
        {"report": "STRING", "picture": "IMAGE", "triggers": "STRING"},
    ),
    "VLSCleanCache": ({"action": "COMBO"}, {"forget_after": "INT"}, {"report": "STRING"}),
}
GROUPS = {
    "VLSSplitScenes": SplitConfig, "VLSLoadClips": CheckConfig, "VLSCaptionClips": CaptionConfig,
    "VLSCaptionerService": ServiceConfig, "VLSPrepare": CutConfig, "VLSAdapter": AdapterConfig,
    "VLSRecipe": RecipeConfig, "VLSMemory": MemoryConfig, "VLSPreview": PreviewConfig, "VLSTrain": RunConfig,
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> dict[str, dict]:
    """What ComfyUI's /object_info says of each of our nodes, in menu order."""
    if reason := comfy_server.why_not():
        pytest.skip(reason)
    script = PROJECT / "tests" / "nodes" / "node_facts.py"
    folder = tmp_path_factory.mktemp("facts")
    said = comfy_server.run_script(script, comfy_server.comfyui_folder(), PROJECT, "schemas", folder=folder)
    return json.loads(said.splitlines()[-1])


def widgets(node: dict) -> dict[str, tuple[str, dict]]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


@pytest.mark.comfy
def test_nodes_are_these_in_this_order(nodes):
    assert list(nodes) == list(CONTRACT)


@pytest.mark.comfy
@pytest.mark.parametrize("node_id", CONTRACT)
def test_sockets_have_their_names_types_and_order(nodes, node_id):
    required, optional, outputs = CONTRACT[node_id]
    node = nodes[node_id]
    assert {name: spec[0] for name, spec in node["input"].get("required", {}).items()} == required
    assert list(node["input"].get("required", {})) == list(required)
    given = {name: spec[0] for name, spec in node["input"].get("optional", {}).items()}
    assert optional.items() <= given.items()
    assert list(zip(node["output_name"], node["output"], strict=True)) == list(outputs.items())
    assert node["category"] == "Video LoRA"


@pytest.mark.comfy
@pytest.mark.parametrize("node_id", CONTRACT)
def test_everything_has_a_tooltip_and_the_node_a_page(nodes, node_id):
    node = nodes[node_id]
    assert node["description"].strip()
    for name, (_, facts) in widgets(node).items():
        assert len(facts.get("tooltip", "")) > 10, name
    for name, tooltip in zip(node["output_name"], node["output_tooltips"], strict=True):
        assert tooltip and len(tooltip) > 10, name
    page = (PROJECT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {node['display_name']}\n")
    for name, (_, facts) in widgets(node).items():
        assert f"**{facts.get('display_name', name)}**" in page or f"**{name}**" in page, name


@pytest.mark.comfy
@pytest.mark.parametrize("node_id", CONTRACT)
def test_few_widgets_are_in_sight(nodes, node_id):
    shown = [name for name, (kind, facts) in widgets(nodes[node_id]).items()
             if kind in ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN") and not facts.get("advanced")]
    assert len(shown) <= 6, shown


@pytest.mark.comfy
@pytest.mark.parametrize("node_id", GROUPS)
def test_widgets_offer_what_the_engine_declares(nodes, node_id):
    config = GROUPS[node_id]
    offered = widgets(nodes[node_id])
    settings = [name for name, field in config.__dataclass_fields__.items() if "limits" in field.metadata]
    assert set(settings) <= set(offered)
    for name in settings:
        kind, facts = offered[name]
        limits, default = limits_of(config, name), config.__dataclass_fields__[name].default
        assert facts["default"] == default and facts["tooltip"] == limits.help
        if limits.choices:
            assert kind == "COMBO" and tuple(facts["options"]) == limits.choices
        elif kind in ("INT", "FLOAT"):
            assert (facts["min"], facts["max"]) == (limits.low, limits.high)


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def named(workflow: dict, kind: str) -> list[dict]:
    """The widgets of every node of a kind, by name."""
    return [node["widgets_values_named"] for node in workflow["nodes"] if node["type"] == kind]


def links_of(workflow: dict) -> set[tuple[str, str, str, str]]:
    """Every link as (type of node, output, type of node, input)."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    return {(nodes[source]["type"], nodes[source]["outputs"][output]["name"],
             nodes[target]["type"], nodes[target]["inputs"][place]["name"])
            for _, source, output, target, place, _ in workflow["links"]}


def box(node: dict) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a node with its title, which ComfyUI draws 30 pixels high above it."""
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - 30, left + width, top + height


def test_every_family_has_an_example_and_each_its_picture():
    assert {path.stem for path in WORKFLOWS} == EXAMPLES
    for path in WORKFLOWS:
        picture = path.with_suffix(".jpg").read_bytes()
        assert picture.startswith(b"\xff\xd8") and len(picture) <= 300_000


def test_every_link_joins_two_slots(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for link, source, output, target, place, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][place]["link"] == link
        assert kind in (nodes[source]["outputs"][output]["type"], nodes[target]["inputs"][place]["type"])
    linked = [slot["link"] for node in nodes.values() for slot in node.get("inputs", []) if slot.get("link")]
    assert sorted(linked) == sorted(link[0] for link in workflow["links"])


def test_our_nodes_have_their_sockets(workflow):
    ours = [node for node in workflow["nodes"] if node["type"].startswith("VLS")]
    assert ours
    for node in ours:
        required, optional, outputs = CONTRACT[node["type"]]
        assert [(slot["name"], slot["type"]) for slot in node["outputs"]] == list(outputs.items())
        names = {slot["name"] for slot in node["inputs"]}
        assert set(required) <= names <= {*required, *optional}


@pytest.mark.parametrize("workflow", TRAINING, indirect=True, ids=lambda path: path.stem)
def test_the_new_lora_goes_on_the_model_that_it_is_for(workflow):
    links = links_of(workflow)
    assert {("VLSTrain", "lora_name", "VLSStack", "lora_name"), ("VLSBaseModel", "base", "VLSPrepare", "base"),
            ("VLSBaseModel", "base", "VLSTrain", "base")} <= links
    (base,) = named(workflow, "VLSBaseModel")
    trained = [file for file in (base["model_file"], base["low_noise_file"]) if file != "none"]
    sampled = [widgets[name] for kind, name in (("UNETLoader", "unet_name"), ("CheckpointLoaderSimple", "ckpt_name"))
               for widgets in named(workflow, kind)]
    assert sampled == trained
    stacked = {place for _, _, node, place in links if node == "VLSStack" and place.startswith("model")}
    assert len(stacked) == len(trained)
    clips = {place for source, _, node, place in links if node == "VLSPrepare" and not source.startswith("VLS")}
    extra = {kind: place for kind, place in (("CLIPVisionLoader", "clip_vision"), ("LTXVAudioVAELoader", "audio_vae"))
             if named(workflow, kind)}
    assert clips == {"vae", "clip", *extra.values()}


@pytest.mark.parametrize("workflow", [PROJECT / "example_workflows" / "film_to_captioned_clips.json"], indirect=True,
                         ids=lambda path: path.stem)
def test_the_shots_of_a_film_are_captioned_before_they_are_looked_at(workflow):
    assert {("VLSSplitScenes", "clips", "VLSCaptionClips", "clips"), ("CLIPLoader", "CLIP", "VLSCaptionerClip", "clip"),
            ("VLSCaptionerClip", "captioner", "VLSCaptionClips", "captioner"),
            ("VLSCaptionClips", "report", "PreviewAny", "source")} <= links_of(workflow)
    (cut,), (load,) = named(workflow, "VLSSplitScenes"), named(workflow, "VLSLoadClips")
    assert load["folder"] == f"input/{cut['folder']}" and load["trigger"] == cut["trigger"]
    muted = {node["type"] for node in workflow["nodes"] if node["mode"] == 2}
    assert muted == {"VLSLoadClips", "PreviewAny", "PreviewImage"}, "its folder is not there before the first run"


def test_steps_are_named_and_files_are_told(workflow):
    titles = [group["title"] for group in workflow["groups"]]
    assert [title.split()[0] for title in titles] == [str(number) for number in range(1, len(titles) + 1)]
    (note,) = named(workflow, "MarkdownNote")
    told = dict(re.findall(r"^- `models/(\w+)`: (.+)$", note["text"], re.MULTILINE))
    files = {(folder, widgets[name]) for kind, names in FOLDERS.items() for widgets in named(workflow, kind)
             for name, folder in names.items()}
    assert files == {(folder, file) for folder, line in told.items() for file in re.findall(r"`([^`]+)`", line)}
    loaded = {value for node in workflow["nodes"] for value in node.get("widgets_values") or []
              if isinstance(value, str) and value.endswith(".safetensors")}
    assert loaded == {file for _, file in files}


def test_nothing_overlaps_and_all_is_in_its_group(workflow):
    placed = [(node["type"], box(node)) for node in workflow["nodes"]]
    for (name, one), (other_name, other) in itertools.combinations(placed, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (name, other_name)
    groups = [group["bounding"] for group in workflow["groups"]]
    for name, (left, top, right, bottom) in placed:
        inside = [x <= left and y <= top and right <= x + width and bottom <= y + height
                  for x, y, width, height in groups]
        assert sum(inside) == (name != "MarkdownNote"), name


def test_nothing_of_a_machine_is_in_it(workflow):
    text = json.dumps(workflow)
    for word in ("/tmp", "/root", "/home", "C:\\\\", "tiny"):
        assert word not in text
