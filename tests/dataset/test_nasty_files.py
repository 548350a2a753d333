"""Files as people have them: none stops the others, none vanishes, and each has its sentence.

`python tests/nasty_files.py` prints the table.
"""

import nasty_files
import pytest

from video_lora_studio.loaders.video_file import read_frames


@pytest.fixture(scope="module")
def looked_through(tmp_path_factory):
    """The rows of the table, what was made of their folder, and what lies in it."""
    place = tmp_path_factory.mktemp("nasty")
    folder = place / "clips"
    folder.mkdir()
    rows = nasty_files.write_nasty_files(folder)
    return rows, nasty_files.look_through(folder, place / "cache"), folder


def test_every_file_is_used_or_left_out_and_told_why(looked_through):
    rows, found, _ = looked_through
    told = nasty_files.outcomes(found)
    assert len(rows) >= 40
    wrong = [
        f"{row.name}: {told.get(row.name)}" for row in rows
        if row.name not in told or (told[row.name][0] == "used") != row.used
        or not all(words in told[row.name][1] for words in row.told)
    ]
    assert not wrong, "\n".join(wrong)
    for name, (became, line) in told.items():
        assert became == "used" or len(line) > len(name) + 15, name


def test_nothing_vanishes(looked_through):
    rows, found, folder = looked_through
    report, expected = found.report(), {row.name for row in rows}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        captioned = path.suffix == ".txt" and any(path.with_suffix(end).exists() for end in (".mp4", ".mov", ".webm"))
        known = name in expected or captioned or name.startswith(("_excluded", "far/")) or name == "3_portraits"
        assert known or path.with_suffix(".mkv").exists() or path.with_suffix(".avi").exists(), name
    assert all(f"\n{row.name}" in report for row in rows)
    names = [item.name for item in (*found.clips, *found.left_out)]
    assert len(names) == len(set(names))


def test_what_is_used_can_be_read_to_its_last_frame(looked_through):
    for clip in looked_through[1].clips:
        last = len(clip.footage.times) - 1
        frames = read_frames(clip.footage, sorted({0, last // 2, last}), 48, 32)
        assert frames.shape[1:] == (32, 48, 3), clip.name


def test_the_table_has_a_line_for_each(looked_through):
    rows, found, _ = looked_through
    lines = nasty_files.table(rows, found).splitlines()
    assert len(lines) == len(rows) + 2
    assert all(line.count("|") == 5 for line in lines)
