"""Hostile input at every border: an end, or one clear sentence, soon, in little memory, and no file touched outside."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from fuzz_files import header_file, read_all
from fuzz_targets import TARGETS
from fuzz_watch import Watch, attempt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from video_lora_studio.loaders import caption_file, caption_table, feature_cache
from video_lora_studio.loaders.safetensors_file import read_header
from video_lora_studio.training.config import AdapterConfig, CutConfig, MemoryConfig, RecipeConfig, RunConfig
from video_lora_studio.training.dataset import captioning, shot_record
from video_lora_studio.training.dataset.caption_text import clean_caption
from video_lora_studio.training.families import open_base_model
from video_lora_studio.training.progress_file import ProgressFile
from video_lora_studio.training.run_folder import RunFolder

EXAMPLES = 200
SLOW = {"base models": 15, "caption files": 60, "service answers": 60}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def watch(room: Path) -> Watch:
    return Watch(room)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_an_end_or_a_clear_sentence(name: str, room: Path, watch: Watch):
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(
        max_examples=SLOW.get(name, EXAMPLES),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.binary(max_size=120) | spoilt(seeds))
    @example(data=b"")
    @example(data=seeds[0])
    def hold(data: bytes) -> None:
        outcome = attempt(watch, target.make(data, room))
        assert outcome in ("accepted", "refused"), outcome

    hold()


def spoilt(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Good inputs with a piece replaced."""

    def replace(seed: bytes, place: int, piece: bytes, gone: int) -> bytes:
        place %= len(seed) + 1
        return seed[:place] + piece + seed[place + gone :]

    return st.builds(replace, st.sampled_from(seeds), st.integers(0, 4000), st.binary(max_size=6), st.integers(0, 9))


def test_the_watch_sees_what_is_touched_outside(room: Path, watch: Watch, tmp_path_factory: pytest.TempPathFactory):
    outside = tmp_path_factory.mktemp("elsewhere")
    (outside / "a").write_bytes(b"")
    try:
        (room / "way_out").symlink_to(outside)
    except OSError:
        pytest.skip("this system allows no symbolic links")
    for work in (
        lambda: (room / ".." / outside.name / "a").read_bytes(),
        lambda: (room / "way_out" / "a").read_bytes(),
        lambda: (outside / "b").write_bytes(b""),
        lambda: (outside / "a").rename(room / "a"),
        lambda: (outside / "b").unlink(),
        lambda: list(outside.iterdir()),
    ):
        assert attempt(watch, work).startswith("outside: ")
    assert attempt(watch, lambda: (room / "b").write_bytes(b"")) == "accepted"


ENTRY = '{"dtype":"%s","shape":[%s],"data_offsets":[0,%s]}'


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' + ENTRY % ("F4", "1" + "0" * 400, "1" + "0" * 400) + "}",
        '{"a":' + ENTRY % ("F32", ",".join("9" * 200_000), 4) + "}",
        '{"\\ud800":' + ENTRY % ("F32", "1", 4) + "}",
        '{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":[["a","b"]],"a":' + ENTRY % ("F32", "1", 4) + "}",
        '{"__metadata__":{"a":"\\udfff"}}',
        '{"a":' + ENTRY % ("F32", "9" * 5000, 4) + "}",
        '{"a":{"dtype":"F32","shape":[0,9000000000000,9000000000000],"data_offsets":[0,0]}}',
        "[" * 90_000,
    ],
    ids=["huge", "dimensions", "half", "type", "metadata", "half in metadata", "digits", "strides", "deep"],
)
def test_headers_that_were_found_to_do_harm(room: Path, watch: Watch, text: str):
    path = header_file(room / "x.safetensors", text.encode(), body=True)
    assert attempt(watch, lambda: read_all(path)) == "refused"


def gguf_entry(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<IQQQ", 3, 0, 1, len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "body",
    [
        gguf_entry(b"a", 9, struct.pack("<IQ", 9, 1) * 50_000),
        gguf_entry(b"general.alignment", 8, struct.pack("<Q", 3) + b"abc"),
        gguf_entry(b"general.alignment", 6, struct.pack("<f", 1e38)),
        gguf_entry(b"general.alignment", 5, struct.pack("<i", -7)),
        gguf_entry(b"general.alignment", 9, struct.pack("<IQ", 0, 0) + b"x"),
    ],
    ids=["arrays in arrays", "alignment in words", "broken alignment", "negative alignment", "alignment as a list"],
)
def test_gguf_headers_that_were_found_to_do_harm(room: Path, watch: Watch, body: bytes):
    path = room / "x.gguf"
    path.write_bytes(b"GGUF" + body + bytes(64))
    assert attempt(watch, lambda: read_header(path)) in ("refused", "accepted")


@pytest.mark.parametrize("text", ["\n" * 99_000, "\n" * 60_000 + "--", " \n" * 40_000 + "---x", "-" * 99_000 + "x"])
def test_captions_take_no_hours_to_split(watch: Watch, text: str):
    assert attempt(watch, lambda: caption_file.split_captions(text)) == "accepted"
    assert attempt(watch, lambda: clean_caption(text)) == "accepted"
    assert attempt(watch, lambda: clean_caption("#" + text + "```")) == "accepted"


