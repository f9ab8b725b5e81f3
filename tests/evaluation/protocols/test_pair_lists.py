"""Lists of pairs, in every form of them that there is."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evaluation.protocols.pair_lists import PairListError, read_pair_list
from facestream import UserError

PEOPLE = ("Abel_Pacheco", "Bill_Gates", "Carla_Bruni")


@pytest.fixture
def lfw(tmp_path) -> Path:
    """LFW's layout: three people of four images each."""
    folder = tmp_path / "lfw"
    for name in PEOPLE:
        (folder / name).mkdir(parents=True)
        for number in range(1, 5):
            (folder / name / f"{name}_{number:04d}.jpg").touch()
    return folder


def written(folder: Path, text: str, name: str = "pairs.txt") -> Path:
    path = folder.parent / name
    path.write_text(text)
    return path


def names(pairs, folder: Path) -> list[tuple[str, str, bool]]:
    """Pairs in words, to compare."""
    inside = [str(image.relative_to(folder)) for image in pairs.images]
    return [
        (inside[a], inside[b], bool(same))
        for a, b, same in zip(pairs.first, pairs.second, pairs.same)
    ]


A = "Abel_Pacheco/Abel_Pacheco_000"
OFFICIAL = """2\t1
Abel_Pacheco\t1\t4
Abel_Pacheco\t2\tBill_Gates\t3
Carla_Bruni\t1\t2
Bill_Gates\t3\tCarla_Bruni\t1
"""


def test_the_official_layout(lfw):
    pairs = read_pair_list(written(lfw, OFFICIAL), lfw)
    assert names(pairs, lfw) == [
        ("Abel_Pacheco/Abel_Pacheco_0001.jpg", "Abel_Pacheco/Abel_Pacheco_0004.jpg", True),
        ("Abel_Pacheco/Abel_Pacheco_0002.jpg", "Bill_Gates/Bill_Gates_0003.jpg", False),
        ("Carla_Bruni/Carla_Bruni_0001.jpg", "Carla_Bruni/Carla_Bruni_0002.jpg", True),
        ("Bill_Gates/Bill_Gates_0003.jpg", "Carla_Bruni/Carla_Bruni_0001.jpg", False),
    ]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert len(pairs.images) == len(set(pairs.images)) == 6
    assert pairs.people == [image.parent.name for image in pairs.images]
    assert (pairs.first.dtype, pairs.same.dtype) == (np.int64, np.bool_)


@pytest.mark.parametrize("head", ["1\n", ""])
def test_a_list_of_one_part_has_no_folds(lfw, head):
    """pairsDevTest.txt begins with one number; a list of one's own with none."""
    body = "Abel_Pacheco 1 4\nAbel_Pacheco 2 Bill_Gates 3\n"
    assert read_pair_list(written(lfw, head + body), lfw).fold is None


def test_the_comma_separated_form_of_it(lfw):
    text = "name,imagenum1,imagenum2,\nAbel_Pacheco,1,4,\nAbel_Pacheco,2,Bill_Gates,3\n"
    assert read_pair_list(written(lfw, text), lfw).same.tolist() == [True, False]


def test_people_who_are_called_by_numbers(tmp_path):
    """With and without a head, as CASIA's identities are."""
    folder = tmp_path / "own"
    for name in ("0000045", "0000099"):
        (folder / name).mkdir(parents=True)
        for number in (1, 2):
            (folder / name / f"{name}_{number:04d}.jpg").touch()
    body = "0000045 1 2\n0000045 1 0000099 2\n"
    for head in ("", "1\n", "1 1\n"):
        pairs = read_pair_list(written(folder, head + body), folder)
        assert pairs.people == ["0000045", "0000045", "0000099"]
        assert pairs.same.tolist() == [True, False]


def test_a_column_may_be_empty(lfw):
    a, b, c = (f"{name}/{name}_0001.jpg" for name in PEOPLE)
    text = f"first,second,same,fold\n{a},{b},0,1\n{b},{c},0,\n"
    assert read_pair_list(written(lfw, text), lfw).fold is None


