"""Values beside a set's images: read whole, refused where they are not, mirrored with the faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facestream import UserError
from pipeline import dali
from pipeline.augment import Augmentation, Draw, Recipe, register_recipe
from pipeline.augment.composition import OWN_RECIPES, RECIPES
from pipeline.augment.occlude import OCCLUDE
from pipeline.collection import Collection, stack_labels
from pipeline.containers.open_records import open_records
from pipeline.dali_loader import Loader
from pipeline.records.index import RecordIndex, open_index
from pipeline.side_columns import POINTS, SideColumns, mirrored_landmarks, read_columns

HEADER = ",".join(("name", *POINTS, "quality", "group", "weight"))
KNOWN = ("landmarks", "quality", "group", "weight")
FACE = np.array([[38, 51], [73, 52], [56, 72], [41, 92], [70, 93]], np.float32)


@pytest.fixture(scope="module")
def index(faces: Path) -> RecordIndex:
    return open_index(faces / "train.rec")


def line(index: RecordIndex, i: int, *values: object) -> str:
    return ",".join(map(str, (index.file.name(index.records[i]), *values)))


def read(text: str, index: RecordIndex, folder: Path) -> SideColumns:
    path = folder / "columns.csv"
    path.write_text(text)
    return read_columns([path], Collection.of(index), KNOWN)


def test_values_find_their_images_whatever_the_order_of_the_lines(index, tmp_path):
    points = ",".join(map(str, FACE.ravel()))
    lines = [HEADER, line(index, 5, points, 0.25, "b", 0.5), line(index, 2, points, "", "a", "")]
    columns = read("\n".join(lines), index, tmp_path)
    found = columns.of(np.array([2, 5, 0]))
    assert np.array_equal(found["landmarks"][:2], [FACE, FACE])
    assert np.isnan(found["landmarks"][2]).all()
    assert np.array_equal(found["quality"], [np.nan, 0.25, np.nan], equal_nan=True)
    assert found["group"].tolist() == [0, 1, -1]
    assert columns.groups == ("a", "b")
    assert found["weight"].tolist() == [1, 0.5, 1]
    assert "quality of 1 of 64" in str(columns)


def test_parquet_says_the_same_and_may_have_the_landmarks_as_a_list(index, tmp_path):
    names = [index.file.name(record) for record in index.records]
    table = {
        "name": names,
        "landmarks": [FACE.ravel().tolist(), *[None] * (len(names) - 1)],
        "group": ["x"] * len(names),
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "columns.parquet")
    columns = read_columns([tmp_path / "columns.parquet"], Collection.of(index), KNOWN)
    assert np.array_equal(columns.values["landmarks"][0], FACE)
    assert np.isnan(columns.values["landmarks"][1:]).all()
    assert (columns.values["group"] == 0).all()


def parquet(table: dict | pyarrow.Table, index: RecordIndex, folder: Path) -> SideColumns:
    path = folder / "columns.PARQUET"
    table = table if isinstance(table, pyarrow.Table) else pyarrow.table(table)
    pyarrow.parquet.write_table(table, path)
    return read_columns([path], Collection.of(index), KNOWN)


def test_what_parquet_has_as_nan_is_not_known(index, tmp_path):
    none, names = float("nan"), [index.file.name(index.records[i]) for i in range(2)]
    points = [[[none, none], *FACE[1:].tolist()], [None] * 10]
    for landmarks in ([points[0], None], [[none, none, *FACE[1:].ravel().tolist()], points[1]]):
        table = {"name": names, "landmarks": landmarks, "weight": [none, 0.5]}
        found = parquet(table, index, tmp_path).of(np.arange(2))
        assert np.array_equal(np.isnan(found["landmarks"][0]).all(1), [True] + [False] * 4)
        assert np.isnan(found["landmarks"][1]).all()
        assert found["weight"].tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"landmarks": [[[1.0, 2.0]] * 4 + [[1.0]]]}, "row 1: landmarks are .*expected x1, y1"),
        ({"landmarks": [[[1.0] * 5] * 2]}, "row 1: landmarks are"),
        ({"landmarks": [[[1.0, 2.0]] * 4 + [None]]}, "row 1: landmarks are"),
        ({"landmarks": [[]]}, "row 1: landmarks are"),
        ({"quality": [1e39]}, "row 1: quality is inf, expected a finite number"),
        ({"quality": ["good"]}, "'good' as a scalar of type float. Expected a header"),
        ({"quality": [[1.0]]}, "list.*Expected a header and, for each"),
    ],
)
def test_what_is_wrong_in_parquet_is_named(columns, said, index, tmp_path):
    with pytest.raises(UserError, match=said):
        parquet({"name": [index.file.name(index.records[0])], **columns}, index, tmp_path)


def test_a_set_of_parquet_files_may_have_the_columns_itself(index, tmp_path):
    """A row an image; `name` may be whose face it is there."""
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(2):
        rows = range(3 * shard, 3 * shard + 3)
        table = {
            "image": [index.image(row).tobytes() for row in rows],
            "label": [row // 2 for row in rows],
            "name": ["anna"] * 3,
            "weight": [row / 10 for row in rows],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{shard}.parquet")
    records = Collection.of(open_records(folder))
    columns = read_columns([folder], records, KNOWN)
    np.testing.assert_allclose(columns.values["weight"], np.arange(6) / 10, rtol=1e-6)
    (tmp_path / "beside").mkdir()
    with pytest.raises(UserError, match=r"beside has no \.parquet file"):
        read_columns([tmp_path / "beside"], records, KNOWN)


@pytest.mark.parametrize("name", ["weight", "landmarks", "name"])
def test_a_parquet_column_that_is_there_twice_is_refused(name, index, tmp_path):
    twice = pyarrow.table([pyarrow.array([1.0])] * 2, names=[name, name])
    with pytest.raises(UserError, match=f"found the columns {name}, {name}, expected {name} once"):
        parquet(twice, index, tmp_path)


def test_without_names_there_is_a_row_for_each_image_in_the_sets_order(index, tmp_path):
    values = [f"{k / 100}" for k in range(len(index))]
    columns = read("\n".join(["quality,weight", *(f"{v},1" for v in values)]), index, tmp_path)
    np.testing.assert_allclose(columns.values["quality"], np.arange(len(index)) / 100, atol=1e-6)
    with pytest.raises(UserError, match=r"2 rows and no column name, .* has 64 images"):
        read("quality,weight\n1,1\n2,1", index, tmp_path)


def test_only_what_is_read_is_looked_at(index, tmp_path):
    """A column of any name, numbers; what nobody reads may hold anything."""
    path = tmp_path / "columns.csv"
    path.write_text(f"name,age,note,weight\n{line(index, 3, 41.5, 'hat', 7)}")
    columns = read_columns([path], Collection.of(index), ["age", "absent"])
    assert list(columns.values) == ["age"]
    assert columns.values["age"][3] == 41.5
    assert np.isnan(np.delete(columns.values["age"], 3)).all()
    with pytest.raises(UserError, match=r"note: Row #2: .* invalid value 'hat'\. Expected a h"):
        read_columns([path], Collection.of(index), ["note"])
    none = read_columns([path], Collection.of(index), ["quality"])
    assert str(none) == "found name, age, note, weight, nothing reads them"
    with pytest.raises(UserError, match="head needs quality, found name, age, note, weight; name"):
        none.require(["quality"], reader="the head")


def test_what_is_left_out_has_no_values_and_files_have_their_own(index, tmp_path):
    kept = np.array([3, 7])
    both = Collection([index, index], stack_labels([index, index]), [kept, None])
    (tmp_path / "a.csv").write_text(f"name,quality\n{line(index, 7, 0.5)}")
    columns = read_columns([tmp_path / "a.csv", ""], both, KNOWN)
    assert np.array_equal(columns.values["quality"][:2], [np.nan, 0.5], equal_nan=True)
    assert np.isnan(columns.values["quality"][2:]).all()
    assert len(columns.values["quality"]) == len(both)
    with pytest.raises(UserError, match="found 1 files of columns, expected 2"):
        read_columns([tmp_path / "a.csv"], both, KNOWN)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["name,quality", "no such,1"], r"row 2: .* has no image 'no such'; expected names as '"),
        (
            ["name,quality", "{0},1", "{0},2"],
            r"csv, row 2: the image '\d+' is there again in .*row 3",
        ),
        (["name,quality", "{0},good"], "quality: Row #2: .* invalid value 'good'. Expected a head"),
        (["name,quality", "{0},1_0"], "invalid value '1_0'"),
        (["name,quality", "{0},inf"], "row 2: quality is inf, expected a finite number"),
        (["name,quality", "{0},1e39"], "expected a finite number"),
        (["name,weight", "{0},3"], r"weight is 3.0, expected a weight in \[0, 1\]; divide all"),
        (["name,weight", "{0},-1"], r"expected a weight in \[0, 1\]"),
        (["name,x1,y1", "{0},1,2"], "landmarks as x1, y1"),
        (["name,quality,quality", "{0},1,2"], "expected quality once"),
        (["name,quality", "{0},1,2"], "Row #2: Expected 2 columns, got 3: "),
        (["name,quality", "{0}"], "Row #2: Expected 2 columns, got 1: "),
        (["name;quality", "{0};0,5", "a;1.5"], "quality: Row #2: .* invalid value '0,5'"),
        (["name;quality", "{0};1.000,5"], "invalid value '1.000,5'"),
        (["name,quality", '"{0},1'], "Expected 2 columns, got 1"),
        ([""], "is empty"),
        (["name,quality"], "too short.* Expected a header and, for each image, a row"),
        ([",".join(("name", *POINTS)), "{0}" + ",0.5" * 10], "expected pixels"),
        ([",".join(("name", *POINTS)), "{0}" + ",5e9" * 10], "expected a place in pixels"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(lines, said, index, tmp_path):
    name = index.file.name(index.records[0])
    with pytest.raises(UserError, match=said):
        read("\n".join(one.replace("{0}", name) for one in lines), index, tmp_path)


def test_weights_that_are_all_zero_are_refused(index, tmp_path):
    lines = [line(index, i, 0) for i in range(len(index))]
    with pytest.raises(UserError, match="weight 0 for every image"):
        read("\n".join(["name,weight", *lines]), index, tmp_path)
    read("\n".join(["name,weight", *lines[1:]]), index, tmp_path)


def test_a_record_is_named_as_others_of_our_files_name_it(index, tmp_path):
    """By its number alone, or as in data.leave_out and what tools/predict.py writes."""
    alone, other = (index.file.name(index.records[i]) for i in (0, 5))
    columns = read(f"name,quality\nrecord {other},0.25\n{alone},0.5", index, tmp_path)
    assert columns.values["quality"][[0, 5]].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("mark", ["\t", ";", ",", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\ufeff\n\n"])
def test_what_parts_fields_and_lines_is_found(mark, end, begin, index, tmp_path):
    """And a decimal comma where it parts no fields, quotes, and what says that nothing is known."""
    half = "0.5" if mark == "," else "0,5"
    names = [index.file.name(record) for record in index.records]
    lines = [
        ["name", "weight", "group"],
        [names[2], half, '"a, ""b"";\t"'],
        [names[1], "NA", '"x"'],
    ]
    text = begin + end.join(mark.join(fields) for fields in lines) + end + end
    (tmp_path / "columns.csv").write_bytes(text.encode())
    columns = read_columns([tmp_path / "columns.csv"], Collection.of(index), KNOWN)
    assert columns.values["weight"][:4].tolist() == [1, 1, 0.5, 1]
    assert columns.groups == ('a, "b";', "x")
    assert columns.values["group"][:4].tolist() == [-1, 1, 0, -1]


def test_a_table_of_another_encoding_says_what_to_do(index, tmp_path):
    for encoding in ("utf-16", "latin-1"):
        path = tmp_path / "columns.csv"
        path.write_bytes(f"name,group\n{index.file.name(index.records[0])},é".encode(encoding))
        with pytest.raises(UserError, match="text in UTF-8"):
            read_columns([path], Collection.of(index), KNOWN)


@settings(max_examples=40)
@given(st.binary(max_size=200))
def test_any_bytes_are_columns_or_refused(index, tmp_path_factory, content):
    for name in ("columns.csv", "columns.parquet"):
        path = tmp_path_factory.mktemp("any") / name
        path.write_bytes(content)
        try:
            assert not read_columns([path], Collection.of(index), KNOWN).values
        except UserError:
            continue


def test_a_mirrored_face_has_its_left_eye_at_the_left():
    turned = mirrored_landmarks(FACE[None], width=112)[0]
    assert turned.tolist() == [[38, 52], [73, 51], [55, 72], [41, 93], [70, 92]]
    assert np.array_equal(mirrored_landmarks(turned[None], width=112)[0], FACE)


def test_recipes_see_landmarks_as_the_image_is_by_now():
    """Mirrored before, by the graph, or not yet."""
    seen: list[np.ndarray] = []

    def draw_look(draw: Draw) -> dict[str, np.ndarray]:
        seen.append(draw.landmarks())
        return {"any": draw.chance("look", 0.5)}

    def apply_look(images, any):
        return images

    register_recipe("look", Recipe(draw_look, apply_look, needs=("landmarks",)))
    try:
        position, points = np.arange(64), np.repeat(FACE[None], 64, axis=0)
        turned = mirrored_landmarks(points, width=112)
        for entries, before in (
            (("flip", "look"), True),
            (("flip", "look"), False),
            (("look", "flip"), False),
        ):
            augmentation = Augmentation(entries, mirrored_before=before)
            draw = Draw(position, seed=1, epoch=2, size=112)
            mirrored = Augmentation(("flip",), mirrored_before=True).mirrored(draw)
            draw.columns = {"landmarks": points}
            augmentation.arrays(draw)
            now = mirrored if entries[0] == "flip" else np.zeros(64, bool)
            assert mirrored.any()
            assert np.array_equal(seen[-1], np.where(now[:, None, None], turned, points))
    finally:
        del RECIPES["look"], OWN_RECIPES["look"]


def test_occlude_hides_a_part_of_the_face_whose_landmarks_it_has_and_of_no_other():
    draw = Draw(np.arange(4000), seed=0, epoch=0, size=112)
    points = np.repeat(FACE[None], 4000, axis=0)
    points[::2, 3] = np.nan
    draw.columns = {"landmarks": points}
    drawn = OCCLUDE.draw(draw)
    assert not drawn["erased"][::2].any(), "landmarks that are not known"
    assert 0.25 < drawn["erased"][1::2].mean() < 0.35
    low = drawn["anchor"][1::2][:, ::-1]
    high = low + drawn["shape"][1::2][:, ::-1]
    assert (low >= 0).all()
    assert (high <= 112).all()
    hides = ((low[:, None] <= FACE) & (high[:, None] >= FACE)).all(2)  # (n, 5)
    assert hides.any(1).all()
    assert not hides.all(1).any(), "never the whole face"
    assert hides.any(0).all(), "each landmark in some image"
    assert all(np.isfinite(value).all() for value in drawn.values())


def test_batches_hand_over_the_columns_of_their_records(index):
    quality = np.linspace(0, 1, len(index)).astype(np.float32)
    columns = SideColumns({"quality": quality, "weight": 1 - quality})
    loader = Loader(
        index,
        global_batch=8,
        device=torch.device("cpu"),
        image_size=64,
        columns=columns,
        handed=("weight", "quality"),
    )
    stream = loader.stream(0)
    for _ in range(3):
        batch = next(stream)
        expected = np.stack([1 - quality[batch.records], quality[batch.records]], axis=1)
        assert np.array_equal(batch.columns.numpy(), expected)
    stream.close()


@pytest.mark.dali
@pytest.mark.slow
def test_the_stream_occludes_what_the_landmarks_of_each_record_say(index):
    """Mirrored ones among them, and columns come along through DALI's graph too."""
    assert dali.is_installed()
    points = np.repeat(FACE[None] * 64 / 112, len(index), axis=0)
    columns = SideColumns({"landmarks": points, "weight": np.ones(len(index), np.float32)})
    settings = {"global_batch": 16, "device": torch.device("cpu"), "image_size": 64, "seed": 3}
    plain = Loader(index, augment=("flip",), **settings).stream(0)
    stream = Loader(
        index, augment=("flip", "occlude"), columns=columns, handed=("weight",), **settings
    ).stream(0)
    changed = 0
    for _ in range(3):
        before, after = next(plain), next(stream)
        assert np.array_equal(before.records, after.records)
        assert after.columns.shape == (16, 1)
        different = (before.images != after.images).any(1)  # (B, H, W)
        changed += int(different.flatten(1).any(1).sum())
        corner = different[:, :8, :8]
        assert not corner.any(), "no landmark is there"
    assert 5 < changed < 25
    plain.close()
    stream.close()


