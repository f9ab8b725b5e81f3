"""An .onnx file as weights of a network of ours, which embeds as onnxruntime does from the file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length

from evaluation.embedding import on_pixels
from facestream import UserError
from models.architecture import Architecture
from models.input import Input, InputError
from models.recognize import recognize
from training.frozen.onnx_input import read_metadata, read_words
from training.frozen.onnx_network import OnnxNetwork, open_onnx
from training.saving.weight_file import WeightsError, require_finite_weights
from training.weights.onnx_import.comparison import (
    BOUND,
    Difference,
    are_alike,
    difference,
    random_images,
)
from training.weights.onnx_import.content import read_content
from training.weights.onnx_import.ends import Front, read_front, read_tail
from training.weights.onnx_import.graph import Graph
from training.weights.onnx_import.iresnet import take_iresnet
from training.weights.onnx_import.mobilefacenet import take_mobilefacenet
from training.weights.onnx_import.walk import Walk

_RANGES = ((-1.0, 1.0), (0.0, 255.0), (0.0, 1.0))  # of what a graph may be given
_GRAY = 1e-5  # how far from 0 the gray between black and white may come out
_SCALES = (0.9, 1.1)  # how far from [-1, 1] black and white may come out where no words say it
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Imported:
    """What was found in an .onnx file.

    Attributes:
        tensors: the state dict of `architecture`, by our names.
        unfolded: names of the BatchNorms that were folded away and have no statistics of images;
            see training/weights/onnx_import/affine.py.
        notes: what was changed, left out or taken for granted.
        differs: how far its embeddings of random images are from onnxruntime's.
    """

    tensors: dict[str, Tensor]
    architecture: Architecture
    unfolded: tuple[str, ...]
    notes: tuple[str, ...]
    differs: Difference

    def network(self) -> nn.Module:
        """In evaluation mode, on the CPU."""
        network = self.architecture.create()
        network.load_state_dict(self.tensors)
        return network.requires_grad_(False).eval()


def import_onnx(path: Path, words: str = "") -> Imported:
    """Read the IResNet or MobileFaceNet in a file, and compare embeddings with onnxruntime's.

    The network takes RGB in [-1, 1] as all of ours do: what the graph does to pixels goes into the
    first convolution.

    Args:
        words: how the file wants its images, where it does not say so itself; see
            training/frozen/onnx_input.py.

    Raises:
        WeightsError: the file is damaged, of another network, wants pixels that cannot be made
            good, or embeds otherwise than what was read from it; or words make no sense.
        PathError: there is no such file.
    """
    model, widened = read_content(path)
    graph = Graph(model, path)
    walk = Walk(graph, path)
    front = read_front(graph, walk)
    said = _said(model, words, path)
    output = said.pop("output", "")
    value = _network_of(walk, front.value)(walk, front.value)
    output, finished = read_tail(graph, walk, value, output)
    fields, notes = _take_input(walk.tensors, front, said, path)
    network, architecture, tensors = _build(walk.tensors, path)
    given = Input(size=architecture.image_size, **fields)
    with _as_file(model if widened else None, path) as file:
        try:
            theirs = OnnxNetwork(open_onnx(file, device=_CPU), given, output=output)
        except UserError as error:
            raise WeightsError(str(error).replace(str(file), str(path))) from error
        normalized, differs = _compare(network, theirs, given, front.mirrored, finished)
    if not are_alike(differs, network):
        raise WeightsError(
            f"{path}: {architecture} with its weights embeds otherwise than onnxruntime does from "
            f"the file: by {differs.length:.2g} of an embedding's length, expected at most "
            f"{BOUND:g}, and by {differs.spread:.2g} of what tells images apart. The graph does "
            "something that was not understood: it can be run, but not trained on"
        )
    if widened:
        notes.append("its float16 weights were made float32")
    if front.mirrored:
        notes.append("left out: at its end, the mirror image's embedding is added")
    if normalized:
        notes.append("left out: at its end, embeddings are made of length 1")
    if walk.unfolded:
        notes.append(
            f"{len(walk.unfolded)} BatchNorms were folded away: they are back, without the "
            "statistics of images"
        )
    return Imported(tensors, architecture, tuple(walk.unfolded), tuple(notes), differs)


def _said(model: Any, words: str, path: Path) -> dict[str, Any]:
    """What the file and its user say of the images that it takes, and of its output."""
    try:
        said = read_metadata({one.key: one.value for one in model.metadata_props})
        said |= read_words(words) if words else {}
        Input(size=16, **{key: said[key] for key in ("range", "mean", "std") if key in said})
    except InputError as error:
        raise WeightsError(f"{path}: {error}") from error
    return said


def _network_of(walk: Walk, images: str) -> Callable[[Walk, str], str]:
    """Who reads it: a MobileFaceNet halves the images at once."""
    (first,) = walk.takers(images)
    halves = [*first.attributes.get("strides", [])] == [2, 2]
    return take_mobilefacenet if halves else take_iresnet


def _take_input(
    tensors: dict[str, np.ndarray], front: Front, said: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Let the first convolution take RGB in [-1, 1]; returns fields of what the file takes."""
    first = next(name for name in ("conv1.weight", "layers.0.layers.0.weight") if name in tensors)
    color = said.get("color", "bgr" if front.reversed else "rgb")
    known = {key: said[key] for key in ("range", "mean", "std") if key in said}
    fitting = []
    for ends in [known["range"]] if "range" in known else _RANGES:
        given = Input(size=16, **{**known, "range": ends})
        scale, shift = _of_ours(given, front)
        low, high = (0.0, np.inf) if "range" in known else _SCALES
        if np.abs(shift).max() < _GRAY and scale.min() > low and scale.max() < high:
            fitting.append((ends, scale))
    if not fitting:
        raise WeightsError(
            f"{path} takes pixels of which {_in_words(front)} goes into its first convolution: "
            "expected -1 … 1 for black … white. Around an image that convolution sees zeros, which "
            "are gray: with other pixels they are another color, which no weights make good. If "
            "the graph takes other pixels than RGB in [-1, 1], say so: tools/import_onnx.py "
            "--onnx-input bgr,0..255"
        )
    ends, scale = fitting[0]
    weight = tensors[first] * scale.astype(np.float32)[:, None, None]
    is_bgr = (color == "bgr") != front.reversed
    tensors[first] = np.ascontiguousarray(weight[:, ::-1] if is_bgr else weight)
    notes = []
    if not {"color", "range"} & said.keys() and not front.reversed and ends == _RANGES[0]:
        notes.append("taken for one of RGB in [-1, 1], as InsightFace's are: the file does not say")
    if not np.allclose(scale, 1, atol=1e-6) or is_bgr:
        notes.append("the first convolution was changed to take RGB in [-1, 1]")
    return {"color": color, "layout": front.layout, **known, "range": ends}, notes


