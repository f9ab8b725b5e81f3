"""A folder for the Hugging Face Hub: what upload_folder takes, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.bad_disk import break_disk
from tests.models.small import trained
from training.frozen.card import Card, OperatingPoint, TrainingData, read_card, write_card
from training.shipping.hub_folder import HubFolderError, prepare

CARD = Card(
    network="iresnet10",
    embedding_dim=24,
    input="32,rgb,-1..1,nchw",
    precision="float32",
    digest="d",
    space="one",
    points=[OperatingPoint("lfw", 0.001, 0.31, 0.29, 0.33, 3000, 3000, True)],
    scores={"lfw": {"accuracy": 0.987, "tar@far=0.001": 0.95}},
    data=[TrainingData("ours", "a studio", "cc-by-nc-4.0"), TrainingData("more", "", "mit")],
)


def file(folder: Path, name: str = "model.safetensors", card: Card | None = CARD) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {key: one.contiguous() for key, one in trained("iresnet10").state_dict().items()}
    save_file(tensors, folder / name)
    if card:
        write_card(folder / name, card)
    return folder / name


def header(page: str) -> dict[str, Any]:
    return yaml.safe_load(page.split("---\n")[1])


def test_the_folder_says_what_the_hub_wants_to_know(tmp_path):
    path, folder = file(tmp_path / "out"), tmp_path / "hub" / "face"
    made = prepare([path], folder)
    names = ["model.safetensors", "README.md", "config.json", ".gitattributes"]
    assert made == [folder / name for name in names]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    assert list(folder.parent.iterdir()) == [folder], "nothing is left beside it"
    assert (folder / "model.safetensors").read_bytes() == path.read_bytes()
    known = header((folder / "README.md").read_text())
    assert (known["license"], known["library_name"]) == ("cc-by-nc-4.0", "facestream")
    assert known["tags"] == ["face-recognition", "iresnet10"]
    (result,) = known["model-index"][0]["results"]
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        "accuracy": 0.987,
        "tar@far=0.001": 0.95,
        "threshold@fmr=0.001": 0.31,
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["embedding_dim"]) == (["iresnet10"], 24)
    assert (folder / ".gitattributes").read_text() == (
        "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    )


def test_the_hub_s_own_library_reads_the_page(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    page = prepare([file(tmp_path / "out")], tmp_path / "hub")[1]
    data = hub.ModelCard.load(page).data
    assert {one.metric_type: one.metric_value for one in data.eval_results}["accuracy"] == 0.987


def test_the_page_that_lies_beside_the_file_is_taken_with_the_card_s_numbers(tmp_path):
    path = file(tmp_path / "out")
    own = "---\nlicense: mit\ntags:\n- face-recognition\n---\n# Mine\n\nWords of mine.\n"
    (tmp_path / "out" / "README.md").write_text(own)
    text = (prepare([path], tmp_path / "hub")[1]).read_text()
    assert "Words of mine." in text
    assert "| lfw | 0.001 | 0.3100 |" in text
    assert header(text)["license"] == "mit"
    assert (tmp_path / "out" / "README.md").read_text() == own


def test_an_onnx_file_is_shown_with_what_runs_it(tmp_path):
    pytest.importorskip("onnx")
    from training.saving.reading import open_weights
    from training.shipping.export import export
    from training.shipping.shipped import Form

    weights = file(tmp_path / "out")
    path = tmp_path / "out" / "x.onnx"
    export(open_weights(weights), path, form=Form())
    write_card(weights, replace(CARD, space=read_card(path).space))
    folder = tmp_path / "hub"
    prepare([path, weights], folder)
    page = (folder / "README.md").read_text()
    assert header(page)["library_name"] == "onnx"
    assert 'InferenceSession("x.onnx")' in page
    assert (folder / ".gitattributes").read_text().count("filter=lfs") == 2


def test_what_cannot_be_one_folder_is_refused(tmp_path):
    first = file(tmp_path / "a")
    other = file(tmp_path / "b", "other.safetensors", replace(CARD, space="another"))
    with pytest.raises(HubFolderError, match="are of different models"):
        prepare([first, other], tmp_path / "hub")
    with pytest.raises(HubFolderError, match="two files have the same name"):
        prepare([first, file(tmp_path / "c")], tmp_path / "hub")
    with pytest.raises(HubFolderError, match=r"has no card: expected .*evaluated with --card"):
        prepare([file(tmp_path / "d", card=None)], tmp_path / "hub")
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(HubFolderError, match=r"x\.pt has no card"):
        prepare([tmp_path / "x.pt"], tmp_path / "hub")
    with pytest.raises(HubFolderError, match="a is not empty: name another folder"):
        prepare([first], tmp_path / "a")
    assert not (tmp_path / "hub").exists()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    path = file(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        prepare([path], tmp_path / "hub")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_cannot_rename_takes_it(tmp_path, monkeypatch):
    path = file(tmp_path / "out")
    break_disk(monkeypatch, "norename")
    assert len(prepare([path], tmp_path / "hub")) == 4
