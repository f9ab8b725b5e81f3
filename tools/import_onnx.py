"""Train on from an .onnx file:  python tools/import_onnx.py MODEL.onnx -o OUT

MODEL.onnx is an IResNet or MobileFaceNet, whoever exported it, such as InsightFace's. OUT is
OUT.safetensors or the folder of a run: for run.init_from, and wherever weights are taken. Its
embeddings are compared with onnxruntime's before it gets its name. With --statistics, BatchNorms
that were folded away get the statistics of images again, without which training on begins badly.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.embedding import on_pixels
from evaluation.images import ImagesError
from models.input import Input
from pipeline.records.manifest import UNKNOWN
from pipeline.whole_file import replace as put_in_place
from tools.sources.cropping import CropOptions
from tools.sources.named_images import named_images
from training.arcface_torch.weights import Weights
from training.command import command, whole_number
from training.distributed import joined_world
from training.frozen.card import Card, TrainingData, read_card, space_of, write_card
from training.frozen.model import digest_of_weights
from training.frozen.onnx_file import digest_of_file
from training.frozen.onnx_input import as_words
from training.saving.files import CheckpointError
from training.saving.weight_file import SUFFIXES
from training.weights.imported_run import write_imported
from training.weights.onnx_import.comparison import (
    BOUND,
    are_alike,
    difference,
    random_images,
)
from training.weights.onnx_import.importing import Imported, import_onnx
from training.weights.statistics import IMAGES, measure_statistics, some_images

_FILE = ".safetensors"
_CPU = torch.device("cpu")


def import_model(arguments: argparse.Namespace) -> None:
    """All that the command does; call it in a process group of one."""
    source, output = arguments.model, arguments.output
    _require_free(output)
    found = import_onnx(source, arguments.onnx_input)
    print(f"network       {found.architecture}, {found.architecture.embedding_dim} values")
    print(
        "checked       an embedding differs from onnxruntime's by "
        f"{found.differs.length:.2g} of its length at most"
    )
    for note in found.notes:
        print(f"note          {note}")
    if found.unfolded and arguments.statistics:
        found = _with_statistics(found, arguments)
    elif found.unfolded:
        print("statistics    none: give --statistics FACES, or train with optim.freeze_bn=true")
    data = _data(arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == _FILE:
        _write_file(output, found, data, source)
    else:
        weights = Weights(found.architecture, found.tensors)
        write_imported(output, weights, sources=[source.name], data=data)
    print(f"wrote         {output}")
    print(f"fine-tune it  run.init_from={quote(str(output))}")


def _require_free(output: Path) -> None:
    if output.suffix == _FILE:
        return
    if output.suffix in SUFFIXES:
        raise CheckpointError(f"-o {output}: expected OUT{_FILE}, or a folder for a run")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} is not empty: name another folder")


def _with_statistics(found: Imported, arguments: argparse.Namespace) -> Imported:
    """With BatchNorms that have the statistics of images, and the same embeddings."""
    size = found.architecture.image_size
    images = named_images(arguments.statistics, size=size, photos=CropOptions())
    pixels = some_images(images.load, len(images), count=arguments.images)
    if not len(pixels):
        raise ImagesError(f"{arguments.statistics} has no image that can be read: name another")
    network = found.network()
    embed, compared = on_pixels(network, device=_CPU), random_images(size)
    before = embed(compared)
    changed = measure_statistics(
        network, found.unfolded, pixels, device=_CPU, progress="statistics"
    )
    differs = difference(embed(compared), before)
    if not are_alike(differs, network):
        raise ImagesError(
            f"with the statistics of {arguments.statistics} embeddings differ by "
            f"{differs.length:.2g} of their length, expected at most {BOUND:g}: name other images, "
            "or leave out --statistics"
        )
    print(
        f"statistics    of {len(pixels)} images for {len(found.unfolded)} BatchNorms; embeddings "
        f"differ by {differs.length:.2g} from before"
    )
    return replace(found, tensors=found.tensors | changed)


def _data(arguments: argparse.Namespace) -> list[TrainingData]:
    """What the user says of it; otherwise what the file's card does."""
    if arguments.origin != UNKNOWN or arguments.license != UNKNOWN:
        return [TrainingData(UNKNOWN, arguments.origin, arguments.license)]
    card = read_card(arguments.model)
    return list(card.data) if card else []


def _write_file(output: Path, found: Imported, data: list[TrainingData], source: Path) -> None:
    network = found.architecture
    # Strings are all that a safetensors file keeps beside its tensors.
    described = asdict(network)
    metadata = {key: str(value) for key, value in (described | described.pop("options")).items()}
    theirs = read_card(source)
    card = Card(
        network=network.name,
        embedding_dim=network.embedding_dim,
        input=as_words(Input(size=network.image_size)),
        precision="float32",
        digest=digest_of_weights(found.network()),
        space=space_of(source, digest_of_file(source)),
        data=data,
        config=theirs.config if theirs else {},
    )
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        path = Path(folder) / output.name
        path.write_bytes(save(found.tensors, metadata={"format": "pt"} | metadata))
        write_card(path, card)
        put_in_place(path, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL.onnx", help="an IResNet or a MobileFaceNet")
    add(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="OUT",
        help="OUT.safetensors, or the folder of a run",
    )
    add(
        "--onnx-input",
        default="",
        metavar="WORDS",
        help="how the file wants its images, where it does not say: bgr,-1..1",
    )
    add(
        "--statistics",
        type=Path,
        metavar="IMAGES",
        help="faces (a folder, a list, a .rec) for BatchNorms that were folded away",
    )
    add(
        "--images",
        type=whole_number(1, 100_000),
        default=IMAGES,
        metavar="N",
        help=f"that --statistics takes from all over (default {IMAGES})",
    )
    add("--origin", default=UNKNOWN, help="where the data is from that it was trained on")
    add("--license", default=UNKNOWN, help="of that data, such as cc-by-nc-4.0")
    arguments = parser.parse_args()
    with command("import_onnx"), joined_world("cpu"):
        import_model(arguments)


if __name__ == "__main__":
    main()
