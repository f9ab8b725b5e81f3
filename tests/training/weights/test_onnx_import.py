"""Networks of ours in .onnx files come back as weights that embed as onnxruntime does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from models import normalize
from tests.models.small import SIZE, small, trained
from tests.training.weights.onnx_graphs import Reshaped, source, write
from training.frozen.onnx_input import METADATA
from training.saving.reading import open_weights
from training.saving.weight_file import WeightsError
from training.shipping.export import export
from training.shipping.shipped import INPUTS, Form
from training.weights.onnx_import.affine import EPS
from training.weights.onnx_import.comparison import BOUND
from training.weights.onnx_import.importing import import_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files that several tests read."""
    made = tmp_path_factory.mktemp("onnx")
    write(made / "folded.onnx", source())
    write(made / "whole.onnx", source(), folded=False)
    return made


@pytest.fixture
def edited(folder, tmp_path):
    """Writes whole.onnx changed by a function of its graph, and returns the path."""

    def edit(change, file="whole.onnx") -> Path:
        model = onnx.load(folder / file)
        change(model)
        onnx.save(model, tmp_path / "edited.onnx")
        return tmp_path / "edited.onnx"

    return edit


def pixels(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def assert_embeds_alike(path: Path, *, unfolded: int | None = None) -> None:
    """The imported network gives what onnxruntime does, run here by the test's own hands."""
    found = import_onnx(path)
    session = onnxruntime.InferenceSession(path)
    images = normalize(pixels(), torch.float32)
    expected = np.concatenate(
        [session.run(None, {"images": one[None].numpy()})[0] for one in images]
    )
    ours = found.network()(images).numpy()
    lengths = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(ours - expected, axis=1) / lengths).max() <= BOUND
    if unfolded is not None:
        assert len(found.unfolded) == unfolded


def first(model, op: str):
    return next(node for node in model.graph.node if node.op_type == op)


def weights_of(model, name: str):
    return next(one for one in model.graph.initializer if one.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 13, 17, 18])
@pytest.mark.parametrize(("folded", "unfolded"), [(True, 13), (False, 0)])
def test_the_older_exporter_s_graphs(opset, folded, unfolded, tmp_path):
    path = write(tmp_path / "x.onnx", source(), opset=opset, folded=folded)
    assert_embeds_alike(path, unfolded=unfolded)


@pytest.mark.slow
@pytest.mark.parametrize(("folded", "unfolded"), [(True, 14), (False, 0)])
def test_the_newer_exporter_s_graphs(folded, unfolded, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's newer exporter needs onnxscript")
    path = write(tmp_path / "x.onnx", source(), opset=18, folded=folded, dynamo=True)
    assert_embeds_alike(path, unfolded=unfolded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "free_batch"),
    [("flatten", False), ("view", True), ("view", False), ("reshape", True)],
)
def test_flattened_in_any_form_with_dropout_and_any_batch(form, free_batch, tmp_path):
    network = Reshaped(source(), form).eval()
    path = write(tmp_path / "x.onnx", network, opset=13, free_batch=free_batch, dropout=True)
    assert_embeds_alike(path)


def test_arcface_torch_s_own_export_of_a_batch_of_one_that_is_declared_free(tmp_path):
    """Its torch2onnx.py frees the input's axis afterwards; the output still says one."""
    path = write(tmp_path / "x.onnx", source(), opset=11, free_batch=False)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "None"
    onnx.save(model, path)
    assert_embeds_alike(path)


@pytest.mark.slow
@pytest.mark.parametrize("folded", [True, False])
def test_a_mobilefacenet(folded, tmp_path):
    path = write(tmp_path / "x.onnx", source("mbf"), opset=13, folded=folded)
    assert_embeds_alike(path)
    assert import_onnx(path).architecture == small("mbf")


