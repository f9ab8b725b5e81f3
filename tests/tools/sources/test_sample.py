"""Samples in any order come out identity by identity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.containers.sample import Sample
from pipeline.passed_over import PassedOver
from pipeline.records.recordio import RecordError
from tools.sources.sample import Identity, group

samples = st.lists(
    st.builds(Sample, st.integers(-3, 12), st.binary(min_size=1, max_size=9), st.text(max_size=5)),
    max_size=20,
)


@given(samples=samples, as_text=st.booleans())
def test_it_is_a_stable_sort_by_identity(tmp_path_factory, samples, as_text):
    if as_text:
        samples = [sample._replace(identity=f"n{sample.identity}") for sample in samples]
    expected = [
        Identity(
            str(name),
            [image for identity, image, _ in samples if identity == name],
            [place for identity, _, place in samples if identity == name],
        )
        for name in sorted({sample.identity for sample in samples})
    ]
    assert list(group(iter(samples), tmp_path_factory.mktemp("scratch"), PassedOver())) == expected


def test_numbers_and_text_together_sort_as_text(tmp_path):
    mixed = [Sample("b", b"1", ""), Sample(10, b"2", ""), Sample(9, b"3", "")]
    assert [identity.name for identity in group(mixed, tmp_path, PassedOver())] == ["10", "9", "b"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"]),
        ([2, "10", "1"], ["1", "2", "10"]),
        (["007", "7", "-3", "08"], ["-3", "007", "7", "08"]),
        (["10", "9", "n1"], ["10", "9", "n1"]),
        (["²", "10", "9"], ["10", "9", "²"]),  # a digit, but no number
    ],
)
def test_numbers_sort_as_numbers_also_where_they_are_text(tmp_path, names, expected):
    samples = [Sample(name, b"x", "") for name in names]
    assert [identity.name for identity in group(samples, tmp_path, PassedOver())] == expected


@pytest.mark.parametrize(
    ("samples", "complaint"),
    [
        ([Sample(1, b"x", ""), Sample("1", b"x", "")], "1 appears as a number and as text"),
    ],
)
def test_what_cannot_be_grouped_is_named(tmp_path, samples, complaint):
    with pytest.raises(RecordError, match=complaint):
        list(group(samples, tmp_path, PassedOver()))


def test_samples_without_an_image_or_an_identity_are_counted_and_the_others_grouped(tmp_path):
    samples = [Sample(1, b"", "row 0"), Sample("", b"x", "row 1"), Sample(1, b"y", "row 2")]
    passed_over = PassedOver()
    (identity,) = group(samples, tmp_path, passed_over)
    assert (identity.name, identity.images) == ("1", [b"y"])
    assert passed_over.lines() == [
        "empty image: 1, first row 0",
        "without an identity: 1, first row 1",
    ]
