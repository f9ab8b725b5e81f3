"""Who the classes of a head are, so that its centers find their people in another training set.

A class is known by a label of a .rec of the same content, wherever that file lies now, and by a
name. `identities.json` keeps both: in the folder of a run, or in a checkpoint that has no run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facestream import UserError
from pipeline.collection import Collection
from pipeline.identity_map import read_identity_names
from pipeline.named_path import MALFORMED
from pipeline.records.manifest import read_names
from pipeline.whole_file import write_whole

FILE = "identities.json"


class IdentitiesError(UserError):
    """An identities.json that cannot be read: says which, and how to do without it."""


@dataclass(frozen=True)
class Identities:
    """Who the classes of a head are.

    Attributes:
        num_classes: C.
        files: from the fingerprint of a .rec to the (labels,) int64 classes of its labels, -1 for
            none.
        names: from a class to its name; a class may have none.
    """

    num_classes: int
    files: Mapping[str, np.ndarray]
    names: Mapping[int, str]

    @classmethod
    def of(
        cls, records: Collection, *, num_classes: int, identity_map: str | Path = ""
    ) -> Identities:
        """Those of a training set: names of manifests, and above them of the identity map.

        A manifest's names that are mere digits are left out: they number the people of one set,
        and those of another set are numbered just so.
        """
        files, names = {}, {}
        for index, classes in zip(records.indexes, records.label_maps):
            content = index.file.fingerprint
            files[content] = classes
            known = index.names or read_names(index.path, content=content) or ()
            named = zip(classes.tolist(), known)
            names |= {number: name for number, name in named if number >= 0 and not name.isdigit()}
        if identity_map:
            listed = read_identity_names(identity_map, records.indexes)
            for classes, people in zip(records.label_maps, listed):
                listing = {int(classes[label]): name for label, name in people.items()}
                names |= {number: name for number, name in listing.items() if number >= 0}
        return cls(num_classes, files, names)

    def rows_from(self, other: Identities) -> np.ndarray:
        """(C,) int64: for each class the one of `other` that is the same person, or -1.

        The same label of the same file decides; else a name that only one class of `other` has.
        """
        rows = np.full(self.num_classes, -1, np.int64)
        shared = Counter(other.names.values())
        by_name = {name: number for number, name in other.names.items() if shared[name] == 1}
        for number, name in self.names.items():
            rows[number] = by_name.get(name, -1)
        for file in self.files.keys() & other.files.keys():
            here, there = self.files[file], other.files[file]
            rows[here[here >= 0]] = there[here >= 0]
        return rows

    def followed_by(self, other: Identities) -> Identities:
        """These classes, and after them those of `other`, as people of their own."""
        files = {
            file: np.where(classes < 0, -1, self.num_classes + classes)
            for file, classes in other.files.items()
        }
        names = {self.num_classes + number: name for number, name in other.names.items()}
        return Identities(
            self.num_classes + other.num_classes, {**files, **self.files}, {**self.names, **names}
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: what identities.json holds."""
        return {
            "classes": self.num_classes,
            "files": {file: classes.tolist() for file, classes in self.files.items()},
            "names": {str(number): name for number, name in self.names.items()},
        }


def write_identities(folder: Path, identities: Identities) -> Path:
    """Write identities.json into an existing folder, complete or not at all."""
    path = folder / FILE
    write_whole(path, json.dumps(identities.as_dict()), aside=path.with_suffix(".unfinished"))
    return path


def read_identities(checkpoint: Path) -> Identities | None:
    """Whose the rows of a checkpoint's head are; None where neither it nor its run tells.

    Raises IdentitiesError for a file that is damaged.
    """
    for folder in (checkpoint, checkpoint.parent.parent):
        path = folder / FILE
        if path.is_file():
            try:
                about = json.loads(path.read_text())
                return Identities(
                    int(about["classes"]),
                    {file: np.array(found, np.int64) for file, found in about["files"].items()},
                    {int(number): str(name) for number, name in about["names"].items()},
                )
            except (OSError, *MALFORMED) as error:
                raise IdentitiesError(
                    f"{path} does not say whose the head's rows are: {type(error).__name__}: "
                    f"{error}. Restore it, or remove it to start without known identities"
                ) from error
    return None
