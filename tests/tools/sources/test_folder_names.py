"""No name leads out of its folder, and no two names meet."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tools.sources.folder_names import folder_name

hostile = st.text(st.one_of(st.sampled_from("./\\%\0 :~n"), st.characters()), max_size=300)


@pytest.mark.slow
@given(hostile)
@example("..")
@example("/etc/passwd")
@example("C:\\x")
@example("\ud800")
def test_a_name_is_one_visible_folder_inside_another(name):
    made = folder_name(name)
    assert made not in ("", ".", "..")
    assert not set(made) & set('/\\\0:*?"<>|')
    assert not made.startswith(".")
    assert len(made.encode()) <= 255
    assert Path("/target", made).resolve().parent == Path("/target")
    assert Path("/target", made).name == made


@given(st.lists(hostile, unique=True, max_size=6))
@example(["%", "", "\0", "%00", "..", "%2E."])
@example(["x" * 300, "x" * 301])
def test_two_names_never_meet(names):
    assert len({folder_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["s1", "Ann Lee", "m.0abc", "Zoë", "李", "-rf", "0012", "console"])
def test_an_ordinary_name_stays(name):
    assert folder_name(name) == name


@pytest.mark.parametrize("name", ["NUL", "con", "com1.txt", "Lpt9", "a.", "a ", ".hidden"])
def test_what_a_system_reserves_is_escaped(name):
    assert folder_name(name) != name
    assert "%" in folder_name(name)