def test_images_without_folders_and_of_another_ending(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for file in ("Abel_Pacheco_0001.png", "Abel_Pacheco_0004.PNG"):
        (folder / file).touch()
    pairs = read_pair_list(written(folder, "Abel_Pacheco 1 4"), folder)
    assert names(pairs, folder) == [("Abel_Pacheco_0001.png", "Abel_Pacheco_0004.PNG", True)]


@pytest.mark.parametrize("mark", [",", ";", "\t", " "])
@pytest.mark.parametrize("head", [None, "first{}second{}same", "img1{}img2{}label"])
def test_paths_with_and_without_a_header(lfw, mark, head):
    rows = [
        ("Abel_Pacheco/Abel_Pacheco_0001.jpg", "Abel_Pacheco/Abel_Pacheco_0002.jpg", "1"),
        ("Abel_Pacheco/Abel_Pacheco_0001.jpg", "Bill_Gates/Bill_Gates_0002.png", "False"),
    ]
    lines = [mark.join(row) for row in rows]
    if head:
        lines.insert(0, head.format(mark, mark))
    pairs = read_pair_list(written(lfw, "\n".join(lines), "pairs.csv"), lfw)
    assert pairs.same.tolist() == [True, False]
    assert pairs.people == ["Abel_Pacheco", "Abel_Pacheco", "Bill_Gates"]
    assert pairs.images[2].name == "Bill_Gates_0002.jpg"  # .png is not there
    assert pairs.fold is None


def test_columns_are_found_by_their_names(lfw):
    text = (
        "same,fold,second,first,first_person,second_person\n"
        "0,7,Bill_Gates/Bill_Gates_0002.jpg,Abel_Pacheco/Abel_Pacheco_0001.jpg,abel,bill\n"
    )
    pairs = read_pair_list(written(lfw, text), lfw)
    assert pairs.images[0].name == "Abel_Pacheco_0001.jpg"
    assert (pairs.people, pairs.fold.tolist()) == (["abel", "bill"], [7])


def test_who_is_who_is_unknown_where_folders_contradict_the_pairs(lfw):
    a, b, c = (f"{name}/{name}_0001.jpg" for name in PEOPLE)
    assert read_pair_list(written(lfw, f"{a},{b},0\n{b},{c},1"), lfw).people is None
    (lfw / "x.jpg").touch()  # a folder of everybody
    assert read_pair_list(written(lfw, f"{a},x.jpg,0\n{b},{c},0"), lfw).people is None


def test_names_with_commas_and_of_other_alphabets(tmp_path):
    folder = tmp_path / "own"
    files = ("Müller, Jan/1.jpg", "Müller, Jan/2.jpg", "山田/1.png")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    path = tmp_path / "pairs.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as opened:
        csv.writer(opened).writerows([(files[0], files[1], 1), (files[0], files[2], 0)])
    pairs = read_pair_list(path, folder)
    assert pairs.people == ["Müller, Jan", "Müller, Jan", "山田"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pairs"),
        ("10 300\n", "holds no pairs"),
        ("first,second,same\n", "holds no pairs"),
        ("10 300\nAbel_Pacheco 1 4\n", "6000 lines; found 1"),
        ("Abel_Pacheco 1 4\nAbel_Pacheco 1\n", "line 2: found 'Abel_Pacheco, 1'"),
        ("Abel_Pacheco 1 4\n\nAbel_Pacheco 1 1\n", "line 3: pairs .* with itself"),
        ("Abel_Pacheco 1 Abel_Pacheco 4\n", "line 1: pairs .* as two people"),
        ("a/1.jpg,a/2.jpg,maybe\n", "line 1: found 'a/1.jpg, a/2.jpg, maybe'"),
        ("../a.jpg,b.jpg,1\n", r"line 1: found the path '../a.jpg'"),
        ("../a 1 2\n", r"line 1: found the path '../a'"),
        ("a 1 /etc 2\n", r"line 1: found the path '/etc'"),
        ("0 5\na 1 2\n", "0 lines; found 1"),
        (
            f"{A}1.jpg,{A}2.jpg,1\n{A}2.jpg,{A}1.jpg,0\n",
            "line 2: pairs .* as two people, and line 1 does the contrary",
        ),
        ("/etc/passwd,b.jpg,1\n", "line 1: found the path '/etc/passwd'"),
        ("first,second,same,fold\na.jpg,b.jpg,1,x\n", "line 2: fold is 'x'"),
        (
            "first,second,same,first_person,second_person\na.jpg,b.jpg,1,x,y\n",
            "line 2: same is 1, but the people are x and y",
        ),
    ],
)
def test_what_is_no_list_is_refused_by_its_line(lfw, text, message):
    with pytest.raises(PairListError, match=message):
        read_pair_list(written(lfw, text), lfw)


def test_one_image_of_two_people(lfw):
    a, b, c = (f"{name}/{name}_0001.jpg" for name in PEOPLE)
    head = "first,second,same,first_person,second_person"
    text = f"{head}\n{a},{b},0,abel,bill\n{c},{a},0,carla,bill\n"
    with pytest.raises(PairListError, match="line 3: an image of bill is one of abel"):
        read_pair_list(written(lfw, text), lfw)


def test_missing_images_are_counted_and_the_first_are_named(lfw):
    lines = [f"Nobody {i} {i + 1}" for i in range(1, 9)]
    path = written(lfw, "\n".join(["Abel_Pacheco 1 4", *lines]))
    with pytest.raises(PairListError) as error:
        read_pair_list(path, lfw)
    assert "9 of 11 images are not in" in str(error.value)
    assert "Nobody/Nobody_0001 (line 2), Nobody/Nobody_0002 (line 2)" in str(error.value)
    assert "Nobody_0006" not in str(error.value)
    assert "holds Abel_Pacheco, Bill_Gates, Carla_Bruni" in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\x00b 1 2\n", b"\x80\n"])
def test_bytes_that_are_no_text(lfw, content):
    path = lfw.parent / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pairs\.txt"):
        read_pair_list(path, lfw)


WORDS = st.sampled_from([*PEOPLE, "1", "2", "0004", "0", "true", "a.jpg", "../x", "same", "first"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.tuples(st.lists(WORDS, max_size=6), st.sampled_from("\t, ;")).map(
                lambda line: line[1].join(line[0])
            ),
            max_size=6,
        ).map("\n".join),
    )
)
@example("1" * 5000)
@example("same,second,first\n1,a.jpg")
@example("name\t1\t" + "9" * 9)
def test_any_text_is_a_list_or_an_error_in_words(lfw, text):
    path = lfw.parent / "fuzzed.txt"
    path.write_text(text, errors="surrogatepass")
    try:
        pairs = read_pair_list(path, lfw)
    except UserError:
        return
    assert len(pairs.first) == len(pairs.second) == len(pairs.same) > 0
    assert all(image.is_file() for image in pairs.images)
