"""What is shown for every checkpoint, as a Markdown table: rows are checkpoints, columns are proofs.

    python tests/matrix.py [options of pytest]

Runs the tests that stand behind the cells (their own report goes to stderr) and ends with 1 unless every cell passes
or says why it cannot. `-m "not comfy"` leaves out what needs a ComfyUI.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Row:
    """A checkpoint as users know it."""

    title: str
    file: str
    """The family's tests."""
    listed: tuple[str, ...]
    """Its key lists in tests/data."""
    twins: tuple[str, ...]
    """Its tiny models in test_every_family.py."""
    forward: tuple[str, ...]
    """Where its forward is compared with a pipeline."""
    experts: str = ""
    """The tiny model whose two experts are trained in one run."""
    host: tuple[str, ...] = ()
    """Its tiny models against ComfyUI, where they are not `twins`."""


CALL = "test_predict_equals_the_call_of_diffusers_own_pipeline"
WAN, CONDITIONS = f"families/test_wan.py::{CALL}", f"families/test_wan_conditions.py::{CALL}"
LTX, LTX2 = f"families/test_ltx.py::{CALL}", f"families/test_ltx2.py::{CALL}"
COG = f"families/test_cogvideox.py::{CALL}"
BOTH_LTX = ("LTX-Video", "LTX-Video causal")
ROWS = (
    Row("Wan 2.1 T2V 1.3B", "test_wan.py", ("wan2.1_t2v_1.3B",), ("Wan T2V",), (WAN,)),
    Row("Wan 2.1 T2V 14B", "test_wan.py", ("wan2.1_t2v_14B",), ("Wan T2V",), (WAN,)),
    Row("Wan 2.1 I2V 14B", "test_wan.py", ("wan2.1_i2v_14B",), ("Wan I2V",), (f"{CONDITIONS}[I2V",)),
    Row("Wan 2.1 FLF2V 14B", "test_wan.py", ("wan2.1_flf2v_14B",), ("Wan FLF2V",), (f"{CONDITIONS}[FLF2V",)),
    Row("Wan 2.2 T2V A14B", "test_wan.py", ("wan2.1_t2v_14B",), ("Wan T2V",), (WAN,), experts="T2V"),
    Row("Wan 2.2 I2V A14B", "test_wan.py", ("wan2.2_i2v_14B",), ("Wan 2.2 I2V",), (f"{CONDITIONS}[2.2 I2V",),
        experts="2.2 I2V"),
    Row("Wan 2.2 TI2V 5B", "test_wan.py", ("wan2.2_ti2v_5B",), ("Wan TI2V",), (
        f"{CONDITIONS}[TI2V",
        "families/test_wan_conditions.py::test_ti2v_without_a_first_frame_equals_the_text_to_video_pipeline")),
    Row("LTX-Video 2B", "test_ltx.py", ("ltxv_2B",), ("LTX-Video",), (LTX,), host=BOTH_LTX),
    Row("LTX-Video 13B", "test_ltx.py", ("ltxv_13B",), ("LTX-Video",), (LTX,), host=BOTH_LTX),
    Row("LTX-2 19B", "test_ltx2.py", ("ltx-2_19B",), ("LTX-2 2.0",), (f"{LTX2}[2.0",)),
    Row("LTX-2.3 22B", "test_ltx2.py", ("ltx-2.3_22B",), ("LTX-2 2.3",), (f"{LTX2}[2.3",)),
    Row("CogVideoX 2b", "test_cogvideox.py", ("cogvideox_2b",), ("CogVideoX 2b",), (f"{COG}[2b",)),
    Row("CogVideoX 5b", "test_cogvideox.py", ("cogvideox_5b", "cogvideox_5b_i2v"),
        ("CogVideoX 5b", "CogVideoX 5b I2V"), (f"{COG}[5b", f"{COG}[5b I2V")),
    Row("CogVideoX 1.5", "test_cogvideox.py", ("cogvideox_1.5_5b", "cogvideox_1.5_5b_i2v"),
        ("CogVideoX 1.5", "CogVideoX 1.5 I2V"), (f"{COG}[1.5", f"{COG}[1.5 I2V")),
)

FILLS, CONFIG, FORWARD, LEARNS, KEYS, COMFY, DIFFUSERS = COLUMNS = (
    "real-size key list fills exactly", "configuration is the official one", "forward is the pipeline's (1e-5)",
    "loss and gradient finite, on the adapter only", "LoRA keys all matched by ComfyUI's map",
    "effect in ComfyUI is that of training (1e-4)", "effect in diffusers is that of training",
)
OLDER = ("cannot: ComfyUI gives this model positions that are not its own, so that its answers differ with any LoRA; "
         "what the file does to the weights is the same (1e-6)")
