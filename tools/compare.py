"""Compare faces:  python tools/compare.py MODEL A B

A and B are two images: their cosine is given and, where the model's file has a card, whether they
show the same person. Or one or both are folders: the best matches in B are given of each image of
A. --pairs takes a CSV of pairs; with --predicted OUT, names are those of a folder that
tools/predict.py has written, and its images are not read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.features import Embedder, extract
from evaluation.predicted import PredictedError, read_predicted
from evaluation.translation import TranslationError
from facestream import UserError
from pipeline.ahead import cores
from pipeline.named_path import check_path
from tools.sources.compared import Pairs, Side, best_matches, listing
from tools.sources.cropping import CropOptions, add_crop_options, take_crop_options
from tools.sources.decision import USUAL, Decision, chosen_point, decision_of
from tools.sources.named_images import files_of, named_images
from tools.sources.named_model import add_model_options, open_named_model
from tools.sources.pair_lists import PlaceOf, read_pairs
from training.command import command, share, whole_number
from training.distributed import World, joined_world
from training.frozen.card import read_card, space_of
from training.frozen.model import OpenedModel
from training.frozen.translator_file import TranslatorFile, read_translator


def compare(arguments: argparse.Namespace, world: World) -> None:
    """All that the command does."""
    _check(arguments)
    opened, embedder = open_named_model(arguments.model, arguments, world)
    asked = Asked(arguments, opened, embedder)
    sides = [_predicted(folder, asked) for folder in arguments.predicted]
    translated = [side.translated for side in sides]
    if translated and all(translated) and not arguments.identify:
        raise TranslationError(
            "all embeddings are of the old model, and would be translated for nothing: name the "
            "old model, and leave out --translator"
        )
    decided = _decided(asked, translated=any(translated))
    decision = decided if isinstance(decided, Decision) else None
    with listing(arguments.output, decided=decision is not None) as listed:
        for pairs in _pairs(asked, sides):
            scores = pairs.cosines(threads=cores())
            listed.add(pairs, scores, decision.of(scores) if decision else None)
    for line in listed.lines():
        print(line)
    print(f"{'decision' if decision else 'note':<13} {decided}")
    if arguments.output:
        print(f"wrote         {arguments.output}, {listed.count} pairs")


@dataclass(frozen=True)
class Asked:
    """A command line, and the model that it names."""

    arguments: argparse.Namespace
    opened: OpenedModel
    embedder: Embedder

    @property
    def flip(self) -> bool:
        return not self.arguments.no_flip

    @cached_property
    def photos(self) -> CropOptions:
        return take_crop_options(vars(self.arguments))

    @cached_property
    def space(self) -> str:
        """Of the embeddings that are compared."""
        return space_of(self.opened.source, self.opened.digest)

    @cached_property
    def translator(self) -> TranslatorFile | None:
        """To the space of the model. Raises TranslationError where it is to another."""
        path = self.arguments.translator
        if path is None:
            return None
        found = read_translator(path)
        if found.new != self.space:
            other_way = " It leads the other way: name the newer model" * (found.old == self.space)
            raise TranslationError(
                f"{path} translates from {found.old} ({found.old_model}) to {found.new} "
                f"({found.new_model}), and the model named has the space {self.space}.{other_way}"
            )
        if found.flip != self.flip:
            raise TranslationError(
                f"{path} is for embeddings {'with' if found.flip else 'without'} the mirror "
                f"images': {'leave out' if found.flip else 'add'} --no-flip"
            )
        return found


def _check(arguments: argparse.Namespace) -> None:
    two = bool(arguments.a and arguments.b)
    predicted = len(arguments.predicted)
    search = bool(arguments.identify and (arguments.gallery or predicted == 1))
    if two + bool(arguments.pairs) + search != 1 or (arguments.a and not arguments.b):
        raise UserError(
            "expected two images or folders, A B; or --pairs CSV; or --identify PHOTO with "
            "--gallery FOLDER or --predicted OUT: one of these"
        )
    if arguments.translator and not predicted:
        raise UserError("--translator is for --predicted, a folder of the old model: add it")
    if predicted > 2 or (search and arguments.gallery and predicted):
        raise UserError(
            "expected --predicted once, or twice for the first and the second of each pair, and "
            "not beside --gallery"
        )


def _decided(asked: Asked, *, translated: bool) -> Decision | str:
    """Where the model decides, or the translator; or why nothing does."""
    arguments, opened = asked.arguments, asked.opened
    chosen = {"fmr": arguments.fmr, "on": arguments.set}
    if not translated:
        if asked.translator:
            print("note          --translator is not needed: nothing here is of the old model")
        return decision_of(
            read_card(opened.source),
            of=f"the card of {opened.source}",
            digest=opened.digest,
            flip=asked.flip,
            **chosen,
        )
    assert asked.translator is not None
    if not asked.translator.points:
        return (
            "no decision: the translator has no thresholds, as the sets that tools/compat.py was "
            "given could show none. The card's are of embeddings that are not translated"
        )
    return Decision(chosen_point(asked.translator.points, of=str(arguments.translator), **chosen))


def _pairs(asked: Asked, sides: Sequence[Side]) -> Iterator[Pairs]:
    """What is compared, some pairs at a time.

    Args:
        sides: of --predicted.
    """
    arguments = asked.arguments
    if arguments.identify:
        gallery = sides[0] if sides else _side(arguments.gallery, asked)
        yield best_matches(_side(arguments.identify, asked), gallery, top=arguments.top)
    elif sides:
        yield from _of_predicted(sides[0], sides[-1], arguments)
    elif arguments.pairs:
        yield _of_list(asked)
    else:
        given = [Path(one) for one in (arguments.a, arguments.b)]
        left, right = (_side(path, asked) for path in given)
        if any(path.is_dir() for path in given):
            yield best_matches(left, right, top=arguments.top)
        else:
            yield Pairs(left, right, np.zeros(1, np.int64), np.zeros(1, np.int64))


def _of_predicted(left: Side, right: Side, arguments: argparse.Namespace) -> Iterator[Pairs]:
    """By name, of rows that are there already."""
    if arguments.pairs:
        place_of = PlaceOf(left.places.__getitem__, right.places.__getitem__)
        for places in read_pairs(arguments.pairs, place_of):
            yield Pairs(left, right, *places)
        return
    folders = arguments.predicted[0], arguments.predicted[-1]
    for name, side, folder in zip((arguments.a, arguments.b), (left, right), folders):
        if name not in side.places:
            raise PredictedError(f"{name} is no name in {folder / 'names.txt'}: name one of it")
    yield Pairs(
        left, right, np.array([left.places[arguments.a]]), np.array([right.places[arguments.b]])
    )


def _predicted(folder: Path, asked: Asked) -> Side:
    """A folder of embeddings that may be compared with those of the model."""
    found, flip = read_predicted(folder), asked.flip
    if found.about.flip != flip:
        raise PredictedError(
            f"{folder} was made {'with' if found.about.flip else 'without'} the mirror images: "
            f"{'leave out' if found.about.flip else 'add'} --no-flip"
        )
    space, file = found.about.space or found.about.digest, asked.translator
    if file and space == file.old:
        return Side(file.translator(found.embeddings), found.names, translated=True)
    if space != asked.space:
        raise PredictedError(
            f"{folder} was made with {found.about.model}, of the space {space}; the model named "
            f"has {asked.space}: embeddings of two networks cannot be compared"
            + (f", and {asked.arguments.translator} translates from {file.old}" if file else "")
            + ". tools/compat.py --fit makes a translator for --translator"
        )
    if found.about.digest != asked.opened.digest:
        print(
            f"note          {folder} was made with {found.about.model}, another file of the same "
            "network: its embeddings differ as the formats do, most in int8"
        )
    return Side(found.embeddings, found.names)


def _of_list(asked: Asked) -> Pairs:
    """The images that a list of pairs names, each embedded once."""
    arguments, embedder = asked.arguments, asked.embedder
    names: dict[str, int] = {}

    def place_of(name: str) -> int:
        return names.setdefault(name, len(names))

    found = list(read_pairs(arguments.pairs, PlaceOf(place_of, place_of)))
    first, second = (np.concatenate(places) for places in zip(*found))
    folder = arguments.folder or arguments.pairs.parent
    images = files_of(folder, list(names), size=embedder.image_size, photos=asked.photos)
    features = extract(embedder, images, flip=asked.flip, progress="embedding")
    assert features is not None, "there is one rank"
    side = Side(features.embeddings, images.names)
    return Pairs(side, side, first, second)


def _side(path: Path, asked: Asked) -> Side:
    """An image, or those of a folder: damaged ones of a folder are left out and named."""
    embedder, photos, size = asked.embedder, asked.photos, asked.embedder.image_size
    check_path(path, called=str(path), expected="an image or a folder of images", folder=True)
    if path.is_dir():
        images = named_images(path, size=size, photos=photos)
    else:
        images = files_of(path.parent, [path.name], size=size, photos=photos)
    found = extract(embedder, images, flip=asked.flip, skip_damaged=path.is_dir())
    assert found is not None, "there is one rank"
    if not found.damaged:
        return Side(found.embeddings, images.names)
    first = min(found.damaged)
    print(
        f"damaged       {len(found.damaged)} images of {path} are left out, first "
        f"{images.names[first]} {found.damaged[first]}"
    )
    left = [place for place in range(len(images)) if place not in found.damaged]
    if not left:
        raise UserError(f"{path}: all its images are damaged: copy them again")
    return Side(found.embeddings[left], [images.names[place] for place in left])


def parser() -> argparse.ArgumentParser:
    """Of the command line; `compare` takes what it finds."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0] + ".")
    add = found.add_argument
    add("model", metavar="MODEL", help="a run, RUN@best, weights, or an .onnx file")
    add("a", nargs="?", metavar="A", help="an image or a folder, or a name of --predicted")
    add("b", nargs="?", metavar="B", help="the same")
    add("--pairs", type=Path, metavar="CSV", help="lines of two names")
    add(
        "--folder", type=Path, metavar="DIR", help="where names of --pairs begin (default: its own)"
    )
    add(
        "--predicted",
        type=Path,
        action="append",
        default=[],
        metavar="OUT",
        help="a folder that tools/predict.py has written; twice: of the first and the second of "
        "each pair",
    )
    add(
        "--translator",
        type=Path,
        metavar="FILE",
        help="of tools/compat.py, for a folder of --predicted that an older model has made",
    )
    add(
        "--identify",
        type=Path,
        metavar="PHOTO",
        help="look this face up in --gallery or --predicted",
    )
    add("--gallery", type=Path, metavar="FOLDER", help="images of known people")
    add("--top", type=whole_number(1, 10_000), default=5, help="matches to give (default 5)")
    add("-o", "--output", type=Path, metavar="CSV", help="file for all pairs and cosines")
    add("--fmr", type=share, help=f"of the card's threshold (default: nearest to {USUAL:g})")
    add("--set", default="", help="of the card's threshold (default: that of most pairs)")
    add_model_options(found)
    add_crop_options(found, sized=False)
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("compare"), joined_world(arguments.device, alone="compare") as world:
        compare(arguments, world)


if __name__ == "__main__":
    main()
