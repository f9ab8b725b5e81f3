"""pack_rec: folders in, InsightFace's layout out, not a byte of an image changed."""

from pathlib import Path

import pytest

from pipeline.classify import scan_rec
from pipeline.index import open_index, read_idx
from pipeline.recordio import RecordError, read_record, unpack_image
from tools.pack_rec import pack_set, read_folders

ATT = Path(__file__).parents[3] / "shared/data/att_112"


@pytest.fixture
def folders(tmp_path) -> Path:
    images = {"b": ["2.PNG", "10.jpg"], "a": ["x.jpeg"], ".hidden": ["y.jpg"]}
    for identity, names in images.items():
        (tmp_path / "in" / identity).mkdir(parents=True)
        for name in names:
            (tmp_path / "in" / identity / name).write_bytes(f"{identity}/{name}".encode() * 3)
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_images_go_in_untouched_identity_by_identity(folders, tmp_path):
    assert pack_set(tmp_path / "out", read_folders(folders)) == (2, 3)
    index = open_index(tmp_path / "out")
    stored = [(bytes(index.image(i)), int(index.records["label"][i])) for i in range(3)]
    assert stored == [(b"a/x.jpeg" * 3, 0), (b"b/10.jpg" * 3, 1), (b"b/2.PNG" * 3, 1)]
    assert (tmp_path / "out" / "property").read_text() == "2,112,112\n"


def test_the_layout_is_insightfaces(folders, tmp_path):
    """Header record 0 names the identity records, which name their images' keys."""
    pack_set(tmp_path / "out", read_folders(folders))
    content = memoryview((tmp_path / "out" / "train.rec").read_bytes())
    keys, offsets = read_idx(tmp_path / "out" / "train.idx")
    records = [unpack_image(read_record(content, at)[0]) for at in offsets]
    assert keys.tolist() == [0, 1, 2, 3, 4, 5] == [record.key for record in records]
    assert records[0].labels.tolist() == [4, 6]
    assert [record.labels.tolist() for record in records[4:]] == [[1, 2], [2, 4]]
    assert [len(record.image) > 0 for record in records] == [False, True, True, True, False, False]
    summary = scan_rec(tmp_path / "out" / "train.rec").summary
    assert (summary.header_records, summary.identity_records) == (1, 2)
    assert summary.announced_images == 3


def test_an_existing_set_is_not_overwritten(folders, tmp_path):
    pack_set(tmp_path / "out", read_folders(folders))
    before = (tmp_path / "out" / "train.rec").read_bytes()
    with pytest.raises(RecordError, match="exists"):
        pack_set(tmp_path / "out", read_folders(folders))
    assert (tmp_path / "out" / "train.rec").read_bytes() == before


def test_nothing_to_pack_is_refused_and_leaves_no_set(folders, tmp_path):
    (folders / "c").mkdir()
    with pytest.raises(RecordError, match=r"c holds no images \(\.bmp"):
        pack_set(tmp_path / "out", read_folders(folders))
    with pytest.raises(RecordError, match="holds no folders"):
        pack_set(tmp_path / "out", read_folders(folders / "a"))
    with pytest.raises(RecordError, match="no images to pack"):
        pack_set(tmp_path / "out", [])
    with pytest.raises(RecordError, match="an image of identity 1 is empty"):
        pack_set(tmp_path / "out", [[b"a"], [b"b", b""]])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not ATT.exists(), reason="att_112 is not on this machine")
def test_real_folders_come_back_byte_for_byte(tmp_path):
    identities, images = pack_set(tmp_path / "out", read_folders(ATT))
    assert (identities, images) == (40, 400)
    index = open_index(tmp_path / "out")
    files = [file for folder in sorted(ATT.iterdir()) for file in sorted(folder.iterdir())]
    assert all(bytes(index.image(i)) == file.read_bytes() for i, file in enumerate(files))
