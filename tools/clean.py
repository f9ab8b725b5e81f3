"""Look a training set through for wrong labels:

    python tools/clean.py TRAIN.rec --model MODEL -o OUT

finds images that are not of the person they are filed under, photographs filed under two people,
and labels that are one person, by the embeddings of MODEL, which may have been trained on this very
file. OUT gets leave_out.txt and identity_map.csv, which `data.leave_out` and `data.identity_map`
take, found.csv with what was found and why, and clean.html to look at. TRAIN.rec stays as it is.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.features import Features, extract
from evaluation.people.cleaning import DUPLICATE, MISLABELED, Cleaning, clean
from evaluation.people.training_images import training_images
from evaluation.people.twins import RATE
from evaluation.report.picture_page import Section, Strip, picture_page
from facestream import UserError
from pipeline.ahead import cores
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.manifest import read_names
from pipeline.whole_file import write_whole
from training.command import command, share, whole_number
from training.config import load_config
from training.distributed import World, join_world, leave_world
from training.frozen.model import ONNX, open_model
from training.saving.names import CENTERS, HEAD
from training.saving.reading import SavedCheckpoint, open_weights
from training.step.precision import choose_precision
from training.weights.identities import read_identities

_TOLD = 5  # damaged images
_TYPICAL = 3  # images that show who an identity is


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


class Report:
    """What `clean` found, as files have it."""

    def __init__(self, index: RecordIndex, found: Cleaning) -> None:
        self._index, self._found = index, found
        self._offsets, self._labels = index.records["offset"], index.records["label"]
        self._names = read_names(index.path) or []
        # Each label's images, the most typical ones first.
        typical = np.lexsort((-np.nan_to_num(found.centers.own), self._labels))
        self._by_label = typical
        self._starts = np.searchsorted(
            self._labels[typical], np.arange(index.summary.num_classes + 1)
        )

    def summary(self) -> dict[str, str]:
        """In words, by subject."""
        found, wrong, twins = self._found, self._found.mislabeled, self._found.twins
        if len(wrong.suspects):
            labels = (
                f"{len(wrong.suspects):,} of {len(found.labels):,} images, those with a margin "
                f"below {wrong.threshold:.3f}; estimated: {wrong.share:.1%} of all labels are "
                f"wrong, {wrong.recall:.0%} of these are among them, and {wrong.precision:.0%} of "
                "those left out are wrong"
            )
        elif np.isfinite(wrong.threshold):
            labels = f"none is found, with margins below {wrong.threshold:.3f}"
        else:
            labels = (
                "not to be told: too few images, or the model tells these people apart too badly"
            )
        one = (
            f"{len(twins.pairs)} pairs of labels, with centers nearer than {twins.threshold:.3f}; "
            f"by chance {twins.expected_false:.1f} pairs are expected there"
        )
        return {
            "wrong labels": labels,
            "same photos": f"{len(found.duplicates)} photographs are filed under two people",
            "same people": one,
            "left out": f"{len(found.left_out):,} images",
        }

    def emptied(self) -> int:
        """How many labels lose their last image."""
        out = np.zeros(len(self._labels), bool)
        out[list(self._found.left_out)] = True
        return len(np.setdiff1d(self._labels, self._labels[~out]))

    def leave_out(self) -> str:
        """The text of a `data.leave_out` file."""
        lines = [f"# {len(self._found.left_out)} images of {self._index.path}"]
        for image, why in self._found.left_out.items():
            lines.append(f"record {self._offsets[image]}  # {why}, label {self._labels[image]}")
        return "\n".join(lines) + "\n"

    def identity_map(self) -> str:
        """The text of a `data.identity_map` file."""
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write(("file", "label", "identity"))
        for group in self._found.twins.groups:
            for label in group:
                write((self._index.path.name, label, self._name(group[0])))
        return out.getvalue()

    def table(self) -> str:
        """CSV: every finding, and why."""
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write(_COLUMNS)
        for row in self._rows():
            write([row.get(column, "") for column in _COLUMNS])
        return out.getvalue()

    def page(self, *, faces: bool) -> str:
        """Pictures of every finding."""

        def picture(_: str, name: str) -> bytes:
            return bytes(self._index.image(int(np.searchsorted(self._offsets, int(name)))))

        return picture_page(
            f"Labels of {self._index.path.parent.name}",
            self.summary(),
            [self._wrong(), self._doubled(), self._same()],
            pictures=picture if faces else None,
        )

    def _rows(self) -> Iterator[dict[str, object]]:
        found = self._found
        for image in found.mislabeled.suspects.tolist():
            yield {
                "found": MISLABELED,
                "left_out": "yes",
                "record": self._offsets[image],
                "label": self._labels[image],
                "other_label": found.others.which[image, 0],
                "own_cosine": f"{found.centers.own[image]:.4f}",
                "other_cosine": f"{found.others.cosine[image, 0]:.4f}",
            }
        for pair in found.duplicates:
            for image, other in ((pair.first, pair.second), (pair.second, pair.first)):
                yield {
                    "found": DUPLICATE,
                    "left_out": "yes" if image in found.left_out else "no",
                    "record": self._offsets[image],
                    "label": self._labels[image],
                    "other_record": self._offsets[other],
                    "other_label": self._labels[other],
                    "likeness": f"{pair.likeness:.4f}",
                }
        for (label, other), cosine in zip(found.twins.pairs.tolist(), found.twins.cosines):
            yield {
                "found": "labels of one person",
                "left_out": "no",
                "label": label,
                "other_label": other,
                "other_cosine": f"{cosine:.4f}",
            }

    def _wrong(self) -> Section:
        found, strips = self._found, []
        for image in found.mislabeled.suspects.tolist():
            label, other = int(self._labels[image]), int(found.others.which[image, 0])
            strips.append(
                Strip(
                    self._pictures(
                        [image, *self._typical(label, besides=image), *self._typical(other)]
                    ),
                    [
                        f"{found.centers.own[image]:.2f} like label {label}, "
                        f"{found.others.cosine[image, 0]:.2f} like label {other}",
                        f"record {self._offsets[image]}; then images of {self._name(label)}, then "
                        f"of {self._name(other)}",
                    ],
                )
            )
        about = (
            "First the image in question, then its identity, then the one that it is nearest to."
        )
        return Section("Wrong labels", about, strips)

    def _doubled(self) -> Section:
        strips = [
            Strip(
                self._pictures([pair.first, pair.second]),
                [f"labels {self._labels[pair.first]} and {self._labels[pair.second]}"]
                + [
                    f"record {self._offsets[image]}: "
                    + ("left out" if image in self._found.left_out else "stays")
                    for image in (pair.first, pair.second)
                ],
            )
            for pair in self._found.duplicates
        ]
        about = "The one that fits its identity less is left out."
        return Section("Photographs filed under two people", about, strips)

    def _same(self) -> Section:
        twins = self._found.twins
        strips = [
            Strip(
                self._pictures([*self._typical(label), *self._typical(other)]),
                [
                    f"labels {label} and {other}: {cosine:.3f}",
                    f"{self._name(label)} and {self._name(other)}",
                ],
            )
            for (label, other), cosine in zip(twins.pairs.tolist(), twins.cosines)
        ]
        about = "Images of both; identity_map.csv makes them one. Remove the lines that are wrong."
        return Section("Labels that are one person", about, strips)

    def _typical(self, label: int, *, besides: int = -1) -> list[int]:
        images = self._by_label[self._starts[label] : self._starts[label + 1]].tolist()
        return [image for image in images if image != besides][:_TYPICAL]

    def _pictures(self, images: list[int]) -> list[tuple[str, str]]:
        return [("training set", str(self._offsets[image])) for image in images]

    def _name(self, label: int) -> str:
        if label < len(self._names):
            return self._names[label]
        return f"{self._index.path.parent.name}/{label}"


_COLUMNS = (
    *("found", "left_out", "record", "label", "other_record", "other_label"),
    *("own_cosine", "other_cosine", "likeness"),
)


def look_through(arguments: argparse.Namespace, world: World) -> Cleaning:
    """All that the command does."""
    index = open_index(arguments.train)
    dtype = choose_precision(world.device).compute_dtype
    subcenters = None if arguments.images else read_subcenters(arguments.model, index)
    model = open_model(
        arguments.model, device=world.device, dtype=dtype, words=arguments.onnx_input
    )
    for note in model.notes:
        print(f"note          {note}")
    threads = arguments.threads or cores()
    embedder = model.embedder(world.device, batch_size=arguments.batch, threads=threads)
    features = extract(
        embedder,
        training_images(index, size=embedder.image_size),
        skip_damaged=True,
        keep=arguments.output / "embeddings",
        progress=index.path.name,
    )
    assert features is not None, "there is one rank"
    _tell_damaged(features)
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


def _tell_damaged(features: Features) -> None:
    damaged = [f"image {place} {why}" for place, why in sorted(features.damaged.items())]
    if damaged:
        print(f"damaged       {len(damaged)} images are passed over: {'; '.join(damaged[:_TOLD])}")


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
        world = join_world(arguments.device)
        try:
            if world.world_size > 1:
                raise UserError("clean works in one process: start it without torchrun")
            look_through(arguments, world)
        finally:
            leave_world()


if __name__ == "__main__":
    main()
