"""make_bin: pairs of files in, InsightFace's format out, and back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.pair_set import read_bin
from evaluation.protocols.pair_lists import read_pair_list
from tests.commands import call
from tools.make_bin import main

ATT = Path(__file__).parents[2].parent / "shared/data/att_112"


@pytest.fixture
def people(tmp_path) -> Path:
    """Four people of three images each, 16 × 16 pixels."""
    rng = np.random.default_rng(0)
    for name in ("Abel", "Bill", "Carla", "Dora"):
        (tmp_path / "crops" / name).mkdir(parents=True)
        for number in range(1, 4):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "crops" / name / f"{name}_{number:04d}.png")
    return tmp_path / "crops"


def test_lfws_list_becomes_a_set_and_comes_back(people, tmp_path):
    """The bytes of the images as they are, the pairs in their order."""
    listed = tmp_path / "pairs.txt"
    listed.write_text("2 1\nAbel 1 2\nAbel 3 Bill 1\nCarla 1 2\nCarla 1 Dora 3\n")
    ended = call(main, listed, people, "-o", tmp_path / "own.bin")
    assert ended.stdout == (
        f"wrote {tmp_path / 'own.bin'}: 4 pairs, 2 genuine and 2 impostor, of 7 images, 4 people\n"
    )
    pairs = read_pair_list(listed, people)
    stored = read_bin(tmp_path / "own.bin")
    both = [pairs.images[i].read_bytes() for i in np.stack([pairs.first, pairs.second], 1).ravel()]
    assert stored.images == both
    assert stored.same.tolist() == [True, False, True, False]

    ended = call(main, "--unpack", tmp_path / "own.bin", "-o", tmp_path / "back")
    assert "unpacked 4 pairs of 7 images" in ended.stdout
    again = tmp_path / "again.bin"
    assert call(main, tmp_path / "back/pairs.csv", tmp_path / "back", "-o", again).returncode == 0
    assert again.read_bytes() == (tmp_path / "own.bin").read_bytes()


def test_pairs_stand_in_the_order_of_their_folds(people, tmp_path):
    """InsightFace's format has no folds: ten contiguous parts are these."""
    rows = ["first,second,same,fold"]
    rows += [f"Abel/Abel_000{i}.png,Bill/Bill_000{i}.png,0,{fold}" for i, fold in ((1, 1), (2, 0))]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    call(main, tmp_path / "pairs.csv", people, "-o", tmp_path / "own.bin")
    first = read_bin(tmp_path / "own.bin").images[0]
    assert first == (people / "Abel" / "Abel_0002.png").read_bytes()


def test_pairs_drawn_from_a_folder(people, tmp_path):
    def draw(name: str, *options: object) -> bytes:
        path = tmp_path / name
        ended = call(main, "--pairs-from", people, "-o", path, *options)
        assert "8 pairs, 4 genuine and 4 impostor" in ended.stdout
        return path.read_bytes()

    first = draw("a.bin", "--per-person", 1)
    assert first == draw("b.bin", "--per-person", 1, "--seed", 0)
    assert first == draw("c.bin", "--most", 8, "--per-person", 1)
    assert first != draw("d.bin", "--per-person", 1, "--seed", 1)


@pytest.mark.skipif(not ATT.is_dir(), reason="no ../shared/data/att_112 here")
def test_real_faces(tmp_path):
    ended = call(main, "--pairs-from", ATT, "-o", tmp_path / "att.bin", "--most", 600)
    assert "600 pairs, 300 genuine and 300 impostor" in ended.stdout
    assert "40 people" in ended.stdout
    assert len(read_bin(tmp_path / "att.bin").images) == 1200


def test_images_that_cannot_be_packed_are_named(people, tmp_path):
    (people / "Abel" / "Abel_0001.png").write_bytes(b"")
    (people / "Bill" / "Bill_0001.png").write_bytes(b"no image")
    (tmp_path / "pairs.txt").write_text("Abel 1 2\nBill 1 2\nCarla 1 2\n")
    ended = call(main, tmp_path / "pairs.txt", people, "-o", tmp_path / "own.bin")
    assert ended.returncode == 2
    assert "2 of 6 images cannot be packed" in ended.stderr
    assert "Abel_0001.png (empty file)" in ended.stderr
    assert "Bill_0001.png (no image that can be read)" in ended.stderr
    assert not (tmp_path / "own.bin").exists()


def test_photographs_are_not_taken_for_crops(people, tmp_path):
    Image.new("RGB", (30, 20)).save(people / "Abel" / "Abel_0001.png")
    (tmp_path / "pairs.txt").write_text("Abel 1 2\nBill 1 2\n")
    ended = call(main, tmp_path / "pairs.txt", people, "-o", tmp_path / "own.bin")
    assert "3 of 16 x 16, 1 of 30 x 20 pixels" in ended.stderr
    assert "tools/align.py" in ended.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-o {out}", "give a list of pairs and the folder"),
        ("{pairs} -o {out}", "give a list of pairs and the folder"),
        ("{pairs} {crops} --pairs-from {crops} -o {out}", "leave one out"),
        ("{pairs} {crops} -o {out} --seed 3", "--seed goes with --pairs-from"),
        ("{pairs} {crops} -o {pairs}", "exists: name another file"),
        ("{pairs} {crops}/none -o {out}", "does not exist"),
        ("--unpack {pairs} -o {out}", "not a whole verification set"),
        ("--pairs-from {crops}/Abel -o {out}", "expected a folder a person"),
    ],
)
def test_what_does_not_go_together(line, message, people, tmp_path):
    (tmp_path / "pairs.txt").write_text("Abel 1 2\n")
    words = line.format(pairs=tmp_path / "pairs.txt", crops=people, out=tmp_path / "own.bin")
    ended = call(main, *words.split())
    assert ended.returncode == 2
    assert message in ended.stderr


def test_a_set_is_not_unpacked_over_other_files(people, tmp_path):
    (tmp_path / "pairs.txt").write_text("Abel 1 2\n")
    call(main, tmp_path / "pairs.txt", people, "-o", tmp_path / "own.bin")
    ended = call(main, "--unpack", tmp_path / "own.bin", "-o", people)
    assert "not an empty folder" in ended.stderr
