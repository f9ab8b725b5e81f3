"""Where a set is from and its license go from manifest to checkpoint; unknown says so."""

from pathlib import Path

import pytest

from pipeline.records.manifest import (
    Provenance,
    manifest_path,
    read_names,
    read_provenance,
    write_manifest,
)
from tests.training import tiny
from training.provenance import provenance, strictest


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["mit", "cc0-1.0"], "mit"),
        (["cc-by-4.0", "cc-by-nc-4.0", "apache-2.0"], "cc-by-nc-4.0"),
        (["cc-by-sa-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["cc-by-nc-4.0", "Ours alone"], "Ours alone"),
        (["cc-by-nc-4.0", "for research only"], "for research only"),
        (["mit", "unknown"], "unknown"),
        ([], "unknown"),
    ],
)
def test_the_strictest_license_is_named(licenses, expected):
    assert strictest(licenses) == expected
    assert strictest(reversed(licenses)) == expected


def test_a_file_says_its_origin_and_license(faces, tmp_path):
    ours = tmp_path / "ours" / "train.rec"
    ours.parent.mkdir()
    ours.write_bytes((faces / "train.rec").read_bytes())
    said = Provenance("a studio", "cc-by-4.0")
    write_manifest(ours, source=[], options={}, names=["a"], images=1, kinds={}, provenance=said)
    assert read_provenance(ours) == said
    assert read_names(ours) == ["a"]
    config = tiny.config(ours, tmp_path / "run")
    assert provenance(config) == [{"name": "ours", "origin": "a studio", "license": "cc-by-4.0"}]
    ours.write_bytes(b"other")  # whose the manifest is not
    assert read_provenance(ours) == Provenance()


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"fingerprint": 1}'])
def test_what_no_manifest_says_is_unknown(text, faces, tmp_path):
    rec = tmp_path / "x.rec"
    rec.write_bytes(Path(faces / "train.rec").read_bytes())
    if text is not None:
        manifest_path(rec).write_text(text)
    assert read_provenance(rec) == Provenance("unknown", "unknown")
