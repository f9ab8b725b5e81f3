"""Forget people:  python tools/forget.py PERSON... --data train.rec -o leave_out.txt

PERSON is a name, as the manifest of a .rec or a folder has it, or label:17, of a .rec. With --photo
FILE --model MODEL those are listed who look most like a photo, for you to choose from. Written is
the list that data.leave_out takes; what was made of the sets is listed, and none of it is deleted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facestream import UserError
from pipeline.named_path import check_path, read_text
from pipeline.whole_file import write_whole
from tools.sources.cropping import add_crop_options, take_crop_options
from tools.sources.named_model import add_model_options, open_named_model
from tools.sources.person_in_sets import (
    LABEL,
    Found,
    TrainingSet,
    find_person,
    nearest_people,
    open_training_set,
)
from tools.sources.traces import DELETE, LOOK, TRAIN_AGAIN, find_traces
from training.command import command, whole_number
from training.distributed import World, joined_world

_RUNS = Path("runs")


def forget(arguments: argparse.Namespace, world: World) -> None:
    """All that the command does."""
    _check(arguments)
    sets = [open_training_set(path) for path in arguments.data]
    if arguments.photo:
        _tell_nearest(arguments, sets, world)
        return
    people = [one for person in arguments.people for one in find_person(person, sets)]
    for one in people:
        print(f"found         {one}")
    lines = _lines(people, several=sum(one.index is not None for one in sets) > 1)
    for one in people:
        if one.set.index is None:
            print(f"delete        {one.set.path / one.name}: their images")
    if lines:
        text = _with_lines(arguments.output, lines)
        write_whole(arguments.output, text)
        print(f"wrote         {arguments.output}: train with data.leave_out={arguments.output}")
        print(
            "note          the images stay in the .rec: pack it again with --drop to be rid of them"
        )
    roots = arguments.runs or ([_RUNS] if _RUNS.is_dir() else [])
    traces = find_traces(people, roots, world)
    for trace in traces:
        print(f"{trace.what:<13} {trace.path}: {trace.why}")
    looked = ", ".join(map(str, roots)) or "no folder, as there is no runs/: name some by --runs"
    counts = {what: sum(one.what == what for one in traces) for what in (TRAIN_AGAIN, DELETE, LOOK)}
    counted = ", ".join(f"{count} to {what}" for what, count in counts.items())
    print(f"looked in     {looked}: {counted}. Nothing was deleted")


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.people) == bool(arguments.photo):
        raise UserError(f"expected PERSON..., names or {LABEL}NUMBER, or --photo FILE: one of both")
    if bool(arguments.photo) != bool(arguments.model):
        raise UserError("--photo and --model go together: the model says who is like the photo")
    if arguments.people and not arguments.output:
        raise UserError("expected -o leave_out.txt, the file that data.leave_out is to name")
    for root in arguments.runs:
        expected = "a folder with runs, exports or results in it"
        check_path(root, called=f"--runs {root}", expected=expected, file=False, folder=True)


def _lines(people: Sequence[Found], *, several: bool) -> list[str]:
    """Of the list: labels alone, as a name in it would be one more trace."""
    lines = []
    for one in people:
        if one.set.index:
            path = str(one.set.path)
            if several and len(path.split()) != 1:
                raise UserError(f"{path} has a space in it, which data.leave_out cannot take")
            lines.append(f"{path} identity {one.label}" if several else f"identity {one.label}")
    return list(dict.fromkeys(lines))


def _with_lines(path: Path, lines: Sequence[str]) -> str:
    """The list with these lines: what it has already stays."""
    before = read_text(path) if path.exists() else ""
    known = {" ".join(line.partition("#")[0].split()) for line in before.splitlines()}
    begun = before + "\n" * (bool(before) and not before.endswith("\n"))
    return begun + "".join(f"{line}\n" for line in lines if line not in known)


def _tell_nearest(arguments: argparse.Namespace, sets: Sequence[TrainingSet], world: World) -> None:
    _, embedder = open_named_model(arguments.model, arguments, world)
    photos = take_crop_options(vars(arguments))
    check_path(arguments.photo, called=f"--photo {arguments.photo}", expected="an image")
    found = nearest_people(arguments.photo, sets, embedder, photos=photos, top=arguments.top)
    for cosine, one in found:
        print(f"{cosine:<13.4f} {one}")
    print(f"note          nobody was chosen: look at the images, then name one, or {LABEL}NUMBER")


def parser() -> argparse.ArgumentParser:
    """Of the command line; `forget` takes what it finds."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0] + ".")
    add = found.add_argument
    add("people", nargs="*", metavar="PERSON", help=f"a name, or {LABEL}NUMBER of a .rec")
    add(
        "--data",
        type=Path,
        action="append",
        required=True,
        metavar="SET",
        help="a .rec, or a folder with a folder for each person; may be given more than once",
    )
    add(
        "--runs",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="where to look for what was made of the sets (default: runs); may be given again",
    )
    add("-o", "--output", type=Path, metavar="FILE", help="the list that data.leave_out takes")
    add("--photo", type=Path, metavar="FILE", help="list who looks most like it")
    add("--model", metavar="MODEL", help="for --photo: a run, weights, or an .onnx file")
    add(
        "--top", type=whole_number(1, 1000), default=5, help="people that --photo lists (default 5)"
    )
    add_model_options(found)
    add_crop_options(found, sized=False)
    return found


def main() -> None:
    arguments = parser().parse_args()
    with command("forget"), joined_world(arguments.device, alone="forget") as world:
        forget(arguments, world)


if __name__ == "__main__":
    main()
