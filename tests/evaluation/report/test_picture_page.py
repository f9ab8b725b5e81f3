"""Pages of findings: pictures side by side, none where none are wanted, and names that are no
markup."""

from evaluation.report.picture_page import MOST_SHOWN, Section, Strip, picture_page
from synthetic import encode_jpeg, render

FACE = encode_jpeg(render(0, 0))
NAME = "<script>x</script>"


def page(strips, *, pictures=lambda where, name: FACE):
    sections = [Section("Some", "what they are", strips), Section("None", "nothing", [])]
    return picture_page("A title", {"found": "two & more"}, sections, pictures=pictures)


def test_pictures_stand_beside_their_words():
    found = page([Strip([("a", "1"), ("b", NAME)], ["0.97", NAME])])
    assert found.count("<img") == 2
    assert "holds 2 pictures of people" in found
    assert "two &amp; more" in found
    assert NAME not in found
    assert "nothing" not in found


def test_none_are_shown_where_none_are_wanted():
    found = page([Strip([("a", "1")], ["0.97"])], pictures=None)
    assert "<img" not in found
    assert "holds no pictures of people" in found


def test_one_that_cannot_be_shown_is_a_box():
    assert "no picture" in page([Strip([("a", "1")], ["x"])], pictures=lambda where, name: b"no")


def test_a_page_stays_small_and_says_what_is_not_on_it():
    strips = [Strip([("a", str(k))], [f"finding {k}"]) for k in range(MOST_SHOWN + 7)]
    found = page(strips, pictures=None)
    assert f"finding {MOST_SHOWN - 1}<" in found
    assert f"finding {MOST_SHOWN}<" not in found
    assert "7 more are in the file" in found
