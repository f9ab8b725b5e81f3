"""ONNX networks: embeddings as torch computes them, and files and machines that do not fit."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from models.input import Input
from tests.training import tiny
from training.config import Config, DataConfig, DistillConfig, override
from training.distill.teacher import fingerprint_teacher, load_teacher
from training.frozen.onnx_file import OnnxError
from training.frozen.onnx_network import OnnxNetwork, open_onnx
from training.step.precision import choose_precision

CPU = torch.device("cpu")
SIZE, DIM = tiny.SIZE, 8
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)


def write_onnx(
    path: Path,
    weight: torch.Tensor,
    *,
    batch: int | str = "batch",
    shape: tuple[int, ...] = (3, SIZE, SIZE),
    kind: str = "FLOAT",
    tail: str = "flat",
    declared: int | None = None,
):
    """Mean color times a weight (3, DIM), then a tail: see _TAILS."""
    from onnx import TensorProto, checker, helper, numpy_helper

    node = helper.make_node
    nodes = [node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT)]
    channels, axes = (shape[0], [*range(2, len(shape) + 1)])
    if shape[-1] == 3:
        channels, axes = 3, [1, 2]
    nodes.append(node("ReduceMean", ["pixels"], ["color"], axes=axes, keepdims=0))
    nodes.append(node("MatMul", ["color", "weight"], ["features"]))
    nodes += [node(op, [*names], ["embeddings"], **more) for op, names, more in _TAILS[tail]]
    rank = 4 if tail.startswith("map") else 2
    constants = {
        "weight": weight[:channels].numpy(),
        "one_row": np.array([1, -1]),
        "last_two": np.array([2, 3]),
        "halves": np.array([-1, DIM // 2, 2, 1]),
    }
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", getattr(TensorProto, kind), [batch, *shape])],
        [
            helper.make_tensor_value_info(
                "embeddings", TensorProto.FLOAT, [declared, *[None] * (rank - 1)]
            )
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    path.write_bytes(model.SerializeToString())


_TAILS = {
    "flat": [("Identity", ["features"], {})],
    "map": [("Unsqueeze", ["features", "last_two"], {})],
    "maps": [("Reshape", ["features", "halves"], {})],
    "folded": [("Reshape", ["features", "one_row"], {})],  # (1, B · D)
    "normalized over the batch": [("Softmax", ["features"], {"axis": 0})],
}


@pytest.fixture
def weight():
    return torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))


def open_network(path, **wanted):
    return OnnxNetwork(open_onnx(path, device=CPU), Input(**{"size": SIZE, **wanted}))


@needs_onnx
def test_embeddings_are_torchs_for_every_batch_size_and_layout(tmp_path, weight):
    write_onnx(tmp_path / "x.onnx", weight)
    network = open_network(tmp_path / "x.onnx")
    for batch in (1, 5, 2):
        images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(images), images.mean((2, 3)) @ weight)


@needs_onnx
@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_of_a_fixed_batch_size_embeds_any_number_of_images(batch, tmp_path, weight):
    write_onnx(tmp_path / "x.onnx", weight, batch=batch)
    network = open_network(tmp_path / "x.onnx")
    for count in (1, 4, 7):
        images = torch.randn(count, 3, SIZE, SIZE)
        torch.testing.assert_close(network(images), images.mean((2, 3)) @ weight)


@needs_onnx
def test_a_file_that_declares_a_batch_of_one_for_its_output_alone_embeds_any(
    tmp_path, weight, capfd
):
    """So InsightFace's own files (w600k_r50 and others) are exported."""
    write_onnx(tmp_path / "x.onnx", weight, declared=1)
    network = open_network(tmp_path / "x.onnx")
    for count in (1, 4, 7):
        images = torch.randn(count, 3, SIZE, SIZE)
        torch.testing.assert_close(network(images), images.mean((2, 3)) @ weight)
    assert capfd.readouterr().err == "", "onnxruntime would warn at every batch"


@needs_onnx
@pytest.mark.parametrize(
    ("changes", "atol"), [({"tail": "map"}, 1e-5), ({"kind": "FLOAT16"}, 1e-2)]
)
def test_maps_of_one_pixel_and_half_precision_are_embeddings(changes, atol, tmp_path, weight):
    write_onnx(tmp_path / "x.onnx", weight, **changes)
    images = torch.randn(3, 3, SIZE, SIZE)
    found = open_network(tmp_path / "x.onnx")(images)
    torch.testing.assert_close(found, images.mean((2, 3)) @ weight, atol=atol, rtol=0)


@needs_onnx
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_no_numbers_are_refused(value, tmp_path, weight):
    weight[0, 0] = value
    write_onnx(tmp_path / "x.onnx", weight)
    with pytest.raises(OnnxError, match="NaN or infinity of images as RGB in"):
        open_network(tmp_path / "x.onnx")


