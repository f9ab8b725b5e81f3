"""What an .onnx file takes from other files: known without running it, and never from elsewhere."""

import os

import numpy as np
import pytest

from training.frozen.onnx_file import OnnxError, digest_of_file, external_files

pytest.importorskip("onnx")


def write(path, *locations, inside=False):
    """A graph whose weights are in other files; `inside`: in a graph within its graph."""
    from onnx import TensorProto, helper

    tensors = []
    for number, location in enumerate(locations):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[3])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", "12")):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    if inside:
        branch = helper.make_graph([], "branch", [], [], tensors)
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "whole", [], [])
    else:
        graph = helper.make_graph([], "whole", [], [], tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_a_file_that_holds_its_weights_needs_no_other(tmp_path):
    assert external_files(write(tmp_path / "x.onnx")) == []


@pytest.mark.parametrize("inside", [False, True])
def test_files_beside_it_are_found_and_digested(inside, tmp_path):
    (tmp_path / "b").mkdir()
    weights = [tmp_path / "a.data", tmp_path / "b/c.data"]
    for file in weights:
        file.write_bytes(np.ones(3, np.float32).tobytes())
    path = write(tmp_path / "x.onnx", "a.data", "b/c.data", "a.data", inside=inside)
    assert external_files(path) == weights
    before = digest_of_file(path)
    weights[1].write_bytes(np.zeros(3, np.float32).tobytes())
    assert digest_of_file(path) != before


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("location", ["../secret", "{}/secret", "link", "b/../../secret"])
def test_files_elsewhere_are_refused(location, inside, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(12))
    folder = tmp_path / "model"
    (folder / "b").mkdir(parents=True)
    os.symlink(tmp_path / "secret", folder / "link")
    path = write(folder / "x.onnx", location.format(tmp_path), inside=inside)
    with pytest.raises(OnnxError, match="outside its own folder: nothing was read"):
        external_files(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OnnxError, match=r"weights in w\.data, which is not beside it"):
        external_files(write(tmp_path / "x.onnx", "w.data"))


@pytest.mark.parametrize("content", [b"", b"no onnx", b"\xff" * 40, b"\x3a\xff\xff\x01"])
def test_what_is_no_protobuf_names_no_files(content, tmp_path):
    (tmp_path / "x.onnx").write_bytes(content)
    assert external_files(tmp_path / "x.onnx") == []
