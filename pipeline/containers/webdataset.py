"""Images from WebDataset shards: tar files in which the members of a sample share a name.

`0001.jpg` goes with `0001.cls`, or with `0001.json` that has the label under a key. Members of a
sample follow one another; what else it has is passed over.
"""

from __future__ import annotations

import json
import logging
import tarfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.containers.archive import columns_as_named, scan_archive
from pipeline.containers.content import Content, ImageNames
from pipeline.containers.files import FilesEndToEnd
from pipeline.containers.sample import Sample
from pipeline.containers.shards import shards_of
from pipeline.containers.stored import OpenFiles, Spans, Stored, labels_by_place, state_of
from pipeline.containers.tar_members import Member, files_in_tar
from pipeline.containers.texts import Texts
from pipeline.passed_over import Passed, PassedOver
from pipeline.photos import MOST_BYTES
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

_log = logging.getLogger("facestream.pipeline")

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
_FIELDS = (*_IMAGES, "cls", "json")

_PROGRESS_EVERY = 1000  # images

Field = TypeVar("Field")


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
        with _opened(shard) as tar:
            for key, fields in _samples(shard, tar):
                place = f"{shard}, sample {key}"
                if "image" not in fields:
                    passed_over.add(Passed("sample without an image", place))
                elif "cls" not in fields and "json" not in fields:
                    passed_over.add(Passed("sample without a .cls or .json", place))
                else:
                    yield Sample(_label(place, fields, label_key), fields["image"], place)


def stored_webdataset(
    shards: Sequence[Path], *, label_key: str | None = None, progress: Progress | None = None
) -> Stored:
    """The images of all samples of `shards`, where they lie; a sample need not have a label.

    An image is named by its sample, and of several shards by the shard's name before it.

    Args:
        label_key: of the label in the .json of samples that have no .cls; None for `label`, or else
            the only key that the first of them has a whole number or text under.
        progress: is called with (bytes done, in all).

    Raises:
        RecordError: as read_webdataset, and for a shard that is compressed, or two images of one
            name.
    """
    which, starts, sizes, who = array("q"), array("q"), array("q"), array("q")
    identities: dict[int | str, int] = {}  # their places
    keys = [label_key] if label_key else []
    before = np.cumsum([0, *(shard.stat().st_size for shard in shards)])  # bytes

    def look() -> Iterator[str]:
        """Notes where each image lies and whose it is; its name."""
        for number, shard in enumerate(shards):
            open_shard = OpenFiles([shard])
            for key, fields in _where_they_lie(shard):
                if "image" not in fields:
                    continue
                place = f"{shard}, sample {key}"
                image = fields.pop("image")
                texts = {field: _read(open_shard, place, of) for field, of in fields.items()}
                if not keys and "cls" not in texts and "json" in texts:
                    keys.extend(_label_keys(_about(place, texts["json"])))
                label = _label_if_any(place, texts, keys[0] if len(keys) == 1 else None)
                who.append(identities.setdefault(label, len(identities)))
                which.append(number)
                starts.append(image.offset)
                sizes.append(image.size)
                if progress and len(sizes) % _PROGRESS_EVERY == 0:
                    progress(int(before[number]) + image.offset, int(before[-1]))
                yield key if len(shards) == 1 else f"{shard.name}/{key}"
            if progress:
                progress(int(before[number + 1]), int(before[-1]))

    names = Texts.of(look())
    if (twice := names.find_twice()) is not None:
        raise RecordError(
            f"{shards[0].parent}, sample {twice}: found two images of this name, expected one"
        )
    content_at = OpenFiles(shards)

    def spans(_: Progress | None) -> Spans:
        offset = np.array(starts, np.int64) + before[np.array(which, np.int64)]
        return Spans(offset, np.zeros_like(offset), np.array(sizes, np.int64))

    would_label = "A .cls of each sample would, or a key of its .json that --label-column names"
    if len(keys) == 1 and keys[0] not in ("label", label_key):
        _log.warning("%s: its labels are under %r, the only key for them", shards[0], keys[0])
    elif len(keys) > 1:
        several = " and ".join(map(repr, keys))
        would_label = f"Each of the keys {several} of a .json could be the label. {would_label}"
    return Stored(
        names,
        lambda place: content_at(which[place], starts[place], sizes[place]),
        state_of(shards),
        lambda: labels_by_place(list(identities), np.array(who, np.int64)),
        spans,
        would_label,
    )