@needs_onnx
def test_embeddings_without_a_feature_are_refused(tmp_path, weight):
    write_onnx(tmp_path / "x.onnx", weight[:, :0])
    with pytest.raises(OnnxError, match=r"shape \(2, 0\) of 2 images, expected float32"):
        open_network(tmp_path / "x.onnx")


@needs_onnx
def test_an_output_that_is_no_tensor_is_refused(tmp_path):
    from onnx import TensorProto, helper

    shape, path = ["batch", 3, SIZE, SIZE], tmp_path / "x.onnx"
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["images"], ["several"])],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxError, match="makes a list of 2 images"):
        open_network(path)


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
    assert teacher.embedding_dim == DIM
    assert teacher.fingerprint == fingerprint_teacher(config)


@needs_onnx
@pytest.mark.usefixtures("world")
def test_as_a_teacher_it_is_given_what_distill_input_says(tmp_path, weight):
    """BGR of [0, 1], with a mean and a deviation of each channel, rows of pixels last but one."""
    path = tmp_path / "x.onnx"
    write_onnx(path, weight, shape=(SIZE, SIZE, 3))
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    described = {"color": "bgr", "range": [0, 1], "mean": list(mean), "std": list(std)}
    config = Config(
        data=DataConfig(train="x.rec", image_size=SIZE),
        distill=DistillConfig(teacher=str(path), input=described | {"layout": "nhwc"}),
    )
    teacher = load_teacher(config, device=CPU, precision=choose_precision(CPU, "fp32"))
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8)
    color = images.flip(1).double().mean((2, 3)) / 255
    expected = (color - torch.tensor(mean)) / torch.tensor(std) @ weight.double()
    torch.testing.assert_close(teacher.embed(images), expected.float())
    assert teacher.fingerprint == fingerprint_teacher(config)
    usual = override(config, ["distill.input={}"])
    assert fingerprint_teacher(usual) != teacher.fingerprint, "its cache is of other embeddings"


@needs_onnx
@pytest.mark.parametrize(
    ("changes", "wanted", "complaint"),
    [
        ({}, {"size": 64}, r"RGB in \[-1, 1\], 64 pixels.*layout=nchw .*size=32 .*say nchw,32 in"),
        ({"shape": (SIZE, SIZE, 3)}, {}, "Set distill.input.layout=nhwc distill.input.size=32"),
        ({"shape": (3, 64, SIZE)}, {}, "Expected three channels, and height and width alike"),
        ({"shape": (1, SIZE, SIZE)}, {}, "Expected three channels, and height and width alike"),
        (
            {"shape": (3, SIZE)},
            {},
            r"without one for the batch; expected four axes, \(batch, 3, hei",
        ),
        ({"kind": "DOUBLE"}, {}, r"is tensor\(double\) .*, expected float32, float16 or uint8"),
        ({"tail": "maps"}, {}, r"of shape \(2, 4, 2, 1\) of 2 images, expected float32"),
        ({"tail": "folded"}, {}, r"\(1, 16\) of 2 images and \(1, 24\) of 3: the batch is"),
        ({"tail": "normalized over the batch"}, {}, "in another way beside two others than beside"),
    ],
)
def test_networks_that_do_not_fit_are_refused_by_name(tmp_path, weight, changes, wanted, complaint):
    write_onnx(tmp_path / "x.onnx", weight, **changes)
    with pytest.raises(OnnxError, match=complaint):
        open_network(tmp_path / "x.onnx", **wanted)


@needs_onnx
def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no onnx")
    with pytest.raises(OnnxError, match=r"x\.onnx cannot be read by onnxruntime"):
        open_network(tmp_path / "x.onnx")


def test_a_missing_onnxruntime_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OnnxError, match=r"`pip install onnxruntime` .*onnxruntime-gpu"):
        open_network(Path("x.onnx"))


def test_an_onnxruntime_without_the_devices_provider_is_refused(monkeypatch):
    """The CPU's build on a GPU would move every batch over the host, so it does not start."""
    runtime = types.ModuleType("onnxruntime")
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    with pytest.raises(OnnxError, match="expected XPUExecutionProvider: on GPUs it takes"):
        open_onnx(Path("x.onnx"), device=torch.device("xpu", 0))


@pytest.mark.usefixtures("world")
def test_the_fingerprint_needs_no_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "x.onnx"
    config = Config(data=DataConfig(train="x.rec"), distill=DistillConfig(teacher=str(path)))
    seen = set()
    for graph in (b"one graph", b"another"):
        path.write_bytes(graph)
        seen.add(fingerprint_teacher(config))
    assert len(seen) == 2
