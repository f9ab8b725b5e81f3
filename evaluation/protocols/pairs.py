"""Verification: is this pair of faces one person or two?

The cosine of two images' embeddings, each added to that of its mirror image, is compared with a
threshold. Accuracy is that of ten folds, each with the threshold that is best on the other nine, as
for LFW (http://vis-www.cs.umass.edu/lfw/), so results stand beside the tables of InsightFace digit
by digit. An image that stands in several pairs is embedded once; a pair counts as often as it is
listed, as there, and a result says how many are repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from evaluation.features import Features
from evaluation.images import (
    Faces,
    Images,
    cropped_files,
    encoded_images,
    image_files,
    require_size,
)
from evaluation.metrics import limits, measure
from evaluation.metrics.folds import FoldAccuracy, Folds
from evaluation.metrics.groups import parts_of_groups
from evaluation.metrics.judge import FAR_LIMITS, judge_pairs
from evaluation.metrics.measure import Comparisons
from evaluation.metrics.paired import compare_models
from evaluation.metrics.roc import Roc
from evaluation.pair_set import PairSetError, read_bin
from evaluation.protocols.pair_lists import PairList
from evaluation.protocols.protocol import Asked, quality_of
from evaluation.result import Comparison, Figure, Result
from facestream import UserError
from pipeline.named_path import as_text

VERSION = "verification/1"
FOLDS = 10
FALSE_ACCEPT_LIMIT = 1e-3  # of the TAR among a run's scores
COMPARED = ("accuracy", *(f"tar@far={limit:g}" for limit in FAR_LIMITS))


@dataclass(frozen=True)
class Pairs:
    """P pairs over N images.

    Attributes:
        name: as shown.
        images: to embed.
        first, second: (P,) int64, the images of each pair.
        same: (P,) bool, whether it shows one person.
        people: who each image shows; None where that is not known of all.
        about: what else a result is to say of how the set was made, such as a degradation.
    """

    name: str
    images: Images
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    people: Sequence[str] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    headline = "accuracy"

    def check(self, asked: Asked) -> None:
        """Raise UserError where the set cannot show what is asked, whatever the embeddings are."""
        _require_pairs(self.same, asked.folds)
        if asked.disjoint_folds and self.people is None:
            raise UserError(
                "the set does not say which people its images show, as folds that share no "
                "people need: take its images as folders of people with a list of pairs"
            )
        groups = self._groups(asked.groups)
        if groups is not None:
            parts_of_groups(groups, self.first, self.second, self.same)
        if asked.quality is not None:
            quality_of(self.images.names, asked.quality)

    def scores(self, features: Features) -> dict[str, float]:
        """InsightFace's figures.

        Returns:
            accuracy, accuracy_std: mean and standard deviation over the folds.
            threshold: mean over the folds of the cosine above which a pair counts as one person.
            auc: area under the ROC curve of all pairs.
            tar_at_far: greatest share of genuine pairs accepted by one threshold that accepts at
                most 1e-3 of the impostor pairs; only where there are enough of these to show it.
            far: the share that this threshold accepts; likewise.
        """
        kept, distances = self._distances(features, frozenset())
        same = self.same[kept]
        _require_pairs(same, FOLDS)
        folds = Folds.contiguous(len(same), FOLDS)
        accuracy, accuracy_std, threshold = FoldAccuracy(distances, same, folds)()
        roc = Roc.of(-distances, same)
        scores = {
            "accuracy": accuracy,
            "accuracy_std": accuracy_std,
            "threshold": threshold,
            "auc": float(roc.auc),
        }
        if limits.can_show(FALSE_ACCEPT_LIMIT, int((~same).sum())):
            scores["tar_at_far"] = float(roc.tar_at_far(FALSE_ACCEPT_LIMIT))
            scores["far"] = float(roc.far[roc.last_within(FALSE_ACCEPT_LIMIT)])
        return scores

    def judge(self, features: Features, *, model: str, asked: Asked) -> Result:
        """All figures with their intervals; see evaluation/metrics/judge.py."""
        self.check(asked)
        kept, distances = self._distances(features, asked.without)
        _require_pairs(self.same[kept], asked.folds)
        whole = np.setdiff1d(np.arange(len(self.images)), list(features.damaged))
        judged = judge_pairs(
            1 - distances / 2,
            self.same[kept],
            first=self.first[kept],
            second=self.second[kept],
            people=self._numbers_of_people(),
            names=self.images.names,
            folds=asked.folds,
            identity_disjoint=asked.disjoint_folds,
            draws=asked.draws,
            seed=asked.seed,
            groups=self._groups(asked.groups),
            quality=self._quality(features, asked.quality),
        )
        norm = Figure(float(features.norms[whole].mean()), note="mean norm before the flip's sum")
        left_out = len(self.same) - len(kept)
        return Result(
            model=model,
            set=self.name,
            protocol=VERSION,
            settings={"flip": features.flip, "norm": "unit length: cosines"}
            | dict(self.about)
            | dict(judged.settings),
            counts={
                "images": len(self.images),
                "damaged": len(features.damaged),
                "pairs left out": left_out,
            }
            | dict(judged.counts)
            | self._repeated(kept),
            headline=self.headline,
            figures=dict(judged.figures) | {"norm": norm},
            curves=judged.curves,
            interval=judged.interval,
            groups=judged.groups,
            hardest=judged.hardest,
        )

    def compare(self, features: Mapping[str, Features], *, asked: Asked) -> list[Comparison]:
        """Every two models by the figures of COMPARED that the set can show."""
        people, models = self._numbers_of_people(), {}
        for name, one in features.items():
            kept, distances = self._distances(one, asked.without)
            first, second = self.first[kept], self.second[kept]
            scores = 1 - distances / 2
            models[name] = Comparisons(scores, self.same[kept], first, second, people)
        if asked.disjoint_folds and people is not None:
            folds = Folds.of_people(people[first], people[second], asked.folds)
        else:
            folds = Folds.contiguous(len(kept), asked.folds)
        how = measure.Plan(folds, draws=asked.draws, seed=asked.seed, far_limits=FAR_LIMITS)
        return compare_models(models, how, set_name=self.name, figures=COMPARED)

    def _distances(
        self, features: Features, without: frozenset[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs are left, and the squared distance of each: 2 - 2 · cosine, float64."""
        out = set(features.damaged)
        out |= {place for place, name in enumerate(self.images.names) if name in without}
        gone = np.isin(self.first, list(out)) | np.isin(self.second, list(out))
        kept = np.flatnonzero(~gone)
        ours = theirs = _unit(features.embeddings)
        if features.against is not None:
            theirs = _unit(features.against)
        differences = ours[self.first[kept]] - theirs[self.second[kept]]
        return kept, np.square(differences).sum(axis=1)

    def _repeated(self, kept: np.ndarray) -> dict[str, int]:
        """How many of these pairs are listed again or are of one image, where there are any."""
        one, other = self.first[kept], self.second[kept]
        numbers = np.minimum(one, other) * len(self.images) + np.maximum(one, other)
        counts = {
            "pairs repeated": len(numbers) - len(np.unique(numbers)),
            "pairs of an image with itself": int((one == other).sum()),
        }
        return {what: count for what, count in counts.items() if count}

    def _numbers_of_people(self) -> np.ndarray | None:
        if self.people is None:
            return None
        return np.unique(np.array(self.people), return_inverse=True)[1]

    def _groups(self, groups: Mapping[str, str] | None) -> np.ndarray | None:
        """The group of each image: by its name, else by that of its person; "" for none."""
        if groups is None:
            return None
        people = self.people or [""] * len(self.images)
        named = zip(self.images.names, people)
        return np.array([groups.get(image, groups.get(person, "")) for image, person in named])

    def _quality(
        self, features: Features, quality: Mapping[str, float] | None
    ) -> dict[str, np.ndarray]:
        if quality is None:
            return {"norm": features.norms}
        return {"quality": quality_of(self.images.names, quality)}


