"""IJB-B and IJB-C: templates of photos and video frames, compared 1:1 and searched for 1:N.

The crops are made by the five landmarks that come with the set. A template is pooled as
arcface_torch's eval_ijbc.py does by default: an image's embedding with its mirror image's added
keeps its norm and is multiplied by the face detector's score; the images of a medium are averaged,
the media are added, and the sum is brought to unit length.

TAR at a FAR is the largest TAR of one threshold whose FAR is at most that. eval_ijbc.py takes the
corner of the curve whose FAR is nearest, which may be above the limit; among millions of impostor
pairs the two differ in the last digits.

1:N is NIST's: every probe is searched for in each of two galleries. Where its subject is enrolled,
the search counts for the CMC and FNIR, and where it is not, for FPIR. Figures are the mean over
both galleries, and those of each; InsightFace's tables search in both galleries as one. See
evaluation/metrics/identification.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from evaluation.features import Features
from evaluation.images import Images, aligned_files
from evaluation.metrics import limits, measure
from evaluation.metrics.groups import parts_of_groups
from evaluation.metrics.identification import rank_rates
from evaluation.metrics.impostor_counter import ImpostorCounter
from evaluation.metrics.judge import judge_pairs
from evaluation.metrics.judge_searches import Judgement, Wanted, compare_searches, judge_searches
from evaluation.metrics.measure import Comparisons
from evaluation.metrics.paired import compare_models
from evaluation.metrics.searches import Searches, search
from evaluation.pair_products import pair_products
from evaluation.protocols.ijb_files import IjbFiles, OneToMany, TemplatePairs, read_ijb_files
from evaluation.protocols.protocol import Asked, quality_of
from evaluation.protocols.templates import pool
from evaluation.result import Comparison, Figure, Group, Result
from facestream import UserError

VERSION = "ijb/1"
TEMPLATES = "templates, as it is not known who they show: with people they may be wider"
FAR_LIMITS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
COMPARED = ("tar@far=1e-05", "tar@far=0.0001", "tar@far=0.001")
RANKS = (1, 5, 10)
_AS_ONE = "both galleries as one"
_NONE = Judgement({}, {}, {}, {})


@dataclass(frozen=True)
class Ijb:
    """IJB-B or IJB-C.

    Attributes:
        name: as shown.
        images: to embed.
        files: templates, pairs, galleries and probes.
        norm_weights: whether an embedding's norm weights it in its template; arcface_torch's
            use_norm_score.
        detector_weights: whether the face detector's score does; its use_detector_score.
        about: what else a result is to say of how the set was made, such as a degradation.
    """

    name: str
    images: Images
    files: IjbFiles
    norm_weights: bool = True
    detector_weights: bool = True
    about: Mapping[str, str] = field(default_factory=dict)

    headline = "tar@far=0.0001"

    def check(self, asked: Asked) -> None:
        """Raise UserError where the set cannot show what is asked, whatever the embeddings are."""
        groups = self._groups(asked.groups)
        if groups is not None:
            pairs = self.files.pairs
            parts_of_groups(groups, pairs.first, pairs.second, pairs.same)
        if asked.quality is not None:
            quality_of(self.images.names, asked.quality)

    def scores(self, features: Features) -> dict[str, float]:
        """TAR at FAR 1e-5 and 1e-4 and, where there is 1:N, rank 1 as the mean of the galleries.

        TAR at 1e-5 only where the pairs can show it; that at 1e-4 is what networks are compared by.
        """
        templates, present = self._templates(features, frozenset())
        pairs, scores = self._compared(templates, present)
        counter = ImpostorCounter(scores[pairs.same])
        counter.add(scores[~pairs.same])
        roc = counter.roc()
        shown = limits.can_show(1e-5, int((~pairs.same).sum()))
        found = {
            f"tar@far={limit:g}": float(roc.tar_at_far(limit))
            for limit in ((1e-5, 1e-4) if shown else (1e-4,))
        }
        if one_to_many := self._one_to_many(present):
            galleries = self._searched(templates, one_to_many)
            first = [rank_rates(galleries[name], np.array([1])) for name in galleries]
            found["rank-1"] = float(np.mean(first))
        return found

    def judge(self, features: Features, *, model: str, asked: Asked) -> Result:
        """All figures of 1:1 and, where the set has its lists, of 1:N.

        Raises:
            UserError: pairs of one kind only, or searches for nobody, are left.
        """
        self.check(asked)
        templates, present = self._templates(features, asked.without)
        pairs, scores = self._compared(templates, present)
        known = self._all_known(pairs)
        groups = self._groups(asked.groups)
        judged = judge_pairs(
            scores,
            pairs.same,
            first=pairs.first,
            second=pairs.second,
            people=self.files.subjects if known else None,
            names=self._foremost_images(features),
            folds=0,
            draws=asked.draws,
            seed=asked.seed,
            far_limits=FAR_LIMITS,
            groups=groups,
            quality=self._quality(features, asked.quality),
        )
        one_to_many = self._one_to_many(present)
        searched = (
            self._judge_searches(templates, one_to_many, asked, groups) if one_to_many else _NONE
        )
        whole = np.setdiff1d(np.arange(len(self.images)), list(features.damaged))
        norm = Figure(float(features.norms[whole].mean()), note="mean norm before the flip's sum")
        interval = dict(judged.interval)
        if interval and not known:
            interval["clusters"] = TEMPLATES
        if searched.interval:
            interval["1:N"] = searched.interval["method"]
        return Result(
            model=model,
            set=self.name,
            protocol=VERSION,
            settings=self._settings(features, known) | dict(self.about) | dict(judged.settings),
            counts=self._counts(features, present, one_to_many)
            | {"pairs left out": len(self.files.pairs.same) - len(pairs.same)}
            | dict(judged.counts),
            headline=self.headline,
            figures=dict(judged.figures) | dict(searched.figures) | {"norm": norm},
            curves=dict(judged.curves) | dict(searched.curves),
            interval=interval,
            groups=_merged(judged.groups, searched.groups),
            hardest=judged.hardest,
        )

    def compare(self, features: Mapping[str, Features], *, asked: Asked) -> list[Comparison]:
        """Every two models by their TAR 1:1, and by the figures of the same searches."""
        subjects, models = self.files.subjects, {}
        searched: dict[str, dict[str, Searches]] = {}
        for name, one in features.items():
            templates, present = self._templates(one, asked.without)
            pairs, scores = self._compared(templates, present)
            people = subjects if self._all_known(pairs) else None
            models[name] = Comparisons(scores, pairs.same, pairs.first, pairs.second, people)
            if lists := self._one_to_many(present):
                searched[name] = self._searched(templates, lists)
        how = measure.Plan(None, draws=asked.draws, seed=asked.seed, far_limits=FAR_LIMITS)
        found = compare_models(models, how, set_name=self.name, figures=COMPARED)
        if lists:
            found += compare_searches(
                searched,
                people=subjects[lists.probes],
                wanted=Wanted(RANKS),
                draws=asked.draws,
                seed=asked.seed,
                set_name=self.name,
            )
        return found

    def _all_known(self, pairs: TemplatePairs) -> bool:
        """Whether it is known who is in these templates."""
        known = self.files.subjects >= 0
        return bool(known[pairs.first].all() and known[pairs.second].all())

    def _templates(
        self, features: Features, without: frozenset[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pooled (T, D), and (T,) whether any of its images is left."""
        kept = np.ones(len(self.images), bool)
        kept[list(features.damaged)] = False
        if without:
            kept &= np.array([name not in without for name in self.images.names])
        return pool(
            features.embeddings,
            self.files.members,
            templates=len(self.files.templates),
            kept=kept,
            weights=self.files.detector if self.detector_weights else None,
            unit=not self.norm_weights,
        )

    def _compared(
        self, templates: np.ndarray, present: np.ndarray
    ) -> tuple[TemplatePairs, np.ndarray]:
        """The pairs that are left, and their scores."""
        pairs = self.files.pairs
        if not present.all():  # else not to be copied: they are millions
            kept = present[pairs.first] & present[pairs.second]
            pairs = TemplatePairs(pairs.first[kept], pairs.second[kept], pairs.same[kept])
        threads = torch.get_num_threads()
        first, second = (templates, pairs.first), (templates, pairs.second)
        return pairs, pair_products(first, second, threads=threads)

    def _one_to_many(self, present: np.ndarray) -> OneToMany | None:
        """Of the templates that have an image left."""
        lists = self.files.one_to_many
        if lists is None:
            return None
        first, second = (places[present[places]] for places in lists.galleries)
        probes = lists.probes[present[lists.probes]]
        for name, places in (("1", first), ("2", second)):
            if not np.isin(self.files.subjects[probes], self.files.subjects[places]).any():
                raise UserError(
                    f"of what is left, no probe's subject is in gallery {name}; leave "
                    "fewer images out"
                )
        return OneToMany((first, second), probes)

    def _searched(self, templates: np.ndarray, lists: OneToMany) -> dict[str, Searches]:
        first, second = lists.galleries
        return {
            "gallery 1": self._search(templates, lists.probes, first),
            "gallery 2": self._search(templates, lists.probes, second),
        }

    def _search(self, templates: np.ndarray, probes: np.ndarray, gallery: np.ndarray) -> Searches:
        subjects = self.files.subjects
        return search(
            templates[probes],
            templates[gallery],
            of_probe=subjects[probes],
            of_entry=subjects[gallery],
        )

    def _judge_searches(
        self,
        templates: np.ndarray,
        lists: OneToMany,
        asked: Asked,
        groups: np.ndarray | None,
    ) -> Judgement:
        people = self.files.subjects[lists.probes]
        options = {"people": people, "draws": asked.draws, "seed": asked.seed}
        found = judge_searches(
            self._searched(templates, lists),
            wanted=Wanted(RANKS),
            groups=None if groups is None else groups[lists.probes],
            **options,
        )
        as_one = self._search(templates, lists.probes, np.concatenate(lists.galleries))
        closed = judge_searches({"": as_one}, wanted=Wanted(RANKS, fpir_limits=()), **options)
        named = {f"{name}, {_AS_ONE}": figure for name, figure in closed.figures.items()}
        return replace(found, figures=dict(found.figures) | named)

    def _settings(self, features: Features, known: bool) -> dict[str, object]:
        return {
            "flip": features.flip,
            "norm": "of templates: unit length",
            "norm weighting": self.norm_weights,
            "detector-score weighting": self.detector_weights,
            "pooling": "images of a medium averaged, media added",
            "crops": "by five landmarks, similarity transform",
            "tar@far": "largest TAR of a threshold whose FAR is at most the limit",
            "fnir@fpir": "NIST's FNIR(N, 1, T), the lowest T whose FPIR is at most the limit",
            "clusters": "subjects" if known else "templates, since subjects are not known",
            "pictures": "each template is shown by its image of greatest weight",
        }

    def _counts(
        self, features: Features, present: np.ndarray, lists: OneToMany | None
    ) -> dict[str, int]:
        counts = {
            "images": len(self.images),
            "damaged": len(features.damaged),
            "templates": int(present.sum()),
            "templates left out": int((~present).sum()),
        }
        if lists:
            counts["probes"] = len(lists.probes)
            for number, places in enumerate(lists.galleries, start=1):
                counts[f"gallery {number}"] = len(places)
        return counts

    def _foremost_images(self, features: Features) -> list[str]:
        """Of each template the name of the image that weights most in it."""
        members = self.files.members
        weights = features.norms * self.files.detector
        order = np.lexsort((-weights[members.image], members.template))
        first = np.unique(members.template[order], return_index=True)[1]
        return [self.images.names[place] for place in members.image[order][first]]

    def _groups(self, groups: Mapping[str, str] | None) -> np.ndarray | None:
        """(T,) the group of each template: by its subject, else by an image of it; "" for none."""
        if groups is None:
            return None
        members = self.files.members
        found = [groups.get(str(subject), "") for subject in self.files.subjects]
        for image, template in zip(members.image.tolist(), members.template.tolist()):
            found[template] = found[template] or groups.get(self.images.names[image], "")
        return np.array(found)

    def _quality(
        self, features: Features, quality: Mapping[str, float] | None
    ) -> dict[str, np.ndarray]:
        """(T,) the mean over the images of each template."""
        if quality is None:
            return {"norm": self._mean_of_images(features.norms)}
        return {"quality": self._mean_of_images(quality_of(self.images.names, quality))}

    def _mean_of_images(self, values: np.ndarray) -> np.ndarray:
        members = self.files.members
        sums = np.bincount(members.template, values[members.image])
        return sums / np.bincount(members.template)


def open_ijb(
    folder: str | Path,
    *,
    name: str,
    image_size: int,
    norm_weights: bool = True,
    detector_weights: bool = True,
) -> Ijb:
    """The set in a folder as InsightFace hands it out; see evaluation/protocols/ijb_files.py.

    Args:
        name: "ijbb" or "ijbc".

    Raises:
        PathError: a file or folder that is missing or cannot be opened.
        IjbFilesError: lists that are malformed or do not fit each other.
        ImagesError: images that are missing.
    """
    files = read_ijb_files(folder, name=name)
    images = aligned_files(
        files.paths, names=files.names, landmarks=files.landmarks, size=image_size
    )
    return Ijb(name, images, files, norm_weights, detector_weights)


def _merged(one: Mapping[str, Group], other: Mapping[str, Group]) -> dict[str, Group]:
    empty = Group({}, {})
    return {
        name: Group(
            dict(one.get(name, empty).counts) | dict(other.get(name, empty).counts),
            dict(one.get(name, empty).figures) | dict(other.get(name, empty).figures),
        )
        for name in {**one, **other}
    }
