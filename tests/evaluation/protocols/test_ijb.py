"""IJB: the official layout read, templates pooled, 1:1 and 1:N as plain loops have them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.features import Embedder, Features, extract
from evaluation.images import ImagesError
from evaluation.protocols.ijb import open_ijb
from evaluation.protocols.ijb_files import IjbFilesError
from evaluation.protocols.protocol import Asked
from evaluation.protocols.sets import open_set
from evaluation.result import Evaluation, Result
from facestream import UserError
from pipeline.align import TEMPLATE
from pipeline.named_path import PathError
from tests.ranks import run_ranks
from training.distributed import World

SIZE = 16
WIDTH = 24  # of embeddings
QUICK = Asked(draws=0)
OPEN = {"name": "ijbc", "image_size": SIZE}


@dataclass
class Drawn:
    """A set's lists as they are written, drawn at random.

    Attributes:
        faces: (image, template, medium) of each line.
        shapes: (landmarks, score) of each line.
        pairs: (template, template, label).
        lists: of the three lists of 1:N, template to subject.
    """

    name: str
    faces: list[tuple[str, int, int]] = field(default_factory=list)
    shapes: list[tuple[np.ndarray, float]] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    lists: list[dict[int, int]] = field(default_factory=lambda: [{}, {}, {}])

    @property
    def subject_of(self) -> dict[int, int]:
        return {t: s for part in self.lists for t, s in part.items()}


def drawn(name: str = "ijbc", *, subjects: int = 24, seed: int = 0) -> Drawn:
    """Of each subject a template in one of the galleries and two or three probes."""
    random = np.random.default_rng(seed)
    made, number = Drawn(name), 100
    for subject in range(1, subjects + 1):
        for kind in [subject % 2] + [2] * int(random.integers(2, 4)):
            number += int(random.integers(1, 5))
            made.lists[kind][number] = subject
            for _ in range(int(random.integers(1, 6))):
                medium = int(random.integers(1, 4)) + 10 * subject  # some hold several images
                landmarks = 2 + TEMPLATE * SIZE / 112 + random.normal(0, 0.3, (5, 2))
                made.faces.append((f"{len(made.faces) + 1}.png", number, medium))
                made.shapes.append((landmarks, round(float(random.uniform(0.3, 1)), 3)))
    order = random.permutation(len(made.faces))  # the images of a template need not be together
    made.faces = [(f"{i + 1}.png", *made.faces[j][1:]) for i, j in enumerate(order)]
    made.shapes = [made.shapes[j] for j in order]
    whose = made.subject_of
    templates = sorted(whose)
    for one in templates[::2]:
        for other in templates[1::2]:
            if whose[one] == whose[other] or random.random() < 0.5:
                made.pairs.append((one, other, int(whose[one] == whose[other])))
    return made


def write(made: Drawn, folder: Path, *, images: bool = True) -> Path:
    meta, crops = folder / "meta", folder / "loose_crop"
    meta.mkdir(parents=True)
    crops.mkdir()
    random = np.random.default_rng(1)
    for name, _, _ in made.faces:
        pixels = random.integers(0, 256, (SIZE + 6, SIZE + 4, 3), dtype=np.uint8)
        if images:
            Image.fromarray(pixels).save(crops / name)
        else:
            (crops / name).touch()

    def lines(name: str, rows: list[str]) -> None:
        (meta / name).write_text("\n".join(rows) + "\n")

    lines(f"{made.name}_face_tid_mid.txt", [" ".join(map(str, face)) for face in made.faces])
    lines(
        f"{made.name}_name_5pts_score.txt",
        [
            " ".join([face[0], *(f"{x:.3f}" for x in shape[0].ravel()), f"{shape[1]}"])
            for face, shape in zip(made.faces, made.shapes)
        ],
    )
    lines(f"{made.name}_template_pair_label.txt", [" ".join(map(str, pair)) for pair in made.pairs])
    letter = "S" if made.name == "ijbb" else "G"
    for part, ending in zip(
        made.lists, (f"gallery_{letter}1", f"gallery_{letter}2", "probe_mixed")
    ):
        rows = [
            f"{template},{subject},{name},0"
            for template, subject in part.items()
            for name, of, _ in made.faces
            if of == template
        ]
        lines(f"{made.name}_1N_{ending}.csv", ["TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X", *rows])
    return folder


def features_of(made: Drawn, *, noise: float = 0.55, seed: int = 3) -> Features:
    """Embeddings around a center of each subject, of uneven norms."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((100, WIDTH))
    whose = made.subject_of
    rows = np.stack([centers[whose[template]] for _, template, _ in made.faces])
    rows += noise * random.standard_normal(rows.shape) * np.sqrt(WIDTH / 4)
    rows *= random.uniform(2, 30, (len(rows), 1))
    return Features(rows.astype(np.float32), np.linalg.norm(rows, axis=1).astype(np.float32), {})


