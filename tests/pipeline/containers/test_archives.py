"""Archives as training sets: what they must say, what costs an image, what is refused."""

from __future__ import annotations

import json
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facestream import UserError
from pipeline import whole_file
from pipeline.containers.content import NO_TEXTS, Content, ImageNames, summarize
from pipeline.containers.files import FilesEndToEnd
from pipeline.containers.forms import form_of
from pipeline.containers.open_records import open_records
from pipeline.containers.set_index import index_files
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError
from pipeline.records.scan import RECORD
from tests.damage import mutate
from tests.pipeline.containers.test_lmdb_images import write as write_lmdb
from tests.pipeline.containers.test_webdataset import shard as write_shard

NOBODY = ImageNames(
    Content(np.zeros(0, RECORD), summarize(np.zeros(0, RECORD)), NO_TEXTS, NO_TEXTS)
)
JPEG = b"\xff\xd8 an image"


def a_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def a_parquet(path: Path, images: list[bytes | None], **columns: list) -> Path:
    pq.write_table(pa.table({"image": images, **columns}), path, compression="none")
    return path


def contents(index: RecordIndex) -> list[bytes]:
    return [source() for source in index.sources(np.arange(len(index)))]


def test_files_are_one_after_another(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, size in zip(paths, (5, 0, 7)):
        path.write_bytes(path.name.encode() * size)
    files = FilesEndToEnd(paths, NOBODY)
    assert files.starts.tolist() == [0, 5, 5]
    assert (files.read(3, 2), files.read(5, 7), files.read(9, 2)) == (b"aa", b"c" * 7, b"cc")
    files.will_need(3, 9)
    with pytest.raises(RecordError, match="ends before"):
        files.read(3, 3)
    before = files.fingerprint
    files.check_unchanged()
    paths[2].write_bytes(b"d" * 7)
    assert FilesEndToEnd(paths, NOBODY).fingerprint != before
    with pytest.raises(RecordError, match="c was overwritten"):
        files.check_unchanged()


def test_images_of_a_zip_are_called_by_their_paths_and_empty_ones_are_damage(tmp_path):
    path = a_zip(
        tmp_path / "a.zip", {"bob/0.jpg": b"", "bob/1.jpg": JPEG, "ann/1.jpg": JPEG + b"2"}
    )
    index = open_records(path)
    assert contents(index) == [JPEG, JPEG + b"2"], "as they lie"
    assert (index.labels(np.arange(2)).tolist(), list(index.names)) == ([1, 0], ["ann", "bob"])
    assert index.place(0) == f"{path}: bob/1.jpg"
    assert index.summary.damaged_spans == 1
    assert [file.name for file in index_files(path) if file.is_file()] == ["a.zip.fsidx"]


def test_a_long_note_after_a_name_in_a_zip_is_skipped(tmp_path):
    note = b"\x55\x54" + (200).to_bytes(2, "little") + bytes(200)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        for name in ("a/1.jpg", "b/1.jpg"):
            member = zipfile.ZipInfo(name)
            member.extra = note
            opened.writestr(member, JPEG * 30)
    assert contents(open_records(tmp_path / "a.zip")) == [JPEG * 30] * 2


def test_rows_that_nothing_has_packed_are_read_without_pyarrow(tmp_path, monkeypatch):
    images = [JPEG + b"%d" % k for k in (0, 1, 2, 1)]  # the last is stored once for two rows
    path = a_parquet(tmp_path / "a.parquet", images, label=[3, 4, 3, 4])
    open_records(path)
    monkeypatch.setitem(sys.modules, "pipeline.containers.parquet_images", None)
    index = open_records(path)
    assert contents(index)[:3] == images[:3]
    assert index.labels(np.arange(4)).tolist() == [3, 4, 3, 4]


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    path = a_parquet(tmp_path / "a.parquet", [JPEG], label=[0])
    monkeypatch.setitem(sys.modules, "pipeline.containers.parquet_images", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        open_records(path)


def test_rows_without_an_image_are_damage_and_without_a_label_passed_over(tmp_path, caplog):
    path = a_parquet(tmp_path / "a.parquet", [JPEG, None, JPEG + b"2"], label=["x", "x", None])
    index = open_records(path)
    assert contents(index) == [JPEG]
    assert index.summary.damaged_spans == 1
    assert "image without a label: 1" in caplog.text


def of_two(folder: Path, **columns: list) -> Path:
    """Four images, whatever the columns beside them."""
    return a_parquet(folder / "a.parquet", [JPEG + b"%d" % k for k in range(4)], **columns)


def with_json(folder: Path, *texts: str) -> Path:
    both = [
        one
        for k, text in enumerate(texts)
        for one in ((f"{k}.jpg", JPEG), (f"{k}.json", text.encode()))
    ]
    return write_shard(folder / "a.tar", both)


@pytest.mark.parametrize(
    ("write", "labels"),
    [
        (lambda at: of_two(at, person_id=[3, 4, 3, 4]), [3, 4, 3, 4]),
        (lambda at: of_two(at, identity=["x", "w", "w", None], score=[0.5] * 4), [1, 0, 0]),
        (lambda at: of_two(at, file=list("abcd"), target=[3, 4, 3, 4]), [3, 4, 3, 4]),
        (lambda at: of_two(at, row=[0, 1, 2, 3], who=["a", "b", "b", "b"]), [0, 1, 1, 1]),
        (lambda at: of_two(at, age=[9, 9, 8, 8], label=[0, 1, 0, 1]), [0, 1, 0, 1]),
        (lambda at: with_json(at, '{"id": 5, "score": 0.5}', '{"id": 4, "who": 9}'), [5, 4]),
        (lambda at: with_json(at, '{"who": "b"}', '{"who": "a", "age": 3}'), [1, 0]),
        (lambda at: with_json(at, '{"age": 5, "label": 2}', '{"label": 1}'), [2, 1]),
    ],
)
def test_the_only_place_where_labels_can_be_has_them(tmp_path, write, labels, caplog):
    path = write(tmp_path)
    index = open_records(path)
    assert index.labels(np.arange(len(index))).tolist() == labels
    assert ("its labels are" in caplog.text) == (b"label" not in path.read_bytes())


def test_the_only_column_that_is_said_to_have_classes_has_the_labels(tmp_path):
    features = {"celeb": {"names": ["zoe", "ann"], "_type": "ClassLabel"}}
    columns = {"image": [JPEG, JPEG + b"2"], "age": [30, 30], "celeb": [0, 1]}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    index = open_records(tmp_path / "a.parquet")
    assert (index.labels(np.arange(2)).tolist(), list(index.names)) == ([1, 0], ["ann", "zoe"])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda at: of_two(at, age=[9, 9, 8, 8], who=[0, 1, 0, 1]), r"columns 'age' and 'who' co"),
        (lambda at: with_json(at, '{"age": 5, "who": 2}'), r"keys 'age' and 'who' of a .json co"),
        (lambda path: a_zip(path / "a.zip", {"1.jpg": JPEG}), r"no labels. Paths with a folder"),
        (lambda path: a_zip(path / "a.zip", {"a/1.txt": b"x"}), "holds no images"),
        (lambda path: write_lmdb(path / "a", {"1": JPEG}), r"no labels. Values that are msgpack"),
        (lambda path: write_shard(path / "a.tar", [("1.jpg", JPEG)]), r"no labels. A .cls"),
        (lambda path: a_parquet(path / "a.parquet", [JPEG]), r"no labels.*tools/pack_rec"),
        (lambda path: a_parquet(path / "a.parquet", [JPEG], label=[-2]), "has the label -2"),
        (lambda path: a_parquet(path / "a.parquet", [b""], label=[0]), "no image that can be"),
    ],
)
def test_what_cannot_be_trained_on_says_what_would_be(tmp_path, write, message):
    with pytest.raises(UserError, match=message):
        open_records(write(tmp_path))