def open_bin(
    path: str | Path,
    *,
    image_size: int,
    batch_size: int = 128,
    rank: int = 0,
    world_size: int = 1,
) -> Pairs:
    """InsightFace's .bin; a rank keeps the images of its own batches alone.

    Raises:
        PairSetError: a file that is no verification set, or whose images are of another size.
    """
    path = Path(path)
    pairs = read_bin(path)
    try:
        _require_pairs(pairs.same, FOLDS)
    except UserError as error:
        raise PairSetError(f"{path}: {error}") from error
    # The same photograph stands in many pairs of a set: 7,701 of LFW's 12,000 are different.
    places: dict[bytes, int] = {}
    of_image = [places.setdefault(hashlib.sha256(i).digest(), len(places)) for i in pairs.images]
    originals = np.unique(of_image, return_index=True)[1]  # where each one stands first
    own = {
        place: pairs.images[original]
        for place, original in enumerate(originals.tolist())
        if place // batch_size % world_size == rank
    }
    names = [f"image {original}" for original in originals]
    images = encoded_images(own, names=names, size=image_size)
    require_size(images, sorted(own), found_in=path)
    numbers = np.array(of_image, np.int64)
    return Pairs(as_text(path.stem), images, numbers[0::2], numbers[1::2], pairs.same)


def of_list(
    name: str,
    pairs: PairList,
    *,
    folder: str | Path,
    image_size: int,
    faces: Faces | None = None,
) -> Pairs:
    """A list of pairs over the images of a folder; their names are their paths in it.

    Args:
        faces: what finds the face in photographs; None where the images are crops.

    Raises:
        ImagesError: an image that cannot be read, or a crop of another size.
    """
    names = [as_text(str(path.relative_to(folder))) for path in pairs.images]
    if faces:
        cropper = replace(faces.cropper(Path(folder)), size=image_size)
        images = cropped_files(pairs.images, names=names, cropper=cropper, known_by=faces.known_by)
    else:
        images = image_files(pairs.images, names=names, size=image_size)
        require_size(images, range(len(images)), found_in=folder)
    return Pairs(name, images, pairs.first, pairs.second, pairs.same, pairs.people)


def _unit(rows: np.ndarray) -> np.ndarray:
    """(N, D) float64 of unit length; rows of zeros stay."""
    vectors = np.asarray(rows, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def _require_pairs(same: np.ndarray, folds: int) -> None:
    if not 2 <= folds <= len(same):
        raise UserError(f"found {len(same)} pairs for {folds} folds; expected 2 to P folds")
    if same.all() or not same.any():
        kind = "genuine" if same.all() else "impostor"
        raise UserError(f"all {len(same)} pairs are {kind} ones; expected pairs of both kinds")
