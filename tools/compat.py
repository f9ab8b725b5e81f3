"""A new model beside an old one:  python tools/compat.py OLD NEW --sets SET... -o OUT

What are embeddings of OLD, which are enrolled already, worth beside those of NEW? Every set is
judged old × old, new × new and new × old, on the same pairs. With --fit IMAGES of other people, a
translator from OLD's embeddings to NEW's is fitted and judged, too, and written for
tools/compare.py --translator. OUT gets results.json, results.md, embeddings/ and, with --fit,
translator.safetensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.compatibility import CROSSED, NEW, OLD, TRANSLATED, combine, judge_together
from evaluation.features import Embedder, Features, extract
from evaluation.images import Images
from evaluation.protocols.named_sets import NamedSets
from evaluation.protocols.pairs import Pairs
from evaluation.protocols.protocol import Asked, TestSet
from evaluation.protocols.sets import SetError, kinds
from evaluation.report import tables
from evaluation.result import Evaluation, Model, Result
from evaluation.translation import Fit, fit
from facestream import UserError
from pipeline.whole_file import write_whole
from tools.sources.named_model import add_judging_options, add_model_options, open_named_models
from tools.sources.people_images import PeopleImages, people_images
from training.allocator import keep_pages
from training.command import command, whole_number
from training.distributed import World, joined_world
from training.frozen.card import space_of
from training.frozen.model import OpenedModel
from training.frozen.translator_file import TranslatorFile, write_translator
from training.shipping.operating_points import points_of

_MOST = 20_000  # images to fit on
_TRANSLATOR = "translator.safetensors"


class Side(NamedTuple):
    """A model, how it is run, and the space of its embeddings."""

    opened: OpenedModel
    embedder: Embedder
    space: str


def compat(arguments: argparse.Namespace, world: World) -> None:
    """All that the command does."""
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    old, new = _sides(arguments, world)
    asked = Asked(draws=arguments.draws, seed=arguments.seed)
    sizes = [side.embedder.image_size for side in (old, new)]
    sets = NamedSets(arguments.sets, sizes=sizes, seed=arguments.seed, asked=asked)
    for opener in sets.openers:
        _require_pairs(opener(sizes[0]))
    arguments.output.mkdir(parents=True, exist_ok=True)
    fitted = _fit(arguments, old, new) if arguments.fit else None
    results, comparisons, people = [], [], set[str]()
    for opener in sets.openers:
        of_old, of_new = (opener(side.embedder.image_size) for side in (old, new))
        assert isinstance(of_new, Pairs), "required above"
        people.update(of_new.people or ())
        features = combine(
            _embed(old, of_old.images, arguments, of_old.name),
            _embed(new, of_new.images, arguments, of_new.name),
            fitted[1].translator if fitted else None,
        )
        judged, compared = judge_together(of_new, features, asked)
        results += [replace(result, made=made) for result in judged]
        comparisons += compared
    names = list(dict.fromkeys(result.model for result in results))
    found = Evaluation([_about(name, old, new) for name in names], results, comparisons)
    written = {"results.json": found.as_json(), "results.md": tables.markdown(found)}
    for name, content in written.items():
        write_whole(arguments.output / name, content)
    if fitted:
        written[_TRANSLATOR] = ""
        _write_translator(arguments, old, new, fitted[1], results)
    _tell(found)
    if fitted:
        _tell_shared(arguments.fit, fitted[0], people)
    for name in written:
        print(f"wrote         {arguments.output / name}")


def _tell(found: Evaluation) -> None:
    Console().print(tables.console_table(found, every_figure=False))
    for one in found.comparisons:
        if NEW in (one.first, one.second):
            print(f"{one.set:<13} {one.figure}: {one.first} against {one.second}: {one.verdict}")
    if all(model.name != CROSSED for model in found.models):
        print("note          the models' embeddings differ in size: new × old cannot be compared")


def _write_translator(
    arguments: argparse.Namespace, old: Side, new: Side, found: Fit, results: Sequence[Result]
) -> None:
    points = [
        point for result in results if result.model == TRANSLATED for point in points_of(result)
    ]
    file = TranslatorFile(
        found.translator,
        *(old.space, new.space, old.opened.source, new.opened.source),
        flip=not arguments.no_flip,
        fitted_on=str(arguments.fit),
        images=found.images,
        people=found.people,
        trials=found.trials,
        points=points,
    )
    write_translator(arguments.output / _TRANSLATOR, file)


def _sides(arguments: argparse.Namespace, world: World) -> list[Side]:
    sides = []
    given = [arguments.old, arguments.new]
    for name, (opened, embedder) in zip(("old", "new"), open_named_models(given, arguments, world)):
        sides.append(Side(opened, embedder, space_of(opened.source, opened.digest)))
        print(
            f"{name:<13} {opened.source}: {opened.network}, {opened.embedding_dim} values, space "
            f"{sides[-1].space}"
        )
        for note in opened.notes:
            print(f"note          {note}")
    if sides[0].space == sides[1].space:
        raise UserError(
            f"{arguments.old} and {arguments.new} are one network, of the space {sides[0].space}: "
            "their embeddings can be compared as they are"
        )
    return sides


def _require_pairs(test_set: TestSet) -> None:
    if not isinstance(test_set, Pairs):
        raise SetError(
            f"{test_set.name} is no set of pairs: two models are compared on pairs alone, such as "
            "lfw.bin, pairs:LIST:DIR or people:DIR"
        )


def _embed(side: Side, images: Images, arguments: argparse.Namespace, name: str) -> Features:
    found = extract(
        side.embedder,
        images,
        flip=not arguments.no_flip,
        skip_damaged=arguments.skip_damaged,
        keep=arguments.output / "embeddings",
        progress=f"{name}, {Path(side.opened.source).name}",
    )
    assert found is not None, "there is one rank"
    return found


def _fit(arguments: argparse.Namespace, old: Side, new: Side) -> tuple[PeopleImages, Fit]:
    sources = [
        people_images(
            arguments.fit,
            size=side.embedder.image_size,
            most=arguments.images,
            seed=arguments.seed,
        )
        for side in (old, new)
    ]
    both = [
        _embed(side, source.images, arguments, "--fit") for side, source in zip((old, new), sources)
    ]
    damaged = {place for features in both for place in features.damaged}
    whole = np.setdiff1d(np.arange(len(sources[0].people)), list(damaged))
    if damaged:
        print(f"damaged       {len(damaged)} images of {arguments.fit} are left out")
    rows = [np.asarray(features.embeddings[whole]) for features in both]
    found = fit(rows[0], rows[1], sources[0].people[whole], seed=arguments.seed)
    print(
        f"fitted        on {found.images:,} images of {found.people:,} people; the kind was chosen "
        f"on {found.held_out:,} of them, who were held out:"
    )
    for trial in found.trials:
        tar = "" if trial.tar is None else f", TAR at a FAR of {trial.far:g}: {trial.tar:.4f}"
        print(f"              {trial.kind}: cosine to the new embedding {trial.cosine:.4f}{tar}")
    if found.images < 2 * len(found.translator.matrix):
        print(
            f"note          {found.images:,} images are few for {len(found.translator.matrix)} "
            "values: ten times as many as values, or more, make a better translator"
        )
    return sources[0], found


def _tell_shared(given: Path, source: PeopleImages, people: set[str]) -> None:
    """Whether it was fitted on people of the sets, on whom it then looks better than it is."""
    if source.names is None or not people:
        print(
            f"note          whether {given} shows people of the sets is not known, as not both "
            "say who is who: if it does, the translator looks better here than it is"
        )
        return
    used = {source.names[number] for number in np.unique(source.people).tolist()}
    if shared := sorted(used & people):
        print(
            f"warning       {len(shared)} people of {given} are in the sets, too, such as "
            f"{shared[0]}: the translator looks better here than it is. Fit it on others"
        )


def _about(name: str, old: Side, new: Side) -> Model:
    """A combination as results show it, under its name."""
    first, second = {NEW: (new, new), OLD: (old, old)}.get(name, (new, old))
    model = first.opened.described(name)
    if first is second:
        return model
    other = second.opened.described(name)
    return replace(
        model,
        source=f"{model.source} × {other.source}",
        digest=f"{model.digest} × {other.digest}",
        network=f"{model.network} × {other.network}",
    )


def parser() -> argparse.ArgumentParser:
    """Of the command line; `compat` takes what it finds."""
    found = argparse.ArgumentParser(
        description=__doc__.splitlines()[0].partition(":")[0] + ".",
        epilog=f"sets of pairs among these:\n{kinds()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("old", metavar="OLD", help="the model whose embeddings are enrolled")
    add("new", metavar="NEW", help="the model that is to follow it")
    add("--sets", nargs="+", action="extend", required=True, metavar="SET", help="see below")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write into")
    add(
        "--fit",
        type=Path,
        metavar="IMAGES",
        help="fit a translator on these: a folder of people's folders, a .rec or a .bin",
    )
    add(
        "--images",
        type=whole_number(1, 10_000_000),
        default=_MOST,
        metavar="N",
        help=f"that --fit takes at most, of people who are drawn (default {_MOST})",
    )
    add_judging_options(found)
    add_model_options(found)
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("compat"), joined_world(arguments.device, alone="compat") as world:
        compat(arguments, world)


if __name__ == "__main__":
    keep_pages()  # for the whole process: a test that calls main() is not to be changed by it
    main()
