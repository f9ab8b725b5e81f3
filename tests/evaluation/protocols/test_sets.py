"""Test sets by name: what each kind opens, degradations on top, and errors that name the forms."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.images import ImagesError
from evaluation.pair_set import PairSetError, write_bin
from evaluation.protocols import sets as by_name
from evaluation.protocols.named_sets import NamedSets
from evaluation.protocols.pair_lists import PairListError
from evaluation.protocols.protocol import Asked
from evaluation.protocols.sets import KINDS, SetError, kinds, open_set
from facestream import UserError

SIZE = 32


def jpeg(seed: int, size: int = SIZE) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
    Image.fromarray(noise.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def bin_file(tmp_path):
    path = tmp_path / "small.bin"
    write_bin(path, [jpeg(i) for i in range(24)], [True, False] * 6)
    return path


def write_people(folder: Path) -> None:
    for seed, (name, number) in enumerate((n, i) for n in "ABC" for i in (1, 2, 3)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}_{number:04d}.jpg").write_bytes(jpeg(seed))


LFW = "1\t2\nA\t1\t2\nB\t1\t3\nA\t3\tB\t2\nB\t1\tC\t1\n"


def open_small(spec: object, **more):
    return open_set(str(spec), image_size=SIZE, **more)


def test_a_bin_file_is_a_set(bin_file):
    found = open_small(bin_file)
    assert (found.name, found.headline, len(found.images)) == ("small", "accuracy", 24)


@pytest.mark.parametrize(
    ("kind", "pairs", "images"),
    [
        ("lfw", "pairs.txt", "."),
        ("lfw", "pairs.txt", "lfw_aligned_112"),
        ("xqlfw", "xqlfw_pairs.txt", "xqlfw_aligned_112"),
        ("xqlfw", "pairs.txt", "images"),
    ],
)
def test_official_folders_are_read_as_they_come(kind, pairs, images, tmp_path):
    folder = tmp_path / "mine"
    write_people(folder / images)
    (folder / pairs).write_text(LFW.replace("1\t2", "2", 1))
    found = open_small(f"{kind}:{folder}")
    assert found.name == "mine"
    assert found.same.tolist() == [True, True, False, False]
    assert found.people is not None


def test_any_list_of_pairs_goes_with_any_folder(tmp_path):
    write_people(tmp_path / "a:b+c")
    (tmp_path / "my:list.csv").write_text("A/A_0001.jpg,A/A_0002.jpg,1\nA/A_0001,B/B_0001,0\n")
    found = open_small(f"pairs:{tmp_path / 'my:list.csv'}:{tmp_path / 'a:b+c'}+blur=1")
    assert (found.name, found.same.tolist()) == ("my:list+blur=1", [True, False])


def test_degradations_are_applied_in_order_and_named(bin_file):
    plain, found = open_small(bin_file), open_small(f"{bin_file}+lowres=8+noise", seed=3)
    assert found.name == "small+lowres=8+noise"
    assert found.about["degraded by lowres"].startswith("lowres 8 (pixels")
    assert found.about["seed of degradations"] == "3"
    assert found.images.fingerprint != plain.images.fingerprint
    other = open_small(f"{bin_file}+noise+lowres=8", seed=3)
    pictures = [one.images.load(range(1))[0] for one in (plain, found, other)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_a_degraded_set_holds_the_images_of_the_one_it_is_made_of(bin_file):
    shared = {}
    sets = [open_small(f"{bin_file}{by}", shared=shared) for by in ("+blur", "", "+noise")]
    assert len({id(one.images.read(0)) for one in sets}) == 1, "one object"
    assert len({one.images.fingerprint for one in sets}) == 3
    assert [one.name for one in sets] == ["small+blur", "small", "small+noise"]


def test_sets_of_one_evaluation_are_read_once_each_in_turn(bin_file, tmp_path, monkeypatch):
    """And never two at a time: they may be large."""
    other = tmp_path / "other.bin"
    other.write_bytes(bin_file.read_bytes())
    read, opened = [], by_name.open_bin

    def counting(path, **more):
        read.append(Path(path).name)
        return opened(path, **more)

    monkeypatch.setattr(by_name, "open_bin", counting)
    specs = [f"{bin_file}", f"{bin_file}+blur", f"{other}+blur", f"{other}"]
    named = NamedSets(specs, sizes=[SIZE], seed=0, asked=Asked(draws=0))
    names = [opener(SIZE).name for opener in named.openers]
    assert names == ["small", "small+blur", "other+blur", "other"]
    assert read == ["small.bin", "other.bin"] * 2, "to be checked, and to be embedded"


def test_a_rank_keeps_its_own_images(bin_file):
    found = open_small(bin_file, batch_size=4, rank=1, world_size=2)
    assert len(found.images) == 24
    assert found.images.read(4)
    with pytest.raises(KeyError):
        found.images.read(0)


@pytest.mark.parametrize(
    ("spec", "error", "complaint"),
    [
        ("lfw", SetError, "lfw: expected one of FILE.bin, lfw:DIR.*Did you mean lfw:"),
        ("xqlf:here", SetError, "Did you mean xqlfw:"),
        ("lfw:", SetError, "lfw:: expected lfw:DIR"),
        ("none.bin", PairSetError, "none.bin does not exist"),
        ("lfw:nowhere", UserError, "nowhere does not exist: expected the folder of pairs.txt"),
        ("lfw:.", UserError, r"pairs.txt does not exist: expected a list of pairs"),
        ("pairs:list.csv", SetError, "pairs:list.csv: expected pairs:LIST:DIR"),
        ("pairs:list.csv:x", UserError, "list.csv does not exist"),
        ("small.bin+blurr", SetError, r"\+blurr is no degradation.*Did you mean \+blur\?"),
        ("small.bin+blurr+mask", SetError, r"\+blurr is no degradation"),
        ("small.bin+lowres=tiny", SetError, r"\+lowres=tiny, expected a number .*\+lowres=16"),
        ("small.bin+lowres=", SetError, r"\+lowres=, expected a number"),
        ("small.bin+lowres=1", ImagesError, r"found \+lowres=1, expected 2 to"),
        ("small.bin+mask+lowres=9999", ImagesError, r"found \+lowres=9999"),
    ],
)
@pytest.mark.usefixtures("bin_file")
def test_what_is_no_set_is_refused_with_what_is(spec, error, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=complaint):
        open_small(spec)


def test_images_of_another_size_are_refused_by_name(tmp_path):
    write_people(tmp_path)
    (tmp_path / "B/B_0002.jpg").write_bytes(jpeg(1, size=40))
    (tmp_path / "pairs.txt").write_text(LFW.replace("1\t2", "2", 1))
    with pytest.raises(ImagesError, match=r"B_0002.jpg has 40×40 pixels, not 32×32"):
        open_small(f"lfw:{tmp_path}")


def test_a_list_that_is_not_whole_is_refused(tmp_path):
    write_people(tmp_path)
    (tmp_path / "pairs.txt").write_text("3\n" + LFW.partition("\n")[2])
    with pytest.raises(PairListError, match="announces 1 × 3 genuine"):
        open_small(f"lfw:{tmp_path}")


def test_every_kind_is_in_the_list_that_helps_show():
    shown = kinds()
    assert all(kind.form in shown and kind.what in shown for kind in KINDS.values())


def test_pairs_are_drawn_from_a_folder_of_people(tmp_path):
    write_people(tmp_path / "my:photos")
    found = open_small(f"people:{tmp_path / 'my:photos'}:2", seed=7)
    assert found.name == "my:photos"
    assert found.about["pairs"] == "drawn, seed 7, at most 2 genuine ones of a person"
    assert found.same.sum() == len(found.same) / 2 == 6
    assert open_small(f"people:{tmp_path / 'my:photos'}").same.sum() == 9
