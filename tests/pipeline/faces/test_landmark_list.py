"""Lists of landmarks, in every form of them that there is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from facestream import UserError
from pipeline.faces.landmark_list import LandmarkList, LandmarkListError

A = [38, 51, 73, 51.5, 56, 71, 41, 92, 70, 92]
B = [n + 10 for n in A]


def line(name: str, numbers: list, mark: str = ",") -> str:
    return mark.join([name, *map(str, numbers)])


def read(folder: Path, text: str) -> LandmarkList:
    path = folder / "marks.csv"
    path.write_text(text)
    return LandmarkList(path, folder="photos")


@pytest.mark.parametrize("mark", [",", ";", "\t", " ", ", "])
@pytest.mark.parametrize(
    "head",
    ["", "name x1 y1 x2 y2 x3 y3 x4 y4 x5 y5\n", "2\nlefteye_x lefteye_y righteye_x …\n"],
)
def test_points_by_name_with_and_without_a_header(mark, head, tmp_path):
    """The second header is CelebA's, the number of lines before it."""
    head = head.replace(" ", mark)
    marks = read(tmp_path, f"{head}{line('a/1.jpg', A, mark)}\n\n{line('b/1.jpg', B, mark)}\n")
    assert marks.names == ["a/1.jpg", "b/1.jpg"]
    np.testing.assert_array_equal(marks.of("a/1.jpg"), np.reshape(A, (5, 2)))
    np.testing.assert_array_equal(marks.of("photos/b/1.jpg"), np.reshape(B, (5, 2)))
    assert marks.of("c/1.jpg") is None


def test_a_score_after_the_points_is_passed(tmp_path):
    marks = read(tmp_path, line("1.jpg", [*A, 0.987], " "))
    np.testing.assert_array_equal(marks.of("1.jpg"), np.reshape(A, (5, 2)))


def test_names_that_begin_with_the_folder_itself(tmp_path):
    marks = read(tmp_path, line("./photos/a/1.jpg", A))
    assert marks.of(Path("photos/a/1.jpg")) is not None
    assert marks.of("a/1.jpg") is not None


def test_names_without_folders_are_those_of_files_anywhere(tmp_path):
    marks = read(tmp_path, line("1.jpg", A))
    assert marks.of("photos/a/1.jpg") is not None
    assert marks.of("photos/a/1.jpg") is not None  # again
    with pytest.raises(LandmarkListError, match=r"line 1: 1\.jpg may be a/1\.jpg or b/1\.jpg"):
        marks.of("photos/b/1.jpg")


def test_lines_without_an_image_are_named(tmp_path):
    marks = read(tmp_path, f"{line('a/1.jpg', A)}\n{line('a/2.jpg', A)}\n")
    assert marks.without_image([Path("photos/a/1.jpg")]) == ["a/2.jpg (line 2)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no landmarks"),
        ("name,x1,y1\n", "holds no landmarks"),
        (line("a", A[:-1]), "line 1: found 9 numbers"),
        (line("a", [*A, 1, 2]), "line 1: found 12 numbers"),
        (f"{line('a', A)}\n{line('b', ['x', *A[1:]])}", "line 2: found 'x'"),
        (f"{line('a', A)}\n{line('b', ['nan', *A[1:]])}", "line 2: found 'nan'"),
        (f"{line('a', A)}\nb\n", "line 2: found 0 numbers"),
        (f"{line('a', A)}\n{line('b', A)}\n{line('./a', B)}", "line 3: ./a again, as in line 1"),
        (line("a", [n / 112 for n in A]), "expected pixels, multiply"),
        ("x\ny\nz\n", "line 3: found 0 numbers"),
    ],
)
def test_what_is_no_list_is_refused_by_its_line(text, message, tmp_path):
    with pytest.raises(LandmarkListError, match=message):
        read(tmp_path, text)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.lists(st.sampled_from(["a", "b", "1", "2.5", "-1e400", "1_0", "inf", ""])).map(
                ",".join
            ),
            max_size=4,
        ).map("\n".join),
    )
)
@example("a" + ",9" * 10)
def test_any_text_is_a_list_or_an_error_in_words(tmp_path, text):
    path = tmp_path / "fuzzed.csv"
    path.write_text(text, errors="surrogatepass")
    try:
        marks = LandmarkList(path, folder=tmp_path)
    except UserError:
        return
    assert marks.points.shape == (len(marks), 5, 2)
    assert np.isfinite(marks.points).all()
