"""forget: the list that leaves a person out, and all that was made of the sets that they are in."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.result import Evaluation, Figure, HardPair, Model, Result
from evaluation.translation import Translator
from facestream import USER_ERROR_EXIT_CODE
from pipeline import whole_file
from pipeline.record_filter import read_filter
from pipeline.records.index import open_index
from pipeline.records.manifest import write_manifest
from tests.commands import call
from tests.training import tiny
from tools import forget, predict
from tools.export_weights import export_safetensors
from training.distributed import join_world, leave_world
from training.frozen.translator_file import TranslatorFile, write_translator
from training.loop import Trainer
from training.step.precision import choose_precision

NAMES = ["anna", "bob", "carl", "dora", "eva", "finn", "gina", "hans", "ida", "jens"]
LABEL = 3  # dora's
OPTIONS = ("--device", "cpu", "--precision", "fp32")
CPU = torch.device("cpu")

pytestmark = pytest.mark.slow


def manifest(folder: Path, names: list[str]) -> Path:
    rec = folder / "train.rec"
    write_manifest(rec, source=[], options={}, names=names, images=70, kinds={})
    return rec


def train(folder: Path, name: str, data: Path, *, begin: str = "", leave_out: str = "") -> Path:
    """A run that has saved a checkpoint, and no step more."""
    config = tiny.config(data, folder / "runs" / name)
    config = replace(
        config,
        run=replace(config.run, init_from=begin),
        data=replace(config.data, leave_out=leave_out),
    )
    trainer = Trainer(config, join_world("cpu"), precision=choose_precision(CPU, "fp32"))
    trainer.save()
    trainer.wait_for_checkpoint()
    leave_world()
    return folder / "runs" / name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two sets, and what was made of them: of `data` all but what is called `other` or `clean`."""
    folder = tmp_path_factory.mktemp("made")
    data, other = (tiny.write_set(folder / name) for name in ("data", "other"))
    content = bytearray((other / "train.rec").read_bytes())
    content[-8] ^= 1  # of an image: another file
    (other / "train.rec").write_bytes(content)
    manifest(data, NAMES)
    manifest(other, [name.upper() for name in NAMES])
    (folder / "out.txt").write_text(f"identity {LABEL}\nidentity 1\n")
    one = train(folder, "one", data)
    train(folder, "other", other)
    train(folder, "clean", data, leave_out=str(folder / "out.txt"))
    train(folder, "after", other, begin=f"{one}")
    train(folder, "last", other, begin=str(folder / "runs/after"))
    export_safetensors(one, folder / "runs/exported")
    export_safetensors(folder / "runs/other", folder / "runs/other_exported")
    (folder / "runs/one/tensorboard").mkdir(exist_ok=True)
    weights = str(folder / "runs/exported/model.safetensors")
    for name in ("data", "other"):
        out = folder / "runs" / f"{name}_rows"
        ended = call(predict.main, weights, folder / name, "-o", out, "--batch", 16, *OPTIONS)
        assert ended.returncode == 0, ended.stderr
    (data / "train.0123.fsemb").write_bytes(b"rows")
    results(folder / "runs/by_set", set_name="data+blur")
    results(folder / "runs/by_name", pair=HardPair(0.9, "dora/1.jpg", "zoe/1.jpg"))
    results(folder / "runs/by_model", source=f"{one}@best")
    results(folder / "runs/by_export", source=weights)
    train(folder, "from_export", other, begin=weights)
    results(folder / "runs/other_report")
    pages(folder / "runs/leaks", "overlap", training=data)
    pages(folder / "runs/other_leaks", "overlap", training=other)
    pages(folder / "runs/cleaned", "clean", training=data)
    translator(folder / "runs/t.safetensors", fitted_on=str(data))
    translator(folder / "runs/other_t.safetensors", fitted_on=str(other))
    return folder


def results(folder: Path, *, set_name: str = "lfw", source: str = "m.pth", pair=None) -> None:
    (folder / "embeddings").mkdir(parents=True)
    figures = {"accuracy": Figure(0.9)}
    hardest = {"false accepts": [pair or HardPair(0.9, "zoe/1.jpg", "yan/1.jpg")]}
    result = Result("m", set_name, "verification/1", {}, {}, "accuracy", figures, hardest=hardest)
    model = Model("m", source, "0", "iresnet10", 16, 32, "", "float32")
    (folder / "results.json").write_text(Evaluation([model], [result]).as_json())
    (folder / "report.html").write_text("")
    for name in ("0", "1"):
        (folder / "embeddings" / f"{name}.embeddings").write_bytes(b"")


def pages(folder: Path, kind: str, *, training: Path) -> None:
    folder.mkdir()
    content = open_index(training).file.fingerprint
    (folder / f"{kind}.html").write_text("")
    if kind == "overlap":
        said = {"training": {"path": "moved.rec", "fingerprint": content}}
        (folder / "overlap.json").write_text(json.dumps(said))
    else:
        line = f"# 3 images of {str(training / 'train.rec')!r}\n"
        (folder / "leave_out.txt").write_text(line)


