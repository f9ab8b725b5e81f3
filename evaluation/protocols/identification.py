"""1:N over folders of images, with distractors: TinyFace's and SurvFace's protocols.

Every probe is compared with all images of the gallery, the distractors among them. A probe's rank
is the place of its person's best image in the list of all gallery images, by falling score: as in
TinyFace's own script, each image counts, also several of one person before it. mAP is of that
list, too. Where there are probes of people who are not in the gallery (SurvFace's unmated ones),
FNIR is given at an FPIR; SurvFace's TPIR20 is 1 - FNIR of rank 20. See
evaluation/metrics/identification.py.

Whom an image shows is said by its folder (`gallery/ID/1.jpg`) or, where it lies in none, by its
name up to the first underscore, as both sets have it (`12_3.jpg`, `12_cam1_1.jpg`); their .mat
files, which repeat that, are not read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.features import Features
from evaluation.images import Images, image_files, require_size, resized_files
from evaluation.metrics.identification import rank_rates
from evaluation.metrics.judge_searches import Wanted, compare_searches, judge_searches
from evaluation.metrics.searches import NOBODY, Searches, search
from evaluation.protocols.protocol import Asked, unit_rows
from evaluation.result import Comparison, Figure, HardPair, Result
from facestream import UserError
from pipeline.named_path import as_text, check_path
from pipeline.photos import SUFFIXES

VERSION = "identification/1"
RANKS = (1, 5, 20)
FPIR_LIMITS = (0.01, 0.1)
HARDEST = 24

# The part of the set that a folder holds, in lower case.
_PARTS = {
    "gallery": "gallery",
    "gallery_match": "gallery",
    "probe": "probe",
    "probes": "probe",
    "mated_probe": "probe",
    "unmated_probe": "unmated",
    "distractors": "distractor",
    "gallery_distractor": "distractor",
}
# Of sets that are published as small crops, of all sizes and not aligned.
_STRETCHED = {"gallery_match", "mated_probe"}
# Where the parts are inside the folder that a set comes in.
_INSIDE = ("", "Testing_Set", "tinyface/Testing_Set", "Face_Identification_Test_Set")
_LAYOUT = "gallery/ID/*.jpg and probe/ID/*.jpg, and perhaps distractors/*.jpg and unmated_probe/"
_REMEDY = "Name the folder that holds them, or put the images into such folders"


class IdentificationError(UserError):
    """Folders that are no gallery and probes: says which, what was expected and how to mend it."""


@dataclass(frozen=True)
class Identification:
    """A gallery, perhaps with distractors, and probes.

    Attributes:
        name: as shown.
        images: to embed.
        part: (N,) of strings: "gallery", "distractor", "probe" or "unmated".
        people: whom each image shows; "" for a distractor.
        about: what else a result is to say of how the set was made, such as a degradation.
    """

    name: str
    images: Images
    part: np.ndarray
    people: Sequence[str]
    about: Mapping[str, str] = field(default_factory=dict)

    headline = "rank-1"

    def check(self, asked: Asked) -> None:
        """Raise UserError where the set cannot show what is asked, whatever the embeddings are."""
        searched = np.flatnonzero(np.isin(self.part, ["probe", "unmated"]))
        groups = self._groups(asked.groups, searched)
        if groups is not None and not (groups != "").any():
            raise IdentificationError(
                "none of the probes has a group: the list's names must be those of the images, "
                f"such as {self.images.names[searched[0]]}, or of their people, such as "
                f"{self.people[searched[0]]}"
            )

    def scores(self, features: Features) -> dict[str, float]:
        """The rates of ranks 1, 5 and 20."""
        found, _, _ = self._search(features, frozenset())
        rates = rank_rates(found, np.array(RANKS))[0]
        return {f"rank-{rank}": float(rate) for rank, rate in zip(RANKS, rates)}

    def judge(self, features: Features, *, model: str, asked: Asked) -> Result:
        """All figures with their intervals; see evaluation/metrics/judge_searches.py.

        Raises:
            UserError: nobody who is searched for is left in the gallery.
        """
        self.check(asked)
        found, probes, gallery = self._search(features, asked.without)
        judged = judge_searches(
            {"gallery": found},
            people=self._people_of(probes),
            wanted=_wanted(found),
            draws=asked.draws,
            seed=asked.seed,
            groups=self._groups(asked.groups, probes),
        )
        whole = np.setdiff1d(np.arange(len(self.images)), list(features.damaged))
        norm = Figure(float(features.norms[whole].mean()), note="mean norm before the flip's sum")
        settings = {
            "flip": features.flip,
            "norm": "unit length: cosines",
            "rank": "the place of the person's best image among all images of the gallery",
        }
        if not found.mated.all():
            settings["fnir@fpir"] = "NIST's FNIR(N, R, T), the lowest T whose FPIR is at most that"
            settings["threshold"] = "chosen on these very searches"
        return Result(
            model=model,
            set=self.name,
            protocol=VERSION,
            settings=settings | dict(self.about),
            counts={
                "images": len(self.images),
                "damaged": len(features.damaged),
                "left out": len(self.images) - len(probes) - len(gallery) - len(features.damaged),
                "gallery": int((self.part[gallery] == "gallery").sum()),
                "distractors": int((self.part[gallery] == "distractor").sum()),
                "identities": len({self.people[i] for i in gallery} - {""}),
                "probes": len(probes),
                "mated probes": int(found.mated.sum()),
            },
            headline=self.headline,
            figures=dict(judged.figures) | {"norm": norm},
            curves=judged.curves,
            interval=judged.interval,
            groups=judged.groups,
            hardest=self._hardest(found, probes, gallery),
        )

    def compare(self, features: Mapping[str, Features], *, asked: Asked) -> list[Comparison]:
        """Every two models by all figures of the same searches."""
        found = {name: self._search(one, asked.without) for name, one in features.items()}
        searches, probes, _ = next(iter(found.values()))
        return compare_searches(
            {name: {"gallery": one} for name, (one, _, _) in found.items()},
            people=self._people_of(probes),
            wanted=_wanted(searches),
            draws=asked.draws,
            seed=asked.seed,
            set_name=self.name,
        )

    def _search(
        self, features: Features, without: frozenset[str]
    ) -> tuple[Searches, np.ndarray, np.ndarray]:
        """With the places of the probes and of the gallery's images."""
        kept = np.ones(len(self.images), bool)
        kept[list(features.damaged)] = False
        if without:
            kept &= np.array([name not in without for name in self.images.names])
        gallery = np.flatnonzero(kept & np.isin(self.part, ["gallery", "distractor"]))
        probes = np.flatnonzero(kept & np.isin(self.part, ["probe", "unmated"]))
        enrolled = [self.people[i] for i in gallery.tolist()]
        number = {who: n for n, who in enumerate(enrolled) if who}
        of_entry = [number.get(who, NOBODY) for who in enrolled]
        of_probe = [
            number.get(self.people[i], NOBODY) if self.part[i] == "probe" else NOBODY
            for i in probes.tolist()
        ]
        if not set(of_probe) - {NOBODY}:
            raise IdentificationError(
                f"of {len(probes):,} probes nobody is in the gallery of "
                f"{len(number):,} people; expected probes of its people, by the same names"
            )
        found = search(
            unit_rows(features.embeddings[probes]),
            unit_rows(features.embeddings[gallery]),
            of_probe=np.array(of_probe, np.int64),
            of_entry=np.array(of_entry, np.int64),
        )
        return found, probes, gallery

    def _people_of(self, probes: np.ndarray) -> np.ndarray:
        """A number for each person; unmated probes may be numbered apart from the others."""
        people = [f"{self.part[i]}/{self.people[i]}" for i in probes.tolist()]
        return np.unique(people, return_inverse=True)[1]

    def _groups(self, groups: Mapping[str, str] | None, probes: np.ndarray) -> np.ndarray | None:
        """The group of each probe: by its name, else by that of its person; "" for none."""
        if groups is None:
            return None
        names, people = self.images.names, self.people
        return np.array([groups.get(names[i], groups.get(people[i], "")) for i in probes])

    def _hardest(
        self, found: Searches, probes: np.ndarray, gallery: np.ndarray
    ) -> dict[str, list[HardPair]]:
        """Others that score highest, of those that stand first; and the lowest best mates."""
        names = self.images.names
        wrong = np.flatnonzero(found.rank != 1)
        accepts = wrong[np.argsort(-found.other[wrong], kind="stable")[:HARDEST]]
        mated = np.flatnonzero(found.mated)
        rejects = mated[np.argsort(found.mate[mated], kind="stable")[:HARDEST]]

        def pairs(which: np.ndarray, scores: np.ndarray, entries: np.ndarray) -> list[HardPair]:
            return [
                HardPair(float(scores[i]), names[probes[i]], names[gallery[entries[i]]])
                for i in which
            ]

        return {
            "false accepts": pairs(accepts, found.other, found.other_entry),
            "false rejects": pairs(rejects, found.mate, found.mate_entry),
        }


