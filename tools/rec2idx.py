"""Write the .idx and the sidecar of a .rec file:  python tools/rec2idx.py train.rec [-o DIR]

Reads what MXNet wrote and writes what MXNet reads, without mxnet. By default the .idx lists images
only, so that readers which take every line for an image see no header or identity records.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.classify import Scan, scan_rec
from pipeline.index import output_folder, write_idx, write_sidecar
from pipeline.recordio import RecordError


def rec2idx(rec: Path, *, folder: Path | None = None, every_record: bool = False) -> Scan:
    """Scan `rec` and write `<stem>.idx` and the sidecar into `folder`.

    By default the folder is the .rec's own, or a cache when that one is read-only. Returns what was
    found; raises RecordError for a file that is missing, empty or not RecordIO.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), SpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scan")
        found = scan_rec(rec, lambda done, size: bar.update(task, completed=done, total=size))
    folder = folder or output_folder(rec)
    folder.mkdir(parents=True, exist_ok=True)
    idx = folder / f"{rec.stem}.idx"
    listed = found.is_image | every_record
    if idx.exists():
        print(f"kept          the former {idx.name} as {_put_aside(idx).name}")
    write_idx(idx, found.keys[listed], found.offsets[listed])
    sidecar = write_sidecar(rec, found, folder)
    print_summary(rec, found)
    print(f"wrote         {idx} ({int(listed.sum())} lines), {sidecar}")
    return found


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
    print(f"file          {rec} ({rec.stat().st_size} bytes)")
    print(f"images        {summary.images}, of {summary.smallest} to {summary.largest} bytes")
    print(f"identities    {summary.identities}, labels up to {summary.num_classes - 1}")
    print(
        f"bookkeeping   {summary.header_records} header and {summary.identity_records} identity "
        "records"
    )
    if summary.split_records:
        print(f"split         {summary.split_records} images hold the magic word and are rejoined")
    if summary.announced_images not in (None, summary.images):
        print(f"announced     the header record speaks of {summary.announced_images} images")
    print(f"damage        {summary.damaged_spans} spans")
    for offset, size, why in summary.damaged:
        print(f"              offset {offset}, {size} bytes: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rec", type=Path, help="the .rec file")
    parser.add_argument("-o", "--output", type=Path, help="folder for both, for other readers")
    parser.add_argument(
        "--all", action="store_true", help="list header and identity records in the .idx too"
    )
    arguments = parser.parse_args()
    try:
        rec2idx(arguments.rec, folder=arguments.output, every_record=arguments.all)
    except (RecordError, OSError) as error:
        sys.exit(f"rec2idx: {error}")


if __name__ == "__main__":
    main()
