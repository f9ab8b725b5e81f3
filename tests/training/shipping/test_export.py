"""Every network is exported in every form, and what comes out different is not written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import normalize
from tests.models.small import SIZE, SMALL, small, trained
from tools.make_synthetic import make_synthetic
from training.frozen.card import KEY, Card, TrainingData, read_card, space_of, write_card
from training.frozen.model import digest_of_weights, open_model
from training.frozen.onnx_file import OnnxError, metadata_in
from training.frozen.onnx_input import METADATA
from training.saving.reading import SavedFile, open_weights
from training.shipping import export as shipping
from training.shipping.export import CHECKED, ExportError, export, faces_of
from training.shipping.shipped import INPUTS, Form, Shipped

for needed in ("onnx", "onnxruntime"):
    pytest.importorskip(needed)


@pytest.fixture
def saved(tmp_path) -> SavedFile:
    torch.save(trained("iresnet10").state_dict(), tmp_path / "network.pt")
    return open_weights(tmp_path / "network.pt")


class Saved:
    """Weights in memory, as open_weights finds them: of networks that no file tells."""

    path = Path("none.pt")

    def __init__(self, name: str) -> None:
        self.architecture, self._network = small(name), trained(name)

    def network(self) -> nn.Module:
        return self._network


def pixels(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-4 of each embedding's length."""
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_network_gives_torch_s_embeddings(name, tmp_path):
    path = tmp_path / "x.onnx"
    found = export(Saved(name), path, form=Form())
    assert found.differs <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_written_in_smaller_types(name, dtype, tmp_path, monkeypatch):
    """Their weights are drawn, which makes more of roundings than those that were learned."""
    monkeypatch.setattr(shipping, "BOUNDS", {"fp16": 0.05, "int8": 0.6})
    faces = pixels(32).permute(0, 2, 3, 1).numpy()
    found = export(Saved(name), tmp_path / "x.onnx", form=Form(), dtype=dtype, faces=faces)
    assert found.differs > 1e-5
    assert read_card(tmp_path / "x.onnx").precision == {"fp16": "float16", "int8": "int8"}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("source", [Form(), Form("uint8-bgr-nhwc", flip_sum=True, normalized=True)])
@pytest.mark.parametrize("name", ["iresnet10", "mbf"])
def test_an_onnx_file_is_exported_again_in_another_form(name, source, tmp_path):
    """Whatever its graph holds beside the network; and its embeddings stay comparable."""
    path, again = tmp_path / "x.onnx", tmp_path / "y.onnx"
    export(Saved(name), path, form=source)
    found = export(open_weights(path), again, form=Form("uint8-rgb-nchw"), dtype="fp16")
    assert 1e-5 < found.differs < 1e-2
    cards = [read_card(path), read_card(again)]
    assert cards[0].space == cards[1].space == digest_of_weights(trained(name))
    assert cards[0].digest != cards[1].digest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.onnx", "x.pt2"])
def test_a_disk_that_fills_up_leaves_nothing(name, saved, tmp_path, monkeypatch):
    """Not while the graph is written, nor once it has been checked."""
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        real(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(shipping, "add_extra_files", lambda path, texts: full(path, b"half"))
    with pytest.raises(OSError, match="No space left"):
        export(saved, tmp_path / name, form=Form())
    assert {file.name for file in tmp_path.iterdir()} == {"network.pt", name}
    assert (tmp_path / name).read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, "float") for name in SMALL if name != "vit"), ("vit", "uint8-bgr-nhwc")],
)
def test_torch_s_own_form_does_so_too(name, given, tmp_path):
    path = tmp_path / "x.pt2"
    found = export(Saved(name), path, form=Form(given, flip_sum=True, normalized=True))
    assert found.differs <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    card, digest = read_card(path), digest_of_weights(trained(name))
    assert (card.network, card.precision) == (name, "float32")
    assert card.space == card.digest == digest
    texts = {METADATA: "", CHECKED: "", KEY: ""}
    torch.export.load(path, extra_files=texts)
    assert texts[METADATA] == card.input
    assert json.loads(texts[CHECKED])["differs"] == found.differs
    assert json.loads(texts[KEY])["space"] == digest


@pytest.mark.parametrize("given", INPUTS)
def test_the_graph_takes_images_as_it_says(given, saved, tmp_path):
    """Opened by what its metadata says, it embeds RGB as the network does, whatever it takes."""
    path = tmp_path / "x.onnx"
    export(saved, path, form=Form(given))
    opened = open_model(path, device=torch.device("cpu"), dtype=torch.float32)
    expected = saved.network().eval()(normalize(pixels(), torch.float32))
    assert_alike(opened.embed(pixels()), expected)


