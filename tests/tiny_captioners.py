"""Vision language models of real classes, a few numbers wide, as folders: random weights, tokens of single bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from video_lora_studio.loaders.safetensors_file import read_tensors, write_tensors

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>",
         "<|vision_bos|>", "<|vision_eos|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
HEARING_TEMPLATE = (
    TEMPLATE.replace("vision_start", "vision_bos").replace("vision_end", "vision_eos").replace("image_pad", "IMAGE")
    .replace("video_pad", "VIDEO")
    .replace("{% else %}", "{% elif part.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}")
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
}
EYES = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "initializer_range": 0.3}


def tokenizer(template: str = TEMPLATE, **names: str):
    """A tokenizer that knows each byte and the marks of Qwen's chats; `names` gives marks an attribute."""
    import tokenizers
    import transformers

    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: number for number, letter in enumerate(sorted(letters))}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(list(MARKS))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names or None
    )
    made.chat_template = template
    return made


def write_captioner(folder: Path, kind: str = "qwen3_vl") -> Path:
    """A tiny model of one of the kinds in `MODELS`, saved to `folder` as users download them."""
    torch.manual_seed(0)
    model, processor = MODELS[kind]()
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.7
    model.generation_config.suppress_tokens = [processor.tokenizer.get_vocab()[mark] for mark in MARKS]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind == "qwen2_5_omni":
        put_below(folder, kind, "thinker")
    return folder


def put_below(folder: Path, kind: str, part: str) -> None:
    """Make a saved model a part of a larger one, as checkpoints hold it."""
    weights, metadata = read_tensors(folder / "model.safetensors")
    renamed = {f"{part}.{name}": tensor for name, tensor in weights.items()}
    write_tensors(folder / "model.safetensors", renamed, metadata)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_config(folder, model_type=kind, **{f"{part}_config": config})


def settings(text: dict, **eyes) -> dict:
    """What the configurations have in common, with the numbers of the marks."""
    marks = tokenizer().get_vocab()
    return {
        "text_config": {**TEXT, **text, "vocab_size": len(marks), "bos_token_id": None, "pad_token_id": None,
                        "eos_token_id": marks["<|im_end|>"]},
        "vision_config": {**EYES, "out_hidden_size": TEXT["hidden_size"], **eyes},
        "image_token_id": marks["<|image_pad|>"], "video_token_id": marks["<|video_pad|>"],
        "vision_start_token_id": marks["<|vision_start|>"], "vision_end_token_id": marks["<|vision_end|>"],
    }


def qwen3_vl():
    import transformers as t

    config = t.Qwen3VLConfig(**settings({"head_dim": 16}, num_position_embeddings=64, deepstack_visual_indexes=[0]))
    sizes = {"patch_size": 16, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64 * 64}}
    processor = t.Qwen3VLProcessor(
        t.Qwen2VLImageProcessor(**sizes), tokenizer(), t.Qwen3VLVideoProcessor(**sizes), chat_template=TEMPLATE
    )
    return t.Qwen3VLForConditionalGeneration(config), processor


def qwen2_5_vl():
    import transformers as t

    config = t.Qwen2_5_VLConfig(**settings({}, fullatt_block_indexes=[1], tokens_per_second=2))
    sizes = {"patch_size": 14, "size": {"shortest_edge": 28 * 28, "longest_edge": 64 * 64 * 64}}
    processor = t.Qwen2_5_VLProcessor(
        t.Qwen2VLImageProcessor(**sizes), tokenizer(), t.Qwen2VLVideoProcessor(**sizes), chat_template=TEMPLATE
    )
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen2_5_omni():
    """The part that writes, in a checkpoint of the whole as it is offered: its tensors stand below `thinker.`."""
    import transformers as t

    marks = tokenizer().get_vocab()
    common = settings({})
    thinker = {
        "text_config": common["text_config"],
        "vision_config": {**EYES, "out_hidden_size": TEXT["hidden_size"], "fullatt_block_indexes": [1]},
        "audio_config": {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
                         "num_mel_bins": 128, "output_dim": TEXT["hidden_size"], "initializer_range": 0.3},
        "audio_token_index": marks["<|AUDIO|>"], "image_token_index": marks["<|IMAGE|>"],
        "video_token_index": marks["<|VIDEO|>"], "audio_start_token_id": marks["<|audio_bos|>"],
        "audio_end_token_id": marks["<|audio_eos|>"], "vision_start_token_id": marks["<|vision_bos|>"],
        "vision_end_token_id": marks["<|vision_eos|>"], "pad_token_id": marks["<|endoftext|>"],
    }
    sizes = {"patch_size": 14, "size": {"shortest_edge": 28 * 28, "longest_edge": 64 * 64 * 64}}
    names = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
             "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
             "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    processor = t.Qwen2_5OmniProcessor(
        t.Qwen2VLImageProcessor(**sizes), t.Qwen2VLVideoProcessor(**sizes), t.WhisperFeatureExtractor(feature_size=128),
        tokenizer(HEARING_TEMPLATE, **names), chat_template=HEARING_TEMPLATE,
    )
    return t.Qwen2_5OmniThinkerForConditionalGeneration(t.Qwen2_5OmniThinkerConfig(**thinker)), processor


MODELS = {"qwen3_vl": qwen3_vl, "qwen2_5_vl": qwen2_5_vl, "qwen2_5_omni": qwen2_5_omni}


def write_config(folder: Path, **config) -> Path:
    """A folder with a `config.json` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    write_captioner(Path(sys.argv[1]))
