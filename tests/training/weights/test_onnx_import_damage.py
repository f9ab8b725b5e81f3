"""A graph that was changed anywhere is refused by name, or read as what onnxruntime makes of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from models import normalize
from models.input import Input
from tests.damage import of_bytes
from tests.models.small import SIZE
from tests.training.weights.onnx_graphs import source, write
from training.frozen.onnx_network import OnnxNetwork, open_onnx
from training.saving.weight_file import WeightsError
from training.weights.onnx_import import comparison, graph, importing
from training.weights.onnx_import.comparison import BOUND, Difference, are_alike, difference
from training.weights.onnx_import.importing import import_onnx

_OPERATORS = (
    *("Relu", "Sigmoid", "LeakyRelu", "PRelu", "Abs", "Neg", "Add", "Mul", "Conv", "Gemm", "Cast"),
    *("BatchNormalization", "MaxPool", "Identity", "Flatten", "Reshape", "Concat", "Transpose"),
    *("Shape", "Dropout", "QuantizeLinear", "If"),
)


@pytest.fixture(scope="module", params=["iresnet10", "mbf"])
def whole(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return write(folder / "x.onnx", source(request.param), opset=13, folded=False)


def replace_operator(model: Any, draw: random.Random) -> None:
    draw.choice(model.graph.node).op_type = draw.choice(_OPERATORS)


def rewire(model: Any, draw: random.Random) -> None:
    node = draw.choice([one for one in model.graph.node if one.input])
    made = [name for one in model.graph.node for name in one.output]
    weights = [one.name for one in model.graph.initializer]
    node.input[draw.randrange(len(node.input))] = draw.choice(["images", *made, *weights])


def lose_inputs(model: Any, draw: random.Random) -> None:
    node = draw.choice([one for one in model.graph.node if one.input])
    del node.input[draw.randrange(len(node.input)) :]


def reshape_weights(model: Any, draw: random.Random) -> None:
    tensor = draw.choice(model.graph.initializer)
    value = onnx.numpy_helper.to_array(tensor)
    shape = [*value.shape] or [1]
    axis = draw.randrange(len(shape))
    shape[axis] = draw.choice([0, 1, 2, shape[axis] + 1, 2 * shape[axis]])
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.resize(value, shape), tensor.name))


def change_type(model: Any, draw: random.Random) -> None:
    draw.choice(model.graph.initializer).data_type = draw.randrange(25)


def change_attribute(model: Any, draw: random.Random) -> None:
    node = draw.choice([one for one in model.graph.node if one.attribute])
    attribute = draw.choice(node.attribute)
    if attribute.ints:
        attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice([-1, 0, 1, 2, 3, 7])
    attribute.i = draw.choice([-1, 0, 1, 2, 3])
    attribute.f = draw.choice([0.0, -1.0, 1e9, float("nan"), 1e-3])


def remove_operator(model: Any, draw: random.Random) -> None:
    model.graph.node.remove(draw.choice(model.graph.node))


def insert_operator(model: Any, draw: random.Random) -> None:
    before = draw.choice(model.graph.node)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == before.output[0]:
                node.input[place] = "inserted"
    made = onnx.helper.make_node(draw.choice(_OPERATORS), [before.output[0]], ["inserted"])
    model.graph.node.insert([*model.graph.node].index(before) + 1, made)


CHANGES = (
    *(replace_operator, rewire, lose_inputs, reshape_weights, change_type, change_attribute),
    *(remove_operator, insert_operator),
)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), change=st.sampled_from(CHANGES))
def test_a_changed_graph(whole, tmp_path, seed, change):
    model = onnx.load(whole)
    change(model, random.Random(seed))
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    assert_refused_or_right(path)


@pytest.mark.slow
def test_damaged_bytes(whole, tmp_path):
    path = tmp_path / "changed.onnx"
    for content in of_bytes(whole.read_bytes(), count=40):
        path.write_bytes(content)
        assert_refused_or_right(path)


def assert_refused_or_right(path: Path) -> None:
    """What is read embeds images as onnxruntime does that the import has not compared."""
    try:
        found = import_onnx(path)
    except WeightsError as error:
        if str(path) not in str(error):
            raise
        return
    pixels = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    file = open_onnx(path, device=torch.device("cpu"))
    wanted = Input(size=SIZE)
    theirs = OnnxNetwork(file, wanted)(wanted(pixels))
    ours = found.network()(normalize(pixels, torch.float32))
    assert difference(ours, theirs).length <= 3 * BOUND


def in_a_circle(model: Any) -> None:
    node = next(one for one in model.graph.node if one.op_type == "BatchNormalization")
    node.output[0] = node.input[0]


def backwards(model: Any) -> None:
    nodes = [*model.graph.node][::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def without_outputs(model: Any) -> None:
    del model.graph.node[3].output[:]


def of_another_kind(model: Any) -> None:
    node = next(one for one in model.graph.node if one.op_type == "Conv")
    kept = [one for one in node.attribute if one.name != "strides"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("strides", 2)])


def of_rows(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[2:]


def without_inputs(model: Any) -> None:
    del model.graph.input[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_a_circle, "is no valid ONNX: Graph must be in single static assignment"),
        (backwards, "is no valid ONNX: Nodes in a graph must be topologically sorted"),
        (without_outputs, "is no valid ONNX: Node.* has output size 0 not in range"),
        (of_another_kind, "is no valid ONNX: Mismatched attribute type"),
        (of_rows, "expected four, those of a batch"),
        (without_inputs, "however input 'images' of node"),
    ],
)
def test_what_is_no_graph_of_images(change, message, whole, tmp_path):
    model = onnx.load(whole)
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(WeightsError, match=message):
        import_onnx(tmp_path / "changed.onnx")


def node(op: str, *inputs: str, **attributes: int) -> Any:
    return onnx.helper.make_node(op, inputs, ["made"], **attributes)


@pytest.mark.parametrize(
    "large",
    [
        [node("Add", "column", "row")],
        [node("Gather", "row", "places", axis=0)],
        [node("Expand", "column", "shape")],
        [node("Expand", "row", "shape")],
        [node("ConstantOfShape", "shape")],
        [node("Concat", *["row"] * 1000, axis=0)] * 500,
    ],
    ids=["Add", "Gather", "Expand", "Expand more", "ConstantOfShape", "Concat"],
)
def test_a_small_file_whose_constants_grow_is_refused_before_they_do(large, tmp_path, monkeypatch):
    """Of a few bytes more than a machine's memory could be made."""
    monkeypatch.setattr(graph, "_LARGEST", 1 << 18)
    made = []
    for number, one in enumerate(large):
        made.append(onnx.NodeProto())
        made[-1].CopyFrom(one)
        made[-1].output[0] = f"made{number}"
    made.append(onnx.helper.make_node("Add", ["images", "made0"], ["embeddings"]))
    constants = {
        "column": np.ones((1 << 10, 1), np.float32),
        "row": np.ones((1, 1 << 10), np.float32),
        "places": np.zeros(1 << 10, np.int64),
        "shape": np.array([1 << 20, 1]),
    }
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 3, SIZE, SIZE])
        for name in ("images", "embeddings")
    ]
    whole = onnx.helper.make_graph(made, "grows", ends[:1], ends[1:], tensors)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(whole, opset_imports=[opset]), tmp_path / "grows.onnx")
    with pytest.raises(WeightsError, match=r"values of constants alone, expected at most 262,144"):
        import_onnx(tmp_path / "grows.onnx")


def test_what_is_read_wrongly_is_refused(whole, monkeypatch):
    """A reader with a mistake: what it reads embeds otherwise."""
    right = importing._build

    def wrong(arrays, path):
        first, *rest = arrays  # a convolution
        return right({first: 1.0001 * arrays[first], **{name: arrays[name] for name in rest}}, path)

    monkeypatch.setattr(importing, "_build", wrong)
    with pytest.raises(WeightsError, match=r"embeds otherwise than onnxruntime .* at most 1e-05"):
        import_onnx(whole)


@pytest.mark.parametrize("found", [(float("inf"), 0.0), (0.0, float("nan")), (1e-2, 0.0)])
def test_what_is_far_off_is_refused_however_much_rounding_does(found, whole, monkeypatch):
    endless = Difference(float("inf"), float("inf"))
    monkeypatch.setattr(comparison, "_rounding", lambda network: endless)
    assert not are_alike(Difference(*found), nn.Identity())


def test_where_rounding_alone_is_more_than_the_bound_it_decides(whole, monkeypatch):
    monkeypatch.setattr(comparison, "_MOST", 1e9)
    monkeypatch.setattr(comparison, "BOUND", 1e-12)
    assert import_onnx(whole).differs.length > 1e-12
