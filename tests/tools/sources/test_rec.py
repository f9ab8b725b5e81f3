"""Another .rec as a source, whole or by a list."""

from pathlib import Path

import pytest

from pipeline.records.index import open_index
from pipeline.records.mxnet_idx import read_idx
from pipeline.records.recordio import RecordError, RecordWriter, pack_image
from pipeline.records.write_set import pack_set
from tools.sources.rec import read_rec

SETS = [[b"a0", b"a1"], [b"b0"], [b"c0", b"c1", b"c2"]]


@pytest.fixture
def packed(tmp_path) -> Path:
    pack_set(tmp_path / "in", SETS)
    return tmp_path / "in" / "train.rec"


def taken(*arguments: object, **options: object) -> list[tuple[str, list[bytes]]]:
    return [(name, images) for name, images, _ in read_rec(*arguments, **options)]


def test_all_of_it_is_read_identity_by_identity(packed):
    assert taken(packed) == list(zip("012", SETS)) == taken(packed.parent)
    offset = open_index(packed).records["offset"][0]
    assert next(read_rec(packed)).places[0].startswith(f"{packed}: ")
    assert next(read_rec(packed)).places[0].endswith(f"at offset {offset}")


def test_identities_that_lie_about_are_brought_together(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, (image, label) in enumerate([(b"x", 5.0), (b"y", 2.0), (b"z", 5.0)]):
            writer.write(pack_image(image, label, key))
    assert taken(tmp_path) == [("2", [b"y"]), ("5", [b"x", b"z"])]


def test_lists_keep_or_drop_by_identity_key_or_offset(packed, tmp_path):
    chosen = tmp_path / "list.txt"
    chosen.write_text("# wrong people\n2  # a twin\n\n0\n")
    assert taken(packed, drop=chosen) == [("1", [b"b0"])]
    assert taken(packed, keep=chosen) == [("0", SETS[0]), ("2", SETS[2])]
    chosen.write_text("3\n5\n")
    assert taken(packed, drop=chosen, by="key") == [("0", SETS[0]), ("2", [b"c0", b"c2"])]
    offsets = read_idx(packed.with_suffix(".idx"))[1]
    chosen.write_text(f"{offsets[4]}\n")
    assert taken(packed, keep=chosen, by="offset") == [("2", [b"c0"])]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0\n9\n", r"list\.txt, line 2: 9 is the identity of no image of .*train\.rec \(1 lines"),
        ("0\nann\n", r"list\.txt, line 2: found 'ann', expected one number"),
        ("0 1\n", r"line 1: found '0 1'"),
        ("99999999999999999999\n", "line 1: found"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(packed, tmp_path, text, complaint):
    chosen = tmp_path / "list.txt"
    chosen.write_text(text)
    with pytest.raises(RecordError, match=complaint):
        taken(packed, drop=chosen)


def test_two_lists_or_a_damaged_file_are_refused(packed, tmp_path):
    with pytest.raises(RecordError, match="both --keep and --drop"):
        taken(packed, keep=tmp_path, drop=tmp_path)
    content = bytearray(packed.read_bytes())
    content[read_idx(packed.with_suffix(".idx"))[1][2]] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(RecordError, match=r"is damaged in 1 places: .*--repair"):
        taken(packed)
