"""Reading torch.distributed.checkpoint's files without running anything of them.

Its `.metadata` is a pickle, which torch loads as it is, and so are the plain values of a state: a
checkpoint from elsewhere could run code that way. Here a pickle makes only records of this file,
of the few classes that a `.metadata` names, and torch's own are built from them; plain values are
read as torch reads weights, numbers and tensors alone.
"""

from __future__ import annotations

import inspect
import io
import pickle
import pickletools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from training.saving.files import CheckpointError

FILE = ".metadata"
_DCP = "torch.distributed.checkpoint"
# All that such a file names, over torch's and Python's versions, beside sizes and dtypes.
_NAMES = {
    (f"{_DCP}.metadata", "Metadata"),
    (f"{_DCP}.metadata", "MetadataIndex"),
    (f"{_DCP}.metadata", "TensorStorageMetadata"),
    (f"{_DCP}.metadata", "BytesStorageMetadata"),
    (f"{_DCP}.metadata", "ChunkStorageMetadata"),
    (f"{_DCP}.metadata", "TensorProperties"),
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.metadata", "StorageMeta"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("builtins", "getattr"),  # how some Pythons write an enum's member
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath")),
}


class MetadataError(CheckpointError):
    """A .metadata that is damaged, or that asks for what none needs: nothing of it was run."""


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint's folder holds: names, shapes and dtypes, and where they lie in its files.

    Raises MetadataError for what is no such file or not there, OSError where it cannot be read.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MetadataError(
            f"{path} is missing, without which the checkpoint cannot be read: restore it from a "
            "copy, or take another checkpoint. Names that begin with a dot are not among `*` when "
            "files are copied"
        ) from error
    try:
        _require_bounded(content)
        return _metadata(_Unpickler(io.BytesIO(content)).load())
    except MetadataError as error:
        raise MetadataError(f"{path} {error}") from error
    except Exception as error:  # garbled bytes make the unpickler fail in any way it can
        raise MetadataError(
            f"{path} is no whole metadata of a checkpoint ({type(error).__name__}: {error}): "
            "restore it from a copy, or take another checkpoint"
        ) from error


def load_state(state: dict[str, Any], folder: Path, *, alone: bool = False) -> None:
    """Fill the tensors of a nested state from a checkpoint, and set its plain values.

    Call it on every rank of the process group, or `alone` on one.

    Raises torch's CheckpointException where names, shapes or the file's content do not fit.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")  # disabled, as is meant
        given: dict[str, Any] = {"storage_reader": _Reader(folder), "planner": _Planner()}
        if not alone:
            dcp.load(state, **given)
        elif "no_dist" in inspect.signature(dcp.load).parameters:
            dcp.load(state, **given, no_dist=True)
        else:  # an older torch
            warnings.filterwarnings("ignore", message=".*load_state_dict.* is deprecated")
            dcp.load_state_dict(state, **given, no_dist=True)


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)  # or what is there could run anything
        content = io.BytesIO()
        torch.save(plain, content)
        content.seek(0)
        super().load_bytes(read_item, content)


class _Record:
    """What a pickle makes of any class: its arguments, and the state that it was given."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments, record.state = arguments, {}
        return record

    def __setstate__(self, state: Any) -> None:  # of an instance; of the class itself it fails
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _NAMES:
            raise MetadataError(
                f"asks for {module}.{name}, which no checkpoint needs and which could run "
                "anything; nothing was run. Do not load this checkpoint with torch: take it from "
                "its source again, or its model.safetensors"
            )
        return type(name, (_Record,), {})


def _require_bounded(content: bytes) -> None:
    """Raise ValueError where a number that the pickle names would take gigabytes of memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name.endswith("PUT") and int(argument) > len(content):
            raise ValueError(f"it numbers an object {argument}")


def _metadata(content: Any) -> Metadata:
    whole = _state(content, "Metadata")
    return Metadata(
        {_text(name): _entry(entry) for name, entry in _mapping(whole["state_dict_metadata"])},
        storage_data={_index(at): _place(where) for at, where in _mapping(whole["storage_data"])},
    )


def _entry(entry: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(entry).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    tensor = _state(entry, "TensorStorageMetadata")
    chunks = [_state(chunk, "ChunkStorageMetadata") for chunk in tensor["chunks"]]
    return TensorStorageMetadata(
        TensorProperties(dtype=_dtype(tensor["properties"])),
        _size(tensor["size"]),
        [ChunkStorageMetadata(_size(one["offsets"]), _size(one["sizes"])) for one in chunks],
    )


def _dtype(properties: Any) -> torch.dtype:
    """The first of the five values that TensorProperties is pickled as."""
    if type(properties).__name__ != "TensorProperties" or len(properties.state) != 5:
        raise ValueError("a tensor without properties")
    dtype = properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{dtype!r} for a dtype")
    return dtype


def _index(record: Any) -> MetadataIndex:
    at = _state(record, "MetadataIndex")
    offset, index = at.get("offset"), at.get("index")
    return MetadataIndex(
        _text(at["fqn"]),
        None if offset is None else _size(offset),
        None if index is None else _count(index),
    )


def _place(record: Any) -> _StorageInfo:
    where = _state(record, "_StorageInfo")
    name = _text(where["relative_path"])
    if name != Path(name).name or where.get("transform_descriptors"):
        raise ValueError(f"{name!r} for a file of this folder, unchanged")
    return _StorageInfo(name, _count(where["offset"]), _count(where["length"]))


def _state(record: Any, kind: str) -> Mapping[str, Any]:
    if not isinstance(record, _Record) or type(record).__name__ != kind:
        raise ValueError(f"a {type(record).__name__} for a {kind}")
    if not isinstance(record.state, dict):
        raise ValueError(f"a {kind} without fields")
    return record.state


def _mapping(content: Any) -> list[tuple[Any, Any]]:
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} for a dict")
    return list(content.items())


def _size(values: Any) -> torch.Size:
    if not isinstance(values, tuple):
        raise ValueError(f"{values!r} for a size")
    return torch.Size(map(_count, values))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} for a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} for a name")
    return value
