"""What docs/head_step.md says of a step on a GPU has not grown."""

from __future__ import annotations

from pathlib import Path

import pytest
import triton

from benchmarks.head_counts import CLASSES, act_out, counted_rows
from heads.passes.kernels import class_kernels
from tests.kernel_process import run_python

DOCUMENT = Path(__file__).parents[2] / "docs/head_step.md"


def documented(first: str) -> list[list[str]]:
    """The rows of the table whose first column is named so."""
    _, _, after = DOCUMENT.read_text().partition(f"\n| {first} |")
    return table(after.partition("\n\n")[0])


def table(text: str) -> list[list[str]]:
    lines = text.strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.replace(",", "")) for cell in cells]


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize(("backend", "sizes"), [("triton", 6), ("torch", 3)])
def test_no_count_of_a_step_has_grown(backend: str, sizes: int) -> None:
    """PyTorch's of the smaller S alone: the larger takes it tens of thousands of operations."""
    known = {tuple(row[:3]): numbers(row[3:]) for row in documented("backend")}
    classes = CLASSES if backend == "triton" else CLASSES[:1]
    rows = list(counted_rows([backend], classes))
    assert len(rows) == sizes
    for row in rows:
        found, most = numbers(list(row[3:])), known[row[:3]]
        assert all(one <= other for one, other in zip(found, most, strict=True)), (
            f"{row[:3]} takes {found}, docs/head_step.md says {most}; if it must be so, put what "
            "`python benchmarks/head_counts.py` prints there"
        )


def test_a_kernel_more_a_chunk_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the scratch memory makes twice the chunks, of three kernels each."""
    before = act_out(*CLASSES[0], 4096).counts
    monkeypatch.setattr(class_kernels, "_SCRATCH_BYTES", class_kernels._SCRATCH_BYTES // 2)
    after = act_out(*CLASSES[0], 4096).counts
    assert (before.launches, after.launches) == (3 + 3 * 4, 3 + 3 * 7)
    assert after.operations == before.operations
    assert after.moved > before.moved
    assert after.sent == before.sent == 4 * (512 * 512 + 2 * 4096 + 4096 * 512) + 8 * 512


@pytest.mark.slow(seconds=8)
def test_no_kernel_takes_more_registers_or_shared_memory(pytestconfig: pytest.Config) -> None:
    """As compiled by the Triton that is named there; another may need others."""
    if f"compiled by triton {triton.__version__.rpartition('.')[0]}\n" not in DOCUMENT.read_text():
        pytest.skip(f"docs/head_step.md does not speak of triton {triton.__version__}")
    found = run_python(
        *("-W", "ignore", "benchmarks/head_counts.py", "--compiled"),
        TRITON_CACHE_DIR=str(pytestconfig.cache.mkdir("triton")),
    )
    for row, known in zip(table(found), documented("kernel"), strict=True):
        assert row[0] == known[0]
        for one, other in zip(row[1:], known[1:], strict=True):
            fits = other == "spills" or all(a <= b for a, b in zip(pair(one), pair(other)))
            assert fits, f"{row} takes more than docs/head_step.md says: {known}"


def pair(cell: str) -> list[float]:
    assert cell != "spills"
    return numbers(cell.split(", "))
