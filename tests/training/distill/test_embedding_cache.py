"""The cache of embeddings: right rows, resumed writing, and refusal of what is another's."""

import os

import numpy as np
import pytest

from pipeline.collection import Collection, stack_labels
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from tests.bad_disk import break_disk
from training.distill.embedding_cache import (
    CachedEmbeddings,
    EmbeddingCacheError,
    open_embeddings,
    write_embeddings,
)

DIM = 4
TEACHER = "0123456789abcdef"


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "one", 7)


def make_index(folder, images, content=b"image"):
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key in range(images):
            writer.write(pack_image(content + bytes([key]), float(key), key))
    return open_index(folder)


def embedding(record, of=0.0):
    """(n, DIM): every record's own numbers, exact in float16."""
    return np.asarray(record, np.float32)[:, None] + np.float32([0, 0.25, 0.5, of])


def rows(count, batch=3, of=0.0, asked=None, until=None):
    """What `write_embeddings` calls; notes where it began, and breaks off at `until`."""

    def rows_from(first):
        if asked is not None:
            asked.append(first)
        for at in range(first, count, batch):
            if until is not None and at >= until:
                raise KeyboardInterrupt
            yield embedding(range(at, min(at + batch, count)), of)

    return rows_from


def write(index, **changes):
    return write_embeddings(index, rows(len(index), **changes), teacher=TEACHER, embedding_dim=DIM)


def test_every_record_of_several_filtered_files_gets_its_own_row(tmp_path, index):
    other = make_index(tmp_path / "two", 5)
    write(index)
    write(other, of=64.0)
    records = Collection([index, other], stack_labels([index, other]), [np.array([1, 4, 6]), None])
    cached = CachedEmbeddings(records, teacher=TEACHER)
    found = cached(np.array([7, 0, 2, 3, 2]))
    expected = [embedding([4], 64.0), embedding([1]), embedding([6]), embedding([0], 64.0)]
    expected.append(embedding([6]))
    assert cached.embedding_dim == DIM
    assert found.dtype == np.float16
    assert np.array_equal(found, np.concatenate(expected))


def test_an_interrupted_cache_is_not_used_and_gone_on_from(index):
    with pytest.raises(KeyboardInterrupt):
        write(index, until=6)
    with pytest.raises(
        EmbeddingCacheError, match=r"has no embeddings of the teacher 0123.*Run `py"
    ):
        open_embeddings(index, teacher=TEACHER)
    (unfinished,) = index.path.parent.glob("*.unfinished")
    os.truncate(unfinished, unfinished.stat().st_size - 3)  # killed in the middle of the sixth row
    asked = []
    path = write(index, asked=asked)
    assert asked == [5]
    assert np.array_equal(open_embeddings(index, teacher=TEACHER), embedding(range(7)))
    assert path.parent == index.path.parent
    assert not unfinished.exists()


def test_what_was_begun_for_another_file_is_started_over(index):
    with pytest.raises(KeyboardInterrupt):
        write(index, until=3)
    again = make_index(index.path.parent, 7, b"other image")
    asked = []
    write(again, asked=asked)
    assert asked == [0]
    assert np.array_equal(open_embeddings(again, teacher=TEACHER), embedding(range(7)))


def test_another_recs_embeddings_are_refused(index):
    path = write(index)
    again = make_index(index.path.parent, 7, b"other image")
    with pytest.raises(EmbeddingCacheError, match=r"its rec is .*Run `python tools/cache_teacher"):
        open_embeddings(again, teacher=TEACHER)
    write(again)
    assert path.exists(), "the remedy replaces it"
    open_embeddings(again, teacher=TEACHER)


def test_another_teachers_embeddings_are_refused_under_any_name(index):
    path = write(index)
    other = "fedcba9876543210"
    with pytest.raises(EmbeddingCacheError, match=r"other teachers' are there: .*\.0123"):
        open_embeddings(index, teacher=other)
    path.rename(path.with_name(f"train.{other}.fsemb"))
    with pytest.raises(EmbeddingCacheError, match=r"its teacher is '0123.*expected 'fedc"):
        open_embeddings(index, teacher=other)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: content[:-2], "it is cut off"),
        (lambda content: b"x" + content[1:], "is no cache of embeddings"),
        (lambda content: content[:100], "is no cache of embeddings"),
    ],
)
def test_a_damaged_cache_is_refused(index, damage, complaint):
    path = write(index)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EmbeddingCacheError, match=complaint):
        open_embeddings(index, teacher=TEACHER)


@pytest.mark.parametrize("value", [np.nan, 1e5])
def test_what_float16_cannot_hold_is_refused(index, value):
    with pytest.raises(EmbeddingCacheError, match=r"records 3 to 6 of .* not finite in float16"):
        write_embeddings(
            index,
            lambda first: [embedding(range(3)), np.full((4, DIM), value, np.float32)],
            teacher=TEACHER,
            embedding_dim=DIM,
        )
    with pytest.raises(EmbeddingCacheError):
        open_embeddings(index, teacher=TEACHER)


def test_a_read_only_folders_embeddings_go_to_the_cache_folder(index):
    folder = index.path.parent
    folder.chmod(0o555)
    try:
        path = write(index)
        assert path.parent != folder
        assert len(open_embeddings(index, teacher=TEACHER)) == 7
    finally:
        folder.chmod(0o755)


def test_embeddings_are_read_where_nothing_can_be_mapped_shared(index, monkeypatch):
    write(index)
    break_disk(monkeypatch, "directio")
    found = open_embeddings(index, teacher=TEACHER)
    assert np.array_equal(found, embedding(range(len(index))))


def test_embeddings_are_kept_where_no_file_can_be_renamed(index, monkeypatch):
    break_disk(monkeypatch, "norename")
    write(index)
    assert np.array_equal(open_embeddings(index, teacher=TEACHER), embedding(range(len(index))))
