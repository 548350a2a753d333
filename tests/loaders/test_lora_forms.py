"""Every trainer's key form is recognised, and converted key by key."""

import pytest
import torch
from lora_files import FORMS, HEADER_ALPHA, Layers, pairs

from video_lora_studio.loaders.key_map import KeyMap
from video_lora_studio.loaders.lora_forms import as_comfyui_loads, lora_form, take_apart

NAMES = KeyMap((
    ("blocks.*.self_attn.q", "blocks.*.attn1.to_q"), ("blocks.*.self_attn.o", "blocks.*.attn1.to_out.0"),
    ("blocks.*.norm3", "blocks.*.norm2"), ("blocks.*.ffn.0", "blocks.*.ffn.net.0.proj"),
    ("time_in.0", "condition.time.linear_1"),
))
OTHER = KeyMap((("patchify", "proj_in"), ("blocks.*.norm2", "blocks.*.norm3")))
SIZES = {"blocks.0.self_attn.q": (8, 8), "blocks.11.self_attn.o": (8, 8), "blocks.0.ffn.0": (16, 8),
         "time_in.0": (8, 4)}
MODULES = (*SIZES, "blocks.0.norm3", "blocks.0.modulation", "head.modulation")
IN_DIFFUSERS = ", layers named as in diffusers"


def read(tensors, header=None, modules=MODULES):
    return as_comfyui_loads(tensors, header or {}, modules, [OTHER, NAMES])


@pytest.mark.parametrize("form", FORMS)
def test_every_key_of_every_form_gets_its_module(form):
    write, called = FORMS[form]
    tensors, header, truth = write(Layers(SIZES, NAMES))
    lora = read(tensors, header)
    assert str(lora.form) == called.replace("{}", IN_DIFFUSERS)
    assert sorted(lora.names.values()) == sorted(tensors) and lora.names.keys() == lora.tensors.keys()
    modules = {name.removeprefix("diffusion_model.").rsplit(".", 1)[0].removesuffix(".lora_A").removesuffix(".lora_B")
               for name in lora.tensors}
    assert modules == {name.rsplit(".", 1)[0] for name in truth} == set(SIZES)


@pytest.mark.parametrize("form", [form for form in FORMS if "DoRA" not in form and "lora_A" in str(FORMS[form][0](
    Layers(SIZES, NAMES))[0])])
def test_matrices_multiply_to_the_change(form):
    tensors, header, truth = FORMS[form][0](Layers(SIZES, NAMES))
    lora = read(tensors, header).tensors
    for layer in SIZES:
        key = f"diffusion_model.{layer}"
        up, down = lora[f"{key}.lora_B.weight"], lora[f"{key}.lora_A.weight"]
        scale = lora[f"{key}.alpha"].item() / len(down) if f"{key}.alpha" in lora else 1.0
        torch.testing.assert_close(scale * up @ down, truth[f"{layer}.weight"])


@pytest.mark.parametrize(("name", "prefix", "module", "role"), [
    ("lora_unet_blocks_0_ffn_0.lora_down.weight", "lora_unet_", "blocks_0_ffn_0", "down"),
    ("lora_unet_blocks_0_ffn_0.alpha", "lora_unet_", "blocks_0_ffn_0", "alpha"),
    ("transformer.blocks.0.attn1.to_q_lora.up.weight", "transformer.", "blocks.0.attn1.to_q", "up"),
    ("transformer_blocks.0.ff.net.2.lora_B.weight", "", "transformer_blocks.0.ff.net.2", "up"),
    ("unet_x.lora_linear_layer.down.weight", "", "unet_x", "down"),
    ("base_model.model.x.lora_magnitude_vector.default.weight", "base_model.model.", "x", "dora_scale"),
    ("base_model.model.x.lora_B.default.bias", "base_model.model.", "x", "bias"),
    ("pipe.dit.x.lora_A.my-style_2.weight", "pipe.dit.", "x", "down"),
    ("x.hada_w1_a.default", "", "x", "hada_w1_a"),
    ("x.lokr_t2", "", "x", "lokr_t2"),
    ("x.b1.weight", "", "x", "b1.weight"),
    ("diffusion_model.blocks.0.diff_m", "diffusion_model.", "blocks.0", "diff_m"),
    ("text_encoders.t5.x.lora_up.weight", "", "text_encoders.t5.x", "up"),
])
def test_keys_are_taken_apart(name, prefix, module, role):
    key = take_apart(name)
    assert (key.prefix, key.module, key.role) == (prefix, module, role)


