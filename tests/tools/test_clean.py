"""clean: what it writes is what training takes; damage is said; the .rec stays as it is."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from facestream import USER_ERROR_EXIT_CODE
from models import create_model
from pipeline.identity_map import read_identity_map
from pipeline.record_filter import read_filter
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from synthetic import encode_jpeg, render
from tests.commands import call
from tests.evaluation.people.crowd import crowd
from tools import clean as tool
from tools.clean import main

SIZE, PEOPLE, IMAGES, DAMAGED = 64, 40, 6, 50


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a model and a training set: image 7 has a wrong label, labels 3 and 40 are one
    person, image 120 is also under label 11, and one image is damaged."""
    folder = tmp_path_factory.mktemp("clean")
    faces = [encode_jpeg(render(k, 0, size=SIZE)) for k in range(PEOPLE * IMAGES)]
    faces[DAMAGED] = faces[DAMAGED][:300]
    labels = np.repeat(np.arange(PEOPLE), IMAGES)
    labels[7] = 30
    labels[3 * IMAGES : 3 * IMAGES + 3] = PEOPLE
    with RecordWriter(folder / "train.rec") as writer:
        for k, face in enumerate([*faces, faces[120]]):
            label = 11 if k == len(faces) else labels[k]
            writer.write(pack_image(face, float(label), k))
    torch.manual_seed(0)
    network = create_model("iresnet10", embedding_dim=8, image_size=SIZE, width=0.25)
    torch.save(network.state_dict(), folder / "model.pth")
    return folder


@pytest.fixture
def told_apart(monkeypatch):
    """The model's embeddings, which tell nobody apart, become made-up ones that do."""
    rows, _ = crowd(PEOPLE, IMAGES)
    rows = np.concatenate([rows, rows[120:121]])
    real = tool.extract

    def extract(*arguments, **options):
        features = real(*arguments, **options)
        damaged = ~np.asarray(features.embeddings).any(1)
        return replace(features, embeddings=np.where(damaged[:, None], 0, rows))

    monkeypatch.setattr(tool, "extract", extract)


def run(there, *arguments: object, output: str = "out"):
    model = there / "model.pth"
    return call(main, there, "--model", model, "-o", there / output, "--device", "cpu", *arguments)


def test_training_takes_what_is_written(there, told_apart):
    before = (there / "train.rec").read_bytes()
    done = run(there)
    assert done.returncode == 0, done.stderr
    offset = open_index(there).records["offset"][DAMAGED]
    assert f"damaged       1 images are passed over: record {offset} " in done.stdout
    assert f"train with    data.leave_out={there / 'out/leave_out.txt'} data.ident" in done.stdout
    index = open_index(there)
    (kept,) = read_filter(there / "out/leave_out.txt", [index])
    gone = sorted(set(range(len(index))) - set(kept.tolist()))
    assert gone == [7, PEOPLE * IMAGES]
    (labels,) = read_identity_map(there / "out/identity_map.csv", [index])
    assert labels[3] == labels[PEOPLE]
    assert len(np.unique(labels)) == PEOPLE
    assert (there / "train.rec").read_bytes() == before


def test_a_table_says_what_was_found_and_why(there, told_apart):
    run(there)
    with (there / "out/found.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["found"], row["left_out"], row["label"], row["other_label"]) for row in rows]
    assert found[0] == ("wrong label", "yes", "30", "1")
    assert sorted(found[1:]) == [
        ("labels of one person", "no", "3", "40"),
        ("photograph of two people", "no", "20", "11"),
        ("photograph of two people", "yes", "11", "20"),
        ("wrong label", "yes", "11", "20"),
    ]
    assert float(rows[0]["own_cosine"]) < float(rows[0]["other_cosine"])
    offsets = open_index(there).records["offset"]
    assert int(rows[0]["record"]) == offsets[7]


@pytest.mark.parametrize("options", [(), ("--no-pictures",)])
def test_a_page_shows_faces_unless_they_are_not_wanted(there, told_apart, options):
    run(there, *options, output="page")
    page = (there / "page/clean.html").read_text()
    assert ("<img" in page) == (not options)
    assert "Wrong labels" in page
    assert "labels 3 and 40" in page


def test_a_model_that_tells_nobody_apart_leaves_everything_as_it_is(there):
    """But for the bytes that are there twice, which need no model."""
    done = run(there, output="useless")
    assert done.returncode == 0, done.stderr
    with (there / "useless/found.csv").open() as file:
        found = {row["found"] for row in csv.DictReader(file)}
    assert "separates these people too badly" in done.stdout
    assert "wrong label" not in found
    assert "photograph of two people" in found


def test_what_is_missing_is_refused_in_a_line(there, tmp_path):
    for arguments, complaint in [
        ([there, "--model", tmp_path / "none.pth"], "none.pth does not exist"),
        ([tmp_path / "none.rec", "--model", there / "model.pth"], "none.rec"),
    ]:
        done = call(main, *arguments, "-o", tmp_path / "out", "--device", "cpu")
        assert done.returncode == USER_ERROR_EXIT_CODE
        assert done.stderr.startswith("clean: ")
        assert complaint in done.stderr
