"""Look a training set through for wrong labels:

    python tools/clean.py TRAIN.rec --model MODEL -o OUT

finds images that are not of the person they are filed under, photographs filed under two people,
and labels that are one person, by the embeddings of MODEL, which may have been trained on this very
file. OUT gets leave_out.txt and identity_map.csv, which `data.leave_out` and `data.identity_map`
take, found.csv with what was found and why, and clean.html to look at. TRAIN.rec stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.features import Features, extract
from evaluation.images import Images
from evaluation.people.cleaning import Cleaning, clean
from evaluation.people.cleaning_report import Report
from evaluation.people.training_images import training_images
from evaluation.people.twins import RATE
from pipeline.ahead import cores
from pipeline.containers.open_records import open_records
from pipeline.records.index import RecordIndex
from pipeline.whole_file import write_whole
from training.command import command, share, whole_number
from training.config import load_config
from training.distributed import World, joined_world
from training.frozen.model import ONNX, open_model
from training.saving.names import CENTERS, HEAD
from training.saving.reading import SavedCheckpoint, open_weights
from training.step.precision import choose_precision
from training.weights.identities import read_identities

_SHOWN = 5  # damaged images


def read_subcenters(model: str, index: RecordIndex) -> np.ndarray | None:
    """(labels, K, D) of a checkpoint whose head has K > 1 sub-centers for this file's labels.

    None for any other model, and where nothing says whose the head's rows are.
    """
    if model.endswith(ONNX):
        return None
    saved = open_weights(model)
    if not isinstance(saved, SavedCheckpoint) or saved.config.head.subcenters == 1:
        return None
    people = read_identities(saved.path)
    rows = people.files.get(index.file.fingerprint) if people else None
    if rows is None:
        print(f"note          {model} was not trained on {index.path}, or does not say so")
        return None
    centers = saved.tensors(HEAD)[CENTERS].float()
    centers = centers.unflatten(1, (saved.config.head.subcenters, -1)).numpy()
    return np.where(rows[:, None, None] < 0, 0, centers[rows])


def look_through(arguments: argparse.Namespace, world: World) -> Cleaning:
    """All that the command does."""
    index = open_records(arguments.train)
    dtype = choose_precision(world.device).compute_dtype
    subcenters = None if arguments.images else read_subcenters(arguments.model, index)
    model = open_model(
        arguments.model, device=world.device, dtype=dtype, words=arguments.onnx_input
    )
    for note in model.notes:
        print(f"note          {note}")
    threads = arguments.threads or cores()
    embedder = model.embedder(world.device, batch_size=arguments.batch, threads=threads)
    images = training_images(index, size=embedder.image_size)
    features = extract(
        embedder,
        images,
        skip_damaged=True,
        keep=arguments.output / "embeddings",
        progress=index.path.name,
    )
    assert features is not None, "there is one rank"
    _tell_damaged(images, features)
    judged_by = "the images" if subcenters is None else "the head's dominant sub-centers"
    print(f"judged by     {judged_by}")
    found = clean(
        index,
        features.embeddings,
        subcenters=subcenters,
        rate=arguments.false_rate,
        threads=threads,
        device=world.device,
    )
    report = Report(index, found)
    for name, said in report.summary().items():
        print(f"{name:<13} {said}")
    written = {
        "leave_out.txt": report.leave_out(),
        "identity_map.csv": report.identity_map(),
        "found.csv": report.table(),
        "clean.html": report.page(faces=not arguments.no_pictures),
    }
    for name, content in written.items():
        write_whole(arguments.output / name, content)
        print(f"wrote         {arguments.output / name}")
    _tell_use(arguments.output, report, found)
    return found


def _tell_use(output: Path, report: Report, found: Cleaning) -> None:
    settings = []
    if found.left_out:
        settings.append(f"data.leave_out={output / 'leave_out.txt'}")
    if found.twins.groups:
        settings.append(f"data.identity_map={output / 'identity_map.csv'}")
    if report.emptied():
        settings.append("data.labels=dense")
    print(f"train with    {' '.join(settings) or 'the set as it is: nothing was found'}")


def _tell_damaged(images: Images, features: Features) -> None:
    damaged = [f"{images.names[place]} {why}" for place, why in sorted(features.damaged.items())]
    if damaged:
        print(f"damaged       {len(damaged)} images are passed over: {'; '.join(damaged[:_SHOWN])}")


def parser() -> argparse.ArgumentParser:
    """Of the command line; `look_through` takes what it finds."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    add = found.add_argument
    add("train", type=Path, metavar="TRAIN.rec", help="the training set, or its folder")
    add("--model", required=True, help="a run, a checkpoint, weights, or an .onnx file")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write into")
    add("--onnx-input", default="", metavar="WORDS", help="how an .onnx file wants its images")
    add("--config", type=Path, help="a configuration file that registers a run's own network")
    add("--images", action="store_true", help="judge by images where the head has sub-centers, too")
    add(
        "--false-rate",
        type=share,
        default=RATE,
        help=f"share of labels that a stranger may be taken for (default {RATE:g})",
    )
    add("--no-pictures", action="store_true", help="no face in the page")
    add("--batch", type=whole_number(1, 1 << 16), default=128, help="images embedded at a time")
    add("--threads", type=whole_number(1, 4096), help="that read and decode (default: all cores)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("clean"):
        if arguments.config:
            load_config(arguments.config)
        with joined_world(arguments.device, alone="clean") as world:
            look_through(arguments, world)


if __name__ == "__main__":
    main()
