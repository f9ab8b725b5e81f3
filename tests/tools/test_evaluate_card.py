"""evaluate --card: what it finds is in the model's own file."""

import sys

import pytest

from tests.models.small import SIZE
from tests.models.small import trained as network
from tools.evaluate import main
from tools.make_synthetic import make_synthetic
from training.frozen.card import read_card
from training.frozen.model import digest_of_weights


@pytest.mark.slow
def test_thresholds_come_into_the_file_that_was_evaluated(tmp_path, monkeypatch, capsys):
    save_file = pytest.importorskip("safetensors.torch").save_file
    make_synthetic(tmp_path, identities=8, images=8, pairs=700, seed=0, size=SIZE)
    model, path = network("iresnet10").eval(), tmp_path / "x.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    out = str(tmp_path / "out")
    options = ["--no-pictures", "--draws", "20", "--precision", "fp32", "-o", out, "--card"]
    command = ["evaluate.py", str(path), "--sets", str(tmp_path / "val.bin"), *options]
    monkeypatch.setattr(sys, "argv", [*command, "--push", str(tmp_path / "hub")])
    main()
    made = {"x.safetensors", "README.md", "config.json", ".gitattributes"}
    assert {one.name for one in (tmp_path / "hub").iterdir()} == made
    assert (tmp_path / "hub" / "x.safetensors").read_bytes() == path.read_bytes()
    card = read_card(path)
    assert card.digest == card.space == digest_of_weights(model)
    assert card.input == f"{SIZE},rgb,-1..1,nchw"
    assert card.points[0].fmr == 0.01
    assert card.points[0].low <= card.points[0].threshold <= card.points[0].high
    assert f"wrote         {path}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path), *command[2:]])
    with pytest.raises(SystemExit):
        main()
    assert "export it first" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command[:-1], "--push", str(tmp_path / "other")])
    with pytest.raises(SystemExit):
        main()
    assert "--push FOLDER takes files with cards: give --card" in capsys.readouterr().err
