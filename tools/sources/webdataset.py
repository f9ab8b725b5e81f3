"""Images from WebDataset shards: tar files in which the members of a sample share a name.

`0001.jpg` goes with `0001.cls`, or with `0001.json` that has the label under a key. Members of a
sample follow one another; what else it has is passed over.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pipeline.photos import MOST_BYTES
from pipeline.records.recordio import RecordError
from tools.sources.passed_over import Passed, PassedOver
from tools.sources.sample import Sample

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")


def read_webdataset(
    shards: Sequence[Path], passed_over: PassedOver, *, label_key: str = "label"
) -> Iterator[Sample]:
    """Every sample of `shards` in turn; read from front to end, compressed ones too.

    Samples without an image, or without a label, are passed over.

    Args:
        shards: tar files.
        label_key: of the label in the .json of samples that have no .cls.

    Raises:
        RecordError: for a shard that is no tar file or is cut off, and a sample of two images, or
            whose label cannot be read; names shard and sample.
    """
    for shard in shards:
        try:
            with tarfile.open(shard, "r|*") as tar:
                for key, members in groupby(_members(tar), key=lambda member: member[0]):
                    place = f"{shard}, sample {key}"
                    fields = _fields(place, members)
                    if "image" not in fields:
                        passed_over.add(Passed("sample without an image", place))
                    elif "cls" not in fields and "json" not in fields:
                        passed_over.add(Passed("sample without a .cls or .json", place))
                    else:
                        yield _sample(place, fields, label_key)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise RecordError(
                f"{shard} cannot be read as a tar file: {error}. Download it again"
            ) from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """(key, extension in lower case, content) of the files that matter."""
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        if member.isfile() and stem and extension in (*_IMAGES, "cls", "json"):
            if member.size > MOST_BYTES:  # a few bytes may unpack to more than the memory holds
                raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes")
            content = tar.extractfile(member).read()
            if len(content) != member.size:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            yield f"{folder}/{stem}" if folder else stem, extension, content


def _fields(place: str, members: Iterator[tuple[str, str, bytes]]) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    for _, extension, content in members:
        field = "image" if extension in _IMAGES else extension
        if field in fields:
            raise RecordError(
                f"{place}: found two members for its {field}, expected one: sample names must "
                "differ from one sample to the next"
            )
        fields[field] = content
    return fields


def _sample(place: str, fields: dict[str, bytes], label_key: str) -> Sample:
    if "cls" in fields:
        label = _decode(place, ".cls", fields["cls"]).strip()
        try:
            return Sample(int(label), fields["image"], place)
        except ValueError:
            return Sample(label, fields["image"], place)
    try:
        about = json.loads(_decode(place, ".json", fields["json"]))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: its .json is garbled: {error}") from None
    label = about.get(label_key) if isinstance(about, dict) else None
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        has = (
            ", ".join(map(repr, about)) if isinstance(about, dict) else f"a {type(about).__name__}"
        )
        raise RecordError(
            f"{place}: its .json has {has} and the label {label!r} under {label_key!r}: expected "
            "a whole number or text. Name another key with --label-column"
        )
    return Sample(label, fields["image"], place)


def _decode(place: str, extension: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"{place}: its {extension} is not UTF-8 text: {error}") from None
