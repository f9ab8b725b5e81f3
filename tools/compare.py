"""Compare faces:  python tools/compare.py MODEL A B

A and B are two images: their cosine is given and, where the model's file has a card, whether they
show the same person. Or one or both are folders: the best matches in B are given of each image of
A. --pairs takes a CSV of pairs; with --predicted OUT, names are those of a folder that
tools/predict.py has written, and no image is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.features import Embedder, extract
from evaluation.predicted import PredictedError, read_predicted
from facestream import UserError
from pipeline.ahead import cores
from pipeline.named_path import check_path
from tools.sources.compared import Pairs, Side, best_matches, read_pairs
from tools.sources.cropping import CropOptions, add_crop_options, take_crop_options
from tools.sources.decision import USUAL, Decision, decision_of
from tools.sources.named_images import files_of, named_images
from tools.sources.named_model import add_model_options, open_named_model
from training.command import command, share, whole_number
from training.distributed import World, join_world, leave_world


def compare(arguments: argparse.Namespace, world: World) -> None:
    """All that the command does."""
    _check(arguments)
    opened, embedder = open_named_model(arguments.model, arguments, world)
    photos = take_crop_options(vars(arguments))
    flip = not arguments.no_flip
    decided = decision_of(arguments.model, flip=flip, fmr=arguments.fmr, on=arguments.set)
    if arguments.predicted:
        pairs = _of_predicted(arguments, digest=opened.digest)
    elif arguments.pairs:
        pairs = _of_list(arguments, embedder, photos)
    else:
        pairs = _of_images(arguments, embedder, photos)
    scores = pairs.cosines(threads=cores())
    words = decided.of(scores) if isinstance(decided, Decision) else None
    for line in pairs.lines(scores, words):
        print(line)
    print(f"{'note' if words is None else 'decision':<13} {decided}")
    if arguments.output:
        pairs.write(arguments.output, scores, words)
        print(f"wrote         {arguments.output}, {len(scores)} pairs")


def _check(arguments: argparse.Namespace) -> None:
    two = bool(arguments.a and arguments.b)
    search = bool(arguments.identify and arguments.gallery)
    if two + bool(arguments.pairs) + search != 1 or (arguments.a and not arguments.b):
        raise UserError(
            "expected two images or folders, A B; or --pairs CSV; or --identify PHOTO --gallery "
            "FOLDER: one of these"
        )
    if search and arguments.predicted:
        raise UserError("--predicted goes with A B or --pairs: leave it out")


def _of_predicted(arguments: argparse.Namespace, *, digest: str) -> Pairs:
    """By name, of rows that are there already."""
    folder, flip = arguments.predicted, not arguments.no_flip
    found = read_predicted(folder)
    if found.about.digest != digest:
        raise PredictedError(
            f"{folder} was made with {found.about.model}, of digest {found.about.digest}; the "
            f"model named has {digest}: embeddings of two models cannot be compared"
        )
    if found.about.flip != flip:
        raise PredictedError(
            f"{folder} was made {'with' if found.about.flip else 'without'} the mirror images: "
            f"{'leave out' if found.about.flip else 'add'} --no-flip"
        )
    side, places = Side(found.embeddings, found.names), found.places
    if arguments.pairs:
        return Pairs(side, side, *read_pairs(arguments.pairs, places.__getitem__))
    unknown = [name for name in (arguments.a, arguments.b) if name not in places]
    if unknown:
        raise PredictedError(f"{unknown[0]} is no name in {folder / 'names.txt'}: name one of it")
    return Pairs(side, side, *(np.array([places[name]]) for name in (arguments.a, arguments.b)))


def _of_list(arguments: argparse.Namespace, embedder: Embedder, photos: CropOptions) -> Pairs:
    """The images that a list of pairs names, each embedded once."""
    names: dict[str, int] = {}
    first, second = read_pairs(arguments.pairs, lambda name: names.setdefault(name, len(names)))
    folder = arguments.folder or arguments.pairs.parent
    images = files_of(folder, list(names), size=embedder.image_size, photos=photos)
    found = extract(embedder, images, flip=not arguments.no_flip, progress="embedding")
    assert found is not None, "there is one rank"
    side = Side(found.embeddings, images.names)
    return Pairs(side, side, first, second)


def _of_images(arguments: argparse.Namespace, embedder: Embedder, photos: CropOptions) -> Pairs:
    """Two images, or the best matches where one of the two is a folder."""
    given = (arguments.identify or arguments.a, arguments.gallery or arguments.b)
    left, right = (_side(Path(one), embedder, photos, arguments) for one in given)
    if any(Path(one).is_dir() for one in given):
        return best_matches(left, right, top=arguments.top)
    return Pairs(left, right, np.zeros(1, np.int64), np.zeros(1, np.int64))


def _side(
    path: Path, embedder: Embedder, photos: CropOptions, arguments: argparse.Namespace
) -> Side:
    """An image, or those of a folder: damaged ones of a folder are left out and told."""
    size = embedder.image_size
    check_path(path, called=str(path), expected="an image or a folder of images", folder=True)
    if path.is_dir():
        images = named_images(path, size=size, photos=photos)
    else:
        images = files_of(path.parent, [path.name], size=size, photos=photos)
    found = extract(embedder, images, flip=not arguments.no_flip, skip_damaged=path.is_dir())
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
    add("--predicted", type=Path, metavar="OUT", help="a folder that tools/predict.py has written")
    add("--identify", type=Path, metavar="PHOTO", help="look this face up in --gallery")
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
    with command("compare"):
        world = join_world(arguments.device)
        try:
            if world.world_size > 1:
                raise UserError("compare works in one process: start it without torchrun")
            compare(arguments, world)
        finally:
            leave_world()


if __name__ == "__main__":
    main()