def _wanted(found: Searches) -> Wanted:
    limits = () if found.mated.all() else FPIR_LIMITS
    return Wanted(RANKS, fpir_limits=limits, fnir_ranks=(1, 20), precision=True)


def open_identification(folder: str | Path, *, name: str, image_size: int) -> Identification:
    """A gallery and probes in folders: TinyFace's, SurvFace's, or one's own.

    TinyFace and SurvFace are small crops of all sizes: they are stretched to image_size. Images of
    one's own, in `gallery/` and `probe/`, must have it.

    Raises:
        PathError: no such folder.
        IdentificationError: no gallery or no probes in it, an image whose person is not named.
        ImagesError: an image of another size, or that may not be read.
    """
    folder = Path(folder)
    check_path(
        folder, called=str(folder), expected=f"a folder of {_LAYOUT}", file=False, folder=True
    )
    found = _part_folders(folder)
    paths, part, people = [], [], []
    for where, of in found.items():
        inside = _images_in(where)
        if not inside:
            raise IdentificationError(f"{where} holds no image: expected {_LAYOUT}. {_REMEDY}")
        paths += inside
        part += [of] * len(inside)
        people += ["" if of == "distractor" else _person_of(path, where) for path in inside]
    names = [as_text(str(path.relative_to(folder))) for path in paths]
    stretched = any(where.name.lower() in _STRETCHED for where in found)
    about = {}
    if stretched:
        about["crops"] = f"as they are, stretched to {image_size}×{image_size}, not aligned here"
        images = resized_files(paths, names=names, size=image_size)
    else:
        images = image_files(paths, names=names, size=image_size)
        require_size(images, range(0, len(images), 1 + len(images) // 100), found_in=folder)
    opened = Identification(name, images, np.array(part), people, about)
    enrolled = {who for who, of in zip(people, part) if of == "gallery"}
    if not any(of == "probe" and who in enrolled for who, of in zip(people, part)):
        raise IdentificationError(
            f"{folder}: nobody of the probes is in the gallery; expected people of the same names "
            f"in both, as in {_LAYOUT}"
        )
    return opened


def _part_folders(folder: Path) -> dict[Path, str]:
    """The folders of images, and the part that each holds."""
    for inside in _INSIDE:
        if not (folder / inside).is_dir():
            continue
        folders = sorted(path for path in (folder / inside).iterdir() if path.is_dir())
        found = {path: _PARTS[path.name.lower()] for path in folders if path.name.lower() in _PARTS}
        if {"gallery", "probe"} <= set(found.values()):
            return found
    holds = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
    raise IdentificationError(
        f"{folder} has no folders of gallery and probes, but {as_text(holds)}: expected {_LAYOUT}; "
        "Gallery_Match, Probe and Gallery_Distractor, as TinyFace; or gallery, mated_probe and "
        f"unmated_probe, as SurvFace. {_REMEDY}"
    )


def _images_in(folder: Path) -> list[Path]:
    """In order of their paths; names that begin with a dot are other programs' notes."""
    return sorted(
        Path(where, file)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
    )


def _person_of(path: Path, folder: Path) -> str:
    parent = path.parent.relative_to(folder)
    if parent != Path("."):
        return as_text(str(parent))
    person, underscore, _ = path.name.partition("_")
    if not underscore or not person:
        raise IdentificationError(
            f"{path}: who is it? Expected {folder.name}/ID/{path.name}, or ID_{path.name}"
        )
    return as_text(person)