def _of_ours(given: Input, front: Front) -> tuple[np.ndarray, np.ndarray]:
    """What goes into the first convolution is scale · x + shift of our x, (3,) each."""
    mean, std = (np.broadcast_to(one, 3).astype(float) for one in (given.mean, given.std))
    if front.reversed:
        mean, std = mean[::-1], std[::-1]
    low, high = given.range
    scale = front.scale * (high - low) / 2 / std
    return scale, front.scale * ((low + high) / 2 - mean) / std + front.shift


def _in_words(front: Front) -> str:
    scale, shift = (", ".join(f"{one:.4g}" for one in each) for each in (front.scale, front.shift))
    return f"[{scale}] · x + [{shift}]"


def _build(
    arrays: dict[str, np.ndarray], path: Path
) -> tuple[nn.Module, Architecture, dict[str, Tensor]]:
    try:
        found = recognize({name: torch.from_numpy(value) for name, value in arrays.items()})
        network = found.architecture.create()
    except UserError as error:
        raise WeightsError(f"{path}: {error}") from error
    require_finite_weights(found.state, path)
    network.load_state_dict(found.state)
    return network.requires_grad_(False).eval(), found.architecture, found.state


@contextmanager
def _as_file(model: Any | None, path: Path) -> Iterator[Path]:
    """A file with this model; without one, `path` itself."""
    if model is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float32.onnx"
        file.write_bytes(model.SerializeToString())
        yield file


def _compare(
    network: nn.Module, theirs: OnnxNetwork, given: Input, mirrored: bool, finished: bool
) -> tuple[bool, Difference]:
    """Whether the file's embeddings are of length 1, and how far ours are from them."""
    embed, pixels = on_pixels(network, device=_CPU), random_images(given.size)
    ours = embed(pixels)
    if mirrored:
        ours = ours + embed(pixels.flip(3))
    expected = on_pixels(theirs, device=_CPU, prepare=given)(pixels)
    found = {False: difference(ours, expected)}
    if finished:
        found[True] = difference(to_unit_length(ours), expected)
    normalized = min(found, key=lambda one: found[one])
    return normalized, found[normalized]
