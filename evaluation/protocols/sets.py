"""Test sets by name, as command lines and configurations give them: `lfw.bin+blur`, `ijbc:DIR`.

A set is a .bin file, or a kind with what it is made of, each perhaps degraded, once or more often:
`lfw.bin+lowres=16+jpeg=30`. Whoever adds a protocol adds its kind to KINDS.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.images import Faces
from evaluation.protocols.degraded import DEGRADATIONS, degraded, description
from evaluation.protocols.draw_pairs import PER_PERSON, draw_pairs
from evaluation.protocols.identification import Identification, open_identification
from evaluation.protocols.ijb import Ijb, open_ijb
from evaluation.protocols.pair_lists import read_pair_list
from evaluation.protocols.pairs import Pairs, of_list, open_bin
from evaluation.protocols.protocol import TestSet
from facestream import UserError
from pipeline.named_path import as_text, check_path

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
# Where the images of a set are inside its folder, as its authors pack them, or others do.
_IMAGE_FOLDERS = ("xqlfw_aligned_112", "lfw_aligned_112", "images", "lfw", "xqlfw")


class SetError(UserError):
    """A test set that cannot be opened by its name: says why, and which names there are."""


@dataclass(frozen=True)
class Share:
    """What of a set this process opens.

    Attributes:
        image_size: pixels that the network takes.
        batch_size: images at a time, by which ranks share them.
        rank, world_size: whose share of what is held in memory; 0 and 1 for all of it.
        seed: of pairs that are drawn.
        faces: what finds the faces in photographs of folders; None where these hold crops.
    """

    image_size: int
    batch_size: int = 128
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    faces: Faces | None = None


@dataclass(frozen=True)
class Kind:
    """How a kind of set is named and opened.

    Attributes:
        form: as it is written: "lfw:DIR".
        what: it is, for the list of kinds.
        open: the words after the kind's name, and the share, to the set.
    """

    form: str
    what: str
    open: Callable[[str, Share], TestSet]


def open_set(
    spec: str,
    *,
    image_size: int,
    batch_size: int = 128,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    faces: Faces | None = None,
    shared: dict[str, TestSet] | None = None,
) -> TestSet:
    """Open a test set by name, and nothing of it is embedded.

    Args:
        spec: such as "lfw.bin", "xqlfw:DIR" or "lfw.bin+blur"; see KINDS and DEGRADATIONS.
        batch_size, rank, world_size: a rank may keep the images of its own batches alone.
        seed: of pairs that are drawn, and of what degradations draw.
        faces: what finds the faces in photographs, where a list or folder of people is of such.
        shared: sets that were opened with the same arguments, by name without degradations: what
            degrades one of them holds its images, and reads nothing. What is opened is added.

    Raises:
        SetError: no set is called so.
        UserError: a subclass of it, where what is named is missing or damaged; it names the path.
    """
    plain, degradations = split_degradations(spec)
    share = Share(image_size, batch_size, rank, world_size, seed, faces)
    shared = {} if shared is None else shared
    if plain not in shared:
        shared[plain] = _open(plain, spec, share)
    opened: Any = shared[plain]  # a dataclass, as TestSet says
    for kind, strength in degradations:
        about = {**opened.about, f"degraded by {kind}": description(kind, strength)}
        about["seed of degradations"] = str(seed)
        images = degraded(opened.images, kind, strength, seed=seed)
        name = f"{opened.name}+{kind}" + ("" if strength is None else f"={strength:g}")
        opened = replace(opened, name=name, images=images, about=about)
    return opened


def split_degradations(spec: str) -> tuple[str, list[tuple[str, float | None]]]:
    """`lfw.bin+blur+lowres=16` to the set's name and what degrades it, in order.

    Raises:
        SetError: a degradation that there is not, or a strength that is no number.
    """
    plain = spec
    found: list[tuple[str, float | None]] = []
    while "+" in plain:
        rest, _, word = plain.rpartition("+")
        kind, _, value = word.partition("=")
        if kind not in DEGRADATIONS:
            break
        if not _NUMBER.fullmatch(value or "1") or word.endswith("="):
            raise SetError(
                f"{spec}: found +{word}, expected a number ({DEGRADATIONS[kind].unit}) such as "
                f"+{kind}={DEGRADATIONS[kind].strength:g}, or +{kind} alone for that"
            )
        found.insert(0, (kind, float(value) if value else None))
        plain = rest
    ends = [plain.split(":", times)[-1] for times in range(plain.count(":") + 1)]
    if "+" in plain and not any(Path(end).exists() for end in ends):  # paths may have a plus
        name = plain.rpartition("+")[2]
        raise SetError(
            f"{spec}: +{name} is no degradation, and there is no such path: expected one of "
            f"+{', +'.join(DEGRADATIONS)}{_nearest(name, DEGRADATIONS, '+{}')}"
        )
    return plain, found


def kinds() -> str:
    """The kinds of sets and what they are, a line each, for helps and errors."""
    rows = [("FILE.bin", "a verification set as InsightFace packs it")]
    rows += [(kind.form, kind.what) for kind in KINDS.values()]
    width = max(len(form) for form, _ in rows)
    return "\n".join(f"{form:<{width}}  {what}" for form, what in rows)


def _open(plain: str, spec: str, share: Share) -> TestSet:
    kind, colon, words = plain.partition(":")
    if colon and kind in KINDS:
        if not words:
            raise SetError(f"{spec}: expected {KINDS[kind].form}, {KINDS[kind].what}")
        return KINDS[kind].open(words, share)
    if plain.endswith(".bin"):
        return open_bin(
            plain,
            image_size=share.image_size,
            batch_size=share.batch_size,
            rank=share.rank,
            world_size=share.world_size,
        )
    forms = ["FILE.bin", *(known.form for known in KINDS.values())]
    raise SetError(
        f"{spec}: expected one of {', '.join(forms)}, each perhaps with +blur, +lowres=16 and the "
        f"like{_nearest(kind, KINDS, '{}:')}"
    )


def _nearest(word: str, known: Iterable[str], shown: str) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f". Did you mean {shown.format(near[0])}?" if near else ""


def _lfw(words: str, share: Share) -> Pairs:
    return _official(words, share, ("pairs.txt",))


def _xqlfw(words: str, share: Share) -> Pairs:
    return _official(words, share, ("xqlfw_pairs.txt", "pairs.txt"))


def _official(words: str, share: Share, lists: tuple[str, ...]) -> Pairs:
    """A folder with a list of pairs, and the images in it or in the folder they come in."""
    folder = Path(words)
    expected = f"the folder of {lists[0]} and its images"
    check_path(folder, called=str(folder), expected=expected, file=False, folder=True)
    there = [folder / name for name in lists if (folder / name).exists()]
    pairs = (there or [folder / lists[0]])[0]
    inside = [folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()]
    images = (inside or [folder])[0]
    return _of_list(as_text(folder.resolve().name), pairs, images, share)


def _pairs(words: str, share: Share) -> Pairs:
    """LIST:FOLDER; a colon may stand in either of the two."""
    for at in (i for i, letter in enumerate(words) if letter == ":"):
        pairs, folder = Path(words[:at]), Path(words[at + 1 :])
        if pairs.is_file():
            return _of_list(as_text(pairs.stem), pairs, folder, share)
    missing, colon, rest = words.partition(":")
    if not colon:
        raise SetError(
            f"pairs:{words}: expected {KINDS['pairs'].form}, a list of pairs and the folder that "
            "its paths begin in"
        )
    return _of_list(missing, Path(missing), Path(rest), share)  # which says so


def _of_list(name: str, pairs: Path, folder: Path, share: Share) -> Pairs:
    listed = read_pair_list(pairs, folder)
    return of_list(name, listed, folder=folder, image_size=share.image_size, faces=share.faces)


def _people(words: str, share: Share) -> Pairs:
    """DIR or DIR:LIMIT."""
    folder, _, limit = words.rpartition(":")
    if not folder or not limit.isdecimal() or not int(limit):
        folder, limit = words, str(PER_PERSON)
    drawn = draw_pairs(folder, per_person=int(limit), seed=share.seed)
    name = as_text(Path(folder).resolve().name)
    found = of_list(name, drawn, folder=folder, image_size=share.image_size, faces=share.faces)
    about = {"pairs": f"drawn, seed {share.seed}, at most {limit} genuine ones of a person"}
    return replace(found, about=about)


def _ijb(name: str, words: str, share: Share) -> Ijb:
    """DIR or DIR:OPTIONS, of no-norm and no-detector with a comma between them."""
    folder, colon, tail = words.rpartition(":")
    options = set(tail.split(",")) if colon else set()
    if not options or not options <= {"no-norm", "no-detector"}:
        folder, options = words, set()
    opened = open_ijb(
        folder,
        name=name,
        image_size=share.image_size,
        norm_weights="no-norm" not in options,
        detector_weights="no-detector" not in options,
    )
    return replace(opened, name=":".join([name, *sorted(options, reverse=True)]))


def _searched(words: str, share: Share) -> Identification:
    return _identification(as_text(Path(words).resolve().name), words, share)


def _identification(name: str, words: str, share: Share) -> Identification:
    return open_identification(words, name=name, image_size=share.image_size)


KINDS: dict[str, Kind] = {
    "lfw": Kind("lfw:DIR", "LFW's pairs.txt and the images, in DIR", _lfw),
    "xqlfw": Kind("xqlfw:DIR", "xqlfw_pairs.txt and xqlfw_aligned_112, in DIR", _xqlfw),
    "pairs": Kind("pairs:LIST:DIR", "pairs (CSV, or as LFW's) over the images in DIR", _pairs),
    "people": Kind(
        "people:DIR[:LIMIT]",
        "pairs drawn from DIR/PERSON/*.jpg, of one person at most LIMIT genuine ones",
        _people,
    ),
    "ijbb": Kind(
        "ijbb:DIR", "IJB-B, 1:1 and 1:N: meta and loose_crop, in DIR", partial(_ijb, "ijbb")
    ),
    "ijbc": Kind(
        "ijbc:DIR[:no-norm,no-detector]",
        "IJB-C; embeddings weighted by norm and detector score, or not",
        partial(_ijb, "ijbc"),
    ),
    "tinyface": Kind(
        "tinyface:DIR",
        "Gallery_Match, Gallery_Distractor and Probe, in DIR",
        partial(_identification, "tinyface"),
    ),
    "survface": Kind(
        "survface:DIR",
        "gallery, mated_probe and unmated_probe, in DIR",
        partial(_identification, "survface"),
    ),
    "1n": Kind(
        "1n:DIR",
        "1:N over gallery/ID/*.jpg, probe/ID/*.jpg and perhaps distractors/*.jpg, in DIR",
        _searched,
    ),
}