def test_the_graph_adds_the_mirror_image_and_normalizes(saved, tmp_path):
    path = tmp_path / "x.onnx"
    export(saved, path, form=Form("uint8-rgb-nhwc", flip_sum=True, normalized=True))
    opened = open_model(path, device=torch.device("cpu"), dtype=torch.float32)
    network = saved.network().eval()
    views = (pixels(), pixels().flip(3))
    summed = sum(network(normalize(view, torch.float32)) for view in views)
    expected = nn.functional.normalize(summed)
    assert_alike(opened.embed(pixels()), expected)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_smaller_types_stay_within_their_bound(dtype, saved, tmp_path):
    path, faces = tmp_path / "x.onnx", pixels(32).permute(0, 2, 3, 1).numpy()
    form = Form("uint8-rgb-nhwc", flip_sum=True, normalized=True)
    export(saved, tmp_path / "whole.onnx", form=form)
    found = export(saved, path, form=form, dtype=dtype, faces=faces)
    assert 1e-5 < found.differs <= shipping.BOUNDS[dtype]
    digest = digest_of_weights(saved.network())
    cards = [read_card(one) for one in (path, tmp_path / "whole.onnx")]
    assert [card.space for card in cards] == [digest, digest]
    assert len({card.digest for card in cards}) == 2
    assert [space_of(one, read_card(one).digest) for one in (path, tmp_path / "whole.onnx")] == [
        digest
    ] * 2
    assert path.stat().st_size < 0.6 * (tmp_path / "whole.onnx").stat().st_size


def test_the_file_says_what_it_is_and_how_it_was_checked(saved, tmp_path):
    path = tmp_path / "x.onnx"
    found = export(saved, path, form=Form("uint8-bgr-nchw"))
    checked = json.loads(metadata_in(path.read_bytes())[CHECKED])
    assert checked["opset"] == 17
    assert checked["batches"] == [1, 2, 7, 64]
    assert checked["differs"] == found.differs <= checked["bound"]
    opened = open_model(path, device=torch.device("cpu"), dtype=torch.float32)
    card = read_card(path)
    assert card.digest == opened.digest
    assert card.space == digest_of_weights(saved.network())
    assert (card.network, card.input) == ("iresnet10", "32,bgr,0..255,nchw")


def test_a_graph_of_pixels_is_not_given_anything_else(saved, tmp_path):
    path = tmp_path / "x.onnx"
    export(saved, path, form=Form("uint8-rgb-nhwc"))
    with pytest.raises(OnnxError, match=r"is uint8, and it would be given .*: say 0\.\.255"):
        open_model(path, device=torch.device("cpu"), dtype=torch.float32, words="rgb,-1..1")


def test_the_card_of_the_weights_goes_on_into_the_export(tmp_path):
    source, path = tmp_path / "x.safetensors", tmp_path / "x.onnx"
    tensors = {name: one.contiguous() for name, one in trained("vit").state_dict().items()}
    save_file(tensors, source)
    data = [TrainingData("ours", "a studio", "cc-by-4.0")]
    write_card(source, Card("vit", 24, "", "float32", "", data=data, config={"head": {}}))
    export(open_weights(source), path, form=Form())
    assert read_card(path).data == data
    assert read_card(path).config == {"head": {}}


@pytest.mark.slow
def test_the_accuracy_is_compared_on_a_set(tmp_path):
    make_synthetic(tmp_path, identities=4, images=4, pairs=20, seed=0, size=SIZE)
    sets = [str(tmp_path / "val.bin")]
    found = export(Saved("iresnet10"), tmp_path / "x.onnx", form=Form(), sets=sets)
    ((figure, ours, theirs),) = found.scores.values()
    assert figure == "accuracy"
    assert ours == theirs > 0.4


@pytest.mark.parametrize("expected", [1e30, float("nan"), float("inf")])
def test_embeddings_too_large_to_be_measured_are_not_alike(expected):
    def giving(value: float):
        return lambda images: torch.full((len(images), 4), value)

    assert shipping.compare(giving(expected), giving(1.0), pixels(64)) > 0.5


@pytest.mark.parametrize("there", [False, True])
def test_what_computes_something_else_is_not_written(there, saved, tmp_path, monkeypatch):
    """A file that is there already stays."""
    path = tmp_path / "x.onnx"
    if there:
        path.write_bytes(b"old")
    # As if RGB were meant, and the graph took it for BGR.
    monkeypatch.setattr(Shipped, "forward", lambda self, images: self.network(images.flip(1)))
    with pytest.raises(ExportError, match="an embedding differs from torch's by"):
        export(saved, path, form=Form())
    left = {file.name for file in tmp_path.iterdir()} - {"network.pt"}
    assert left == ({path.name} if there else set())
    assert not there or path.read_bytes() == b"old"


def test_what_is_less_accurate_is_not_written(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "_scores", lambda *_, **__: {"val": ("accuracy", 0.9, 0.8)})
    with pytest.raises(ExportError, match=r"on val its accuracy is 0\.8000, and torch's 0\.9000"):
        export(saved, tmp_path / "x.onnx", form=Form())
    assert not (tmp_path / "x.onnx").exists()


def test_faces_are_taken_from_all_over_a_file(faces):
    found = faces_of(faces / "train.rec", size=64, count=10)
    assert found.shape == (10, 64, 64, 3)
    assert len(np.unique(found.reshape(10, -1), axis=0)) == 10
    assert len(faces_of(faces / "train.rec", size=64, count=1000)) == 64
    assert np.array_equal(faces_of(faces, size=64, count=10), found)
