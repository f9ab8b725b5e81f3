"""compat: two models on the same pairs, and what a translator from one to the other restores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.compatibility import CROSSED, NEW, OLD, TRANSLATED
from evaluation.pair_set import write_bin
from evaluation.result import read_evaluation
from facestream import USER_ERROR_EXIT_CODE
from tests.commands import call
from tests.tools.judging import png, write_model, write_set
from tools import compare, compat, predict
from tools.pack_rec import main as pack_main
from training.frozen.translator_file import read_translator

OPTIONS = ("--batch", 16, "--device", "cpu", "--precision", "fp32")
DRAWS = ("--draws", 20)

pytestmark = pytest.mark.slow


def write_turned(path: Path, source: Path) -> Path:
    """A network that makes the embeddings of another, turned: its last layer is."""
    tensors = torch.load(source, weights_only=True)
    width = len(tensors["fc.bias"])
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    tensors["fc.weight"], tensors["fc.bias"] = (
        turn @ tensors["fc.weight"],
        turn @ tensors["fc.bias"],
    )
    torch.save(tensors, path)
    return path


def write_people(folder: Path, people: range, *, each: int = 3) -> Path:
    for person in people:
        for k in range(each):
            path = folder / f"p{person:02}/{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(2 * (100 * k + person)))
    return folder


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to be in: a model, the same turned, a set, and other people to fit on."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "old.pth", 0)
    write_turned(tmp_path / "new.pth", tmp_path / "old.pth")
    write_set(tmp_path / "small.bin")
    write_people(tmp_path / "people", range(16))
    return tmp_path


def run(*arguments: object, models=("old.pth", "new.pth"), sets=("small.bin",)):
    given = (*models, "--sets", *sets, "-o", "out", *arguments, *OPTIONS)
    return call(compat.main, *given, *(() if "--draws" in arguments else DRAWS))


def figures(name: str) -> dict[str, float]:
    """By combination."""
    found = read_evaluation("out/results.json")
    return {result.model: result.figures[name].value for result in found.results}


def test_a_turned_network_is_another_space_until_it_is_translated(there):
    ended = run("--fit", "people")
    assert ended.returncode == 0, ended.stderr
    assert "chosen on 3 of them, who were held out" in ended.stdout
    written = sorted(path.name for path in Path("out").iterdir())
    assert written == ["embeddings", "results.json", "results.md", "translator.safetensors"]
    auc = figures("auc")
    assert list(auc) == [TRANSLATED, CROSSED, NEW, OLD]
    assert auc[TRANSLATED] == pytest.approx(auc[NEW], abs=1e-6)
    assert auc[OLD] == pytest.approx(auc[NEW], abs=1e-6)
    assert auc[CROSSED] < auc[NEW] - 0.1
    assert f"accuracy: {TRANSLATED} against {NEW}: nothing is judged otherwise" in ended.stdout
    found = read_translator(Path("out/translator.safetensors"))
    assert found.translator.kind == "rotation"
    assert (found.images, found.people, found.flip) == (48, 16, True)
    assert (found.old_model, found.new_model) == ("old.pth", "new.pth")
    assert found.old != found.new
    assert "new × translated old" in Path("out/results.md").read_text()


def test_without_images_to_fit_on_there_is_no_translator(there):
    ended = run("--draws", 0)
    assert ended.returncode == 0, ended.stderr
    assert list(figures("auc")) == [CROSSED, NEW, OLD]
    assert not Path("out/translator.safetensors").exists()
    assert read_evaluation("out/results.json").comparisons == []


def test_models_of_two_sizes_meet_only_by_a_translator(there):
    from models import create_model

    torch.manual_seed(3)
    network = create_model("iresnet10", embedding_dim=12, image_size=32, width=0.25)
    torch.save(network.state_dict(), "wide.pth")
    ended = run("--fit", "people", models=("old.pth", "wide.pth"))
    assert ended.returncode == 0, ended.stderr
    assert "differ in size: new × old cannot be compared" in ended.stdout
    assert list(figures("auc")) == [TRANSLATED, NEW, OLD]
    assert read_translator(Path("out/translator.safetensors")).translator.matrix.shape == (8, 12)


@pytest.mark.parametrize("kind", ["rec", "bin", "some"])
def test_images_of_every_kind_are_fitted_on(kind, there):
    """Of a .bin, whose genuine pairs say who is one person; and some people of many."""
    given = ["--fit", "people"]
    if kind == "rec":
        assert call(pack_main, "people", "packed").returncode == 0
        given = ["--fit", "packed"]
    if kind == "bin":
        images = [png(2 * (100 * k + person)) for person in range(16) for k in (0, 1)]
        write_bin("people.bin", images, [person != 3 for person in range(16)])
        given = ["--fit", "people.bin"]
    if kind == "some":
        given += ["--images", 41]
    ended = run(*given)
    assert ended.returncode == 0, ended.stderr
    count, people = {"rec": (48, 16), "bin": (32, 17), "some": (39, 13)}[kind]
    assert f"fitted        on {count} images of {people} people" in ended.stdout
    auc = figures("auc")
    assert auc[TRANSLATED] == pytest.approx(auc[NEW], abs=1e-6)


def test_people_who_are_in_the_sets_too_are_warned_of(there):
    ended = run("--fit", "people", sets=("people:people",))
    assert ended.returncode == 0, ended.stderr
    assert "warning       16 people of people are in the sets, too, such as p00" in ended.stdout
    write_people(there / "others", range(20, 28))
    others = run("--fit", "people", sets=("people:others",))
    assert "in the sets" not in others.stdout
    unknown = run("--fit", "people")
    assert "whether people shows people of the sets is not known" in unknown.stdout


def test_a_damaged_image_is_left_out_where_it_may_be(there):
    Path("people/p03/1.png").write_bytes(png(1)[:99])
    refused = run("--fit", "people")
    assert refused.returncode == USER_ERROR_EXIT_CODE
    assert "p03/1.png" in refused.stderr
    ended = run("--fit", "people", "--skip-damaged")
    assert "damaged       1 images of people are left out" in ended.stdout
    assert "on 47 images of 16 people" in ended.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("old.pth", "old.pth")}, "are one network, of the space"),
        ({"sets": ("1n:searched",)}, "is no set of pairs"),
        ({"sets": ("none.bin",)}, "none.bin does not exist"),
        ({"given": ("--fit", "none")}, "--fit none does not exist"),
        ({"given": ("--fit", "few")}, "found 4 people to fit a translator on, expected 10"),
        ({"given": ("--fit", "empty")}, "empty holds no images"),
        ({"given": ("--fit", "broken.bin")}, "broken.bin"),
        ({"models": ("old.pth", "broken.bin")}, "broken.bin"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(change, message, there):
    write_people(there / "few", range(4))
    for role in ("gallery", "probe"):
        write_people(there / "searched" / role, range(3))
    Path("empty").mkdir()
    Path("broken.bin").write_bytes(b"\x80\x04broken")
    ended = run(*change.pop("given", ()), **change)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert message in ended.stderr
    assert not Path("out/translator.safetensors").exists()
    assert not Path("out/results.json").exists()


@pytest.fixture
def enrolled(there):
    """A folder of the old model's, and one of the new model's."""
    for model in ("old", "new"):
        ended = call(predict.main, f"{model}.pth", "people", "-o", f"by_{model}", *OPTIONS)
        assert ended.returncode == 0, ended.stderr
    assert run("--fit", "people").returncode == 0
    return there


def run_compare(*arguments: object, model: str = "new.pth"):
    return call(compare.main, model, *arguments, *OPTIONS)


TRANSLATOR = ("--translator", "out/translator.safetensors")


def test_a_new_photo_is_looked_up_among_old_embeddings(enrolled):
    given = ("--identify", "people/p05/1.png", "--predicted", "by_old", "--top", 1)
    refused = run_compare(*given)
    assert refused.returncode == USER_ERROR_EXIT_CODE
    assert "embeddings of two networks cannot be compared. tools/compat.py --fit" in refused.stderr
    ended = run_compare(*given, *TRANSLATOR)
    assert ended.returncode == 0, ended.stderr
    assert "cosine        1.0000" in ended.stdout
    assert "no decision: the translator has no thresholds" in ended.stdout


def test_pairs_of_a_new_and_an_old_folder_are_compared(enrolled):
    names = Path("by_old/names.txt").read_text().split()
    Path("pairs.csv").write_text("".join(f"{name},{name}\n" for name in names))
    given = ("--pairs", "pairs.csv", "--predicted", "by_new", "--predicted", "by_old")
    assert "cannot be compared" in run_compare(*given).stderr
    ended = run_compare(*given, *TRANSLATOR, "-o", "scores.csv")
    assert ended.returncode == 0, ended.stderr
    scores = np.genfromtxt("scores.csv", delimiter=",", skip_header=1)[:, 2]
    assert scores == pytest.approx(np.ones(len(names)), abs=1e-4)


def test_a_translator_with_thresholds_decides(enrolled):
    path = Path("out/translator.safetensors")
    content = path.read_bytes()
    point = {"set": "x", "fmr": 0.001, "threshold": 0.5, "low": None, "high": None}
    point |= {"genuine": 9, "impostor": 9000, "flip": True}
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    said = json.loads(header["__metadata__"]["facestream.translator"]) | {"points": [point]}
    header["__metadata__"]["facestream.translator"] = json.dumps(said)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    name = "p05/1.png"
    ended = run_compare(name, name, "--predicted", "by_new", "--predicted", "by_old", *TRANSLATOR)
    assert "cosine        1.0000, same" in ended.stdout
    assert "decision      same from a cosine of 0.500" in ended.stdout


@pytest.mark.parametrize(
    ("given", "model", "message"),
    [
        (("--predicted", "by_new"), "old.pth", "It leads the other way: name the newer model"),
        (("--predicted", "by_old"), "third.pth", "and the model named has the space"),
        (("--predicted", "by_third"), "new.pth", "translates from"),
        (("--predicted", "by_old"), "new.pth", "all embeddings are of the old model"),
        ((), "new.pth", "--translator is for --predicted"),
    ],
)
def test_a_translator_that_does_not_fit_is_refused(given, model, message, enrolled):
    write_model(enrolled / "third.pth", 7)
    call(predict.main, "third.pth", "people", "-o", "by_third", *OPTIONS)
    name = "p05/1.png" if given else "people/p05/1.png"
    ended = run_compare(name, name, *given, *TRANSLATOR, model=model)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert message in ended.stderr


def test_a_translator_that_nothing_needs_is_said(enrolled):
    ended = run_compare("p05/1.png", "p05/1.png", "--predicted", "by_new", *TRANSLATOR)
    assert ended.returncode == 0, ended.stderr
    assert "--translator is not needed" in ended.stdout
    other = run_compare("a", "b", "--predicted", "by_old", *TRANSLATOR, "--no-flip")
    assert other.returncode == USER_ERROR_EXIT_CODE
    assert "leave out --no-flip" in other.stderr
