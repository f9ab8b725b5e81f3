"""Judge models:  python tools/evaluate.py MODEL... --sets SET... -o OUT

MODEL is a run, RUN@best, RUN@STEP, a checkpoint, a file of weights (.pth, .pt, .safetensors) or any
.onnx file. Several are compared. OUT gets results.json, which all else is drawn from, report.html,
results.md, .csv and .tex, and embeddings/, which a command that was stopped goes on from. Ranks
that torchrun starts share the embedding.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.columns import read_groups, read_quality
from evaluation.evaluate import Judged, Settings, embed_sets, evaluate
from evaluation.images import Faces
from evaluation.leaks.overlap import read_overlap
from evaluation.protocols.degraded import DEGRADATIONS
from evaluation.protocols.draw_pairs import PER_PERSON
from evaluation.protocols.named_sets import NamedSets
from evaluation.protocols.protocol import Asked
from evaluation.protocols.sets import SetError, kinds
from evaluation.report import tables
from evaluation.report.figure_text import figure_text, title
from evaluation.report.html import write_html
from evaluation.result import Result, read_evaluation
from facestream import UserError
from pipeline.ahead import cores
from pipeline.faces.crops import Cropper
from pipeline.named_path import as_text
from pipeline.whole_file import write_whole
from tools.sources.cropping import add_crop_options, open_cropper, take_crop_options
from tools.sources.named_model import add_judging_options, add_model_options, open_named_models
from training.allocator import keep_pages
from training.command import command, whole_number
from training.distributed import World, joined_world
from training.saving.weight_file import SUFFIXES
from training.shipping.hub_folder import HubFolderError, prepare, require_free
from training.shipping.operating_points import add_results, require_files


def open_models(arguments: argparse.Namespace, world: World) -> list[Judged]:
    """Open the models that the command line names, and say what they are."""
    judged = []
    names = _names(arguments.models)
    opened = open_named_models(arguments.models, arguments, world)
    for (found, embedder), name in zip(opened, names):
        model = found.described(name)
        judged.append(Judged(model, embedder))
        if world.is_main:
            print(
                f"model         {name}: {model.network}, {model.embedding_dim} values, in "
                f"{model.precision}, given {model.input}"
            )
            for note in found.notes:
                print(f"note          {note}")
    return judged


def _names(given: Sequence[str]) -> list[str]:
    """Names for tables: the last part of each path, and as many before it as tell them apart."""
    paths = [Path(as_text(path if Path(path).name else os.path.abspath(path))) for path in given]
    most = max(len(path.parts) for path in paths)
    for parts in range(1, most + 1):
        names = [
            "/".join((*path.parts[-parts:-1], path.stem if path.suffix in SUFFIXES else path.name))
            for path in paths
        ]
        if len(set(names)) == len(names):
            return names
    twice = next(name for name in given if list(given).count(name) > 1)
    raise UserError(f"{twice} is named twice: name every model once")


def write_report(output: Path, sets: NamedSets, *, pictures: bool) -> list[Path]:
    """Draw the tables and the page of OUT/results.json; returns what was written."""
    found = read_evaluation(output / "results.json")
    written = {
        "results.md": tables.markdown(found),
        "results.csv": tables.csv(found),
        "results.tex": tables.latex(found),
    }
    for name, content in written.items():
        write_whole(output / name, content)
    write_html(found, output / "report.html", pictures=sets.picture if pictures else None)
    return [output / name for name in ("results.json", *written, "report.html")]


def judge(arguments: argparse.Namespace, world: World, *, made: str) -> None:
    """All that the command does; with several ranks, on each of them.

    Args:
        made: when, for the results: ISO 8601 in UTC.
    """
    if arguments.push:
        if not arguments.card:
            raise HubFolderError("--push FOLDER takes files with cards: give --card, too")
        require_free(arguments.push)
    if arguments.card:
        require_files(arguments.models)
    models = open_models(arguments, world)
    asked = _asked(arguments)
    sets = NamedSets(
        _specs(arguments),
        asked=asked,
        sizes=[model.embedder.image_size for model in models],
        seed=arguments.seed,
        faces=_faces(arguments),
    )
    overlap = read_overlap(arguments.without) if arguments.without else None
    settings = Settings(
        asked,
        flip=not arguments.no_flip,
        skip_damaged=arguments.skip_damaged,
        keep=arguments.keep or arguments.output / "embeddings",
        leaked=sets.leaked(overlap) if overlap else {},
        made=made,
    )
    if world.is_main:
        arguments.output.mkdir(parents=True, exist_ok=True)
    if world.world_size > 1:
        embed_sets(models, sets.openers, settings)
        if not world.is_main:
            return
        models = [_alone(model) for model in models]
    summary = overlap.summary() if overlap else None
    failed: list[UserError] = []
    found = evaluate(
        models, sets.openers, settings, overlap=summary, tell=_tell, fail=failed.append
    )
    write_whole(arguments.output / "results.json", found.as_json())
    written = write_report(arguments.output, sets, pictures=not arguments.no_pictures)
    for name, said in found.overlap.items():
        print(f"{name:<13} {said}")
    Console().print(tables.console_table(found))
    if arguments.card:
        for model in found.models:
            written += add_results(model, [one for one in found.results if one.model == model.name])
    if arguments.push and not failed:
        written += prepare([Path(model) for model in arguments.models], arguments.push)
    for path in written:
        print(f"wrote         {path}")
    if failed:
        nothing = f" {arguments.push} was not written." if arguments.push else ""
        raise UserError(
            f"{'; '.join(map(str, failed))}. The other models were judged: leave such a model out, "
            f"or mend it and give the same command again.{nothing}"
        )


def _specs(arguments: argparse.Namespace) -> list[str]:
    drawn = arguments.pairs_from
    specs = [*arguments.sets, *([f"people:{drawn}:{arguments.per_person}"] if drawn else [])]
    if not specs:
        raise SetError(
            "no set is named: expected --sets SET..., such as lfw.bin, or --pairs-from DIR, a "
            f"folder of people's photos. Sets are\n{kinds()}"
        )
    return specs


def _faces(arguments: argparse.Namespace) -> Faces | None:
    """What finds faces, as the options for photographs say; None without them."""
    options = take_crop_options(vars(arguments))
    cropper = open_cropper(options, folder=Path())
    if cropper is None:
        return None
    digest = hashlib.blake2b(cropper.found_by.path.read_bytes(), digest_size=16).hexdigest()

    def of_folder(folder: Path) -> Cropper:
        """Names of a list begin in the folder of the photographs."""
        found = open_cropper(options, folder=folder) if options.landmarks else cropper
        assert found is not None
        return found

    return Faces(of_folder, known_by=digest)


def _asked(arguments: argparse.Namespace) -> Asked:
    return Asked(
        draws=arguments.draws,
        seed=arguments.seed,
        folds=arguments.folds,
        disjoint_folds=arguments.disjoint_folds,
        groups=read_groups(arguments.groups) if arguments.groups else None,
        quality=read_quality(arguments.quality) if arguments.quality else None,
    )


def _alone(model: Judged) -> Judged:
    return replace(model, embedder=replace(model.embedder, rank=0, world_size=1))


def _tell(result: Result) -> None:
    figure = figure_text(result.headline, result.figures[result.headline])
    print(f"judged        {result.set}, {result.model}: {title(result.headline)} {figure}")


def parser() -> argparse.ArgumentParser:
    """Of the command line; `judge` takes what it finds."""
    degradations = ", ".join(f"+{name}" for name in DEGRADATIONS)
    degraded = f"each perhaps degraded, by {degradations}; such as lfw.bin+lowres=16"
    found = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"sets:\n{kinds()}\n{degraded}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("models", nargs="+", metavar="MODEL", help="a run, RUN@best, weights, or an .onnx file")
    add("--sets", nargs="+", action="extend", default=[], metavar="SET", help="see below")
    add("--pairs-from", metavar="DIR", help="pairs drawn from your own photos, DIR/PERSON/*.jpg")
    add(
        "--per-person",
        type=whole_number(1, 1_000_000),
        default=PER_PERSON,
        metavar="N",
        help=f"genuine pairs that --pairs-from draws of one person at most (default {PER_PERSON})",
    )
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write into")
    add_model_options(found)
    add_crop_options(found, sized=False)
    add("--groups", metavar="CSV", help="image or person,group: every figure by group")
    add("--quality", metavar="CSV", help="image,quality: the curve of errors over images left out")
    add(
        "--without",
        metavar="OVERLAP",
        help="what tools/overlap.py has found: every figure also without those images",
    )
    add(
        "--card",
        action="store_true",
        help="write thresholds and groups into the models' files, and a model card beside them",
    )
    add(
        "--push",
        type=Path,
        metavar="FOLDER",
        help="with --card: make a folder as huggingface_hub.upload_folder takes it",
    )
    add("--no-pictures", action="store_true", help="no face in the report")
    add_judging_options(found)
    add("--folds", type=whole_number(2, 1000), default=10, help="of the accuracy (default 10)")
    add("--disjoint-folds", action="store_true", help="no person in two folds")
    add("--keep", type=Path, metavar="DIR", help="for embeddings (default OUT/embeddings)")
    add("--threads", type=whole_number(1, 4096), help="to compute in (default: torch's)")
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("evaluate"):
        if arguments.threads:
            # More than there are cores would wait for one another.
            torch.set_num_threads(min(arguments.threads, cores()))
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with joined_world(arguments.device) as world:
            judge(arguments, world, made=made)


if __name__ == "__main__":
    keep_pages()  # for the whole process: a test that calls main() is not to be changed by it
    main()
