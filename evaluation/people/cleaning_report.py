"""What cleaning found, as the files that training takes, a table, and a page to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import numpy as np

from evaluation.people.cleaning import DUPLICATE, MISLABELED, Cleaning
from evaluation.people.training_images import stored_picture
from evaluation.report.picture_page import Section, Strip, picture_page
from pipeline.records.index import RecordIndex
from pipeline.records.manifest import read_names

TWINS = "labels of one person"

_TYPICAL = 3  # images that show who an identity is
_COLUMNS = (
    *("found", "left_out", "record", "label", "other_record", "other_label"),
    *("own_cosine", "other_cosine", "likeness"),
)


class Report:
    """What `clean` found, as files have it."""

    def __init__(self, index: RecordIndex, found: Cleaning) -> None:
        self._index, self._found = index, found
        self._offsets, self._labels = index.records["offset"], index.records["label"]
        self._names = index.names or read_names(index.path) or []
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
                "none is left out: hardly any is wrong, there are too few images, or the model "
                "separates these people too badly"
            )
        one = "not known: too few labels"
        if 1 < twins.threshold < np.inf:
            one = "none can be found: this model puts strangers as near as two labels of one person"
        elif np.isfinite(twins.threshold):
            one = (
                f"{len(twins.pairs)} pairs of labels, with centers nearer than "
                f"{twins.threshold:.3f}; by chance {twins.expected_false:.1f} are expected there"
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
        lines = [f"# {len(self._found.left_out)} images of {str(self._index.path)!r}"]
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

        def picture(_: str, name: str) -> bytes | None:
            return stored_picture(self._index, int(name))

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
                "found": TWINS,
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
