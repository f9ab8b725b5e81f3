"""rec2idx as people run it."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.containers.open_records import open_records
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.manifest import read_names, write_manifest
from pipeline.records.mxnet_idx import read_idx
from pipeline.records.recordio import RecordError, RecordWriter, pack_image
from pipeline.records.scan import Scan, scan_rec
from pipeline.records.write_set import pack_set
from tools.rec2idx import main, rec2idx, write_repaired

ROOT = Path(__file__).parents[2]
LFW = ROOT.parent / "shared/data/faces_lfw_dev"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/rec2idx.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
    )


@pytest.fixture
def rec(tmp_path) -> Path:
    path = tmp_path / "train.rec"
    with RecordWriter(path) as writer:
        writer.write(pack_image(b"", [3.0, 5.0], 0))
        writer.write(pack_image(b"first", 0.0, 1))
        writer.write(pack_image(b"second!", 1.0, 2))
        writer.write(pack_image(b"", [1.0, 2.0], 3))
        writer.write(pack_image(b"", [2.0, 3.0], 4))
    return path


def test_the_command_tells_what_it_found_and_wrote(rec):
    done = command(rec)
    assert done.returncode == 0, done.stderr
    for message in (
        "images        2, of 5 to 7 bytes",
        "identities    2",
        "1 header and 2 identity records",
        "damage        0 spans",
        f"wrote         {rec.with_suffix('.idx')} (2 lines)\n",
        "read by       DALI's own reader; for MXNet and arcface_torch write it with --all",
    ):
        assert message in done.stdout
    assert read_idx(rec.with_suffix(".idx"))[0].tolist() == [1, 2]
    assert len(open_index(rec)) == 2


def test_the_last_line_says_who_reads_what_was_written(rec, tmp_path, capsys):
    rec2idx(rec, every_record=True)
    assert capsys.readouterr().out.endswith(
        "read by       MXNet and arcface_torch; for DALI's own reader write it with --images-only\n"
    )
    for first, readers in (
        (0, "MXNet and arcface_torch\n"),
        (1, "arcface_torch wants a record 0\n"),
    ):
        plain = tmp_path / f"{first}.rec"
        with RecordWriter(plain) as writer:
            writer.write(pack_image(b"image", 0.0, first))
        rec2idx(plain)
        assert capsys.readouterr().out.endswith(readers)


@pytest.mark.skipif(not LFW.exists(), reason="faces_lfw_dev is not on this machine")
def test_all_records_of_a_file_of_mxnets_give_mxnets_own_idx(tmp_path):
    rec2idx(LFW / "train.rec", folder=tmp_path, every_record=True)
    assert (tmp_path / "train.idx").read_bytes() == (LFW / "train.idx").read_bytes()


def test_an_idx_that_was_there_is_kept_aside(rec, capsys):
    former = "0\t0\n7\t7\n"
    rec.with_suffix(".idx").write_text(former)
    rec2idx(rec)
    assert (rec.parent / "train.idx.old1").read_text() == former
    assert "kept          the former train.idx as train.idx.old1\n" in capsys.readouterr().out
    rec2idx(rec, every_record=True)
    assert len(read_idx(rec.parent / "train.idx.old2")[0]) == 2


def test_an_idx_that_is_right_already_is_left_alone(rec, capsys):
    idx = rec.with_suffix(".idx")
    rec2idx(rec)
    before = idx.stat()
    rec2idx(rec)
    assert (idx.stat().st_ino, idx.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert f"up to date    {idx} (2 lines)\n" in capsys.readouterr().out
    assert not list(rec.parent.glob("*.old*"))
    idx.write_bytes(idx.read_bytes() + b"9\t9\n")
    rec2idx(rec)
    assert len(list(rec.parent.glob("*.old*"))) == 1, "one line more is another file"


def test_an_idx_of_all_records_loses_none_unless_that_is_asked_for(tmp_path, capsys):
    """As pack_rec writes it, and as it comes with InsightFace's sets."""
    pack_set(tmp_path, [[b"a"], [b"b", b"c"]])
    before = (tmp_path / "train.idx").read_bytes()
    rec2idx(tmp_path / "train.rec")
    assert (tmp_path / "train.idx").read_bytes() == before
    assert "read by       MXNet and arcface_torch" in capsys.readouterr().out
    rec2idx(tmp_path / "train.rec", every_record=False)
    assert len(read_idx(tmp_path / "train.idx")[0]) == 3
    assert (tmp_path / "train.idx.old1").read_bytes() == before


