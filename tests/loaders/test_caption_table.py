"""Tables of captions, as other trainers write them, and read what we write."""

import csv
import json

import pytest

from video_lora_studio.loaders.caption_table import TableError, read_table, write_table

ROWS = (("a.mp4", "a cat, \"grey\""), ("more/b.png", "zwei\u2028Zeilen; und ü"), ("c.mov", "猫"))


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.json"])
def test_what_is_written_is_read(tmp_path, name):
    write_table(tmp_path / name, iter(ROWS))
    assert read_table(tmp_path / name).rows == ROWS
    captions, strange = read_table(tmp_path / name).match(["a.mp4", "more/b.png", "c.mov", "d.mp4"])
    assert captions == {"a.mp4": (ROWS[0][1],), "more/b.png": ("zwei Zeilen; und ü",), "c.mov": ("猫",)}
    assert strange == ()


def test_jsonl_has_the_columns_of_both_trainers(tmp_path):
    write_table(tmp_path / "captions.jsonl", ROWS)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [row["media_path"] for row in rows] == [name for name, _ in ROWS]
    assert [row.get("video_path") for row in rows] == ["a.mp4", None, "c.mov"]
    assert [row.get("image_path") for row in rows] == [None, "more/b.png", None]
    assert [row["caption"] for row in rows] == [caption for _, caption in ROWS]


def test_csv_is_read_by_pythons_own_reader(tmp_path):
    write_table(tmp_path / "captions.csv", ROWS)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        assert [(row["media_path"], row["caption"]) for row in csv.DictReader(file)] == list(ROWS)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=".jsonl, .json or .csv"):
        write_table(tmp_path / "captions.parquet", ROWS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", '{"caption": "one", "media_path": "a.mp4"}\n\n'),
        ("t.jsonl", '\ufeff{"caption": "one", "video": "./a.mp4"}\r\n'),
        ("t.jsonl", '{"video_path": "/data/clips/a.mp4", "caption": "one", "control_path": "x"}'),
        ("t.jsonl", '{"image_path": "C:\\\\clips\\\\a.mp4", "caption": "one"}'),
        ("t.jsonl", '{"file_name": "a.mp4", "text": "one"}'),
        ("T.JSON", '[{"caption": "one", "media_path": "a.mp4"}]'),
        ("t.json", '{"a.mp4": "one"}'),
        ("t.json", '{"a.mp4": ["one"]}'),
        ("t.csv", "caption,media_path\none,a.mp4\n"),
        ("t.csv", "\ufeffmedia_path;caption\r\na.mp4;one\r\n"),
        ("t.csv", 'video_path\tcaption\na.mp4\t"one"\n'),
        ("t.csv", " file_name , caption \na.mp4,one\n"),
    ],
)
def test_tables_of_other_programs_are_read(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert read_table(tmp_path / name).match(["a.mp4", "b.mp4"]) == ({"a.mp4": ("one",)}, ())


def test_several_captions_of_a_clip_are_kept(tmp_path):
    write_table(tmp_path / "t.csv", [("a.mp4", "one"), ("b.mp4", ""), ("a.mp4", "two"), ("a.mp4", "one")])
    assert read_table(tmp_path / "t.csv").match(["a.mp4", "b.mp4"]) == ({"a.mp4": ("one", "two"), "b.mp4": ()}, ())


@pytest.mark.parametrize(
    ("written", "names", "found", "strange"),
    [
        (["more/a.mp4"], ["a.mp4", "more/a.mp4"], {"more/a.mp4": ("0",)}, ()),
        (["/x/more/a.mp4"], ["a.mp4", "more/a.mp4"], {"more/a.mp4": ("0",)}, ()),
        (["/x/a.mp4", "/y/a.mp4"], ["a.mp4"], {}, ("/x/a.mp4", "/y/a.mp4")),
        (["a.mp4", "/y/a.mp4"], ["a.mp4"], {"a.mp4": ("0",)}, ("/y/a.mp4",)),
        (["xa.mp4", "a.mp4.bak"], ["a.mp4"], {}, ("xa.mp4", "a.mp4.bak")),
        (["cafe\u0301.mp4"], ["caf\u00e9.mp4"], {"caf\u00e9.mp4": ("0",)}, ()),
        (["caf\u00e9.mp4"], ["cafe\u0301.mp4"], {"cafe\u0301.mp4": ("0",)}, ()),
        (["{folder}/a.mp4"], ["a.mp4"], {"a.mp4": ("0",)}, ()),
        (["../../etc/passwd"], ["a.mp4"], {}, ("../../etc/passwd",)),
    ],
)
def test_rows_find_their_clips(tmp_path, written, names, found, strange):
    folder = tmp_path.as_posix()
    write_table(tmp_path / "t.jsonl", [(path.format(folder=folder), str(at)) for at, path in enumerate(written)])
    assert read_table(tmp_path / "t.jsonl").match(names) == (found, strange)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("t.jsonl", b"", "a table without captions"),
        ("t.csv", b"caption,media_path\n", "a table without captions"),
        ("t.jsonl", b'{"media_path": "a.mp4"}', "row of a.mp4 has no caption"),
        ("t.jsonl", b'{"caption": "a"}', "a row has no path"),
        ("t.jsonl", b'{"media_path": 7, "caption": "a"}', "a row has no path"),
        ("t.jsonl", b'{"media_path": "a.mp4", "caption": 7}', "has no caption"),
        ("t.jsonl", b'{"media_path": "a.mp4", "caption": "x"}\n{"media', "line 2: broken JSON"),
        ("t.jsonl", b"[1]", "a row is not a set of named values"),
        ("t.json", b"{", "broken JSON"),
        ("t.json", b"7", "neither a list of rows nor captions by path"),
        ("t.json", b'{"last_node_id": 4, "nodes": []}', "neither a list"),
        ("t.json", b"[" * 100_000, "not a table of captions"),
        ("t.csv", b"a,b\n1,2\n", "a row has no path"),
        ("t.csv", b'media_path,caption\na.mp4,"' + b"x" * 200_000, "not a table of captions"),
        ("t.csv", b"media_path,caption\nm\xfcll.mp4,x", "must be UTF-8"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TableError) as caught:
        read_table(tmp_path / name)
    assert reason in caught.value.reason and str(caught.value).startswith(name) and len(str(caught.value)) < 250


def test_a_table_that_is_not_there_or_too_long_is_said(tmp_path, monkeypatch):
    with pytest.raises(TableError, match="not read"):
        read_table(tmp_path / "gone.csv")
    monkeypatch.setattr("video_lora_studio.loaders.caption_table.LONGEST", 10)
    (tmp_path / "t.csv").write_text("media_path,caption\n")
    with pytest.raises(TableError, match="too long"):
        read_table(tmp_path / "t.csv")
