"""overlap: what it writes is what evaluation and training take; what it refuses."""

import pytest
import torch

from evaluation.leaks.overlap import read_overlap
from evaluation.pair_set import write_bin
from evaluation.protocols.sets import open_set
from facestream import USER_ERROR_EXIT_CODE
from models import create_model
from pipeline.record_filter import read_filter
from pipeline.records.index import open_index
from pipeline.records.write_set import pack_set
from synthetic import encode_jpeg, render
from tests.commands import call
from tests.evaluation.leaks.planted import COPIES, decode
from tools.overlap import main

SIZE = 64


def face(person: int, shot: int = 0) -> bytes:
    return encode_jpeg(render(person, shot, size=SIZE))


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a set of 30 pairs, a training set that has one of its images and a copy of
    another, and a model."""
    folder = tmp_path_factory.mktemp("overlap")
    same = [k % 2 == 0 for k in range(30)]
    tests = [face(100 + k, shot) for k in range(30) for shot in (0, 1)]
    write_bin(folder / "small.bin", tests, same)
    people = [[face(k, shot) for shot in range(3)] for k in range(8)]
    people[2].append(tests[6])
    people[5].append(COPIES["mirrored"](decode(tests[9])))
    pack_set(folder, people)
    torch.manual_seed(0)
    network = create_model("iresnet10", embedding_dim=8, image_size=SIZE, width=0.25)
    torch.save(network.state_dict(), folder / "model.pth")
    return folder


def run(there, *arguments: object, output: str = "out"):
    return call(
        main,
        there / "train.rec",
        there / "small.bin",
        "-o",
        there / output,
        "--device",
        "cpu",
        *arguments,
    )


def test_copies_are_written_for_training_and_for_evaluation(there):
    done = run(there)
    assert done.returncode == 0, done.stderr
    assert "of 60 images: same image 1, near copy 1\n" in done.stdout
    overlap = read_overlap(there / "out/overlap.json")
    images = open_set(str(there / "small.bin"), image_size=SIZE).images
    assert overlap.names_in(images) == {"image 6", "image 9"}
    index = open_index(there)
    (kept,) = read_filter(there / "out/leave_out.txt", [index])
    gone = sorted(set(range(len(index))) - set(kept.tolist()))
    assert [int(index.records["label"][k]) for k in gone] == [2, 5]
    page = (there / "out/overlap.html").read_text()
    assert page.count("<img") == 4
    assert "This page holds 4 pictures of people" in page


def test_no_pictures_means_none(there):
    assert run(there, "--no-pictures", output="bare").returncode == 0
    page = (there / "bare/overlap.html").read_text()
    assert "<img" not in page
    assert "This page holds no pictures of people." in page
    assert "image 6" in page


def test_a_model_tells_people_too_and_embeddings_are_kept(there):
    done = run(there, "--model", there / "model.pth", "--false-rate", 0.2, output="people")
    assert done.returncode == 0, done.stderr
    assert "by chance" in done.stdout
    overlap = read_overlap(there / "people/overlap.json")
    assert overlap.model["network"] == "iresnet10"
    assert "same person" in overlap.settings
    images = open_set(str(there / "small.bin"), image_size=SIZE).images
    assert overlap.names_in(images) >= {"image 6", "image 9"}
    assert len(list((there / "people/embeddings").iterdir())) == 2


def test_what_cannot_be_checked_is_refused_in_a_line(there, tmp_path):
    torch.manual_seed(0)
    other = create_model("iresnet10", embedding_dim=8, image_size=48, width=0.25)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    (tmp_path / "small.bin").write_bytes((there / "small.bin").read_bytes())
    for arguments, complaint in [
        ([there / "train.rec", there / "none.bin"], "none.bin does not exist"),
        ([there / "none.rec", there / "small.bin"], "none.rec"),
        ([there / "train.rec", there / "small.bin", tmp_path / "small.bin"], "both called small"),
        ([there / "train.rec", there / "small.bin", "--model", tmp_path / "x.pth"], "x.pth"),
        ([there / "train.rec", there / "small.bin", "--model", tmp_path / "other.pth"], "48×48"),
    ]:
        done = call(main, *arguments, "-o", tmp_path / "out", "--device", "cpu")
        assert done.returncode == USER_ERROR_EXIT_CODE, arguments
        assert done.stderr.startswith("overlap: ")
        assert complaint in done.stderr
        assert not (tmp_path / "out/overlap.json").exists()


@pytest.mark.parametrize("rate", ["0", "1", "x", "nan"])
def test_a_rate_is_a_share(there, rate):
    done = run(there, "--false-rate", rate)
    assert done.returncode == 2
    assert "expected a number between 0 and 1" in done.stderr