def test_a_folder_stands_for_its_train_rec(rec, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rec2idx", str(rec.parent)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert f"file          {rec} " in capsys.readouterr().out


def test_damage_is_listed_with_its_place(rec, capsys):
    content = bytearray(rec.read_bytes())
    offset = int(read_idx(write_idx_of(rec))[1][0])
    content[offset] ^= 0xFF
    rec.write_bytes(content)
    found = rec2idx(rec)
    assert found.summary.images == 1
    message = capsys.readouterr().out
    assert "damage        1 spans" in message
    assert f"offset {offset}, 40 bytes: bytes that belong to no record" in message
    assert "the header record speaks of 2 images" in message


def write_idx_of(rec: Path) -> Path:
    rec2idx(rec)
    return rec.with_suffix(".idx")


def test_a_missing_file_is_one_line_of_error(tmp_path):
    done = command(tmp_path / "none.rec")
    assert done.returncode == 2
    assert "none.rec does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_needs_neither_torch_nor_dali_nor_mxnet():
    script = (
        "import sys; sys.path.insert(0, '.'); import tools.rec2idx;"
        "sys.exit(', '.join({'torch', 'nvidia', 'mxnet'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_progress_is_shown_to_who_watches_and_costs_others_nothing(rec, monkeypatch):
    """rich takes longer to import than a small set takes to scan."""
    script = (
        "import sys; from pathlib import Path; from tools.rec2idx import rec2idx;"
        "rec2idx(Path(sys.argv[1])); sys.exit('rich' in sys.modules)"
    )
    unwatched = [sys.executable, "-c", script, str(rec)]
    done = subprocess.run(unwatched, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    watched = Watched()
    monkeypatch.setattr(sys, "stderr", watched)
    rec2idx(rec)
    assert "scan" in watched.getvalue()


class Watched(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_file_written_to_while_it_is_scanned_is_scanned_again_when_opened(rec, monkeypatch):
    def scan_and_append(path: Path, *arguments: object, **options: object) -> Scan:
        found = scan_rec(path, *arguments, **options)
        path.write_bytes(path.read_bytes() + path.read_bytes()[-40:])
        return found

    before = rec.stat().st_size
    monkeypatch.setattr("tools.rec2idx.scan_rec", scan_and_append)
    rec2idx(rec)
    assert rec.stat().st_size == before + 40
    monkeypatch.undo()
    assert open_index(rec).summary.identity_records == 3


def jpeg(seed: int, side: int = 16) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(noise).save(stored, "JPEG")
    return stored.getvalue()


@pytest.fixture
def faces(tmp_path) -> Path:
    """Two identities of two JPEGs; the third image is cut off."""
    images = [jpeg(0), jpeg(1), jpeg(2)[:-90], jpeg(3)]
    pack_set(tmp_path, [images[:2], images[2:]])
    return tmp_path / "train.rec"


def test_verify_lists_what_fails_and_exits_with_2(faces):
    offset = int(open_index(faces).records["offset"][2])
    done = command(faces, "--verify")
    assert done.returncode == 2
    assert "verified      4 images, 1 do not decode" in done.stdout
    assert f"offset {offset}, label 1: Premature end of JPEG file" in done.stdout


def test_repair_with_verify_leaves_out_what_fails_and_the_result_passes(faces, tmp_path):
    done = command(faces, "--verify", "--repair", tmp_path / "out")
    assert done.returncode == 0, "it repaired"
    assert "repaired      3 images of 2 identities" in done.stdout
    assert (tmp_path / "out" / "property").read_text() == "2,16,16\n"
    again = command(tmp_path / "out" / "train.rec", "--verify")
    assert again.returncode == 0, again.stdout
    assert "damage        0 spans" in again.stdout


@pytest.mark.parametrize("damage", ["none", "a record", "cut off"])
def test_what_is_repaired_keeps_the_names_of_its_identities(faces, tmp_path, damage):
    write_manifest(faces, source=[], options={}, names=["ann", "bob"], images=4, kinds={})
    index = open_index(faces)
    content = bytearray(faces.read_bytes())
    if damage == "a record":
        content[int(index.records["offset"][1])] ^= 0xFF
    faces.write_bytes(content[:-60] if damage == "cut off" else content)
    found = rec2idx(faces)
    index = RecordIndex(faces, found.images, found.summary)
    write_repaired(index, tmp_path / "out", without=[])
    assert read_names(tmp_path / "out" / "train.rec") == ["ann", "bob"]


def test_the_manifest_of_another_file_names_nobody(faces, tmp_path):
    write_manifest(faces, source=[], options={}, names=["ann", "bob"], images=4, kinds={})
    with RecordWriter(faces) as writer:
        writer.write(pack_image(jpeg(7), 0.0, 0))
    faces.with_suffix(".idx").unlink()
    write_repaired(open_index(faces), tmp_path / "out", without=[])
    assert not (tmp_path / "out" / "train.json").exists()


def test_images_of_another_size_are_dropped_on_request(tmp_path):
    pack_set(tmp_path / "in", [[jpeg(0), jpeg(1, side=24)], [jpeg(2)]])
    rec = tmp_path / "in" / "train.rec"
    assert command(rec, "--verify").returncode == 0
    done = command(rec, "--verify", "--size", 16, "--repair", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "3 images, 1 do not decode to 16 x 16 pixels" in done.stdout
    assert "24 x 24 pixels, not 16 x 16" in done.stdout
    assert (tmp_path / "out" / "property").read_text() == "2,16,16\n"
    assert len(open_index(tmp_path / "out")) == 2
    assert "--size goes with --verify" in command(rec, "--size", 16).stderr


def test_repair_alone_does_not_decode(faces, tmp_path):
    done = command(faces, "--repair", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "repaired      4 images of 2 identities" in done.stdout


def test_repair_into_its_own_folder_is_refused(faces):
    done = command(faces, "--repair", faces.parent)
    assert done.returncode == 2
    assert "exists: name another folder" in done.stderr


def test_records_whose_label_is_damaged_are_refused_but_repaired(rec, tmp_path):
    index = open_index(rec)
    content = bytearray(rec.read_bytes())
    at = int(index.records["offset"][1]) + 12
    content[at : at + 4] = struct.pack("<f", -7.5)
    rec.write_bytes(content)
    refused = command(rec)
    assert refused.returncode == 2
    assert "has the label -7.5" in refused.stderr
    assert "--repair" in refused.stderr
    done = command(rec, "--repair", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the label -7.5 is no identity" in done.stdout
    assert "repaired      1 images of 2 identities" in done.stdout


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two people, whose first image of three does not decode."""
    for number, path in enumerate(("ann/1.jpg", "ann/2.jpg", "bob/1.jpg")):
        (tmp_path / "faces" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / path).write_bytes(jpeg(number) if number else b"no image")
    return tmp_path / "faces"


def test_a_folder_of_people_is_indexed_verified_and_repaired(folder, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, folder, "--verify", "--repair", tmp_path / "out") == 0
    message = capsys.readouterr().out
    for line in (
        "images        3, of",
        "identities    2, labels up to 1",
        "names         ann is 0, bob is 1",
        f"wrote         {folder / '.facestream.fsidx'}",
        f"{folder / 'ann/1.jpg'}: the image, record 0, label 0: no image",
        "repaired      2 images of 2 identities",
    ):
        assert line in message
    clean = open_index(tmp_path / "out")
    assert clean.image(1).tobytes() == (folder / "bob/1.jpg").read_bytes()
    assert read_names(clean.path) == ["ann", "bob"]


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rec2idx", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_people_that_came_later_are_numbered_again(folder, monkeypatch, capsys):
    assert run(monkeypatch, folder) == 0
    (folder / "al").mkdir()
    (folder / "al/1.jpg").write_bytes(jpeg(5))
    with pytest.raises(RecordError, match=r"1 new \(al\)"):
        open_records(folder)
    assert run(monkeypatch, folder) == 0
    assert "bob is 2" in capsys.readouterr().out
    assert len(open_records(folder)) == 4


def test_what_goes_with_a_rec_alone_is_refused_for_a_folder(folder, monkeypatch, capsys):
    assert run(monkeypatch, folder, "--all") == 2
    assert "is no .rec, which -o, --all and --images-only go with" in capsys.readouterr().err
