"""The service of docs/shipping.md is what it says: it is taken from there and asked."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from evaluation.embedding import on_pixels
from tests.models.small import SIZE, trained
from training.frozen.card import OperatingPoint, read_card, write_card
from training.saving.reading import open_weights
from training.shipping.export import export
from training.shipping.shipped import Form

for needed in ("onnx", "onnxruntime"):
    pytest.importorskip(needed)

DOCS = Path(__file__).parents[1] / "docs" / "shipping.md"


def create_server(model: Path) -> Any:
    code = DOCS.read_text().partition("## A service\n")[2].partition("```python\n")[2]
    names: dict[str, Any] = {"__name__": "serve"}
    exec(code.partition("```")[0], names)
    return names["create_server"](str(model), 0)


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """Of the service, whose threshold is 0.5, known from 0.4 to 0.6."""
    torch.save(trained("iresnet10").state_dict(), tmp_path / "network.pt")
    path = tmp_path / "x.onnx"
    form = Form("uint8-rgb-nhwc", flip_sum=True, normalized=True)
    export(open_weights(tmp_path / "network.pt"), path, form=form)
    points = [
        OperatingPoint("lfw", fmr, threshold, threshold - 0.1, threshold + 0.1, 10, 99, True)
        for fmr, threshold in ((0.01, 0.2), (0.001, 0.5))
    ]
    write_card(path, replace(read_card(path), points=points))
    server = create_server(path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def ask(address: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(Request(address, data=body), timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def ask_with_length(address: str, length: str | None) -> tuple[int, dict[str, Any]]:
    """The header as it is given, and nothing after it: the connection stays open."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    response = connection.getresponse()
    answer = json.load(response)
    connection.close()
    return response.status, answer


@pytest.mark.slow
def test_two_faces_get_their_cosine_and_a_decision(address):
    faces = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    embed = on_pixels(trained("iresnet10").eval(), device=torch.device("cpu"))
    pixels = torch.from_numpy(faces).permute(0, 3, 1, 2)
    with torch.no_grad():
        first, second = normalize(embed(pixels) + embed(pixels.flip(3)))
    a, b = map(png, faces)
    status, answer = ask(address, json.dumps({"a": a, "b": b}).encode())
    assert status == 200
    cosine = float(first @ second)
    assert answer["cosine"] == pytest.approx(cosine, abs=1e-4)
    expected = "same" if cosine >= 0.6 else "different" if cosine < 0.4 else "undecided"
    assert (answer["decision"], answer["fmr"], answer["set"]) == (expected, 0.001, "lfw")
    status, answer = ask(address, json.dumps({"a": a, "b": a}).encode())
    assert answer["decision"] == "same"
    for body, complaint in (
        (b"no JSON", "JSONDecodeError"),
        (json.dumps({"a": a}).encode(), "expected a and b, two images in base64"),
        (b"[]", "expected a and b, two images in base64"),
        (json.dumps({"a": a, "b": png(faces[0, :8])}).encode(), f"expected faces of {SIZE} x"),
        (json.dumps({"a": a, "b": base64.b64encode(b"x" * 99).decode()}).encode(), "Unidentified"),
    ):
        status, answer = ask(address, body)
        assert status == 400
        assert complaint in answer["error"]
    for length in (None, "-1", "ten"):
        status, answer = ask_with_length(address, length)
        assert status == 400
        assert "expected Content-Length" in answer["error"]
