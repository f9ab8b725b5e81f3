"""pack_rec: folders in, InsightFace's layout out, not a byte of an image changed."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.passed_over import PassedOver
from pipeline.records.image_kind import image_kind
from pipeline.records.index import open_index
from pipeline.records.mxnet_idx import read_idx
from pipeline.records.recordio import RecordError, read_record, unpack_image
from pipeline.records.scan import scan_rec
from pipeline.records.write_set import pack_set
from tests.bad_disk import break_disk
from tools.pack_rec import Options, find_sources, main, pack
from tools.sources.folders import read_folders
from tools.unpack_rec import unpack

ROOT = Path(__file__).parents[2]
ATT = ROOT.parent / "shared/data/att_112"


def pack_folders(source: Path, output: Path) -> tuple[int, int]:
    images = (identity.images for identity in read_folders(source, PassedOver()))
    return pack_set(output, images)[:2]


@pytest.fixture
def folders(tmp_path) -> Path:
    images = {"b": ["2.PNG", "10.jpg"], "a": ["x.jpeg"], ".hidden": ["y.jpg"]}
    for identity, names in images.items():
        (tmp_path / "in" / identity).mkdir(parents=True)
        for name in names:
            (tmp_path / "in" / identity / name).write_bytes(f"{identity}/{name}".encode() * 3)
    (tmp_path / "in" / "a" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_images_go_in_untouched_identity_by_identity(folders, tmp_path):
    assert pack_folders(folders, tmp_path / "out") == (2, 3)
    index = open_index(tmp_path / "out")
    stored = [(bytes(index.image(i)), int(index.records["label"][i])) for i in range(3)]
    assert stored == [(b"a/x.jpeg" * 3, 0), (b"b/10.jpg" * 3, 1), (b"b/2.PNG" * 3, 1)]
    assert (tmp_path / "out" / "property").read_text() == "2,112,112\n"


def test_a_set_is_packed_where_no_file_can_be_renamed(folders, tmp_path, monkeypatch):
    break_disk(monkeypatch, "norename")
    assert pack_folders(folders, tmp_path / "out") == (2, 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("train.rec", "train.idx", "train.fsidx", "property")
    }


def test_folders_named_by_numbers_get_these_as_labels_and_come_back_by_the_same(tmp_path):
    for number in range(12):
        (tmp_path / "in" / str(number)).mkdir(parents=True)
        (tmp_path / "in" / str(number) / "x.jpg").write_bytes(b"\x89PNG %d" % number)
    source = tmp_path / "in"
    for output in ("once", "again"):
        pack([source], tmp_path / output, Options())
        index = open_index(tmp_path / output)
        faces = [bytes(index.image(i)) for i in range(12)]
        assert faces == [b"\x89PNG %d" % label for label in index.records["label"]]
        assert index.records["label"].tolist() == [*range(12)]
        source = tmp_path / f"{output} unpacked"
        unpack(tmp_path / output, source)


def test_the_layout_is_insightfaces(folders, tmp_path):
    """Header record 0 names the identity records, which name their images' keys."""
    pack_folders(folders, tmp_path / "out")
    content = memoryview((tmp_path / "out" / "train.rec").read_bytes())
    keys, offsets = read_idx(tmp_path / "out" / "train.idx")
    records = [unpack_image(read_record(content, at)[0]) for at in offsets]
    assert keys.tolist() == [0, 1, 2, 3, 4, 5] == [record.key for record in records]
    assert records[0].labels.tolist() == [4, 6]
    assert [record.labels.tolist() for record in records[4:]] == [[1, 2], [2, 4]]
    assert [len(record.image) > 0 for record in records] == [False, True, True, True, False, False]
    summary = scan_rec(tmp_path / "out" / "train.rec").summary
    assert (summary.header_records, summary.identity_records) == (1, 2)
    assert summary.announced_images == 3


def test_an_existing_set_is_not_overwritten(folders, tmp_path):
    pack_folders(folders, tmp_path / "out")
    before = (tmp_path / "out" / "train.rec").read_bytes()
    with pytest.raises(RecordError, match="exists"):
        pack_folders(folders, tmp_path / "out")
    assert (tmp_path / "out" / "train.rec").read_bytes() == before


def test_nothing_to_pack_is_refused_and_leaves_no_set(folders, tmp_path):
    with pytest.raises(RecordError, match="holds no folders"):
        pack_folders(folders / "a", tmp_path / "out")
    with pytest.raises(RecordError, match="no images to pack"):
        pack_set(tmp_path / "out", [])
    with pytest.raises(RecordError, match="an image of identity 1 is empty"):
        pack_set(tmp_path / "out", [[b"a"], [b"b", b""]])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not ATT.exists(), reason="att_112 is not on this machine")
