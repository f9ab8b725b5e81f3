"""unpack_rec: what was packed comes back, and nothing lands outside the folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.records.index import open_index
from pipeline.records.manifest import write_manifest
from pipeline.records.recordio import RecordError, RecordWriter, pack_image
from pipeline.records.write_set import pack_set
from tools.pack_rec import Options, pack
from tools.sources.folder_names import folder_name
from tools.unpack_rec import unpack

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"


def content_of(folder: Path) -> dict[str, list[bytes]]:
    return {
        own.name: [file.read_bytes() for file in sorted(own.iterdir())]
        for own in sorted(folder.iterdir())
    }


names = st.text(
    st.characters(exclude_characters='%/\\:*?"<>|.', categories=("L", "N")), min_size=1, max_size=9
)
images = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=3)


@pytest.mark.slow
@example(people={"NUL": [b"no folder's name on Windows"]})
@given(people=st.dictionaries(names, images, min_size=1, max_size=4))
def test_folders_packed_and_unpacked_are_the_same_folders(tmp_path_factory, people):
    folder = tmp_path_factory.mktemp("set")
    for name, contents in people.items():
        (folder / "in" / name).mkdir(parents=True)
        for k, content in enumerate(contents):
            (folder / "in" / name / f"{k}.jpg").write_bytes(content)
    pack([folder / "in"], folder / "packed", Options())
    message = unpack(folder / "packed", folder / "out")
    assert message == (len(people), sum(map(len, people.values())))
    assert content_of(folder / "out") == {folder_name(name): people[name] for name in people}


@pytest.mark.skipif(not DATA.exists(), reason="the real faces are not on this machine")
def test_real_faces_unpacked_and_packed_again_are_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lfw = DATA / "faces_lfw_dev"
    assert unpack(lfw, tmp_path / "out") == (370, 2951)
    assert (tmp_path / "out" / "00000000" / "000000.jpg").exists()
    pack([tmp_path / "out"], tmp_path / "again", Options())
    one, other = open_index(lfw), open_index(tmp_path / "again")
    assert (one.records["label"] == other.records["label"]).all()
    assert all((one.image(i) == other.image(i)).all() for i in range(len(one)))


def test_files_are_named_by_what_they_are(tmp_path):
    pack_set(tmp_path / "in", [[b"\x89PNG....", b"BM..", b"RIFF....WEBP", b"?", b"\xff\xd8"]])
    unpack(tmp_path / "in", tmp_path / "out")
    found = [file.suffix for file in sorted((tmp_path / "out" / "00000000").iterdir())]
    assert found == [".png", ".bmp", ".webp", ".bin", ".bin"]


def test_hostile_names_of_a_manifest_stay_inside(tmp_path):
    hostile = ["../../escaped", "/tmp/escaped", "..", "a\0b", "CON", "", "con"]
    pack_set(tmp_path / "in", [[b"x"]] * len(hostile))
    rec = tmp_path / "in" / "train.rec"
    write_manifest(rec, source=[], options={}, names=hostile, images=7, kinds={})
    unpack(rec, tmp_path / "deep" / "er" / "out")
    expected = ["%2E.%2F..%2Fescaped", "%2Ftmp%2Fescaped", "%2E%2E", "a%00b", "%43ON", "%", "%63on"]
    found = (tmp_path / "deep" / "er" / "out").iterdir()
    assert {path.name for path in found} == set(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "deep"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


def test_two_identities_of_one_name_are_refused(tmp_path):
    pack_set(tmp_path / "in", [[b"x"], [b"y"]])
    rec = tmp_path / "in" / "train.rec"
    write_manifest(rec, source=[], options={}, names=["ann", "ann"], images=2, kinds={})
    with pytest.raises(RecordError, match=r"identity [01], 'ann': .* is another one's already"):
        unpack(rec, tmp_path / "out")


@pytest.mark.parametrize("spoil", ["rec", "garbled", "short", "missing"])
def test_a_manifest_that_is_not_this_files_is_not_believed(tmp_path, spoil):
    pack_set(tmp_path / "in", [[b"x"], [b"y"]])
    rec = tmp_path / "in" / "train.rec"
    manifest = write_manifest(rec, source=[], options={}, names=["a", "b"], images=2, kinds={})
    about = json.loads(manifest.read_text())
    if spoil == "rec":
        with RecordWriter(rec) as writer:
            writer.write(pack_image(b"z", 0.0, 0))
        rec.with_suffix(".idx").unlink()
    elif spoil == "short":
        manifest.write_text(json.dumps(about | {"names": ["a"]}))
    else:
        manifest.write_text("{") if spoil == "garbled" else manifest.unlink()
    unpack(rec, tmp_path / "out")
    expected = {
        "rec": ["00000000"],
        "garbled": ["00000000", "00000001"],
        "short": ["00000001", "a"],
        "missing": ["00000000", "00000001"],
    }
    assert list(content_of(tmp_path / "out")) == expected[spoil]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    pack_set(tmp_path / "in", [[b"x"]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    command = [sys.executable, str(ROOT / "tools/unpack_rec.py"), tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert "is not an empty folder: name another one" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