def test_what_was_not_folded_is_taken_to_the_bit(folder):
    found, expected = import_onnx(folder / "whole.onnx"), source().state_dict()
    assert found.architecture == small("iresnet10")
    for name, tensor in expected.items():
        if name.endswith(".num_batches_tracked"):  # exporters leave them out
            continue
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-6, atol=1e-7)
    assert torch.equal(found.tensors["layer1.0.conv1.weight"], expected["layer1.0.conv1.weight"])
    assert torch.equal(found.tensors["bn2.running_var"], expected["bn2.running_var"])


def test_a_folded_batch_norm_has_mean_0_and_divides_by_1(folder):
    found = import_onnx(folder / "folded.onnx")
    assert "bn1" in found.unfolded
    assert "bn2" not in found.unfolded
    assert (found.tensors["bn1.running_mean"] == 0).all()
    assert torch.allclose(found.tensors["bn1.running_var"] + EPS, torch.ones(16))


def test_any_depth_becomes_a_list_of_blocks(tmp_path):
    torch.manual_seed(0)
    from models import create_model

    network = create_model(
        "iresnet", embedding_dim=8, image_size=32, width=0.25, blocks=[1, 3, 2, 1]
    )
    path = write(tmp_path / "x.onnx", network.eval().to(memory_format=torch.contiguous_format))
    assert import_onnx(path).architecture.options["blocks"] == [1, 3, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "input"), [*(("iresnet10", input) for input in INPUTS), ("mbf", "uint8-bgr-nhwc")]
)
def test_our_own_exports_come_back(name, input, tmp_path):
    torch.save(trained(name).state_dict(), tmp_path / "x.pt")
    form = Form(input, flip_sum=input != "float", normalized=input.endswith("nchw"))
    export(open_weights(tmp_path / "x.pt"), tmp_path / "x.onnx", form=form)
    back = open_weights(tmp_path / "x.onnx")
    assert back.architecture == small(name)
    images = normalize(pixels(), torch.float32)
    with torch.no_grad():
        ours, expected = back.network().eval()(images), trained(name).eval()(images)
    assert ((ours - expected).norm(dim=1) / expected.norm(dim=1)).max() <= 2 * BOUND
    said = " ".join(back.notes)
    assert ("mirror image" in said) == form.flip_sum
    assert ("of length 1" in said) == form.normalized


@pytest.mark.slow
def test_float16_weights_are_widened(tmp_path):
    torch.save(trained("iresnet10").state_dict(), tmp_path / "x.pt")
    export(open_weights(tmp_path / "x.pt"), tmp_path / "x.onnx", form=Form(), dtype="fp16")
    found = import_onnx(tmp_path / "x.onnx")
    assert {t.dtype for t in found.tensors.values()} == {torch.float32, torch.int64}
    assert "float16" in " ".join(found.notes)


def test_a_graph_in_float16_throughout_is_read_as_its_weights_say(edited):
    def halve(model):
        for tensor in model.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor)
            if value.dtype == np.float32:
                half = onnx.numpy_helper.from_array(value.astype(np.float16), tensor.name)
                tensor.CopyFrom(half)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = onnx.TensorProto.FLOAT16

    found = import_onnx(edited(halve))
    expected = source().state_dict()["layer3.0.conv2.weight"].half().float()
    assert torch.equal(found.tensors["layer3.0.conv2.weight"], expected)
    assert "its float16 weights were made float32" in found.notes


def test_int8_is_refused_by_name(edited):
    def quantize(model):
        node = onnx.helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], name="Q7")
        model.graph.node.insert(0, node)

    with pytest.raises(WeightsError, match=r"'Q7' \(QuantizeLinear\) computes in int8"):
        import_onnx(edited(quantize))


