"""Rows of the fault table that no other test has: little is lost, it is said, and the next run ends the same."""

import pytest
from disturbed_run import Bench, CannotMount
from fault_table import FAULTS

CASES = [
    ("Full disk in the middle, then room is made", 0, "MB are needed"),
    ("Quota used up in the middle (the disk says that it has room), then room is made", 0, "Make room on its disk."),
    ("Full disk and Cancel while it waits; room is made afterwards", 1, "To go on from there, move it to"),
    ("Full disk before the start", 0, "make room, raise Save every, or lower Rank."),
    ("Full disk while clips are prepared", 0, "Make room and queue Prepare again"),
    ("run.json emptied", 0, ""),
    ("One bit flipped in cached features, in the middle", 0, "is broken in the cache"),
    ("Cached features removed in the middle", 0, "queue Prepare again."),
    ("NaN in a cached latent", 0, "The loss became nan in step 4 (clips: "),
    ("Out of memory, and nothing is left to save it", 0, "lower Width, Height, Frames or Batch size"),
    ("File system of the LoRA folder turns read-only in the middle", 0, "small.safetensors instead."),
    ("A file in place of the LoRA folder, in the middle", 0, "Check that files can be written in its folder."),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults") / "here")


@pytest.mark.parametrize(("name", "lost", "said"), CASES, ids=[name for name, *_ in CASES])
def test_the_next_run_ends_with_the_bytes_of_the_undisturbed_one(bench, name, lost, said):
    try:
        seen = FAULTS[name](bench)
    except CannotMount as reason:
        pytest.skip(str(reason))
    assert seen.same and seen.lost == lost and seen.next_run != "FAILS"
    assert said in " ".join(seen.said)