WORDS = {
    ("CogVideoX", FILLS): "the list is that of diffusers' class: no checkpoint was read",
    ("CogVideoX", DIFFUSERS): "cannot: diffusers reads its own names only, which ComfyUI does not",
    ("CogVideoX 2b", COMFY): OLDER,
    ("CogVideoX 5b", COMFY): OLDER,
    ("LTX-2", COMFY): "in the official order within blocks; in ComfyUI's own it is another model with any LoRA, by at "
                      "most 1e-3 (picture) and 2e-3 (sound)",
    ("Wan 2.2 T2V A14B", FILLS): "the list of 2.1 T2V 14B, which both experts have",
}
"""What is said of a cell beside its outcome, by the beginning of the row's title."""


def behind(row: Row, column: str) -> list[str]:
    """Beginnings of the ids of the tests behind a cell; each must be there and pass. None where it cannot be shown."""
    if column == FILLS:
        own = [f"families/{row.file}::test_the_real_checkpoints_fill_exactly[{name}" for name in row.listed]
        return own + ["families/test_ltx2.py::test_the_real_connectors_fill_exactly"] * (row.file == "test_ltx2.py")
    if column == CONFIG:
        return [f"families/{row.file}::test_the_configuration_of_real_checkpoints_is_the_official_one[{name}"
                for name in row.listed]
    if column == FORWARD:
        return list(row.forward)
    if column == LEARNS:
        each = ("test_a_fresh_adapter_changes_nothing", "test_only_the_adapter_gets_gradients_and_all_of_it_does")
        own = [f"families/test_every_family.py::{test}[{twin}" for test in each for twin in row.twins]
        run = "families/test_wan_experts.py::test_one_run_trains_each_expert_on_its_own_range_with_only_one_in_memory"
        return own + [f"{run}[{row.experts}"] * bool(row.experts)
    if column in (KEYS, COMFY):
        return [f"comfy/test_family_parity.py::test_effect_in_comfyui_is_the_effect_in_training[{twin}"
                for twin in row.host or row.twins]
    if row.title.startswith("CogVideoX"):
        return []
    return [f"families/test_lora_in_diffusers.py::test_effect_in_diffusers_is_the_effect_in_training[{twin}"
            for twin in row.twins]


def cells() -> Iterator[tuple[Row, str, list[str]]]:
    return ((row, column, behind(row, column)) for row in ROWS for column in COLUMNS)


def belongs(test: str, beginning: str) -> bool:
    """Whether a test's id has this beginning and ends there, but for further parameters."""
    return test.startswith(f"tests/{beginning}") and test[len(f"tests/{beginning}"):][:1] in ("", "[", "]", "-")


class Outcomes:
    """A plugin of pytest that runs the tests behind the cells, and keeps how they went: "" where they passed."""

    def __init__(self):
        self.wanted = {beginning for _, _, beginnings in cells() for beginning in beginnings}
        self.known, self.found = set(), {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        kept = [item for item in items if any(belongs(item.nodeid, beginning) for beginning in self.wanted)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
        self.known.update(item.nodeid for item in kept)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.found[report.nodeid] = f"FAILS: {crash.message.splitlines()[0] if crash else report.when}"
        elif report.skipped:
            self.found[report.nodeid] = f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"
        elif report.when == "call":
            self.found.setdefault(report.nodeid, "")

    def of(self, beginning: str) -> str:
        """How the tests with this beginning went."""
        tests = [test for test in self.known if belongs(test, beginning)]
        if not tests:
            return f"NO TEST: {beginning}]"
        return min(filter(None, (self.found.get(test, "not run: left out") for test in tests)), default="")


def cell(outcomes: Outcomes, row: Row, column: str, beginnings: list[str]) -> str:
    faults = sorted(fault for beginning in beginnings if (fault := outcomes.of(beginning)))  # failures stand first
    words = [said for (title, where), said in WORDS.items() if where == column and row.title.startswith(title)]
    cannot = any(said.startswith("cannot") for said in words)
    passed = [] if cannot else ["pass" if beginnings else "NO TEST"]
    result = [*faults, *passed][:1]
    return ": ".join([*result, *words]).replace("|", r"\|")


def main(options: list[str]) -> int:
    outcomes = Outcomes()
    files = sorted({TESTS / beginning.split("::")[0] for beginning in outcomes.wanted})
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([f"--rootdir={TESTS.parent}", "-q", "--continue-on-collection-errors",
                     *(str(file) for file in files if file.exists()), *options], plugins=[outcomes])
    table = {row.title: [] for row in ROWS}
    for row, column, beginnings in cells():
        table[row.title].append(cell(outcomes, row, column, beginnings))
    print(f"| checkpoint | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for title, results in table.items():
        print(f"| {title} | {' | '.join(results)} |")
    return int(any(result.startswith(("FAILS", "NO TEST")) for row in table.values() for result in row))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