def test_real_folders_come_back_byte_for_byte(tmp_path):
    identities, images = pack_folders(ATT, tmp_path / "out")
    assert (identities, images) == (40, 400)
    index = open_index(tmp_path / "out")
    files = [file for folder in sorted(ATT.iterdir()) for file in sorted(folder.iterdir())]
    assert all(bytes(index.image(i)) == file.read_bytes() for i, file in enumerate(files))


def encode(seed: int, **options: object) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(noise).save(stored, "JPEG", **options)
    return stored.getvalue()


@pytest.fixture
def people() -> dict[str, list[bytes]]:
    return {"ann": [encode(0), encode(1)], "bob": [encode(2, progressive=True)]}


def make_folders(folder: Path, people: dict[str, list[bytes]]) -> list[Path]:
    for name, images in people.items():
        (folder / name).mkdir(parents=True)
        for k, image in enumerate(images):
            (folder / name / f"{k}.jpg").write_bytes(image)
    return [folder]


def make_parquet(folder: Path, people: dict[str, list[bytes]]) -> list[Path]:
    """Two files, the identities mixed: the second names come first."""
    rows = [(image, name) for name, images in people.items() for image in images]
    files = [folder / "0.parquet", folder / "1.parquet"]
    for file, part in zip(files, (rows[2:], rows[:2])):
        images, labels = zip(*part)
        pq.write_table(pa.table({"image": images, "label": labels}), file)
    return files


def make_shards(folder: Path, people: dict[str, list[bytes]]) -> list[Path]:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, images in reversed(people.items()):
            for k, image in enumerate(images):
                for extension, content in (("jpg", image), ("cls", name.encode())):
                    about = tarfile.TarInfo(f"{name}{k}.{extension}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return [folder / "0.tar"]


def make_rec(folder: Path, people: dict[str, list[bytes]]) -> list[Path]:
    pack(make_folders(folder / "for_rec", people), folder / "rec", Options())
    return [folder / "rec"]


@pytest.mark.parametrize("make", [make_folders, make_parquet, make_shards, make_rec])
def test_every_source_gives_the_same_set_and_a_manifest(tmp_path, people, make, capsys):
    (tmp_path / "in").mkdir()
    sources = make(tmp_path / "in", people)
    pack(sources, tmp_path / "out", Options())
    pack_set(tmp_path / "expected", list(people.values()))
    rec = tmp_path / "out" / "train.rec"
    assert rec.read_bytes() == (tmp_path / "expected" / "train.rec").read_bytes()
    about = json.loads((tmp_path / "out" / "train.json").read_text())
    assert about["names"] == ["ann", "bob"]
    assert (about["images"], about["identities"]) == (3, 2)
    assert about["bytes"] == rec.stat().st_size
    assert about["sha256"] == hashlib.sha256(rec.read_bytes()).hexdigest()
    assert about["kinds"] == {"jpeg": 2, "progressive jpeg": 1}
    assert about["options"]["format"] == find_sources(sources)[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["property", "train.fsidx", "train.idx", "train.json", "train.rec"]
    )
    message = capsys.readouterr().out
    assert "2 jpeg, 1 progressive jpeg" in message
    assert "--normalise re-encodes them" in message


def test_normalise_touches_the_unusual_ones_only(tmp_path, people, capsys):
    pack(make_folders(tmp_path / "in", people), tmp_path / "out", Options(normalise=True))
    index = open_index(tmp_path / "out")
    stored = [index.image(i).tobytes() for i in range(3)]
    assert stored[:2] == people["ann"]
    assert stored[2] != people["bob"][0]
    assert image_kind(stored[2]) == "jpeg"
    assert "bob/0.jpg: re-encoded as baseline" in capsys.readouterr().out


def test_what_normalise_cannot_decode_is_counted_and_the_others_packed(tmp_path, people, capsys):
    people["bob"][0] = people["bob"][0][:-200]
    count = sum(map(len, people.values()))
    pack(make_folders(tmp_path / "in", people), tmp_path / "out", Options(normalise=True))
    message = capsys.readouterr().out
    passed = r"^passed over   \w+ jpeg that cannot be decoded: 1, first .*bob/0\.jpg$"
    assert re.search(passed, message, re.M)
    assert f"packed {count - 1} images of" in message


def test_a_folder_of_shards_or_parquet_files_stands_for_them(tmp_path, people):
    files = make_parquet(tmp_path, people)
    assert find_sources([tmp_path]) == ("parquet", files) == find_sources(files)
    make_shards(tmp_path, people)
    with pytest.raises(RecordError, match="found parquet, webdataset, expected"):
        find_sources([tmp_path])


def test_of_splits_side_by_side_train_alone_is_packed_and_said(tmp_path, capsys):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / f"{name}.parquet").touch()
    form, files = find_sources([tmp_path])
    assert (form, [file.name[:9] for file in files]) == ("parquet", ["train-000", "train-000"])
    assert "1 of test, 2 of train: train alone is packed" in capsys.readouterr().out
    for file in files:
        file.unlink()
    (tmp_path / "val.parquet").touch()
    with pytest.raises(RecordError, match=r"1 of test, 1 of val\. Name those to take"):
        find_sources([tmp_path])


