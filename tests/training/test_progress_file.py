"""progress.jsonl on a disk that fills up while it is written."""

import pytest

from video_lora_studio.training.loop import RunState
from video_lora_studio.training.progress_file import ProgressFile

resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")


@pytest.mark.parametrize("room", [0, 10, 26, 40])
def test_what_did_not_fit_is_there_the_next_time(tmp_path, room):
    progress, state = ProgressFile(tmp_path), RunState()
    progress.begin(state, 0, "")
    state.losses = [0.5] * 10
    progress.add(state, 0, "")
    size = (tmp_path / "progress.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    try:
        state.losses = [0.5] * 10 + [0.25] * 10
        progress.add(state, 0, "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "progress.jsonl").stat().st_size == size, "no part of a line stays"
    progress.add(state, 0, "")
    assert progress.read() == (dict(enumerate(state.losses, 1)), [])