def translator(path: Path, *, fitted_on: str) -> None:
    fitted = Translator("rotation", np.eye(3, dtype=np.float32), np.zeros(3, np.float32))
    write_translator(
        path, TranslatorFile(fitted, "a", "b", "a.pth", "b.pth", True, fitted_on, 9, 9)
    )


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    return tmp_path


def run(*arguments: object, out: Path | None = None, data: tuple[str, ...] = ("data",)):
    given = [word for one in data for word in ("--data", one)]
    written = ("-o", out) if out else ()
    return call(forget.main, *arguments, *given, *written, *OPTIONS)


def listed(text: str) -> dict[str, str]:
    """What is said of a path."""
    kinds = ("train again", "delete", "look at")
    lines = [(kind, line) for line in text.splitlines() for kind in kinds if line.startswith(kind)]
    return {line[14:].partition(": ")[0]: kind for kind, line in lines}


def test_everything_that_was_made_of_the_set_is_listed_and_nothing_else(there):
    ended = run("dora", out=there / "list.txt")
    assert ended.returncode == 0, ended.stderr
    assert f"found         data/train.rec: label {LABEL}, named dora, 7 images" in ended.stdout
    assert (there / "list.txt").read_text() == f"identity {LABEL}\n"
    again, delete = "train again", "delete"
    checkpoint = "checkpoints/step_000000000"
    cache = str(Path("data/train.0123.fsemb").resolve())
    assert listed(ended.stdout) == {
        f"runs/one/{checkpoint}": again,
        f"runs/after/{checkpoint}": again,
        f"runs/last/{checkpoint}": again,
        f"runs/from_export/{checkpoint}": again,
        "runs/exported/model.safetensors": again,
        "runs/t.safetensors": again,
        cache: delete,
        **{
            f"runs/{run}/{name}": delete
            for run in ("one", "after", "last", "from_export")
            for name in ("identities.json", "tensorboard")
            if Path(f"runs/{run}/{name}").exists()
        },
        "runs/data_rows": delete,
        **{
            f"runs/{name}/{file}": delete
            for name in ("by_set", "by_name", "by_model", "by_export")
            for file in ("results.json", "report.html", "embeddings/*.embeddings")
        },
        "runs/leaks/overlap.json": delete,
        "runs/leaks/overlap.html": delete,
        "runs/cleaned/clean.html": delete,
        "runs/other_report/embeddings/*.embeddings": "look at",
    }
    assert (
        "other_report/embeddings/*.embeddings: 2 files, embeddings that a command" in ended.stdout
    )
    assert "runs/one/tensorboard" in ended.stdout
    assert "runs/other" not in ended.stdout.replace("runs/other_report/embeddings", "")
    assert "runs/clean/" not in ended.stdout
    assert "Nothing was deleted" in ended.stdout
    assert Path(cache).exists()


@pytest.mark.parametrize("names_in", ["identities.txt", "names.txt"])
def test_embeddings_of_an_archive_are_known_by_their_labels_and_by_inner_folders(names_in, there):
    """Rows of a parquet file are named by number, a .zip's may lie in a folder of all people."""
    rows = there / "rows"
    shutil.copytree("runs/other_rows", rows)
    given = ("dora", "--runs", there)
    assert str(rows) not in listed(run(*given, out=there / "list.txt").stdout)
    count = len((rows / "names.txt").read_text().splitlines())
    lines = ["photos/dora/1.jpg", *(f"photos/x/{n}.jpg" for n in range(1, count))]
    (rows / names_in).write_text(
        "\n".join(["dora"] if names_in == "identities.txt" else lines) + "\n"
    )
    assert listed(run(*given, out=there / "list.txt").stdout)[str(rows)] == "delete"


def test_a_run_whose_list_is_not_as_it_was_is_to_be_looked_at(there):
    """Its list leaves dora out now, and somebody else when it was trained."""
    content = Path("out.txt").read_text()
    try:
        Path("out.txt").write_text(f"identity {LABEL}\n")
        changed = run("dora", out=there / "list.txt")
        Path("out.txt").unlink()
        gone = run("dora", out=there / "list.txt")
    finally:
        Path("out.txt").write_text(content)
    kept = [
        name for name in ("identities.json", "tensorboard") if Path("runs/clean", name).exists()
    ]
    assert kept
    changes = {"is not as it was when it was trained": changed, "does not exist": gone}
    for why, ended in changes.items():
        (line,) = (one for one in ended.stdout.splitlines() if "runs/clean/checkpoints" in one)
        assert line.startswith("look at       ")
        assert why in line
        assert {listed(ended.stdout)[f"runs/clean/{name}"] for name in kept} == {"look at"}
    assert "runs/clean/checkpoints" in run("eva", out=there / "list.txt").stdout  # not left out