def test_the_form_is_found_by_looking_and_several_are_named(tmp_path):
    forms = {"a.zip": "zip", "a.tar": "tar", "a.parquet": "parquet", "a.lmdb": "lmdb", "a": "rec"}
    for name, form in forms.items():
        (tmp_path / name).touch()
        assert form_of(tmp_path / name) == form
    with pytest.raises(RecordError, match=r"holds 1 .tar files, such as a.tar and 1 .parquet"):
        form_of(tmp_path)
    (tmp_path / "a.tar").unlink()
    assert form_of(tmp_path) == "parquet"
    (tmp_path / "ann").mkdir()
    assert form_of(tmp_path) == "parquet", "a folder beside it that holds no images"
    (tmp_path / "ann/1.jpg").touch()
    with pytest.raises(RecordError, match=r"and folders of images, such as ann. Expected one"):
        form_of(tmp_path)
    (tmp_path / "train.rec").touch()
    assert form_of(tmp_path) == "rec", "its folder has always been a name of it"
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(RecordError, match=r"packed as a whole.*Unpack it first"):
        form_of(tmp_path / "a.tar.gz")
    (tmp_path / "packed").mkdir()
    (tmp_path / "a.tar.gz").rename(tmp_path / "packed/a.tar.gz")
    with pytest.raises(RecordError, match=r"but a.tar.gz, which is packed as a whole.*Unpack it"):
        form_of(tmp_path / "packed")


