"""Which block a layer is in and what it makes, told from names in weights files."""

import pytest

from video_lora_studio.training import layer_place


@pytest.mark.parametrize(("name", "block", "stream"), [
    ("blocks.0.self_attn.q", 0, "video"),
    ("blocks.39.ffn.2", 39, "video"),
    ("time_embedding.0", None, "video"),
    ("transformer_blocks.7.attn1.to_q", 7, "video"),
    ("transformer_blocks.7.audio_attn2.to_out.0", 7, "audio"),
    ("transformer_blocks.7.audio_ff.net.0.proj", 7, "audio"),
    ("transformer_blocks.7.video_to_audio_attn.to_k", 7, "audio"),
    ("transformer_blocks.7.audio_to_video_attn.to_k", 7, "video"),
    ("transformer_blocks.7.audio_scale_shift_table", 7, "audio"),
    ("transformer_blocks.7.scale_shift_table_a2v_ca_audio", 7, "audio"),
    ("transformer_blocks.7.scale_shift_table_a2v_ca_video", 7, "video"),
    ("audio_patchify_proj", None, "audio"),
    ("av_ca_v2a_gate_adaln_single.linear", None, "audio"),
    ("av_ca_a2v_gate_adaln_single.linear", None, "video"),
    ("audio_embeddings_connector.transformer_1d_blocks.1.attn1.to_q", None, "audio"),
    ("video_embeddings_connector.transformer_1d_blocks.1.attn1.to_q", None, "video"),
    ("audio_injector.injector.3.q", None, "video"),
])
def test_place_of_a_layer(name, block, stream):
    place = layer_place(name)
    assert (place.block, place.stream) == (block, stream)