def test_scales_and_shifts_instead_of_batch_norm(edited):
    """Of every BatchNorm a Mul and an Add: with one channel axis or two, and no names."""

    def split(model):
        arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        nodes = []
        for number, node in enumerate(model.graph.node):
            if node.op_type != "BatchNormalization":
                node.name = ""
                nodes.append(node)
                continue
            weight, bias, mean, var = (arrays[name] for name in node.input[1:])
            scale = weight / np.sqrt(var + 1e-5)
            shape = (1, -1, 1, 1) if number % 2 else (-1, 1, 1)
            shape = (-1,) if len(weight) == 24 else shape
            for name, value in (("scale", scale), ("shift", bias - mean * scale)):
                tensor = onnx.numpy_helper.from_array(value.reshape(shape), f"{name}{number}")
                model.graph.initializer.append(tensor)
            made = f"scaled{number}"
            nodes.append(onnx.helper.make_node("Mul", [f"scale{number}", node.input[0]], [made]))
            nodes.append(onnx.helper.make_node("Add", [made, f"shift{number}"], [node.output[0]]))
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    assert_embeds_alike(edited(split), unfolded=19)


def test_matmul_and_add_instead_of_gemm(edited):
    def split(model):
        node = first(model, "Gemm")
        transposed = onnx.helper.make_node("Transpose", [node.input[1]], ["t"], perm=[1, 0])
        product = onnx.helper.make_node("MatMul", [node.input[0], "t"], ["p"])
        added = onnx.helper.make_node("Add", [node.input[2], "p"], [node.output[0]])
        at = [*model.graph.node].index(node)
        model.graph.node.remove(node)
        for new in (added, product, transposed):
            model.graph.node.insert(at, new)

    assert_embeds_alike(edited(split))


def test_another_eps_changes_scales_and_no_statistics(edited):
    """MXNet's networks have 2e-5."""

    def change(model):
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = 0.1

    path = edited(change)
    assert_embeds_alike(path, unfolded=0)
    expected = source().state_dict()["layer1.0.bn1.running_var"]
    assert torch.equal(import_onnx(path).tensors["layer1.0.bn1.running_var"], expected)


def test_a_convolution_s_bias_moves_the_mean_behind_it(edited):
    def add_bias(model):
        bias = np.linspace(-1, 1, 16, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
        first(model, "Conv").input.append("bias")

    path = edited(add_bias)
    assert_embeds_alike(path, unfolded=0)
    moved = source().state_dict()["bn1.running_mean"] - torch.linspace(-1, 1, 16)
    torch.testing.assert_close(import_onnx(path).tensors["bn1.running_mean"], moved)


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (1, 16, 1, 1)])
def test_slopes_of_any_shape(shape, edited):
    def reshape(model):
        node = first(model, "PRelu")
        slopes = np.linspace(0.1, 0.4, 16, dtype=np.float32)[: int(np.prod(shape))]
        tensor = onnx.numpy_helper.from_array(slopes.reshape(shape), "slopes")
        model.graph.initializer.append(tensor)
        node.input[1] = "slopes"

    assert_embeds_alike(edited(reshape))


def test_slopes_along_the_width_are_refused(edited):
    def reshape(model):
        slopes = np.full(SIZE, 0.2, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(slopes, "slopes"))
        first(model, "PRelu").input[1] = "slopes"

    with pytest.raises(WeightsError, match=r"found slopes \(32,\), expected PRelu with 16 slopes"):
        import_onnx(edited(reshape))


def prepared(*steps):
    """Puts operators with a constant between the images and the network."""

    def change(model):
        value = "images"
        for number, (op, constant) in enumerate(steps):
            name = f"constant{number}"
            tensor = onnx.numpy_helper.from_array(np.array(constant, np.float32), name)
            model.graph.initializer.append(tensor)
            node = onnx.helper.make_node(op, [value, name], [f"prepared{number}"])
            model.graph.node.insert(number, node)
            value = f"prepared{number}"
        convolution = next(n for n in model.graph.node if n.op_type == "Conv")
        convolution.input[0] = value

    return change


def test_insightface_s_own_scaling_goes_into_the_first_convolution(edited):
    found = import_onnx(edited(prepared(("Sub", 127.5), ("Mul", 0.0078125))))
    expected = source().state_dict()["conv1.weight"] * (127.5 / 128)
    torch.testing.assert_close(found.tensors["conv1.weight"], expected)
    assert "the first convolution was changed to take RGB in [-1, 1]" in found.notes