def tar_state(path: Path) -> str:
    return state_of(shards_of(path, ".tar"))


def scan_tars(path: Path, passed_over: PassedOver, progress: Progress | None = None) -> Content:
    """As scan_archive, of a shard or a folder of them."""
    with columns_as_named():
        stored = stored_webdataset(shards_of(path, ".tar"), progress=progress)
        return scan_archive(str(path), stored, passed_over, progress)


def tar_store(path: Path, content: Content) -> FilesEndToEnd:
    return FilesEndToEnd(shards_of(path, ".tar"), ImageNames(content))


@contextmanager
def _opened(shard: Path) -> Iterator[tarfile.TarFile]:
    """From front to end; what is wrong with it names it."""
    try:
        with tarfile.open(shard, "r|*") as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise RecordError(
            f"{shard} cannot be read as a tar file: {error}. Download it again"
        ) from error


def _samples(shard: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, its fields: "image", "cls" and "json")."""

    def members() -> Iterator[tuple[str, str, bytes]]:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember millions
            key, extension = _key(member.name)
            if key and member.isfile():
                if member.size > MOST_BYTES:  # few bytes may unpack to more than the memory holds
                    raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes")
                yield key, extension, _content(tar, member)

    yield from _grouped(shard, members())


def _where_they_lie(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """The same, of a shard that is not compressed, without their contents."""
    named = ((*_key(member.name), member) for member in files_in_tar(shard))
    yield from _grouped(shard, (one for one in named if one[0]))


def _grouped(
    shard: Path, members: Iterable[tuple[str, str, Field]]
) -> Iterator[tuple[str, dict[str, Field]]]:
    for key, together in groupby(members, key=lambda member: member[0]):
        yield key, _fields(f"{shard}, sample {key}", together)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None, "a file"
    content = opened.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"it ends inside {member.name}")
    return content


def _read(shard: OpenFiles, place: str, member: Member) -> bytes:
    if len(member.begin) == member.size:
        return member.begin
    if member.size > MOST_BYTES:
        raise RecordError(
            f"{place}: {member.name} has {member.size:,} bytes, expected at most {MOST_BYTES:,}. "
            "Write it again"
        )
    try:
        return shard(0, member.offset, member.size)
    except RecordError as error:
        raise RecordError(f"{place}: {member.name} {error}") from error


def _key(path: str) -> tuple[str, str]:
    """Of a file that matters, the key of its sample and its extension in lower case; of others
    nothing."""
    folder, _, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    extension = extension.lower()
    if not stem or extension not in _FIELDS:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, extension


def _fields(place: str, members: Iterable[tuple[str, str, Field]]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for _, extension, content in members:
        field = "image" if extension in _IMAGES else extension
        if field in fields:
            raise RecordError(
                f"{place}: found two members for its {field}, expected one: sample names must "
                "differ from one sample to the next"
            )
        fields[field] = content
    return fields


def _label(place: str, fields: dict[str, bytes], label_key: str) -> int | str:
    if "cls" in fields:
        label = _decode(place, ".cls", fields["cls"]).strip()
        try:
            return int(label)
        except ValueError:
            return label
    about = _about(place, fields["json"])
    label = about.get(label_key) if isinstance(about, dict) else None
    if not _is_label(label):
        has = (
            ", ".join(map(repr, about)) if isinstance(about, dict) else f"a {type(about).__name__}"
        )
        raise RecordError(
            f"{place}: its .json has {has} and the label {label!r} under {label_key!r}: expected "
            "a whole number or text. Name another key with --label-column"
        )
    return label


def _label_if_any(place: str, fields: dict[str, bytes], label_key: str | None) -> int | str:
    """ "" for none."""
    if "cls" not in fields:
        about = _about(place, fields["json"]) if "json" in fields else {}
        if label_key is None or not isinstance(about, dict) or label_key not in about:
            return ""
    return _label(place, fields, label_key or "label")


def _label_keys(about: Any) -> list[str]:
    """The keys of a sample's .json that may have its label."""
    if not isinstance(about, dict):
        return []
    return ["label"] if "label" in about else [key for key in about if _is_label(about[key])]


def _is_label(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _about(place: str, content: bytes) -> Any:
    try:
        return json.loads(_decode(place, ".json", content))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: its .json is garbled: {error}") from None


def _decode(place: str, extension: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"{place}: its {extension} is not UTF-8 text: {error}") from None