def test_paths_of_thousands_of_accents_are_not_composed(watch: Watch):
    assert attempt(watch, lambda: caption_table.plain_name("a" + "\u0345\u0316" * 200_000)) == "accepted"


def test_a_byte_order_mark_is_no_caption():
    assert caption_file.split_captions("\ufeff\n\ufeff---\n\ufeff a") == ("a",)


@pytest.mark.parametrize(
    "line",
    [
        '{"media_path": "a.mp4", "caption": "\\ud800"}',
        '{"media_path": "\\udcff", "caption": "a"}',
        '{"media_path": "a.mp4", "caption": 1' + "0" * 5000 + "}",
    ],
)
def test_tables_with_what_no_file_can_hold_are_refused(room: Path, watch: Watch, line: str):
    path = room / "t.jsonl"
    path.write_text(line, encoding="utf-8")
    assert attempt(watch, lambda: caption_table.read_table(path)) == "refused"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 90_000,
        '{"format": 1, "films": {"a": {"film": "a", "stem": "a", "shots": {},'
        '"bounds": {"how": [1e999]}}}, "name": "a", "keys": [], "recorded": 1' + "0" * 400 + "}",
    ],
)
def test_records_that_make_no_sense_are_not_used(room: Path, watch: Watch, text: str):
    for name in ("run.json", "progress.jsonl", "_shots.json", "_captioned.json"):
        (room / name).write_text(text, encoding="utf-8")
    (room / "cache" / "sets").mkdir(parents=True, exist_ok=True)
    (room / "cache" / "sets" / "x.json").write_text(text, encoding="utf-8")
    for work in (
        RunFolder(room).record,
        ProgressFile(room).read,
        lambda: shot_record.read_record(room),
        lambda: captioning._read_record(room),
    ):
        assert attempt(watch, work) == "accepted"
    assert attempt(watch, feature_cache.FeatureCache(room / "cache").sets) == "refused"


@pytest.mark.parametrize(
    ("group", "given", "words"),
    [
        (RunConfig, {"adapter": {"alpha": 1}}, "adapter must be a AdapterConfig"),
        (RunConfig, {"seed": 10**5000}, "Seed must be"),
        (RunConfig, {"name": "COM\u00b9"}, "reserved"),
        (RunConfig, {"name": "\U00020000" * 100}, "at most 100"),
        (RecipeConfig, {"ema": "x" * 100_000}, "EMA must be a number"),
        (RecipeConfig, {"schedule": ["x"] * 9000}, "Schedule is"),
        (AdapterConfig, {"targets": 7}, "Layers must be text"),
        (AdapterConfig, {"targets": "\ud800"}, "Layers must be text"),
        (CutConfig, {"upscale": "no"}, "must be true or false"),
        (CutConfig, {"more_sizes": "1" * 90_000}, "must be text"),
        (MemoryConfig, {"recompute": 1}, "Recompute must be true or false"),
    ],
)
def test_values_of_a_wrong_kind_are_refused_in_few_words(watch: Watch, group: type, given: dict, words: str):
    assert attempt(watch, lambda: group(**given)) == "refused"
    with pytest.raises(ValueError, match=words):
        group(**given)


@pytest.mark.parametrize(
    "stated",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": -4},
        {"num_attention_heads": 1e308},
        {"rope_type": 3},
        {"positional_embedding_max_pos": 20.0},
        {"positional_embedding_max_pos": []},
        {"qk_norm": "x" * 100_000},
    ],
    ids=str,
)
def test_descriptions_of_models_that_make_no_sense(room: Path, watch: Watch, stated: dict):
    from ltx2_twin import write_ltx2_twin

    path = room / "ltx2.safetensors"
    write_ltx2_twin(path, **{key: value for key, value in stated.items()})
    outcome = attempt(watch, lambda: open_base_model(path))
    assert outcome == ("accepted" if "qk_norm" in stated else "refused")


def test_a_table_of_thousands_of_rows_is_read_soon(room: Path, watch: Watch):
    path = room / "t.csv"
    path.write_text("caption,media_path\n" + "".join(f"b,x{row}/a.mp4\n" for row in range(50_000)), encoding="utf-8")
    accents = room / "t.jsonl"
    row = '{"media_path": "a' + "\u0345\u0316" * 2000 + '", "caption": "a"}\n'
    accents.write_text(row * 100, encoding="utf-8")
    for table in (path, accents):
        assert (
            attempt(watch, lambda table=table: caption_table.read_table(table).match(["a.mp4", "b/a.mp4"]))
            == "accepted"
        )


def test_connectors_of_impossible_shapes(room: Path, watch: Watch):
    from ltx2_twin import write_ltx2_twin

    name = "video_embeddings_connector.learnable_registers"
    path = room / "ltx2.safetensors"
    write_ltx2_twin(path, beside={f"model.diffusion_model.{name}": torch.zeros(7)})
    assert attempt(watch, lambda: open_base_model(path)) == "refused"
