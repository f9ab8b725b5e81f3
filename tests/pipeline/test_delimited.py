"""Rows of text, whatever parts their fields."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facestream import UserError
from pipeline.delimited import read_rows
from pipeline.named_path import PathError


def rows(folder: Path, text: str) -> list[tuple[int, list[str]]]:
    path = folder / "table.csv"
    path.write_text(text, errors="surrogatepass")
    return read_rows(path)


@pytest.mark.parametrize("mark", ["\t", ",", ";", " ", " ,  "])
def test_what_parts_the_fields_is_found(mark, tmp_path):
    text = f"a{mark}b{mark}c\n\n  d{mark}e{mark}f\n"
    assert rows(tmp_path, text) == [(1, ["a", "b", "c"]), (3, ["d", "e", "f"])]


def test_the_mark_that_there_is_most_of(tmp_path):
    """Others belong to the fields; a line without any has one field."""
    assert rows(tmp_path, "one line\na,b;c,d,\n") == [(1, ["one line"]), (2, ["a", "b;c", "d"])]


def test_quoted_fields_and_a_byte_order_mark(tmp_path):
    assert rows(tmp_path, '\ufeff"Doe, J/1.jpg",1\n') == [(1, ["Doe, J/1.jpg", "1"])]


def test_an_open_quotation_is_named_by_its_line(tmp_path):
    with pytest.raises(PathError, match="line 2: "):
        rows(tmp_path, 'a,b\n"c,d\n')


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('a1 \t,;"\n\r\0é\udcff'), max_size=30))
def test_any_text_is_rows_or_an_error_in_words(tmp_path, text):
    try:
        found = rows(tmp_path, text)
    except UserError:
        return
    assert all(fields and fields[-1] for _, fields in found)
