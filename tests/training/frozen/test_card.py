"""A model's card goes into its file and comes back; tensors and digest stay as they are."""

import json
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evaluation.result import Figure
from training.frozen.card import (
    KEY,
    Card,
    CardError,
    GroupRates,
    OperatingPoint,
    TrainingData,
    read_card,
    write_card,
)
from training.frozen.onnx_file import digest_of_file, metadata_in
from training.frozen.pt2_file import add_extra_files, extra_files

CARD = Card(
    network="iresnet18",
    embedding_dim=4,
    input="112,rgb,-1..1",
    precision="float32",
    digest="0123456789abcdef",
    space="0123456789abcdef",
    points=[OperatingPoint("lfw.bin", 1e-3, 0.31, 0.29, 0.34, 3000, 3000, True)],
    groups=[
        GroupRates(
            "lfw.bin", "Zoë", "0.3, of FMR 0.01", Figure(0.01, 0.0, 0.02), Figure(None, note="few")
        )
    ],
    data=[TrainingData("ms1mv2"), TrainingData("ours", "a studio", "cc-by-4.0")],
    config={"model": {"name": "iresnet18"}},
)


def write_onnx(path, **metadata):
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def write_safetensors(path, **metadata):
    save_file({"w": np.arange(4, dtype=np.float32)}, path, metadata=metadata or None)
    return path


WRITERS = {".onnx": write_onnx, ".safetensors": write_safetensors}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("metadata", [{}, {"author": "Zoë", KEY: "old"}])
def test_what_is_written_is_read_and_the_rest_stays(suffix, metadata, tmp_path):
    path = WRITERS[suffix](tmp_path / f"x{suffix}", **metadata)
    for card in (CARD, replace(CARD, points=[])):
        write_card(path, card)
        assert read_card(path) == card
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix == ".safetensors":
        assert load_file(path)["w"].tolist() == [0, 1, 2, 3]
        return
    import onnx

    model = onnx.load(path)
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).tolist() == [0, 1, 2, 3]
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found == metadata_in(path.read_bytes()) == {**metadata, KEY: card.as_json()}
    assert len(model.metadata_props) == len(found)  # none twice


def test_a_card_leaves_the_digest_of_an_onnx_file_alone(tmp_path):
    path = write_onnx(tmp_path / "x.onnx", author="one")
    before = digest_of_file(path)
    write_card(path, CARD)
    assert digest_of_file(path) == before
    content = path.read_bytes()
    weight = np.arange(4, dtype=np.float32).tobytes()
    path.write_bytes(content.replace(weight, weight[::-1]))
    assert digest_of_file(path) != before


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_without_a_card_has_none(suffix, tmp_path):
    assert read_card(WRITERS[suffix](tmp_path / f"x{suffix}", author="me")) is None
    assert read_card(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "card is damaged"),
        ("[]", "card is damaged"),
        ("[" * 100_000, "card is damaged"),
        (CARD.as_json()[:-1] + ', "more": 1}', "card is damaged"),
        (CARD.as_json().replace('"format": 1', '"format": 2'), "format 2"),
        (CARD.as_json().replace('"fmr": 0.001', '"fmr": 0'), "at an FMR of 0, expected above 0"),
        (CARD.as_json().replace('"fmr": 0.001', '"fmr": "low"'), "at an FMR of 'low'"),
        (CARD.as_json().replace('"set": "lfw.bin", "fmr"', '"set": "", "fmr"'), "of the set ''"),
        (CARD.as_json().replace('"threshold": 0.31', '"threshold": NaN'), "a threshold of nan"),
    ],
    ids=["no JSON", "no table", "nested", "unknown", "newer", "FMR 0", "word", "no set", "NaN"],
)
def test_a_card_that_makes_no_sense_is_named(text, message, tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", **{KEY: text})
    with pytest.raises(CardError, match=message):
        read_card(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_no_card_is_written_into_a_damaged_file(suffix, tmp_path):
    path = WRITERS[suffix](tmp_path / f"x{suffix}")
    whole = path.read_bytes()
    for content in (b"", whole[:9], b"\xff" * 100, struct.pack("<Q", 2) + b"[]"):
        path.write_bytes(content)
        with pytest.raises(CardError, match=path.name):
            write_card(path, CARD)
        assert path.read_bytes() == content
    with pytest.raises(CardError, match="can have no card"):
        write_card(tmp_path / "x.pt", CARD)


def write_pt2(path, texts, *, before=""):
    """As torch.export lays it out, without a graph."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/models/model.json", before)
        for name, text in texts.items():
            archive.writestr(f"x/extra/{name}", text)
    return path


@pytest.mark.parametrize("folder", ["x/extra", "extra_files"])
def test_the_texts_of_a_pt2_file_are_read_of_either_layout(folder, tmp_path):
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/facestream.input", "112")
    add_extra_files(path, {KEY: CARD.as_json()})
    assert extra_files(path) == {"facestream.input": "112", KEY: CARD.as_json()}
    assert read_card(path) == CARD


def test_a_pt2_file_without_a_card_has_none_and_a_damaged_one_is_named(tmp_path):
    path = write_pt2(tmp_path / "x.pt2", {"facestream.input": "112"})
    assert read_card(path) is None
    whole = write_pt2(path, {KEY: CARD.as_json()}).read_bytes()
    card = whole.index(b'"network"')
    for content in (b"", whole[:-9], whole[:card] + b"?" + whole[card + 1 :], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CardError, match=r"x\.pt2: it cannot be read as a \.pt2 file"):
            read_card(path)


def test_a_card_is_plain_json():
    assert json.loads(CARD.as_json())["points"][0]["fmr"] == 1e-3
