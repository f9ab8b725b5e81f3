"""Pack images into a training set:  python tools/pack_rec.py SOURCE... OUT

SOURCE is a folder of identity folders (`<identity>/<image>.jpg|png|…`), a .zip of one, an LMDB,
parquet files, WebDataset tars, im2rec's lists (.lst, their images under --root), or another .rec;
a folder of parquet files or tars stands for all of them, or for those of its train split where
files are named by splits, as in `train-00000.parquet`. OUT gets train.rec, train.idx (every record,
as MXNet writes it), property and the sidecar, in InsightFace's layout, and train.json, the
manifest. Identities are numbered in the order of their names, or of their numbers where all are
numbers; the bytes of the images are stored as they are, unless --normalise, --crop or --resize is
given or training does not decode their format (GIF, HEIC and the like become PNG). Of photographs,
with --landmarks or --detector, crops are packed. What is passed over is counted at the end, and so
are the sizes of the images: training takes square ones of one size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.containers.shards import train_split
from pipeline.containers.webdataset import read_webdataset
from pipeline.lmdb_file import find_lmdb
from pipeline.passed_over import PassedOver
from pipeline.records.manifest import Provenance, read_provenance, write_manifest
from pipeline.records.recordio import RecordError
from pipeline.records.write_set import pack_set
from tools.sources.archive import read_archive
from tools.sources.cropping import (
    CropOptions,
    about_faces,
    add_crop_options,
    open_cropper,
    take_crop_options,
)
from tools.sources.folders import read_folders
from tools.sources.inspection import Inspection
from tools.sources.lst import read_lst
from tools.sources.rec import BY, read_rec
from tools.sources.sample import Identity, group
from training.command import command, whole_number

T = TypeVar("T")

_FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".gz": "webdataset", ".tgz": "webdataset"}
_LARGEST = 4096  # pixels of a side


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line's, None where not given; see `main`."""

    normalise: bool = False
    crop: int | None = None
    resize: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    keep: Path | None = None
    drop: Path | None = None
    by: str | None = None
    nested: bool | None = None
    root: Path | None = None
    origin: str | None = None
    license: str | None = None
    photos: CropOptions = field(default_factory=CropOptions)

    def given(self) -> dict[str, object]:
        """What the user has given, by name."""
        everything = asdict(self)
        everything |= everything.pop("photos")
        return {key: value for key, value in everything.items() if value is not None}


_ONLY_FOR = {
    "nested": ("folders",),
    "root": ("lst",),
    "image_column": ("parquet",),
    "label_column": ("parquet", "webdataset"),
    "keep": ("rec",),
    "drop": ("rec",),
    "by": ("rec",),
    "landmarks": ("folders", "lst"),
}


def find_sources(paths: Sequence[Path]) -> tuple[str, list[Path]]:
    """(folders | archive | parquet | webdataset | lst | rec, the files or folder) of `paths`."""
    for path in paths:
        if not path.exists():
            raise RecordError(
                f"{path} does not exist: name a folder, .zip, LMDB, .parquet, .tar, .lst or .rec"
            )
    if len(paths) == 1 and (paths[0].suffix.lower() == ".zip" or find_lmdb(paths[0])):
        return "archive", list(paths)
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        if (folder / "train.rec").is_file():
            return "rec", [folder / "train.rec"]
        files = sorted(file for file in folder.iterdir() if file.suffix in _FORMATS)
        if not files:
            return "folders", [folder]
        paths = _one_split(files)
    if len(paths) == 1 and paths[0].suffix == ".rec":
        return "rec", list(paths)
    if all(path.suffix == ".lst" for path in paths):
        return "lst", list(paths)
    formats = {_FORMATS.get(path.suffix, path.suffix or "a folder") for path in paths}
    if len(formats) != 1 or not formats <= {"parquet", "webdataset"}:
        raise RecordError(
            f"{', '.join(path.name for path in paths[:3])}: found {', '.join(sorted(formats))}, "
            "expected parquet files, or tars, or .lst files, or one folder, .zip, LMDB or .rec"
        )
    return formats.pop(), list(paths)


def _one_split(files: list[Path]) -> list[Path]:
    """The train split of these files, where they are named by splits."""
    chosen, counts = train_split(files)
    if counts:
        print(f"splits        {counts}: train alone is packed; name files to pack others")
    return chosen


def read_identities(
    sources: list[Path], form: str, options: Options, *, scratch: Path, passed_over: PassedOver
) -> Iterator[Identity]:
    """The identities of any source; `scratch` is a folder for what must be brought together."""
    if form == "folders":
        return read_folders(sources[0], passed_over, nested=bool(options.nested))
    if form == "rec":
        by = options.by or "identity"
        return read_rec(sources[0], keep=options.keep, drop=options.drop, by=by)
    if form == "archive":
        return read_archive(sources[0], passed_over)
    label = options.label_column or "label"
    if form == "lst":
        samples = read_lst(sources, passed_over, root=options.root)
    elif form == "webdataset":
        samples = read_webdataset(sources, passed_over, label_key=label)
    else:
        try:
            from tools.sources.parquet import read_parquet
        except ImportError as error:
            raise RecordError(f"parquet needs pyarrow: pip install pyarrow ({error})") from error
        samples = read_parquet(
            sources, passed_over, image_column=options.image_column, label_column=label
        )
    return group(_watched(samples, "read"), scratch, passed_over)