@pytest.mark.parametrize(
    "steps",
    [
        [("Div", 255.0)],
        [("Mul", 2.0)],
        [("Sub", [[[123.0]], [[117.0]], [[104.0]]]), ("Div", 127.5)],
    ],
)
def test_pixels_that_are_not_gray_around_an_image_are_refused(steps, edited):
    with pytest.raises(WeightsError, match="goes into its first convolution"):
        import_onnx(edited(prepared(*steps)))


def test_bgr_goes_into_the_first_convolution(folder):
    found = import_onnx(folder / "whole.onnx", "bgr")
    expected = source().state_dict()["conv1.weight"].flip(1)
    torch.testing.assert_close(found.tensors["conv1.weight"], expected)


@pytest.mark.parametrize("words", ["pink", "112,rgb,-1..1,std=0"])
def test_metadata_that_makes_no_sense_is_refused_with_the_file_s_name(words, edited):
    path = edited(lambda model: onnx.helper.set_model_props(model, {METADATA: words}))
    with pytest.raises(WeightsError, match=f"{path}: "):
        import_onnx(path)


class Lengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = source()

    def forward(self, images):
        rows = self.network(images)
        return nn.functional.normalize(rows), rows.norm(dim=1, keepdim=True)


def test_l2_normalization_at_the_end_is_left_out_with_a_note(tmp_path):
    path = write(tmp_path / "x.onnx", Lengths().eval(), outputs=["embeddings", "norms"])
    with pytest.raises(WeightsError, match="Name it"):
        import_onnx(path)
    found = import_onnx(path, "output=embeddings")
    assert "left out: at its end, embeddings are made of length 1" in found.notes


def test_external_weights_only_from_its_own_folder(folder, tmp_path):
    inside = tmp_path / "a"
    inside.mkdir()
    model = onnx.load(folder / "whole.onnx")
    onnx.save(model, inside / "x.onnx", save_as_external_data=True, location="x.data")
    assert_embeds_alike(inside / "x.onnx")
    (inside / "x.data").rename(tmp_path / "x.data")
    with pytest.raises(WeightsError, match="is not beside it"):
        import_onnx(inside / "x.onnx")
    (inside / "x.data").symlink_to(tmp_path / "x.data")
    with pytest.raises(WeightsError, match="outside its own folder"):
        import_onnx(inside / "x.onnx")
    (inside / "x.data").unlink()
    (inside / "x.data").write_bytes(b"short")
    with pytest.raises(WeightsError, match="cannot be read from the file beside it"):
        import_onnx(inside / "x.onnx")


def test_an_opset_that_is_not_known(edited):
    for opset in (5, 99):
        path = edited(lambda model, opset=opset: setattr(model.opset_import[0], "version", opset))
        with pytest.raises(WeightsError, match=f"is of opset {opset}, expected one from 7 to"):
            import_onnx(path)


def test_nan_is_named_with_the_weights_that_have_it(edited):
    def spoil(model):
        tensor = weights_of(model, "layer2.0.conv1.weight")
        value = onnx.numpy_helper.to_array(tensor).copy()
        value[0, 0, 0, 0] = np.nan
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))

    with pytest.raises(WeightsError, match=r"'layer2.0.conv1.weight' of node .* have NaN"):
        import_onnx(edited(spoil))


def test_the_first_operator_that_does_not_fit_is_named_with_our_layer(edited):
    def change(model):
        node = [one for one in model.graph.node if one.op_type == "PRelu"][2]
        node.op_type, node.name = "Relu", "R3"
        del node.input[1:]

    with pytest.raises(
        WeightsError,
        match=r"'R3' \(Relu\) does not fit where layer2.0.prelu should be: expected PRelu with 32",
    ):
        import_onnx(edited(change))


def test_another_network_is_refused_by_its_first_operator(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8))
    path = write(tmp_path / "x.onnx", network)
    with pytest.raises(WeightsError, match=r"\(Flatten\) does not fit where conv1 should be"):
        import_onnx(path)
