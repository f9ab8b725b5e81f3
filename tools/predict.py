"""Embed images:  python tools/predict.py MODEL INPUT -o OUT

INPUT is a folder of face crops, which may have folders inside, a text file of their paths, a .rec,
a .zip, an LMDB, .parquet files or WebDataset's tars. Of photographs, with --landmarks or
--detector, the faces are cut out. OUT gets embeddings.npy, norms.npy, names.txt and about.json, and
labels.npy where INPUT says who is who. A command that was stopped goes on where it was. Ranks that
torchrun starts share the work.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.columns import read_quality
from evaluation.features import Features, extract
from evaluation.images import Images
from evaluation.predicted import FORMS, About, check_names, write_predicted
from evaluation.protocols.protocol import quality_of
from facestream import UserError
from pipeline.containers.stored import NO_LABEL, Labels
from tools.sources.cropping import add_crop_options, take_crop_options
from tools.sources.named_images import EXPECTED, Columns, NamedImages, open_named_images
from tools.sources.named_model import add_model_options, open_named_model
from training.allocator import keep_pages
from training.command import command
from training.distributed import World, joined_world
from training.frozen.card import space_of
from training.frozen.model import OpenedModel
from training.saving.reading import open_weights
from training.weights.learned_quality import LearnedQuality, learned_quality

_SHOWN = 5  # damaged images
_BLOCK = 1 << 14  # embeddings at a time


class Counted:
    """Images that are loaded, counted: those that an earlier command has embedded are not."""

    def __init__(self, images: Images) -> None:
        self._load = images.load
        self._counts: list[int] = []  # threads may append to it
        self.images = replace(images, load=self._counting)

    @property
    def total(self) -> int:
        return sum(self._counts)

    def _counting(self, places: range):  # as Load gives
        self._counts.append(len(places))
        return self._load(places)


def predict(arguments: argparse.Namespace, world: World) -> None:
    """All that the command does; with several ranks, on each of them."""
    opened, embedder = open_named_model(arguments.model, arguments, world)
    photos = take_crop_options(vars(arguments))
    columns = Columns(arguments.image_column, arguments.label_column)
    source = open_named_images(
        arguments.input, size=embedder.image_size, photos=photos, columns=columns
    )
    check_names(source.images.names)
    quality = _quality(arguments, source)
    learned = None
    if arguments.learned_quality:
        saved = open_weights(arguments.model, checked=False)
        learned = learned_quality(saved, called=arguments.model)
    counted = Counted(source.images)
    images = counted.images
    if world.is_main:
        _tell_model(opened)
    # Before the images: who sees that people are missing need not wait for the embeddings.
    labels = source.labels() if world.is_main else None
    if world.is_main:
        print(f"labels        {_described(labels, source)}", flush=True)
    keep = arguments.output / "unfinished"
    began = time.perf_counter()
    features = extract(
        embedder,
        images,
        flip=not arguments.no_flip,
        skip_damaged=not arguments.strict,
        keep=keep,
        progress="embedding",
    )
    seconds = time.perf_counter() - began
    if features is None:
        return
    about = _about(arguments, opened, images, features)
    if learned:
        quality = _of_features(learned, features)
    for path in write_predicted(
        arguments.output,
        features,
        images.names,
        about,
        form=arguments.format,
        labels=labels.numbers if labels else None,
        identities=labels.names if labels else None,
        quality=quality,
    ):
        print(f"wrote         {path}")
    _forget(keep)
    made = min(len(images), counted.total * world.world_size)
    print(f"embedded      {made} of {len(images)} images, {made / seconds:,.0f} images/s")
    if features.damaged:
        listed = [f"{name} {why}" for name, why in list(about.damaged.items())[:_SHOWN]]
        print(f"damaged       {len(features.damaged)}, their rows are zeros: {'; '.join(listed)}")


def _quality(arguments: argparse.Namespace, source: NamedImages) -> np.ndarray | None:
    """(N,) float32 as the options name it; None where they do not."""
    if arguments.quality:
        given = quality_of(source.images.names, read_quality(arguments.quality))
        return given.astype(np.float32)
    if not arguments.quality_column:
        return None
    if not source.parquet:
        raise UserError(
            f"--quality-column goes with .parquet files, and {arguments.input} is none: give "
            "--quality FILE.csv"
        )
    from pipeline.containers.parquet_images import column_of

    return column_of(source.parquet, arguments.quality_column).astype(np.float32)


def _of_features(learned: LearnedQuality, features: Features) -> np.ndarray:
    """(N,) float32; NaN for a damaged image."""
    rows = torch.from_numpy(np.array(features.embeddings)).split(_BLOCK)
    quality = torch.cat([learned.of(block, summed=features.flip) for block in rows])
    quality[list(features.damaged)] = torch.nan
    return quality.numpy()


def _about(
    arguments: argparse.Namespace, opened: OpenedModel, images: Images, features: Features
) -> About:
    described = opened.described(opened.source)
    return About(
        model=described.source,
        digest=described.digest,
        network=described.network,
        given=described.input,
        precision=described.precision,
        source=str(arguments.input),
        flip=features.flip,
        normalized=not arguments.raw,
        dtype=arguments.dtype,
        damaged={images.names[place]: why for place, why in sorted(features.damaged.items())},
        space=space_of(opened.source, opened.digest),
    )


def _tell_model(opened: OpenedModel) -> None:
    print(f"model         {opened.network}, {opened.embedding_dim} values, given {opened.input}")
    for note in opened.notes:
        print(f"note          {note}")


def _described(labels: Labels | None, source: NamedImages) -> str:
    if labels is None:
        return f"none: INPUT does not say who is who. {source.would_label}"
    known = labels.numbers[labels.numbers != NO_LABEL]
    return f"{len(known):,} of {len(labels.numbers):,} images, people: {len(np.unique(known)):,}"


def _forget(keep: Path) -> None:
    """What an unfinished command would have gone on from."""
    for path in keep.glob("*.embeddings"):
        path.unlink()
    with suppress(OSError):  # somebody else's file is in it
        keep.rmdir()


def parser() -> argparse.ArgumentParser:
    """Of the command line; `predict` takes what it finds."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0] + ".")
    add = found.add_argument
    add("model", metavar="MODEL", help="a run, RUN@best, weights, or an .onnx file")
    add("input", type=Path, metavar="INPUT", help=EXPECTED)
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write into")
    add("--format", choices=FORMS, default="npy", help="of the embeddings (default npy)")
    add("--dtype", choices=("float32", "float16"), default="float32")
    add("--raw", action="store_true", help="as the model gives them, not of unit length")
    add("--strict", action="store_true", help="end where an image is damaged")
    quality = found.add_mutually_exclusive_group()
    quality.add_argument("--quality", metavar="CSV", help="image,quality: written beside")
    quality.add_argument("--quality-column", help="of parquet files: written beside")
    quality.add_argument(
        "--learned-quality",
        action="store_true",
        help="what head.extra_terms={classifiability: {}} has learned: written beside",
    )
    add("--image-column", help="of parquet files (default: the only one that can be)")
    add("--label-column", help="of parquet files, or key in a tar's .json (default label)")
    add_model_options(found)
    add_crop_options(found, sized=False)
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("predict"), joined_world(arguments.device) as world:
        predict(arguments, world)


if __name__ == "__main__":
    keep_pages()  # for the whole process: a test that calls main() is not to be changed by it
    main()
