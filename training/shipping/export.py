"""A model exported, checked at several batch sizes and on test sets, and only then named."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.embedding import on_pixels
from evaluation.evaluate import Judged, Settings, evaluate
from evaluation.features import Embedder
from evaluation.people.training_images import training_images
from evaluation.protocols.named_sets import NamedSets
from evaluation.protocols.protocol import Asked
from evaluation.result import Model
from pipeline.containers.forms import form_of
from pipeline.containers.open_records import open_records
from pipeline.whole_file import replace
from training.frozen.card import KEY, Card, space_of, write_card
from training.frozen.model import digest_of_weights, run_onnx
from training.frozen.onnx_file import digest_of_file, with_metadata
from training.frozen.onnx_input import METADATA, as_words
from training.frozen.onnx_network import open_onnx
from training.frozen.pt2_file import add_extra_files
from training.saving.reading import SavedCheckpoint, SavedFile
from training.shipping.known import config_of, data_of
from training.shipping.onnx_export import OPSET, ExportError, write_onnx
from training.shipping.pt2_export import open_pt2, write_pt2
from training.shipping.shipped import EMBEDDINGS, Form, Shipped
from training.weights.learned_quality import LearnedQuality

CHECKED = "facestream.checked"  # what the check found, as JSON
BATCHES = (1, 2, 7, 64)
# By dtype: the largest ‖exported - torch‖ / ‖torch‖ of an image's embedding; and how much worse the
# main figure of a test set may be.
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.15}
LOSSES = {"fp32": 0.001, "fp16": 0.002, "int8": 0.01}
_PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
_CPU = torch.device("cpu")

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Checked:
    """What the check of an exported file found.

    Attributes:
        differs: the largest ‖exported - torch‖ / ‖torch‖ of an image's embedding.
        quality_differs: the largest difference of an image's quality, as a share of what an
            embedding of its length can have; None without one.
        scores: by test set: the name of its main figure, torch's and the file's.
    """

    differs: float
    quality_differs: float | None
    scores: Mapping[str, tuple[str, float, float]]


def export(
    saved: SavedCheckpoint | SavedFile,
    output: Path,
    *,
    form: Form,
    dtype: str = "fp32",
    quality: LearnedQuality | None = None,
    faces: np.ndarray | None = None,
    sets: Sequence[str] = (),
) -> Checked:
    """Write a network as an .onnx or, by the name of `output`, a .pt2 file, and check it.

    What does not pass the check leaves nothing at `output`; a file that was there stays.

    Args:
        dtype: a key of BOUNDS; a .pt2 file is in fp32.
        quality: what the weights have learned of it, for a second output.
        faces: (N, S, S, 3) uint8 RGB, from which int8 takes its ranges, and to check on.
        sets: as evaluation takes them, on which the file is compared with the network.

    Raises:
        ExportError: the file computes something else, or a package is missing.
        UserError: of the weights or the sets.
    """
    network, architecture = saved.network().requires_grad_(False).eval(), saved.architecture
    size = architecture.image_size
    wanted = form.described(size)
    shipped = Shipped(network, form, size, quality=quality)
    said = as_words(wanted) + (f",output={EMBEDDINGS}" if quality else "")
    images = _at_least(BATCHES[-1], faces, size)
    example = as_taken(form, images[:2], size)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        path = Path(folder) / output.name
        if output.suffix == ".pt2":
            write_pt2(shipped, path, example=example, texts={METADATA: said})
            network_there, *quality_there = open_pt2(path, form, size, outputs=shipped.outputs)
        else:
            calibration = None if faces is None else as_taken(form, _as_tensor(faces), size).numpy()
            write_onnx(
                shipped,
                path,
                example=example,
                dtype=dtype,
                calibration=calibration,
                metadata={METADATA: said},
            )
            file = open_onnx(path, device=_CPU)
            network_there, *quality_there = (
                run_onnx(file, wanted, output=output).embed for output in shipped.outputs
            )
        reference = _in_torch(network, form)
        differs = compare(reference, network_there, images)
        far = _too_far(differs, dtype, what="an embedding", of="its length")
        _require(differs <= BOUNDS[dtype], output, far)
        quality_differs = None
        if quality:
            [its_quality] = quality_there
            quality_differs = _compare_quality(network, form, quality, its_quality, images)
            far = _too_far(quality_differs, dtype, what="a quality", of="what it can be")
            _require(quality_differs <= BOUNDS[dtype], output, far)
        scores = _scores(reference, network_there, sets, size=size, flip=not form.flip_sum)
        for name, (figure, ours, theirs) in scores.items():
            worse = ours - theirs
            _require(worse <= LOSSES[dtype], output, _too_bad(name, figure, ours, theirs, dtype))
        found, space = Checked(differs, quality_differs, scores), _space(saved, network)
        card = Card(
            network=architecture.name,
            embedding_dim=architecture.embedding_dim,
            input=as_words(wanted),
            precision=_PRECISIONS[dtype],
            digest=digest_of_weights(network) if output.suffix == ".pt2" else digest_of_file(path),
            space=space,
            data=data_of(saved),
            config=config_of(saved),
        )
        checked_as = _as_json(found, form, dtype)
        if output.suffix == ".pt2":
            add_extra_files(path, {CHECKED: checked_as, KEY: card.as_json()})
        else:
            checked = with_metadata(path.read_bytes(), CHECKED, checked_as)
            path.write_bytes(checked)
            write_card(path, card)
        replace(path, output)
    return found


def faces_of(rec: Path, *, size: int, count: int) -> np.ndarray:
    """`count` images from all over a set: (count, size, size, 3) uint8 RGB; fewer if it has fewer.

    Raises UserError: no such file, images of another size, or damaged ones.
    """
    form_of(rec, called=f"--calibrate {rec}")
    images = training_images(open_records(rec), size=size)
    places = np.unique(np.linspace(0, len(images) - 1, count).astype(int)) if len(images) else []
    found = []
    for place in places:
        pixels, faults = images.load(range(place, place + 1))
        if not faults:
            found.append(pixels[0])
    if not found:
        raise ExportError(f"{rec} has no image that can be read: name another for --calibrate")
    return np.stack(found)


def as_taken(form: Form, images: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) uint8 RGB as the graph takes it."""
    made = form.described(size)(images).contiguous()
    return made.to(torch.uint8) if form.takes_pixels else made