FORMS = {
    "zip": lambda path: a_zip(path / "a.zip", {f"{k}/{k}.jpg": JPEG * 20 for k in range(9)}),
    "lmdb": lambda path: write_lmdb(path / "a", {f"p{k}/1.jpg": JPEG * 20 for k in range(9)}),
    "tar": lambda path: write_shard(
        path / "a.tar",
        [one for k in range(9) for one in ((f"{k}.jpg", JPEG * 20), (f"{k}.cls", b"7"))],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_damage_in_use_costs_images_or_is_an_error(tmp_path, form):
    path, rng = FORMS[form](tmp_path), np.random.default_rng(0)
    whole, index = path.read_bytes(), open_records(path)
    for _ in range(30):
        path.write_bytes(mutate(whole, rng)[0])
        for file in index_files(path):
            file.unlink(missing_ok=True)
        for opened in (open_records, lambda _: index):
            try:
                for source in opened(path).sources(np.arange(9)[: len(index)]):
                    source()
            except UserError:
                continue
            except IndexError:  # fewer images are left
                assert opened is open_records


@pytest.mark.parametrize("form", FORMS)
def test_two_that_make_one_index_at_once_both_write_it(tmp_path, form, caplog, monkeypatch):
    path = FORMS[form](tmp_path)
    both, write = Barrier(2, timeout=60), whole_file.replace

    def replace(*names: Path) -> bool:
        both.wait()  # both have written all of it
        return write(*names)

    monkeypatch.setattr(whole_file, "replace", replace)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(open_records, [path, path])
    assert contents(first) == contents(second) == contents(open_records(path))
    assert not caplog.records
    assert [file.suffix for file in tmp_path.rglob("*.*") if "fsidx" in file.name] == [".fsidx"]


@pytest.mark.parametrize("form", FORMS)
def test_a_set_that_was_replaced_is_looked_through_again(tmp_path, form, monkeypatch):
    path = FORMS[form](tmp_path)
    first = open_records(path)
    monkeypatch.setattr("pipeline.containers.archive.summarize", None)
    assert contents(open_records(path)) == contents(first)
    path.touch()
    with pytest.raises(TypeError):  # summarize: it is looked through
        open_records(path)


def test_the_first_look_tells_how_far_it_is_and_the_next_opening_needs_none(tmp_path):
    for person in range(3):
        (tmp_path / "faces" / f"p{person}").mkdir(parents=True)
        (tmp_path / "faces" / f"p{person}" / "1.jpg").write_bytes(JPEG)
    sets = [tmp_path / "faces"]
    sets.append(write_shard(tmp_path / "a.tar", [("1.jpg", JPEG), ("1.cls", b"7")]))
    sets.append(a_parquet(tmp_path / "a.parquet", [JPEG], label=[1]))
    sets.append(write_lmdb(tmp_path / "a", {"p/1.jpg": JPEG}))
    sets.append(a_zip(tmp_path / "a.zip", {"p/1.jpg": JPEG}))
    for path in sets:
        steps: list[tuple[int, int]] = []
        open_records(path, lambda done, total, steps=steps: steps.append((done, total)))
        assert steps
        assert all(0 <= done <= total for done, total in steps)
        steps.clear()
        open_records(path, lambda done, total, steps=steps: steps.append((done, total)))
        assert not steps, "an index is there"


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_damage_among_the_rows_of_a_parquet_file_costs_images_or_is_an_error(tmp_path, compression):
    path, rng = tmp_path / "a.parquet", np.random.default_rng(0)
    rows = {"image": [JPEG * 9 + b"%d" % k for k in range(40)], "label": list(range(40))}
    pq.write_table(pa.table(rows), path, row_group_size=5, compression=compression)
    whole, index = path.read_bytes(), open_records(path)
    footer = int.from_bytes(whole[-8:-4], "little") + 8  # damaged, it ends pyarrow by a signal
    for _ in range(30):
        path.write_bytes(mutate(whole[:-footer], rng)[0] + whole[-footer:])
        for file in index_files(path):
            file.unlink(missing_ok=True)
        for opened in (open_records, lambda _: index):
            try:
                for source in opened(path).sources(np.arange(5)):
                    source()
            except UserError:
                continue


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_one_large_file_tells_how_far_its_look_is(tmp_path, form, monkeypatch):
    monkeypatch.setattr("pipeline.containers.webdataset._PROGRESS_EVERY", 1)
    monkeypatch.setattr("pipeline.containers.zip_directory._PIECE", 200)
    steps: list[tuple[int, int]] = []
    open_records(FORMS[form](tmp_path), lambda done, total: steps.append((done, total)))
    done, totals = zip(*steps)
    assert len(done) > 2
    assert sorted(done) == list(done)
    assert set(totals) == {done[-1]}
