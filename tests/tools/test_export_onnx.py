"""tools/export_onnx.py: what it says, and what it refuses before any work."""

import sys

import pytest
import torch

from tests.models.small import SIZE, trained
from tools.export_onnx import main
from tools.make_synthetic import make_synthetic

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def network(tmp_path):
    torch.save(trained("iresnet10").state_dict(), tmp_path / "network.pt")
    return str(tmp_path / "network.pt")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", *map(str, arguments)])
    main()


@pytest.mark.slow
def test_it_says_opset_input_and_what_the_check_found(network, tmp_path, monkeypatch, capsys):
    make_synthetic(tmp_path, identities=4, images=8, pairs=20, seed=0, size=SIZE)
    output, faces = tmp_path / "new" / "x.onnx", ["--calibrate", tmp_path / "train.rec"]
    options = ["--dtype", "int8", "--input", "uint8-rgb-nhwc", "--check-set", tmp_path / "val.bin"]
    monkeypatch.setattr("training.shipping.export.BOUNDS", {"int8": 1.0})  # its weights are drawn
    monkeypatch.setattr("training.shipping.export.LOSSES", {"int8": 1.0})
    run(monkeypatch, network, "-o", output, *options, *faces)
    said = capsys.readouterr().out
    for expected in (
        "32,rgb,0..255,nhwc, uint8",
        "opset 17",
        "differs from torch's by",
        "accuracy",
    ):
        assert expected in said
    assert output.is_file()


def test_an_onnx_file_that_is_no_way_back_says_what_to_export_from(
    network, tmp_path, monkeypatch, capsys
):
    """One that was quantized has lost what it was made from, a damaged one everything."""
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "other", [], [])
    )
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x07 no graph")
    for name in ("other", "damaged"):
        with pytest.raises(SystemExit):
            run(monkeypatch, tmp_path / f"{name}.onnx", "-o", tmp_path / "y.onnx")
        said = capsys.readouterr().err
        assert f"{name}.onnx" in said
        assert "name the run, checkpoint or .safetensors file that it was made from" in said
    assert not (tmp_path / "y.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.pth"], "expected a name that ends in .onnx or .pt2"),
        (["-o", "x.pt2", "--dtype", "fp16"], "written in fp32, not in fp16"),
        (["-o", "x.onnx", "--dtype", "int8"], "give --calibrate FILE.rec"),
        (["-o", "x.onnx", "--calibrate", "no.rec"], "no.rec does not exist"),
        (["-o", "x.onnx", "--check-set", "no.bin"], "no.bin"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    arguments, message, network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, network, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt"]