def compare(reference: Embed, exported: Embed, images: Tensor) -> float:
    """The largest relative difference of an embedding, over batches of BATCHES images."""
    largest = 0.0
    for batch in BATCHES:
        # In float64 lengths do not overflow, against which any difference would be none.
        expected, found = (one(images[:batch]).double() for one in (reference, exported))
        if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
            return float("inf")
        differs = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)
        if not bool(torch.isfinite(differs).all()):
            return float("inf")
        largest = max(largest, float(differs.max()))
    return largest


def _compare_quality(
    network: nn.Module, form: Form, quality: LearnedQuality, exported: Embed, images: Tensor
) -> float:
    """As `compare`, of the qualities: bounded where the embeddings are."""
    raw, largest = _in_torch(network, changed(form, normalized=False)), 0.0
    for batch in BATCHES:
        rows = raw(images[:batch])
        expected, found = quality.of(rows, summed=form.flip_sum), exported(images[:batch])
        reach = (quality.scale * rows.norm(dim=1) + abs(quality.bias)).clamp_min(1e-12)
        differs = (found.squeeze(1) - expected).abs() / reach
        if not bool(torch.isfinite(differs).all()):
            return float("inf")
        largest = max(largest, float(differs.max()))
    return largest


def _space(saved: SavedCheckpoint | SavedFile, network: nn.Module) -> str:
    """Of an .onnx file's embeddings as its card says: its weights are the same only to rounding."""
    if saved.path.suffix == ".onnx":
        return space_of(saved.path, digest_of_file(saved.path))
    return digest_of_weights(network)


def _in_torch(network: nn.Module, form: Form) -> Embed:
    embed = on_pixels(network, device=_CPU)

    def formed(pixels: Tensor) -> Tensor:
        rows = embed(pixels)
        if form.flip_sum:
            rows = rows + embed(pixels.flip(3))
        return nn.functional.normalize(rows) if form.normalized else rows

    return formed


def _at_least(count: int, faces: np.ndarray | None, size: int) -> Tensor:
    """So many images (count, 3, S, S) uint8: faces again and again, or smooth noise without any."""
    if faces is not None:
        return _as_tensor(np.resize(faces, (count, *faces.shape[1:])))
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear").to(torch.uint8)


def _as_tensor(faces: np.ndarray) -> Tensor:
    return torch.from_numpy(faces).permute(0, 3, 1, 2)


def _scores(
    reference: Embed, exported: Embed, sets: Sequence[str], *, size: int, flip: bool
) -> dict[str, tuple[str, float, float]]:
    """By test set: its main figure's name, torch's and the file's."""
    if not sets:
        return {}

    def judged(name: str, embed: Embed) -> Judged:
        about = Model(name, name, name, name, 0, size, "", "float32")
        return Judged(about, Embedder(embed, name, size, _CPU))

    models = [judged("torch", reference), judged("exported", exported)]
    asked = Asked(draws=0)
    named = NamedSets(sets, sizes=[size], seed=0, asked=asked)
    found = evaluate(models, named.openers, Settings(asked, flip=flip))
    figures = {(one.set, one.model): one.figures[one.headline].value for one in found.results}
    return {
        one.set: (
            one.headline,
            figures[one.set, "torch"] or 0.0,
            one.figures[one.headline].value or 0.0,
        )
        for one in found.results
        if one.model == "exported"
    }


def _require(holds: bool, output: Path, reason: str) -> None:
    if not holds:
        raise ExportError(f"{output} was not written: {reason}")


def _too_far(differs: float, dtype: str, *, what: str, of: str) -> str:
    more = {"fp32": "", "fp16": " or --dtype fp32", "int8": ", or --dtype fp16"}[dtype]
    images = (
        ". Give more images of faces like yours to --calibrate"
        if dtype == "int8"
        else (". Take another version of torch or onnxruntime")
    )
    return (
        f"in {dtype} {what} differs from torch's by {differs:.2g} of {of}, expected at most "
        f"{BOUNDS[dtype]:g}{images}{more}"
    )


def _too_bad(name: str, figure: str, ours: float, theirs: float, dtype: str) -> str:
    return (
        f"on {name} its {figure} is {theirs:.4f}, and torch's {ours:.4f}: in {dtype} it may be at "
        f"most {LOSSES[dtype]:g} lower. Export it in another --dtype, or calibrate on more faces"
    )


def _as_json(found: Checked, form: Form, dtype: str) -> str:
    return json.dumps(
        {
            "opset": OPSET,
            "dtype": dtype,
            "flip_sum": form.flip_sum,
            "normalized": form.normalized,
            "batches": BATCHES,
            "differs": found.differs,
            "quality_differs": found.quality_differs,
            "bound": BOUNDS[dtype],
            "scores": {
                name: {"figure": figure, "torch": ours, "file": theirs}
                for name, (figure, ours, theirs) in found.scores.items()
            },
        }
    )