def test_the_list_is_what_training_leaves_out(there):
    run("dora", "label:5", out=there / "list.txt")
    index = open_index("data")
    (kept,) = read_filter(there / "list.txt", [index])
    assert sorted(set(index.records["label"].tolist()) - {3, 5}) == sorted(
        set(index.records["label"][kept].tolist())
    )


def test_a_list_that_is_there_goes_on_and_names_nobody_twice(there):
    out = there / "list.txt"
    out.write_text("# mine\nidentity  3 # a comment\nrecord 0")
    run("dora", "anna", out=out)
    assert out.read_text() == "# mine\nidentity  3 # a comment\nrecord 0\nidentity 0\n"
    assert "dora" not in out.read_text()


def test_of_several_sets_the_list_names_the_file(there):
    out = there / "list.txt"
    ended = run("dora", "DORA", out=out, data=("data", "other"))
    assert ended.returncode == 0, ended.stderr
    assert out.read_text() == "data/train.rec identity 3\nother/train.rec identity 3\n"
    kept = read_filter(out, [open_index("data"), open_index("other")])
    assert [len(one) for one in kept] == [63, 63]


def test_images_in_a_folder_are_to_be_deleted_and_no_list_is_written(there):
    for name in ("dora/1.png", "dora/2.png", "eva/1.png"):
        path = there / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(path)
    ended = run("dora", out=there / "list.txt", data=(str(there / "folder"),))
    assert f"delete        {there}/folder/dora: their images" in ended.stdout
    assert not (there / "list.txt").exists()


@pytest.mark.parametrize("kind", ["rec", "folder"])
def test_a_photo_lists_who_is_most_like_it_and_chooses_nobody(kind, there):
    index = open_index("data")
    places = np.flatnonzero(index.records["label"] == LABEL).tolist()
    photo = there / "photo.png"
    photo.write_bytes(bytes(index.image(places[0])))
    data = "data"
    if kind == "folder":
        data = str(there / "folder")
        for place, label in enumerate(index.records["label"].tolist()):
            path = there / "folder" / NAMES[label] / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(index.image(place)))
        (there / "folder/a_stranger.png").write_bytes(photo.read_bytes())
    model = ("--model", "runs/exported/model.safetensors", "--batch", 16, "--top", 3)
    ended = run("--photo", photo, *model, out=there / "list.txt", data=(data,))
    assert ended.returncode == 0, ended.stderr
    first, *others = ended.stdout.splitlines()
    assert first.startswith("1.0000        ")
    assert "named dora, 7 images" in first
    assert len(others) == 3
    assert "nobody was chosen" in others[-1]
    assert not (there / "list.txt").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("dor",), "'dor' is in none of data/train.rec. Names like it: dora. Give a name"),
        (("label:99",), "'label:99' is in none of"),
        (("label:x",), "expected a number after label:"),
        (("label:²",), "expected a number after label:"),
        ((), "expected PERSON"),
        (("dora", "--photo", "x.png", "--model", "m"), "one of both"),
        (("--photo", "x.png"), "go together"),
        (("--photo", "none.png", "--model", "runs/exported/model.safetensors"), "does not exist"),
        (("dora", "--runs", "none"), "--runs none does not exist"),
        (("dora", "--runs", "data/train.rec"), "is a file"),
        (("dora", "--data", "none.rec"), "--data none.rec does not exist"),
        (("dora", "--data", "runs/exported/model.safetensors"), "model.safetensors"),
        (("dora", "--data", "data/empty"), "has no folders in it"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(given, message, there):
    Path("data/empty").mkdir(exist_ok=True)
    ended = run(*given, out=there / "list.txt")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert message in ended.stderr
    assert not (there / "list.txt").exists()


def test_without_a_list_nobody_is_forgotten(there):
    ended = run("dora")
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "expected -o leave_out.txt" in ended.stderr


def test_a_full_disk_leaves_the_old_list(there, monkeypatch):
    out = there / "list.txt"
    out.write_text("identity 1\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_file, "sync", full)
    ended = run("dora", out=out)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "list.txt finds no room on the disk" in ended.stderr
    assert [path.name for path in there.iterdir()] == ["list.txt"]
    assert out.read_text() == "identity 1\n"


def test_files_that_are_damaged_or_of_others_are_passed_over(there):
    for name, content in {
        "about.json": b"{",
        "a/about.json": b'{"facts": 3, "step": 0}',
        "b/about.json": b'{"dimension": []}',
        "results.json": b"[]",
        "overlap.json": b'{"training": 3}',
        "clean.html": b"",
        "x.safetensors": b"\xff" * 30,
        "x.onnx": b"\x80" * 30,
        "x.pt2": b"",
    }.items():
        path = there / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    ended = run("dora", "--runs", there / "odd", out=there / "list.txt")
    assert ended.returncode == 0, ended.stderr
    assert set(listed(ended.stdout)) <= {
        str(there / "odd/a"),
        str(Path("data/train.0123.fsemb").resolve()),
    }
