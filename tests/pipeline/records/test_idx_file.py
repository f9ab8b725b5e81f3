"""The text of an .idx: written as MXNet writes it, read fast, refused with the line at fault."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records.index import open_index
from pipeline.records.mxnet_idx import read_idx, write_idx
from pipeline.records.recordio import IMAGE_HEADER, MAGIC, RecordError, RecordWriter, pack_image
from tests.calls import count_calls


@given(
    st.lists(st.integers(0, (1 << 63) - 1), unique=True, max_size=30),
    st.sampled_from([1, 7, 1 << 13]),
)
def test_numbers_of_any_length_are_written_as_python_writes_them_and_read_back(
    tmp_path_factory, keys, at_once
):
    path = tmp_path_factory.getbasetemp() / "any.idx"
    offsets = keys[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.records.mxnet_idx._LINES", at_once)
        write_idx(path, np.array(keys, np.int64), np.array(offsets, np.int64))
        read = read_idx(path)
    lines = sorted(zip(keys, offsets))
    assert path.read_bytes() == b"".join(b"%d\t%d\n" % line for line in lines)
    assert list(zip(read[0].tolist(), read[1].tolist())) == lines


@pytest.mark.parametrize(
    "text", ["3\t8\r\n5\t16\r\n", "3\t8\n5\t16", "03\t8\n5\t 16\n", "3\t08\n5\t+16\n"]
)
def test_an_idx_of_another_hand_is_read_all_the_same(tmp_path, text):
    (tmp_path / "train.idx").write_bytes(text.encode())
    keys, offsets = read_idx(tmp_path / "train.idx")
    assert (keys.tolist(), offsets.tolist()) == ([3, 5], [8, 16])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1\n2\t3\n4\n", 1),
        ("0\t0\n\n1\t8\n", 2),
        ("0\t0\n1\t\n2\t3\n", 2),
        ("0\t0\t1\t8\n", 1),
        ("0\t0\n1\t-8\n", 2),
    ],
)
def test_lines_that_do_not_hold_two_numbers_are_named(tmp_path, text, line):
    """Blanks in other places, where a parser of numbers alone would find as many."""
    (tmp_path / "train.idx").write_text(text)
    with pytest.raises(RecordError, match=f"line {line}: found"):
        read_idx(tmp_path / "train.idx")


def test_a_plain_idx_is_read_without_looking_at_each_line(tmp_path, monkeypatch):
    write_idx(tmp_path / "train.idx", np.arange(20_000), np.arange(20_000) * 7000)
    shuffled = np.random.default_rng(0).permutation(20_000)
    lines = "".join(f"{key}\t{key * 7000}\n" for key in shuffled)
    (tmp_path / "shuffled.idx").write_text(lines)
    monkeypatch.delattr("pipeline.records.mxnet_idx._parse_lines")
    for name, expected in (("train", np.arange(20_000)), ("shuffled", shuffled)):
        keys, offsets = read_idx(tmp_path / f"{name}.idx")
        assert np.array_equal(keys, expected)
        assert np.array_equal(offsets, keys * 7000)


def test_an_idx_is_written_without_a_look_at_each_line(tmp_path):
    keys = np.arange(100_000)
    assert count_calls(lambda: write_idx(tmp_path / "train.idx", keys, keys * 7000)) < 10_000


def test_a_magic_word_out_of_step_is_no_record(tmp_path):
    """Inside an image the four bytes may stand at any place but a multiple of four."""
    image = b"x" + MAGIC.to_bytes(4, "little")
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(pack_image(image, 0.0, 0))
    place = 8 + IMAGE_HEADER.size + 1
    write_idx(tmp_path / "train.idx", np.arange(2), np.array([0, place]))
    with pytest.raises(RecordError, match=f"no record starts at offset {place}"):
        open_index(tmp_path)