@pytest.mark.parametrize("names", [["faces-0", "faces-1"], ["training-0", "test1"]])
def test_files_that_no_split_names_belong_together(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.parquet").touch()
    assert len(find_sources([tmp_path])[1]) == 2


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["none"], "none does not exist"),
        (["a.txt"], r"a\.txt: found \.txt, expected parquet files"),
        (["x", "y"], "found a folder, expected"),
        (["a.rec", "b.rec"], r"found \.rec, expected"),
    ],
)
def test_ambiguous_sources_are_refused(tmp_path, names, complaint):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    for file in ("a.txt", "a.rec", "b.rec"):
        (tmp_path / file).touch()
    with pytest.raises(RecordError, match=complaint):
        find_sources([tmp_path / name for name in names])


def test_options_of_another_source_are_refused_before_anything_is_read(tmp_path, people):
    sources = make_folders(tmp_path / "in", people)
    with pytest.raises(RecordError, match=r"--drop goes with rec, but .* is read as folders"):
        pack(sources, tmp_path / "out", Options(drop=tmp_path))
    assert not (tmp_path / "out").exists()


def test_the_command_filters_a_rec(tmp_path, people):
    [source] = make_rec(tmp_path, people)
    (tmp_path / "drop.txt").write_text("0\n")
    command = [sys.executable, str(ROOT / "tools/pack_rec.py"), source, tmp_path / "out"]
    done = subprocess.run(
        [*command, "--drop", tmp_path / "drop.txt"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "packed 1 images of 1 identities" in done.stdout
    about = json.loads((tmp_path / "out" / "train.json").read_text())
    assert about["names"] == ["bob"]
    assert about["options"]["drop"] == str(tmp_path / "drop.txt")
    again = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert again.returncode == 2
    assert "train.rec exists" in again.stderr
    assert "Traceback" not in again.stderr


def picture(height: int, width: int, kind: str = "JPEG") -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(stored, kind)
    return stored.getvalue()


def folder_of(tmp_path: Path, *sizes: tuple[int, int]) -> Path:
    """A face of each (height, width), of two identities in turn."""
    for i, size in enumerate(sizes):
        folder = tmp_path / "in" / f"p{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(picture(*size))
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("sizes", "message", "stated"),
    [
        ([(112, 112)] * 4, ["4 of 112 x 112"], "2,112,112"),
        ([(96, 96)] * 2, ["2 of 96 x 96", "train on them with data.image_size=96, or"], "2,96,96"),
        ([(112, 96)] * 2, ["2 of 96 x 112", "training takes square images"], "2,112,96"),
        (
            [(250, 250), (112, 112), (250, 250)],
            ["2 of 250 x 250, 1 of 112 x 112", "training takes square images of one size"],
            "2,250,250",
        ),
    ],
)
def test_the_sizes_of_the_images_are_named_with_the_remedy(
    tmp_path, capsys, sizes, message, stated
):
    pack([folder_of(tmp_path, *sizes)], tmp_path / "out", Options())
    lines = [line[14:] for line in capsys.readouterr().out.splitlines() if line[:5] == "sizes"]
    assert len(lines) == len(message)
    assert all(line.startswith(start) for line, start in zip(lines, message))
    assert (tmp_path / "out" / "property").read_text() == f"{stated}\n"


def test_resized_and_cropped_sets_are_ready_for_training(tmp_path, capsys):
    source = folder_of(tmp_path, (250, 250), (112, 112), (130, 96))
    pack([source], tmp_path / "resized", Options(resize=112))
    assert "reshaped      2\nsizes         3 of 112 x 112\n" in capsys.readouterr().out
    index = open_index(tmp_path / "resized")
    (kept,) = [i for i in range(3) if index.image(i).tobytes() == picture(112, 112)]
    assert index.records["label"][kept] == 1
    assert (tmp_path / "resized" / "property").read_text() == "2,112,112\n"
    pack([source], tmp_path / "cropped", Options(crop=112))
    message = capsys.readouterr().out
    assert f"passed over   smaller than --crop 112: 1, first {source}/p0/2.jpg\n" in message
    assert "sizes         2 of 112 x 112\n" in message
    about = json.loads((tmp_path / "cropped" / "train.json").read_text())
    assert (about["images"], about["options"]["crop"]) == (2, 112)
    with pytest.raises(RecordError, match=r"no image is left to pack: smaller than --crop 300: 3"):
        pack([source], tmp_path / "none", Options(crop=300))


@pytest.mark.parametrize("size", ["0", "-1", "112.5", "5000", "a"])
def test_sizes_are_checked_before_anything_is_read(size, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pack_rec", str(tmp_path), "out", "--resize", size])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert f"'{size}': expected" in error
