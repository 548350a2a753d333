"""Killed runs go on to the same bytes; `kill_runs.py` does it at more moments and in three families."""

from kill_runs import Killer

MOMENTS = ["caching: in a write", "training: just before a rename", "training: in a write", "training: in a step"]


def test_a_run_killed_again_and_again_ends_with_the_bytes_of_one_that_was_left_alone(tmp_path):
    tally = Killer("Wan 2.2 pair", tmp_path / "here").kill(MOMENTS)
    assert sorted(tally.kills) == sorted(MOMENTS), "every moment came"
    assert not tally.broken and not tally.different and not tally.left
