"""What Inspect LoRA says and draws: norms against the built changes, the report, the picture."""

import math

import pytest
import torch
from lora_files import FORMS, Layers, pairs
from safetensors.torch import save_file

from video_lora_studio.loaders.lora_forms import as_comfyui_loads, lora_layers
from video_lora_studio.loaders.safetensors_file import read_header
from video_lora_studio.training import families_of, lora_norms, lora_picture, lora_rank, read_any_lora
from video_lora_studio.training.families import FAMILIES
from video_lora_studio.training.norms import LoraNorms, delta_norm

FAMILY = {family.name: family for family in FAMILIES}
LAYERS = {
    "Wan": ("blocks.0.self_attn.q", "blocks.31.cross_attn.o", "blocks.31.ffn.0"),
    "LTX-Video": ("transformer_blocks.0.attn1.to_q", "transformer_blocks.31.attn2.to_k", "patchify_proj"),
    "LTX-2": ("transformer_blocks.0.audio_attn1.to_q", "transformer_blocks.31.audio_to_video_attn.to_k"),
    "CogVideoX": ("blocks.0.q", "blocks.31.attn_out"),
}
FORMS_ADDED = [form for form in FORMS if "DoRA" not in form]


def layers_of(family, width=8):
    return Layers({layer: (2 * width, width) for layer in LAYERS[family]}, FAMILY[family].names)


@pytest.mark.parametrize("form", FORMS_ADDED)
def test_norms_are_those_of_the_built_changes(form):
    layers = layers_of("Wan")
    tensors, header, truth = FORMS[form][0](layers)
    norms = lora_norms(as_comfyui_loads(tensors, header).tensors)
    for block, named in {0: LAYERS["Wan"][:1], 31: LAYERS["Wan"][1:]}.items():
        built = math.hypot(*(truth[name].norm().item() for name in truth if name.rsplit(".", 1)[0] in named))
        assert norms.blocks[block] == pytest.approx(built, rel=1e-5)
    assert norms.total == pytest.approx(math.hypot(*(change.norm().item() for change in truth.values())), rel=1e-5)
    assert list(norms.blocks) == [0, 31] and norms.outside == 0 and not norms.unknown


def test_norm_of_a_convolution_in_three_parts():
    generator = torch.Generator().manual_seed(1)
    up, mid, down = (torch.randn(shape, generator=generator) for shape in ((16, 4, 1, 1), (4, 4, 3, 3), (4, 8, 1, 1)))
    built = torch.einsum("op,pqhw,qi->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    assert delta_norm({"up": up, "mid": mid, "down": down, "alpha": torch.tensor(2.0)}) == pytest.approx(
        built.norm().item() / 2, rel=1e-5)


def test_norm_of_a_lokr_with_a_core():
    generator = torch.Generator().manual_seed(2)
    first, core, left, right = (
        torch.randn(shape, generator=generator) for shape in ((2, 3), (4, 5, 3, 3), (4, 6), (5, 7))
    )
    built = torch.einsum("ijkl,jr,ip->prkl", core, right, left)
    assert delta_norm({"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": left, "lokr_w2_b": right}) == pytest.approx(
        first.norm().item() * built.norm().item(), rel=1e-5)


def test_a_huge_layer_needs_no_huge_matrix():
    """The change alone would take 40 GB."""
    up, down = torch.ones(100_000, 2), torch.ones(2, 100_000)
    assert delta_norm({"up": up, "down": down}) == pytest.approx(2e5)


@pytest.mark.parametrize("layer", [
    {"up": torch.ones(4, 2), "down": torch.ones(3, 4)}, {"up": torch.ones(4, 2)}, {"oft_blocks": torch.ones(2, 2, 2)},
    {"hada_w1_a": torch.ones(4, 2), "hada_w1_b": torch.ones(2, 4)}, {"down": torch.ones(()), "up": torch.ones(())},
    {"lokr_w1": torch.ones(2, 2)}, {"alpha": torch.ones(3), "up": torch.ones(4, 2), "down": torch.ones(2, 4)}, {},
], ids=["ranks", "half", "oft", "half_loha", "no_axes", "half_lokr", "alphas", "nothing"])
def test_what_cannot_be_measured_is_named(layer):
    assert delta_norm(layer) is None


def test_numbers_not_finite_are_named():
    tensors, _, _ = pairs("diffusion_model.")(layers_of("Wan"))
    tensors["diffusion_model.blocks.0.self_attn.q.lora_A.weight"][0, 0] = torch.nan
    norms = lora_norms(tensors)
    assert norms.unknown == ("blocks.0.self_attn.q",) and list(norms.blocks) == [31]


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("form", ["ours", "kohya", "diffusers", "SimpleTuner LoKr", "PEFT with its adapter's name"])
def test_families_are_told_by_their_layers(family, form):
    tensors, _, _ = FORMS[form][0](layers_of(family))
    found = families_of(tensors)
    assert family in found
    if family in ("Wan", "LTX-2"):
        assert found == (family,), "no other model has such layers"