def test_a_recipe_or_a_head_that_wants_a_column_says_which_there_are(index):
    settings = {"global_batch": 8, "device": torch.device("cpu"), "image_size": 64}
    columns = SideColumns({"quality": np.zeros(len(index), np.float32)})
    with pytest.raises(UserError, match=r"occlude needs landmarks \(.*y5\), found quality"):
        Loader(index, augment=("occlude",), columns=columns, **settings)
    with pytest.raises(UserError, match="the head needs weight, found no column"):
        Loader(index, handed=("weight",), **settings)


def test_landmarks_are_not_read_where_they_have_moved():
    """A rotated face would be hidden beside its eyes."""
    with pytest.raises(UserError, match="occlude reads landmarks, expected before geometry"):
        Augmentation(["flip", "geometry", "occlude"])
    Augmentation(["flip", "occlude", "geometry"])


@pytest.mark.parametrize("size", [32, 224])
def test_landmarks_of_images_of_another_size_are_refused(size, index):
    points = np.repeat(FACE[None] * size / 112, len(index), axis=0)
    points[1:] = np.nan
    columns = SideColumns({"landmarks": points})
    settings = {"global_batch": 8, "device": torch.device("cpu")}
    Loader(index, columns=columns, image_size=size, **settings)
    with pytest.raises(UserError, match="of images of another size: give those of the images"):
        Loader(index, columns=columns, image_size=64, **settings)
