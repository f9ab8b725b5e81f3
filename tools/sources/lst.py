"""Images that an im2rec list names: a line ``index<TAB>label<TAB>…<TAB>path`` for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.ahead import cores, map_ahead
from pipeline.containers.sample import Sample
from pipeline.named_path import read_text
from pipeline.passed_over import Passed, PassedOver
from pipeline.photos import read_image
from pipeline.records.recordio import RecordError
from tools.sources.folder_names import on_disk


def read_lst(
    lists: Sequence[Path], passed_over: PassedOver, *, root: Path | None = None
) -> Iterator[Sample]:
    """The images of the lists in their order; the first label of a line is the identity.

    What is missing, empty or no image is passed over.

    Args:
        root: where the paths in a list begin; None: in the list's own folder.

    Raises:
        RecordError: with the line, for one that is none of a list.
    """
    for path in lists:
        start = path.parent if root is None else root
        if not start.is_dir():
            raise RecordError(f"--root {start} is no folder: expected that where the paths begin")
        lines = enumerate(read_text(path).splitlines(), start=1)
        named = (
            (*parse_line(line, f"{path}, line {number}"), start) for number, line in lines if line
        )
        # Network disks answer many requests at once, so more threads than cores pay.
        for sample, reason in map_ahead(_read, named, workers=4 * cores()):
            if reason:
                passed_over.add(Passed(reason, sample.place))
            else:
                yield sample


def parse_line(line: str, place: str) -> tuple[int, str]:
    """Identity and path. Raises RecordError for a line that is none of a list.

    Args:
        place: of the line, for the error.
    """
    _, *labels, name = line.split("\t") if line.count("\t") > 1 else ("", "", "")
    try:
        identity = float(labels[0]) if labels else -1.0
    except ValueError:
        identity = -1.0
    if not name or identity < 0 or not identity.is_integer():
        raise RecordError(
            f"{place}: found {line[:200]!r}, expected index<TAB>label<TAB>path as im2rec has it, "
            "the label a whole number of 0 or more"
        )
    return int(identity), name


def _read(named: tuple[int, str, Path]) -> tuple[Sample, str | None]:
    identity, name, start = named
    file = start / on_disk(name)
    image, reason = read_image(file)
    return Sample(identity, image, str(file)), reason
