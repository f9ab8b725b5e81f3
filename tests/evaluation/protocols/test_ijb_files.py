"""IJB's official layout: images are cropped, lists are read, and what is wrong there is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.features import Embedder, extract
from evaluation.images import ImagesError
from evaluation.protocols.ijb import open_ijb
from evaluation.protocols.ijb_files import IjbFilesError
from evaluation.protocols.sets import open_set
from evaluation.result import Evaluation, Result
from pipeline.align import TEMPLATE
from pipeline.named_path import PathError
from tests.evaluation.protocols.drawn_ijb import OPEN, QUICK, SIZE, Drawn, drawn, features_of, write
from tests.ranks import run_ranks
from training.distributed import World


def pixels_as_rows(pixels: Tensor) -> Tensor:
    return pixels[:, :, ::3, ::3].float().flatten(1)


def embedder(world: World | None = None) -> Embedder:
    ranks = (world.rank, world.world_size) if world else (0, 1)
    device = torch.device("cpu")
    return Embedder(pixels_as_rows, "d", SIZE, device, 8, 1, *ranks)


def judged(world: World | None, folder: Path) -> Result | None:
    ijb = open_ijb(folder, **OPEN)
    features = extract(embedder(world), ijb.images)
    return features and ijb.judge(features, model="m", asked=QUICK)


@pytest.mark.slow
def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    write(drawn(), tmp_path / "set")
    alone = judged(None, tmp_path / "set")
    both = run_ranks(judged, tmp_path / "set", world_size=2, folder=tmp_path)
    assert both == [alone, None]
    assert '"protocol": "ijb/1"' in Evaluation([], [alone]).as_json()


def test_faces_are_cropped_by_their_landmarks(tmp_path: Path) -> None:
    made = drawn()
    shifted = TEMPLATE * SIZE / 112 + np.array([3, 4])
    made.shapes = [(shifted, score) for _, score in made.shapes]
    ijb = open_ijb(write(made, tmp_path / "set"), **OPEN)
    whole = np.asarray(Image.open(tmp_path / "set" / "loose_crop" / "2.png"))
    pixels, faults = ijb.images.load(range(1, 2))
    assert faults == {}
    np.testing.assert_allclose(pixels[0], whole[4 : 4 + SIZE, 3 : 3 + SIZE], atol=1)
    (tmp_path / "set" / "loose_crop" / "2.png").write_bytes(b"no image")
    assert "no image" in ijb.images.load(range(1, 2))[1][0]


def test_it_is_opened_by_name_and_from_the_folder_above(tmp_path: Path) -> None:
    made = drawn()
    write(made, tmp_path / "IJBC", images=False)
    features = features_of(made)
    weighted = open_set(f"ijbc:{tmp_path}", image_size=SIZE)
    assert (weighted.name, weighted.headline) == ("ijbc", "tar@far=0.0001")
    plain = open_set(f"ijbc:{tmp_path}:no-detector,no-norm+blur", image_size=SIZE)
    assert plain.name == "ijbc:no-norm:no-detector+blur"
    settings = plain.judge(features, model="m", asked=QUICK).settings
    assert not settings["norm weighting"]
    assert not settings["detector-score weighting"]
    assert "degraded by blur" in settings


def change(path: Path, line: int, text: str | None) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("file", "line", "text", "says"),
    [
        (
            "face_tid_mid",
            3,
            None,
            r"has \d+ images and .*5pts_score.txt has \d+; expected the same",
        ),
        ("face_tid_mid", 3, "other.png 101 5", r"image 3 is other.png in .* and 3.png in "),
        (
            "face_tid_mid",
            3,
            "3.png 101",
            r"tid_mid.txt, line 3: found '3.png 101' \(2 fields for 3",
        ),
        ("face_tid_mid", 3, "3.png a 4", r"tid_mid.txt, line 3: .*invalid literal.*expected"),
        ("name_5pts_score", 2, "2.png 1 2 3", r"5pts_score.txt, line 2: .*4 fields for 12"),
        ("name_5pts_score", 2, "2.png" + " nan" * 11, r"line 2: .*not finite.*Download"),
        ("name_5pts_score", 2, "../2.png" + " 1" * 11, r"line 2: .*a path out of the folder"),
        ("template_pair_label", 4, "1 2", r"label.txt, line 4: found '1 2' \(not of that form"),
        ("template_pair_label", 4, "1 2 x", r"label.txt, line 4: found '1 2 x'"),
        ("template_pair_label", 4, "101 104 2", r"label.txt, line 4: found '101 104 2'"),
        ("template_pair_label", 4, "7 104 1", r"line 4: found '7 104 1' \(7 has no image in"),
        ("1N_gallery_G1", 1, "a,b", r"G1.csv, line 1: found 'A,B', expected a head with TEMPLATE"),
        ("1N_gallery_G1", 2, "x,1,2,3", r"G1.csv, line 2: expected whole numbers"),
        ("1N_gallery_G1", 2, "99999,1,2,3", r"G1.csv: template 99999 has no image in"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, file: str, line: int, text: str, says: str) -> None:
    write(drawn(), tmp_path, images=False)
    ending = ".csv" if "1N" in file else ".txt"
    change(tmp_path / "meta" / f"ijbc_{file}{ending}", line, text)
    with pytest.raises(IjbFilesError, match=says):
        open_ijb(tmp_path, **OPEN)


@pytest.mark.parametrize(
    ("kept", "says"), [("0", "holds no genuine pair"), ("1", "no impostor pair"), ("", "is empty")]
)
def test_pairs_of_one_kind_are_refused(tmp_path: Path, kept: str, says: str) -> None:
    write(drawn(), tmp_path, images=False)
    path = tmp_path / "meta" / "ijbc_template_pair_label.txt"
    lines = [line for line in path.read_text().splitlines() if kept and line.endswith(f" {kept}")]
    path.write_text("\n".join(lines))
    with pytest.raises(IjbFilesError, match=says):
        open_ijb(tmp_path, **OPEN)


def test_lists_of_one_to_many_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = drawn()
    strangers = {template: subject + 1000 for template, subject in made.lists[0].items()}
    other = Drawn(made.name, made.faces, made.shapes, made.pairs, [strangers, *made.lists[1:]])
    write(other, tmp_path / "strangers", images=False)
    with pytest.raises(IjbFilesError, match=r"of no probe the subject is in the gallery .*G1.csv"):
        open_ijb(tmp_path / "strangers", **OPEN)
    changed = {template: subject + 1 for template, subject in made.lists[0].items()}
    other.lists = [made.lists[0], changed, made.lists[2]]
    write(other, tmp_path / "two", images=False)
    with pytest.raises(
        IjbFilesError, match=r"template \d+ is of subject \d+, and of \d+ in a list"
    ):
        open_ijb(tmp_path / "two", **OPEN)
    (tmp_path / "two" / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(PathError, match=r"G2.csv does not exist.*one of the three lists"):
        open_ijb(tmp_path / "two", **OPEN)


def test_missing_files_and_images_are_named(tmp_path: Path) -> None:
    made = drawn()
    write(made, tmp_path / "set", images=False)
    (tmp_path / "set" / "loose_crop" / "7.png").unlink()
    (tmp_path / "set" / "loose_crop" / "9.png").unlink()
    with pytest.raises(
        ImagesError, match=r"2 of \d+ images cannot be read: .*7.png does not exist"
    ):
        open_ijb(tmp_path / "set", **OPEN)
    (tmp_path / "set" / "meta" / "ijbc_template_pair_label.txt").unlink()
    with pytest.raises(PathError, match=r"label.txt does not exist"):
        open_ijb(tmp_path / "set", **OPEN)
    with pytest.raises(PathError, match=r"ijbb_face_tid_mid.txt does not exist"):
        open_ijb(tmp_path / "set", name="ijbb", image_size=SIZE)
    with pytest.raises(PathError, match=r"meta does not exist: expected the folder of IJBC with"):
        open_ijb(tmp_path, **OPEN)


def test_an_image_of_two_templates_has_the_same_landmarks_in_both(tmp_path: Path) -> None:
    made = drawn()
    (name, template, medium), shape = made.faces[0], made.shapes[0]
    made.faces.append((name, next(t for t in made.lists[2] if t != template), medium))
    made.shapes.append(shape)
    write(made, tmp_path, images=False)
    change(tmp_path / "meta" / "ijbc_name_5pts_score.txt", 1, f"{name}" + " 5.5" * 11)
    with pytest.raises(IjbFilesError, match=r"1.png stands twice, with other landmarks"):
        open_ijb(tmp_path, **OPEN)
