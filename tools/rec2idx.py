"""Make the index of a training set:  python tools/rec2idx.py train.rec|FOLDER [-o DIR]

Of a .rec it writes the .idx and the sidecar: it reads what MXNet wrote and writes what MXNet reads,
without mxnet. Of a set of another form, such as a folder of identity folders, it writes the index
that training needs (.fsidx), and numbers the identities again. By default a new .idx lists
images only, so that readers which take every line for an image see no header or identity records;
one that is there and lists all of them stays so. What it replaces is kept as train.idx.old1, and
so on.

--verify decodes every image too and lists those that fail; the exit code is then 1 if any does.
--repair DIR writes a new set into DIR, of what is intact (and, with --verify, decodes), with the
names of the identities; the exit code is then 0. --size 112 lets images of other sizes fail.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facestream import USER_ERROR_EXIT_CODE, UserError
from pipeline.containers.forms import EXPECTED, form_of
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.manifest import read_names
from pipeline.records.mxnet_idx import idx_lists, write_idx
from pipeline.records.record_file import RecordFile
from pipeline.records.repair import repair
from pipeline.records.scan import Scan, Summary, scan_rec
from pipeline.records.sidecar import output_folder, write_sidecar
from training.command import command, whole_number


def rec2idx(
    rec: Path,
    *,
    folder: Path | None = None,
    every_record: bool | None = None,
    skip_bad_labels: bool = False,
) -> Scan:
    """Scan `rec` and write `<stem>.idx` and the sidecar into `folder`.

    Args:
        rec: a .rec file.
        folder: by default the .rec's own, or a cache when that one is read-only.
        every_record: list header and identity records, too; None: where the .idx there does.
        skip_bad_labels: pass over records whose label is none.

    Returns:
        What was found.

    Raises:
        RecordError: for a file that is missing, empty or not RecordIO.
    """
    seen = rec.stat() if rec.exists() else None
    with _progress("scan", in_bytes=True) as advance:
        found = scan_rec(rec, advance, skip_bad_labels=skip_bad_labels)
    folder = folder or output_folder(rec)
    folder.mkdir(parents=True, exist_ok=True)
    idx = folder / f"{rec.stem}.idx"
    if every_record is None:
        every_record = idx.is_file() and idx_lists(idx, found.keys, found.offsets)
    listed = found.is_image | every_record
    keys, offsets = found.keys[listed], found.offsets[listed]
    done = "up to date"
    if not (idx.is_file() and idx_lists(idx, keys, offsets)):
        if idx.exists():
            print(f"kept          the former {idx.name} as {_put_aside(idx).name}")
        write_idx(idx, keys, offsets)
        done = "wrote"
    sidecar = write_sidecar(rec, found, folder, seen=seen)
    print_summary(rec, found)
    print(f"{done:<14}{idx} ({len(keys)} lines)")
    print(f"wrote         {sidecar}")
    print(f"read by       {_readers(found, every_record=every_record)}")
    return found


def index_set(path: Path) -> RecordIndex:
    """Look through a set that is no .rec, write its index, and say what it holds."""
    # Importing Pillow, which looks at images, takes as long as scanning some hundred megabytes.
    from pipeline.containers.open_records import make_index
    from pipeline.containers.set_index import index_files

    with _progress("scan") as advance:
        index = make_index(path, advance)
    _print_counts(index.path, index.summary)
    _print_damage(index.summary)
    names = index.names or []
    if names:
        print(f"names         {names[0]} is 0, {names[-1]} is {len(names) - 1}")
    written = [str(file) for file in index_files(path) if file.is_file()]
    print(f"wrote         {written[0] if written else 'nothing: no place can be written'}")
    return index


def _readers(found: Scan, *, every_record: bool) -> str:
    """Whose readers take the .idx just written for what it is; ours need none."""
    if found.is_image.all():
        # arcface_torch asks record 0 whether it is a header.
        more = " and arcface_torch" if 0 in found.keys else "; arcface_torch wants a record 0"
        return f"DALI's own reader, MXNet{more}"
    if every_record:
        return "MXNet and arcface_torch; for DALI's own reader write it with --images-only"
    return "DALI's own reader; for MXNet and arcface_torch write it with --all"


@contextmanager
def _progress(name: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, as a function of (done, in all); none where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    # Importing rich takes as long as scanning some hundred megabytes.
    from rich import progress
    from rich.console import Console

    counts = (
        (progress.DownloadColumn(), progress.TransferSpeedColumn())
        if in_bytes
        else (progress.MofNCompleteColumn(),)
    )
    columns = ("{task.description}", progress.BarColumn(), *counts, progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def verify(index: RecordIndex, *, size: int | None = None) -> list[int]:
    """Decode every image, print what fails, and return the offsets of those records.

    Args:
        size: pixels; images that are not size × size fail, too.
    """
    from pipeline.records.verify import find_undecodable

    with _progress("decode") as advance:
        failures = list(find_undecodable(index, advance, size=size))
    wanted = f" to {size} x {size} pixels" if size else ""
    print(f"verified      {len(index)} images, {len(failures)} do not decode{wanted}")
    for offset, label, why in failures:
        place = f"offset {offset}"
        if not isinstance(index.file, RecordFile):  # data.leave_out knows it by the number
            named = index.place(int(np.searchsorted(index.records["offset"], offset)))
            place = f"{named}, record {offset}"
        print(f"              {place}, label {label}: {why}")
    return [failure.offset for failure in failures]


def write_repaired(index: RecordIndex, folder: Path, *, without: list[int]) -> None:
    """Write what is intact, less the records at the offsets `without`, and whose it is."""
    # Importing Pillow, which both need, takes as long as scanning some hundred megabytes.
    from pipeline.records.image_kind import image_kind
    from pipeline.records.manifest import read_provenance, write_manifest

    identities, images, sizes = repair(index, folder, without=without)
    damaged = index.summary.damaged_spans > 0
    names = list(index.names or ()) or read_names(index.path, damaged=damaged)
    rec = folder / "train.rec"
    if names and len(names) <= identities:
        clean = open_index(rec)
        write_manifest(
            rec,
            source=[index.path],
            options={"format": form_of(index.path), "repair": True},
            # An identity that has only its record has no name either.
            names=names + [str(label) for label in range(len(names), identities)],
            images=images,
            kinds=Counter(image_kind(clean.image(i).data) for i in range(len(clean))),
            provenance=read_provenance(index.path, damaged=damaged),
        )
    print(f"repaired      {images} images of {identities} identities in {rec}")
    if len(sizes) > 1:
        counts = ", ".join(f"{n} of {w} x {h}" for (h, w), n in sizes.most_common())
        print(f"sizes         {counts}: --verify --size N leaves the others out")


def _put_aside(idx: Path) -> Path:
    """Rename an .idx out of the way: readers of other projects may need its other records."""
    aside = next(
        name
        for count in range(1, 1000)
        if not (name := idx.with_name(f"{idx.name}.old{count}")).exists()
    )
    return idx.rename(aside)


def print_summary(rec: Path, found: Scan) -> None:
    """Say what the file holds, and where it is damaged."""
    summary = found.summary
    _print_counts(f"{rec} ({rec.stat().st_size} bytes)", summary)
    print(
        f"bookkeeping   {summary.header_records} header and {summary.identity_records} identity "
        "records"
    )
    if summary.split_records:
        print(f"split         {summary.split_records} images hold the magic word and are rejoined")
    if summary.announced_images not in (None, summary.images):
        print(f"announced     the header record speaks of {summary.announced_images} images")
    _print_damage(summary)


def _print_counts(file: object, summary: Summary) -> None:
    print(f"file          {file}")
    print(f"images        {summary.images}, of {summary.smallest} to {summary.largest} bytes")
    labels = f", labels up to {summary.num_classes - 1}" if summary.images else ""
    print(f"identities    {summary.identities}{labels}")


def _print_damage(summary: Summary) -> None:
    print(f"damage        {summary.damaged_spans} spans")
    for offset, size, why in summary.damaged:
        print(f"              offset {offset}, {size} bytes: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rec", type=Path, metavar="set", help=EXPECTED)
    parser.add_argument("-o", "--output", type=Path, help="folder for both, for other readers")
    listed = parser.add_mutually_exclusive_group()
    listed.add_argument(
        "--all",
        action="store_true",
        default=None,
        help="list header and identity records in the .idx, too, for MXNet and arcface_torch",
    )
    listed.add_argument(
        "--images-only",
        action="store_false",
        dest="all",
        help="list images alone, for DALI's own reader, even where the .idx there lists all",
    )
    parser.add_argument(
        "--verify", action="store_true", help="decode every image; exit code 2 if any fails"
    )
    parser.add_argument(
        "--repair", type=Path, metavar="DIR", help="write what is intact as a new set into DIR"
    )
    parser.add_argument(
        "--size",
        type=whole_number(1, 1 << 16),
        metavar="N",
        help="with --verify: images not N x N pixels fail, too",
    )
    arguments = parser.parse_args()
    if arguments.size and not arguments.verify:
        parser.error("--size goes with --verify, which looks at the images")
    undecodable: list[int] = []
    with command("rec2idx"):
        if form_of(arguments.rec) != "rec":
            if arguments.output or arguments.all is not None:
                raise UserError(
                    f"{arguments.rec} is no .rec, which -o, --all and --images-only go with: leave "
                    "them out"
                )
            index = index_set(arguments.rec)
        else:
            rec = arguments.rec / "train.rec" if arguments.rec.is_dir() else arguments.rec
            found = rec2idx(
                rec,
                folder=arguments.output,
                every_record=arguments.all,
                skip_bad_labels=arguments.repair is not None,
            )
            index = RecordIndex(rec, found.images, found.summary)
        if arguments.verify:
            undecodable = verify(index, size=arguments.size)
        if arguments.repair:
            write_repaired(index, arguments.repair, without=undecodable)
    sys.exit(USER_ERROR_EXIT_CODE if undecodable and not arguments.repair else 0)


if __name__ == "__main__":
    main()
