"""Values by name from CSV files: with and without a header, of several columns."""

from __future__ import annotations

import pytest

from evaluation.columns import ColumnError, read_groups, read_quality
from pipeline.named_path import PathError


def write(folder, text):
    (folder / "x.csv").write_text(text)
    return str(folder / "x.csv")


@pytest.mark.parametrize(
    "text",
    [
        "a,young\nb, old\n",
        "image,group\na,young\n\n b,old",
        "\ufeffimage;group\r\na;young\r\nb;old",
    ],
)
def test_two_columns_need_no_header(text, tmp_path):
    assert read_groups(write(tmp_path, text)) == {"a": "young", "b": "old"}


def test_one_of_several_columns_is_named(tmp_path):
    path = write(tmp_path, "file,age,sharp\na,3,0.5\nb,40,1e-2\n")
    assert read_groups(f"{path}:age") == {"a": "3", "b": "40"}
    assert read_quality(f"{path}:sharp") == {"a": 0.5, "b": 0.01}
    with pytest.raises(ColumnError, match=r"has 3 columns: name one of age, sharp, as in .*:age"):
        read_groups(path)
    with pytest.raises(ColumnError, match="expected one called race"):
        read_groups(f"{path}:race")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("a,1\nb,2,3\n", "found 'b,2,3'"),
        ("a\nb\n", "found 'a'"),
        ("a,1\na,2\n", "a is 1 and 2; expected one value"),
    ],
)
def test_what_is_no_table_of_values_is_refused(text, complaint, tmp_path):
    with pytest.raises(ColumnError, match=complaint):
        read_groups(write(tmp_path, text))


def test_a_quotation_mark_that_is_never_closed_is_refused(tmp_path):
    with pytest.raises(PathError, match="line 1: "):
        read_groups(write(tmp_path, 'a,"1\nb,2'))


def test_a_value_may_be_left_empty_where_it_is_no_number(tmp_path):
    path = write(tmp_path, "file,sharp,age\na,3,40\nb,,\n")
    assert read_groups(f"{path}:age") == {"a": "40", "b": ""}
    with pytest.raises(ColumnError, match="the quality of b is ''"):
        read_quality(f"{path}:sharp")


@pytest.mark.parametrize("value", ["good", "nan", "inf"])
def test_qualities_are_numbers(value, tmp_path):
    with pytest.raises(ColumnError, match="the quality of a is"):
        read_quality(write(tmp_path, f"a,{value}\n"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PathError, match="does not exist"):
        read_groups(str(tmp_path / "none.csv"))
