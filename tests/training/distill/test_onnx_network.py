"""ONNX networks: embeddings as torch computes them, and files and machines that do not fit."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.training import tiny
from training.config import Config, DataConfig, DistillConfig
from training.distill.onnx_network import OnnxError, OnnxNetwork
from training.distill.teacher import fingerprint_teacher, load_teacher
from training.precision import choose_precision

CPU = torch.device("cpu")
SIZE, DIM = tiny.SIZE, 8
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)


def write_onnx(path: Path, weight: torch.Tensor, batch: int | str = "batch", flat: bool = True):
    """Mean color times a weight (3, DIM); with `flat` unset, a map of 1 × 1 instead of a vector."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["mean"])]
    if flat:
        nodes.append(helper.make_node("Flatten", ["mean"], ["color"]))
        nodes.append(helper.make_node("MatMul", ["color", "weight"], ["embeddings"]))
    else:
        nodes.append(helper.make_node("Identity", ["mean"], ["embeddings"]))
    shape = [batch, DIM] if flat else [batch, 3, 1, 1]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight.numpy(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def weight():
    return torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))


def open_network(path):
    return OnnxNetwork(path, device=CPU, image_size=SIZE)


@needs_onnx
def test_embeddings_are_torchs_for_every_batch_size_and_layout(tmp_path, weight):
    write_onnx(tmp_path / "x.onnx", weight)
    network = open_network(tmp_path / "x.onnx")
    for batch in (1, 5, 2):
        images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(images), images.mean((2, 3)) @ weight)


@needs_onnx
@pytest.mark.usefixtures("world")
def test_as_a_teacher_it_sees_pixels_from_minus_one_to_one(tmp_path, weight):
    path = tmp_path / "x.onnx"
    write_onnx(path, weight)
    config = Config(
        data=DataConfig(train="x.rec", image_size=SIZE), distill=DistillConfig(teacher=str(path))
    )
    teacher = load_teacher(config, device=CPU, precision=choose_precision(CPU, "bf16"))
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8)
    expected = (images.float() / 127.5 - 1).mean((2, 3)) @ weight
    torch.testing.assert_close(teacher.embed(images), expected)
    assert teacher.dim == DIM
    assert teacher.fingerprint == fingerprint_teacher(config)


@needs_onnx
@pytest.mark.parametrize(
    ("changes", "size", "complaint"),
    [
        ({"batch": 1}, SIZE, "cannot embed two images: .*export it with a dynamic batch axis"),
        ({}, 2 * SIZE, r"cannot embed two images: .*Expected one input \(batch, 3, 64, 64\)"),
        ({"flat": False}, SIZE, r"of shape \(2, 3, 1, 1\) of two images, expected float32"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path, weight, changes, size, complaint):
    write_onnx(tmp_path / "x.onnx", weight, **changes)
    with pytest.raises(OnnxError, match=complaint):
        OnnxNetwork(tmp_path / "x.onnx", device=CPU, image_size=size)


@needs_onnx
def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no onnx")
    with pytest.raises(OnnxError, match=r"x\.onnx cannot embed two images"):
        open_network(tmp_path / "x.onnx")


def test_a_missing_onnxruntime_is_told_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OnnxError, match=r"`pip install onnxruntime` .*onnxruntime-gpu"):
        open_network(Path("x.onnx"))


def test_an_onnxruntime_without_the_devices_provider_is_refused(monkeypatch):
    """The CPU's build on a GPU would move every batch over the host, so it does not start."""
    runtime = types.ModuleType("onnxruntime")
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    with pytest.raises(OnnxError, match="expected XPUExecutionProvider: on GPUs it takes"):
        OnnxNetwork(Path("x.onnx"), device=torch.device("xpu", 0), image_size=SIZE)


@pytest.mark.usefixtures("world")
def test_the_fingerprint_needs_no_onnxruntime_and_takes_in_external_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "x.onnx"
    config = Config(data=DataConfig(train="x.rec"), distill=DistillConfig(teacher=str(path)))
    path.write_bytes(b"graph")
    seen = {fingerprint_teacher(config)}
    for weights in (b"one", b"two"):
        (tmp_path / "x.onnx.data").write_bytes(weights)
        seen.add(fingerprint_teacher(config))
    assert len(seen) == 3