@pytest.mark.parametrize("name", ["blocks.0.ffn.0.weight", "", "lora_A", ".alpha" * 500, "x.attn1.weight", "x.bias"])
def test_other_keys_are_none_of_a_lora(name):
    assert take_apart(name) is None
    assert lora_form([name]).writer == "unknown"


def test_what_the_model_has_not_keeps_its_name():
    tensors = pairs("lora_te1_", flattened=True)(Layers(SIZES, NAMES))[0]
    tensors |= pairs("transformer.")(Layers({"blocks.0.unknown": (8, 8)}, NAMES))[0] | {"rest": torch.ones(1)}
    lora = read(tensors)
    assert lora.names == {name: name for name in tensors}
    assert all(lora.tensors[name] is tensors[name] for name in tensors)


def test_a_name_right_in_two_layouts_is_read_in_that_of_its_file():
    """One kind of model calls norm3 what another calls norm2."""
    of_class = pairs("transformer.", of_class=True)(Layers(SIZES, NAMES))[0]
    assert "diffusion_model.blocks.0.norm3.diff" in read(of_class | {"transformer.blocks.0.norm2.diff": torch.ones(8)}
                                                         ).tensors
    own = pairs("transformer.")(Layers(SIZES, NAMES))[0] | {"transformer.blocks.0.norm3.diff": torch.ones(8)}
    assert "diffusion_model.blocks.0.norm3.diff" in read(own).tensors


def test_differences_of_modulations_go_to_the_parameter():
    """Distilled models are extracted so, and ComfyUI knows no such ending."""
    lora = read({"diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 8), "head.diff_m": torch.ones(1, 2, 8)})
    assert set(lora.tensors) == {"diffusion_model.blocks.0.modulation.diff", "diffusion_model.head.modulation.diff"}


def test_two_keys_for_one_tensor_are_both_kept():
    once, twice = (pairs(prefix)(Layers(SIZES, NAMES))[0] for prefix in ("transformer.", "diffusion_model."))
    lora = read(once | twice)
    assert len(lora.tensors) == len(once | twice)
    assert all(lora.tensors[name] is tensor for name, tensor in twice.items()), "those that need no conversion win"


def test_three_part_convolutions_keep_the_spelling_that_comfyui_reads():
    parts = {"down": torch.ones(4, 8, 1, 1), "mid": torch.ones(4, 4, 3, 3), "up": torch.ones(8, 4, 1, 1)}
    lora = read({f"lora_unet_blocks_0_ffn_0.lora_{part}.weight": tensor for part, tensor in parts.items()})
    assert set(lora.tensors) == {f"diffusion_model.blocks.0.ffn.0.lora_{part}.weight" for part in parts}


def test_a_tensor_says_the_scale_before_the_header_does():
    tensors, header, truth = pairs("transformer.", alpha=2.0, of_class=True, header=HEADER_ALPHA)(Layers(SIZES, NAMES))
    lora = read(tensors, header)
    assert all(torch.equal(lora.tensors[new], tensors[name]) for new, name in lora.names.items())


@pytest.mark.parametrize("said", [
    "", "[]", "{", '{"transformer.lora_alpha": "many"}', '{"transformer.lora_alpha": NaN}', "[" * 9999,
    '{"transformer.alpha_pattern": 3}', '{"transformer.lora_alpha": true}',
    f'{{"transformer.lora_alpha": 1{"0" * 400}}}',
])
def test_nonsense_in_the_header_changes_nothing(said):
    tensors, _, truth = pairs("transformer.", of_class=True)(Layers(SIZES, NAMES))
    lora = read(tensors, {"lora_adapter_metadata": said})
    assert all(lora.tensors[new] is tensors[name] for new, name in lora.names.items())


def test_without_a_model_names_stay():
    tensors, header, _ = FORMS["kohya"][0](Layers(SIZES, NAMES))
    assert read(tensors, header, modules=()).names == {name: name for name in tensors}


@pytest.mark.parametrize("tensors", [
    {"x.alpha": torch.ones(3), "x.lora_A.weight": torch.ones(()), "x.lora_B.bias": torch.ones(())},
    {"transformer.x.lora_A.weight": torch.ones(()), "transformer.x.lora_B.weight": torch.ones(0)},
    {"x.lora_magnitude_vector": torch.ones(())},
])
def test_damaged_tensors_pass_unharmed(tensors):
    assert len(read(tensors, HEADER_ALPHA, modules=("x",)).tensors) == len(tensors)
