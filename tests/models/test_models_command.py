"""`python -m models` prints what each network costs, for people and for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from models.__main__ import main


def printed(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["models", *arguments])
    code = main()
    return code, *capsys.readouterr()


@pytest.mark.slow(seconds=5)
def test_a_line_for_each_that_is_named_its_columns_aligned(monkeypatch, capsys):
    code, table, _ = printed("mbf", "edgeface_base", monkeypatch=monkeypatch, capsys=capsys)
    head, first, second = table.splitlines()
    assert code == 0
    assert head.split("  ")[0] == "network"
    assert first.split()[:6] == ["mbf", "2.06", "M", "0.438", "G", "512"]
    assert second.split()[:6] == ["edgeface_base", "18.23", "M", "0.699", "G", "512"]
    assert len(head) == len(first) == len(second)


@pytest.mark.slow(seconds=5)
def test_as_json_the_numbers_are_whole(monkeypatch, capsys):
    arguments = ("iresnet10", "--json", "--speed")
    code, text, _ = printed(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    (row,) = json.loads(text)
    assert code == 0
    assert row.pop("images_per_second") > 0
    assert row.pop("kept_an_image") > 1e6
    assert row.pop("multiply_adds") < 2.61e9  # iresnet18's, which has twice the blocks
    assert row == {"name": "iresnet10", "parameters": 17_752_000, "embedding_dim": 512}


def test_a_name_that_is_none_is_answered_with_those_that_are(monkeypatch, capsys):
    code, text, errors = printed("r50", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, text) == (2, "")
    assert errors.startswith("models: unknown model 'r50': choose one of iresnet10, iresnet18")


@pytest.mark.slow(seconds=5)
def test_the_table_of_the_documents_is_what_is_printed(monkeypatch, capsys):
    _, table, _ = printed(monkeypatch=monkeypatch, capsys=capsys)
    page = (Path(__file__).parents[2] / "docs/networks.md").read_text()
    for line in table.splitlines()[1:]:
        name, *cells = re.split(r"  +", line)
        assert f"| `{name}` | {' | '.join(cells)} |" in page