def _watched(things: Iterable[T], doing: str) -> Iterable[T]:
    """The same, with a bar where somebody watches; elsewhere it would leave an empty line."""
    return track(things, description=doing, transient=True, disable=not sys.stdout.isatty())


def _names_begin_in(source: Path, options: Options) -> Path:
    """The folder in which the names of a list of landmarks begin."""
    if source.is_dir():
        return source
    return options.root or source.parent


def pack(paths: Sequence[Path], output: Path, options: Options) -> None:
    """Pack `paths` into the folder `output`, write the manifest, and tell what was found.

    Raises RecordError for sources that cannot be read, options that do not go with them, and an
    `output` that holds a train.rec already.
    """
    form, sources = find_sources(paths)
    given = options.given()
    for option, forms in _ONLY_FOR.items():
        if option in given and form not in forms:
            raise RecordError(
                f"--{option.replace('_', '-')} goes with {' or '.join(forms)}, but {paths[0]} is "
                f"read as {form}: leave it out"
            )
    rec = output / "train.rec"
    if rec.exists():  # known before anything is read
        raise RecordError(f"{rec} exists: name another folder, or remove that file first")
    cropper = open_cropper(options.photos, folder=_names_begin_in(sources[0], options))
    if cropper and (options.crop or options.resize):
        raise RecordError("photographs are cropped to --size: leave out --crop and --resize")
    output.mkdir(parents=True, exist_ok=True)
    passed_over = PassedOver()
    inspection = Inspection(
        passed_over,
        normalise=options.normalise,
        crop=options.crop,
        resize=options.resize,
        cropper=cropper,
    )
    for line in about_faces(cropper) if cropper else ():
        print(line)
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        identities = read_identities(
            sources, form, options, scratch=Path(scratch), passed_over=passed_over
        )
        images = inspection.watch(_watched(identities, "pack"))
        packed = pack_set(output, images)
    manifest = write_manifest(
        rec,
        source=sources,
        options={
            key: str(value) if isinstance(value, Path) else value for key, value in given.items()
        }
        | {"format": form},
        names=inspection.names,
        images=packed.images,
        kinds=inspection.kinds,
        provenance=_provenance(form, sources, options),
    )
    for line in inspection.lines(packed.sizes):
        print(line)
    for line in passed_over.lines():
        print(f"passed over   {line}")
    print(
        f"packed {packed.images} images of {packed.identities} identities into {rec}; "
        f"{manifest.name} says from what"
    )


def _provenance(form: str, sources: Sequence[Path], options: Options) -> Provenance:
    """As the options say; what they do not is taken over from a .rec."""
    before = read_provenance(sources[0]) if form == "rec" else Provenance()
    return Provenance(options.origin or before.origin, options.license or before.license)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", type=Path, nargs="+", help="folder, .zip, LMDB, .parquet, .tar, .lst, .rec"
    )
    parser.add_argument("output", type=Path, help="folder for train.rec and what belongs to it")
    pixels = whole_number(1, _LARGEST)
    parser.add_argument(
        "--crop", type=pixels, metavar="SIZE", help="take the middle SIZE x SIZE of each image"
    )
    parser.add_argument(
        "--resize",
        type=pixels,
        metavar="SIZE",
        help="scale the shorter side to SIZE, after --crop, and take the middle of the longer one",
    )
    parser.add_argument(
        "--normalise", action="store_true", help="re-encode progressive and CMYK JPEGs"
    )
    parser.add_argument(
        "--nested",
        action="store_true",
        default=None,
        help="images of folders inside an identity's folder are the identity's",
    )
    parser.add_argument("--root", type=Path, help="where a .lst's paths begin (default: beside it)")
    parser.add_argument("--image-column", help="of parquet files (default: the only one)")
    parser.add_argument(
        "--label-column", help="of parquet files, or key in a tar's .json (default label)"
    )
    parser.add_argument("--keep", type=Path, help="text file: take these of a .rec, no others")
    parser.add_argument("--drop", type=Path, help="text file: take all of a .rec but these")
    parser.add_argument("--by", choices=BY, help="what --keep or --drop lists (default identity)")
    parser.add_argument("--origin", help="where the images are from, such as the set's page")
    parser.add_argument(
        "--license", help="of the images, such as cc-by-nc-4.0; model cards name it (see --origin)"
    )
    add_crop_options(parser)
    arguments = vars(parser.parse_args())
    source, output = arguments.pop("source"), arguments.pop("output")
    photos = take_crop_options(arguments)
    with command("pack_rec"):
        pack(source, output, Options(photos=photos, **arguments))


if __name__ == "__main__":
    main()