@pytest.mark.parametrize("names", [(), ("double_blocks.0.img_attn.qkv.lora_A.weight",), ("blocks.0.weight",)])
def test_strangers_fit_no_family(names):
    assert families_of(names) == ()


@pytest.fixture
def described(load, tmp_path):
    """The report of a file with these tensors."""
    report, facts = load("lora_report"), load("lora_facts")

    def describe(tensors, header=None):
        path = tmp_path / "style.safetensors"
        save_file(tensors, path, header or {})
        read, head = read_any_lora(path), read_header(path)
        return "\n".join(report.lora_report(path, head, read, facts.lora_facts(head), lora_norms(read.tensors)))

    return describe


def test_the_report_tells_what_is_known(described):
    tensors, _, truth = FORMS["kohya"][0](layers_of("Wan"))
    text = described(tensors, {"ss_steps": "2000", "ss_learning_rate": "0.0001", "ss_base_model_version": "Wan 2.1",
                               "modelspec.trigger_phrase": "zdrgn"})
    total = math.hypot(*(change.norm().item() for change in truth.values()))
    for words in (
        "style.safetensors, 0.00", "Form: kohya (musubi-tuner, sd-scripts): LoRA",
        "Fits: Wan by its layers; its header says Wan 2.1", "Rank 4, alpha 6; 3 layers in 2 blocks, 9 keys",
        "Trained: 2,000 steps, learning rate 0.0001", "Trigger words: zdrgn", f"Norm of the change: {total:.4g} in all",
    ):
        assert words in text, text


def test_the_report_leaves_out_what_is_not_known(described):
    text = described({"x.oft_blocks": torch.ones(2, 2, 2)})
    assert "Trained" not in text and "Norm" not in text
    assert "no model that is known here by its layers; its header does not say" in text
    assert "No rank, no alpha; 1 layer, 1 key" in text and "without the model, or not readable: x" in text
    assert "holds no keys that a LoRA has" in described({"blocks.0.weight": torch.ones(2)})


def test_ranks_and_alphas_are_spans(load):
    report = load("lora_report")
    layers = {str(rank): {"down": torch.ones(rank, 2), "alpha": torch.tensor(rank / 2)} for rank in (4, 64, 8)}
    assert report.rank_text(layers) == "Rank 4 to 64, alpha 2 to 32"


@pytest.mark.parametrize(("matched", "left", "alone", "told"), [
    (8, [], 8, "On this model: 8 of 8 keys match"),
    (8, [], 0, "On this model: 8 of 8 keys match, 0 with ComfyUI's own loaders"),
    (7, ["x.alpha"], 7, "On this model: 7 of 8 keys match; not: x.alpha"),
    (0, list("abcdefgh"), 0, "On this model: 0 of 8 keys match; not: a, b, c, d, e and 3 more"),
])
def test_the_match_is_told(load, matched, left, alone, told):
    assert load("lora_report").match_text(matched, 8, left, alone=alone) == told


def test_bars_are_as_high_as_their_norms():
    norms = LoraNorms(blocks={0: 2.0, 1: 4.0, 2: 0.0, 3: 1.0}, outside=3.0, unknown=())
    picture = lora_picture(norms, title="style", subtitle="kohya: LoRA")
    assert picture.shape[0] == 1 and picture.shape[2:] == (1024, 3) and picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1 and picture[0, 0, 0].max() < 0.2, "dark"
    blue = torch.tensor((96, 165, 250)) / 255
    columns = ((picture[0] - blue).abs().amax(-1) < 1e-3).sum(0)
    bars = [columns[84 + int((number + 0.5) * 916 / 5)].item() for number in range(4)]
    assert bars[1] == pytest.approx(2 * bars[0], abs=3) and bars[1] == pytest.approx(4 * bars[3], abs=5)
    assert bars[2] <= 2 and bars[1] > 250


@pytest.mark.parametrize("norms", [
    LoraNorms(blocks={}, outside=0.0, unknown=("x",)), LoraNorms(blocks={0: 0.0}, outside=0.0, unknown=()),
    LoraNorms(blocks={}, outside=2e-30, unknown=()),
    LoraNorms(blocks={number: 1e30 for number in range(400)}, outside=1.0, unknown=()),
], ids=["nothing", "zero", "tiny", "many"])
def test_any_lora_has_a_picture(norms):
    picture = lora_picture(norms, title="标" * 200, subtitle="x" * 500)
    assert picture.std() > 0.01


@pytest.mark.parametrize(("form", "rank"), [("ours", 4), ("kohya LoHa", 4), ("ai-toolkit LoKr", 4),
                                            ("SimpleTuner LoKr", None), ("differences", None)])
def test_ranks_of_every_kind(form, rank):
    tensors, _, _ = FORMS[form][0](layers_of("Wan"))
    assert {lora_rank(layer) for layer in lora_layers(tensors).values()} == {rank}