# --- The reference: loops over Python numbers ---------------------------------------------------


def pooled(
    made: Drawn,
    rows: np.ndarray,
    *,
    norm: bool = True,
    detector: bool = True,
    out: set = frozenset(),
) -> dict[int, np.ndarray]:
    media: dict[int, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for i, ((name, template, medium), (_, score)) in enumerate(zip(made.faces, made.shapes)):
        row = rows[i].astype(np.float64)
        if not norm:
            row = row / math.sqrt(sum(x * x for x in row))
        if detector:
            row = row * score
        if name not in out:
            media[template][medium].append(row)
    templates = {}
    for template, of_template in media.items():
        total = sum(sum(images) / len(images) for images in of_template.values())
        templates[template] = total / math.sqrt(sum(x * x for x in total))
    return templates


def tar_at_far(scores: list[float], labels: list[int], limit: float) -> float:
    """Try every score as the threshold."""
    genuine = [s for s, label in zip(scores, labels) if label]
    impostor = [s for s, label in zip(scores, labels) if not label]
    best = 0.0
    for threshold in [*scores, math.inf]:
        if sum(s >= threshold for s in impostor) / len(impostor) <= limit:
            best = max(best, sum(s >= threshold for s in genuine) / len(genuine))
    return best


def searches(
    templates: dict[int, np.ndarray], gallery: dict[int, int], probes: dict[int, int]
) -> list[tuple[bool, int, float, float]]:
    """Of each probe: mated, the mate's rank, its score, and the first candidate's score."""
    found = []
    for probe, subject in probes.items():
        candidates = sorted(
            ((float(templates[probe] @ templates[t]), s) for t, s in gallery.items()), reverse=True
        )
        places = [i for i, (_, s) in enumerate(candidates) if s == subject]
        rank = places[0] + 1 if places else 0
        score = candidates[places[0]][0] if places else -2.0
        found.append((bool(places), rank, score, candidates[0][0]))
    return found


def fnir_at_fpir(found: list[tuple[bool, int, float, float]], limit: float) -> float:
    mated = [row for row in found if row[0]]
    alarms = [row[3] for row in found if not row[0]]
    best = 1.0
    for threshold in [-2.0, *(np.nextafter(a, 2) for a in alarms), *alarms]:
        if sum(a >= threshold for a in alarms) / len(alarms) <= limit:
            missed = sum(not (row[1] == 1 and row[2] >= threshold) for row in mated) / len(mated)
            best = min(best, missed)
    return best


# --- Numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("detector", [True, False])
def test_one_to_one_is_that_of_plain_loops(tmp_path: Path, norm: bool, detector: bool) -> None:
    made = drawn()
    write(made, tmp_path / "set", images=False)
    ijb = open_ijb(tmp_path / "set", **OPEN, norm_weights=norm, detector_weights=detector)
    features = features_of(made)
    templates = pooled(made, features.embeddings, norm=norm, detector=detector)
    scores = [float(templates[one] @ templates[other]) for one, other, _ in made.pairs]
    labels = [label for _, _, label in made.pairs]
    result = ijb.judge(features, model="m", asked=QUICK)
    for limit in (0.1, 0.01):
        expected = tar_at_far(scores, labels, limit)
        assert 0.3 < expected < 1  # a set that tells right from wrong
        assert result.figures[f"tar@far={limit:g}"].value == pytest.approx(expected, abs=1e-12)
    assert result.figures["tar@far=1e-06"].value is None  # these pairs cannot show it
    expected = tar_at_far(scores, labels, 1e-4)
    assert ijb.scores(features)["tar@far=0.0001"] == pytest.approx(expected, abs=1e-12)
    settings = result.settings
    assert (settings["norm weighting"], settings["detector-score weighting"]) == (norm, detector)
    assert result.counts["genuine"] == sum(labels)
    assert result.counts["impostor"] == len(labels) - sum(labels)
    assert result.counts["templates"] == len(templates)


@pytest.mark.parametrize("name", ["ijbb", "ijbc"])
def test_one_to_many_is_that_of_plain_loops(tmp_path: Path, name: str) -> None:
    made = drawn(name, subjects=40)
    write(made, tmp_path / "set", images=False)
    ijb = open_ijb(tmp_path / "set", name=name, image_size=SIZE)
    features = features_of(made)
    result = ijb.judge(features, model="m", asked=QUICK)
    templates = pooled(made, features.embeddings)
    first, second, probes = made.lists
    each = [searches(templates, gallery, probes) for gallery in (first, second)]
    for rank in (1, 5, 10):
        shares = [np.mean([0 < r <= rank for m, r, _, _ in found if m]) for found in each]
        assert result.figures[f"rank-{rank}"].value == pytest.approx(np.mean(shares))
        assert result.figures[f"rank-{rank}, gallery 2"].value == pytest.approx(shares[1])
        assert result.curves["cmc"].y[rank - 1] == pytest.approx(np.mean(shares))
        as_one = [0 < r <= rank for _, r, _, _ in searches(templates, first | second, probes)]
        figure = result.figures[f"rank-{rank}, both galleries as one"]
        assert figure.value == pytest.approx(np.mean(as_one))
    assert 0.3 < result.figures["rank-1"].value < 1
    expected = [fnir_at_fpir(found, 0.1) for found in each]
    assert 0 < np.mean(expected) < 1
    assert result.figures["fnir@fpir=0.1"].value == pytest.approx(np.mean(expected))
    assert result.figures["fnir@fpir=0.1, gallery 1"].value == pytest.approx(expected[0])
    assert result.figures["fnir@fpir=0.01"].value is None
    assert "cannot show" in result.figures["fnir@fpir=0.01"].note
    curve = result.curves["fnir"]
    expected = [np.mean([fnir_at_fpir(found, limit) for found in each]) for limit in curve.x]
    assert curve.y == pytest.approx(expected)
    assert ijb.scores(features)["rank-1"] == result.figures["rank-1"].value
    assert result.counts["probes"] == len(probes)


def test_what_is_left_out_or_damaged_leaves_its_template(tmp_path: Path) -> None:
    made = drawn()
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    features = features_of(made)
    whole = next(t for t in made.lists[2] if sum(of == t for _, of, _ in made.faces) == 1)
    out = {name for name, template, _ in made.faces if template == whole}
    partly = next(t for t in made.lists[0] if sum(of == t for _, of, _ in made.faces) > 2)
    out.add(next(name for name, template, _ in made.faces if template == partly))
    templates = pooled(made, features.embeddings, out=out)
    assert whole not in templates
    assert partly in templates
    pairs = [pair for pair in made.pairs if whole not in pair[:2]]
    scores = [float(templates[one] @ templates[other]) for one, other, _ in pairs]
    expected = tar_at_far(scores, [label for _, _, label in pairs], 0.01)
    left = ijb.judge(features, model="m", asked=Asked(draws=0, without=frozenset(out)))
    damaged = {i: "is damaged" for i, (name, _, _) in enumerate(made.faces) if name in out}
    rows = features.embeddings.copy()
    rows[list(damaged)] = 0
    skipped = ijb.judge(Features(rows, features.norms, damaged), model="m", asked=QUICK)
    for result in (left, skipped):
        assert result.figures["tar@far=0.01"].value == pytest.approx(expected, abs=1e-12)
        assert result.counts["templates left out"] == 1
        assert result.counts["pairs left out"] == len(made.pairs) - len(pairs)
        assert result.counts["probes"] == len(made.lists[2]) - 1
    assert skipped.counts["damaged"] == len(out)


def test_leaving_everything_out_is_refused(tmp_path: Path) -> None:
    made = drawn()
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    probes = frozenset(name for name, template, _ in made.faces if template in made.lists[2])
    with pytest.raises(UserError):
        ijb.judge(features_of(made), model="m", asked=Asked(draws=0, without=probes))


def test_groups_are_the_searches_for_their_subjects(tmp_path: Path) -> None:
    made = drawn(subjects=40)
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    features = features_of(made)
    asked = Asked(draws=0, groups={str(s): "even" if s % 4 < 2 else "odd" for s in range(1, 39)})
    result = ijb.judge(features, model="m", asked=asked)
    templates = pooled(made, features.embeddings)
    for group, whole in (("even", (0, 1)), ("odd", (2, 3))):
        probes = {t: s for t, s in made.lists[2].items() if s % 4 in whole and s < 39}
        each = [searches(templates, gallery, probes) for gallery in made.lists[:2]]
        expected = np.mean([np.mean([r == 1 for m, r, _, _ in found if m]) for found in each])
        assert result.groups[group].figures["rank-1"].value == pytest.approx(expected)
        assert result.groups[group].counts["probes"] == len(probes)


@pytest.mark.slow
def test_intervals_hold_the_figure_and_shrink_with_more_people(tmp_path: Path) -> None:
    widths = []
    for subjects in (20, 90):
        made = drawn(subjects=subjects)
        ijb = open_ijb(write(made, tmp_path / str(subjects), images=False), **OPEN)
        result = ijb.judge(features_of(made), model="m", asked=Asked(draws=200))
        figure = result.figures["rank-1"]
        assert figure.low < figure.value < figure.high
        widths.append(figure.high - figure.low)
        band = result.curves["cmc"]
        assert all(low <= y <= high for low, y, high in zip(band.low, band.y, band.high))
        again = ijb.judge(features_of(made), model="m", asked=Asked(draws=200))
        assert again.figures == result.figures
    assert widths[1] < widths[0]


def test_models_are_compared_by_the_same_pairs_and_searches(tmp_path: Path) -> None:
    made = drawn(subjects=40)
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    features = {"good": features_of(made, noise=0.4), "poor": features_of(made, noise=0.9)}
    asked = Asked(draws=100)
    results = {name: ijb.judge(one, model=name, asked=asked) for name, one in features.items()}
    compared = {one.figure: one for one in ijb.compare(features, asked=asked)}
    assert {"rank-1", "rank-5", "rank-10", "fnir@fpir=0.1"} <= set(compared)
    for name, one in compared.items():
        good, poor = (results[model].figures[name].value for model in ("good", "poor"))
        assert one.difference.value == pytest.approx(good - poor)
    assert compared["rank-1"].verdict.endswith("shown to be better")


def test_a_network_that_gives_all_faces_one_embedding_finds_nobody(tmp_path: Path) -> None:
    made = drawn()
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    row = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    count = len(made.faces)
    features = Features(np.tile(row, (count, 1)), np.ones(count, np.float32), {})
    assert ijb.judge(features, model="m", asked=QUICK).figures["rank-1"].value < 0.2


# --- Images -------------------------------------------------------------------------------------


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


# --- Bad input ----------------------------------------------------------------------------------


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


def test_without_the_lists_of_one_to_many_templates_are_the_clusters(tmp_path: Path) -> None:
    made = drawn()
    write(made, tmp_path, images=False)
    for path in (tmp_path / "meta").glob("*.csv"):
        path.unlink()
    result = open_ijb(tmp_path, **OPEN).judge(features_of(made), model="m", asked=Asked(draws=5))
    assert "rank-1" not in result.figures
    assert result.settings["clusters"] == "templates, since subjects are not known"
    assert str(result.interval["clusters"]).startswith("templates, as it is not known who they")


def test_an_image_may_be_of_two_templates(tmp_path: Path) -> None:
    made = drawn()
    (name, template, medium), shape = made.faces[0], made.shapes[0]
    probe = next(t for t in made.lists[2] if t != template)
    made.faces.append((name, probe, medium))
    made.shapes.append(shape)
    ijb = open_ijb(write(made, tmp_path / "set", images=False), **OPEN)
    assert len(ijb.images) == len(made.faces) - 1
    features = features_of(made)
    features = Features(features.embeddings[:-1], features.norms[:-1], {})
    templates = pooled(made, np.concatenate([features.embeddings, features.embeddings[:1]]))
    scores = [float(templates[one] @ templates[other]) for one, other, _ in made.pairs]
    expected = tar_at_far(scores, [label for _, _, label in made.pairs], 0.01)
    result = ijb.judge(features, model="m", asked=QUICK)
    assert result.figures["tar@far=0.01"].value == pytest.approx(expected, abs=1e-12)
    change(tmp_path / "set" / "meta" / "ijbc_name_5pts_score.txt", 1, f"{name}" + " 5.5" * 11)
    with pytest.raises(IjbFilesError, match=r"1.png stands twice, with other landmarks"):
        open_ijb(tmp_path / "set", **OPEN)
