"""Is the test in the training set?

    python tools/overlap.py TRAIN.rec SET... [--model MODEL] -o OUT

finds the test images that TRAIN.rec holds, byte by byte or as near copies (encoded again, cropped,
mirrored), and, with a model, those whose people it holds. OUT gets overlap.json, which `evaluate
--without` takes, leave_out.txt, which `data.leave_out` takes, and overlap.html to look at. Nothing
else is changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.features import Embedder, extract
from evaluation.images import Images
from evaluation.leaks.copies import Copies, find_copies
from evaluation.leaks.overlap import SAME_PERSON, Finding, Overlap
from evaluation.leaks.overlap_page import overlap_page
from evaluation.leaks.registration import SAME_PHOTOGRAPH
from evaluation.people.centers import find_centers
from evaluation.people.shared import RATE, SharedPeople, find_shared_people
from evaluation.people.training_images import sizes_found, training_images
from evaluation.protocols.sets import SetError, kinds, open_set
from pipeline.ahead import cores
from pipeline.containers.open_records import open_records
from pipeline.records.index import RecordIndex
from pipeline.whole_file import write_whole
from training.command import command, share, whole_number
from training.config import load_config
from training.distributed import World, joined_world
from training.frozen.model import OpenedModel, open_model
from training.step.precision import choose_precision

_USUAL = 112  # pixels, of sets where no training image says its size
_SHOWN = 5  # damaged images


def open_sets(specs: Sequence[str], *, size: int) -> dict[str, Images]:
    """The images of test sets by the sets' names."""
    sets: dict[str, Images] = {}
    for spec in dict.fromkeys(specs):
        opened = open_set(spec, image_size=size)
        if opened.name in sets:
            raise SetError(f"{spec} and a set before it are both called {opened.name}: rename one")
        sets[opened.name] = opened.images
    return sets


def shared_people(
    index: RecordIndex, sets: Mapping[str, Images], embedder: Embedder, *, keep: Path, rate: float
) -> SharedPeople:
    """Embed both sides and compare them."""
    images = training_images(index, size=embedder.image_size)
    labels = index.labels(np.arange(len(index)))
    training = _embedded(embedder, images, keep, index.path.name)
    centers = find_centers(training, labels, num_classes=index.summary.num_classes)
    rows = {name: _embedded(embedder, one, keep, name) for name, one in sets.items()}
    return find_shared_people(centers.directions, rows, rate=rate, device=embedder.device)


def findings(
    index: RecordIndex, sets: Mapping[str, Images], copies: Copies, people: SharedPeople
) -> list[Finding]:
    """What was found, as the file has it."""
    records = index.records
    found = [
        Finding(
            copy.kind,
            copy.set,
            sets[copy.set].names[copy.place],
            int(records["label"][copy.record]),
            int(records["offset"][copy.record]),
            round(copy.likeness, 4),
        )
        for copy in copies.found
    ]
    found += [
        Finding(
            SAME_PERSON,
            one.set,
            sets[one.set].names[one.place],
            one.label,
            None,
            round(one.cosine, 4),
        )
        for one in people.found
    ]
    return found


def check(arguments: argparse.Namespace, world: World) -> Overlap:
    """All that the command does."""
    index = open_records(arguments.train)
    model = _open_model(arguments, world)
    sizes = sizes_found(index)
    size = model.input.size if model else (sizes[0][0] if sizes else _USUAL)
    sets = open_sets(arguments.sets, size=size)
    threads = arguments.threads or cores()
    copies = find_copies(index, sets, threads=threads, progress=index.path.name)
    _tell_damaged(index, sets, copies)
    settings = {"near copy": f"details correlate by {SAME_PHOTOGRAPH:g} or more"}
    people = SharedPeople()
    if not model:
        settings[SAME_PERSON] = "not looked for: that takes a model, --model"
    else:
        embedder = model.embedder(world.device, batch_size=arguments.batch, threads=threads)
        keep = arguments.output / "embeddings"
        people = shared_people(index, sets, embedder, keep=keep, rate=arguments.false_rate)
        settings[SAME_PERSON] = (
            f"cosine with the identity's center above {people.threshold:.3f}; by chance "
            f"{people.expected_false:.1f} images are expected there"
        )
    overlap = Overlap(
        training={
            "path": str(index.path),
            "fingerprint": index.file.fingerprint,
            "images": len(index),
            "identities": index.summary.identities,
            "damaged": len(copies.damaged),
        },
        sets={
            name: {
                "fingerprint": images.fingerprint,
                "images": len(images),
                "damaged": sum(of == name for of, _ in copies.damaged_tests),
            }
            for name, images in sets.items()
        },
        settings=settings,
        found=findings(index, sets, copies, people),
        model=asdict(model.described(arguments.model)) if model else {},
    )
    for name, said in overlap.summary().items():
        print(f"{name:<13} {said}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    overlap.write(arguments.output / "overlap.json")
    write_whole(arguments.output / "leave_out.txt", overlap.leave_out())
    text = overlap_page(index, sets, overlap, faces=not arguments.no_pictures)
    write_whole(arguments.output / "overlap.html", text)
    for written in ("overlap.json", "leave_out.txt", "overlap.html"):
        print(f"wrote         {arguments.output / written}")
    return overlap


def _open_model(arguments: argparse.Namespace, world: World) -> OpenedModel | None:
    if not arguments.model:
        return None
    dtype = choose_precision(world.device).compute_dtype
    words = arguments.onnx_input
    opened = open_model(arguments.model, device=world.device, dtype=dtype, words=words)
    for note in opened.notes:
        print(f"note          {note}")
    return opened


def _embedded(embedder: Embedder, images: Images, keep: Path, name: str) -> np.ndarray:
    features = extract(embedder, images, skip_damaged=True, keep=keep, progress=name)
    assert features is not None, "there is one rank"
    return features.embeddings


def _tell_damaged(index: RecordIndex, sets: Mapping[str, Images], copies: Copies) -> None:
    damaged = [
        *(
            f"{index.path}, record {index.records['offset'][record]} {why}"
            for record, why in copies.damaged.items()
        ),
        *(
            f"{name}, {sets[name].names[place]} {why}"
            for (name, place), why in copies.damaged_tests.items()
        ),
    ]
    if damaged:
        print(f"damaged       {len(damaged)} images are passed over: {'; '.join(damaged[:_SHOWN])}")


def parser() -> argparse.ArgumentParser:
    """Of the command line; `check` takes what it finds."""
    found = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"sets:\n{kinds()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("train", type=Path, metavar="TRAIN.rec", help="the training set, or its folder")
    add("sets", nargs="+", metavar="SET", help="test sets, see below")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write into")
    add("--model", default="", help="a run, weights or .onnx file: look for the same people, too")
    add("--onnx-input", default="", metavar="WORDS", help="how an .onnx file wants its images")
    add("--config", type=Path, help="a configuration file that registers a run's own network")
    add(
        "--false-rate",
        type=share,
        default=RATE,
        help=f"share of test images that a stranger may be taken for (default {RATE:g})",
    )
    add("--no-pictures", action="store_true", help="no face in the page")
    add("--batch", type=whole_number(1, 1 << 16), default=128, help="images embedded at a time")
    add("--threads", type=whole_number(1, 4096), help="that read and decode (default: all cores)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for the model")
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("overlap"):
        if arguments.config:
            load_config(arguments.config)
        with joined_world(arguments.device, alone="overlap") as world:
            check(arguments, world)


if __name__ == "__main__":
    main()
