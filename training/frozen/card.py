"""The card of a model in a file: what it is, was trained on, and where it decides.

It is JSON in the file's own metadata, under "facestream.card": in an .onnx or a .safetensors file,
whose tensors and digest stay as they are when a card is written; and in a .pt2 file, which has the
card that it was exported with.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.result import Figure
from facestream import VERSION, UserError
from pipeline.named_path import check_path
from pipeline.records.manifest import UNKNOWN
from pipeline.whole_file import write_whole
from training.frozen import onnx_file, pt2_file

KEY = "facestream.card"
FORMAT = 1
KINDS = (".onnx", ".safetensors")  # that a card can be written into
_LARGEST_HEADER = 100 << 20  # of a .safetensors file, as the library has it


class CardError(UserError):
    """A file that can have no card, or whose card cannot be read."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and how often it takes two people for one.

    Attributes:
        set: that it was chosen on.
        fmr: the rate of impostor pairs at or above the threshold, above 0 and at most 1.
        threshold: cosine at or above which two faces are one person's.
        low, high: its interval, 95 % by people; None where there is none.
        genuine, impostor: pairs of the set.
        flip: whether the embeddings were sums with those of the mirror images.
    """

    set: str
    fmr: float
    threshold: float
    low: float | None
    high: float | None
    genuine: int
    impostor: int
    flip: bool

    def __post_init__(self) -> None:
        """Raises ValueError for what no set can have shown."""
        if not isinstance(self.set, str) or not self.set:
            raise ValueError(f"a threshold of the set {self.set!r}, expected the set's name")
        if not (isinstance(self.fmr, (int, float)) and 0 < self.fmr <= 1):
            raise ValueError(f"a threshold at an FMR of {self.fmr!r}, expected above 0 and up to 1")
        ends = [end for end in (self.low, self.high) if end is not None]
        if not all(
            isinstance(one, (int, float)) and math.isfinite(one) for one in (self.threshold, *ends)
        ):
            raise ValueError(
                f"a threshold of {self.threshold!r} from {self.low!r} to {self.high!r}, expected "
                "cosines"
            )


@dataclass(frozen=True)
class GroupRates:
    """A group's error rates at the threshold that all groups of a set share.

    Attributes:
        at: that threshold and where it comes from, in words.
    """

    set: str
    group: str
    at: str
    fmr: Figure
    fnmr: Figure


@dataclass(frozen=True)
class TrainingData:
    """A training set by name, with what its manifest says of it, or "unknown"."""

    name: str
    origin: str = UNKNOWN
    license: str = UNKNOWN


@dataclass(frozen=True)
class Card:
    """What a file says of the model in it.

    Attributes:
        network: such as "iresnet50".
        embedding_dim: D.
        input: how it wants its images, in the words of training/frozen/onnx_input.py.
        precision: "float32", "float16" or "int8".
        digest: of the weights that it was made from.
        space: of its embeddings: those of two models may be compared where it is the same; empty
            where it is not known.
        points: where it decides, of every set that was evaluated.
        groups: how it treats groups of people.
        scores: by set, its main figures by name, such as "accuracy" and "tar@far=0.001".
        data: that it was trained on; empty where it is not known.
        config: of the run that trained it; empty where it is not known.
        code: the version that wrote the card.
    """

    network: str
    embedding_dim: int
    input: str
    precision: str
    digest: str
    space: str = ""
    points: Sequence[OperatingPoint] = ()
    groups: Sequence[GroupRates] = ()
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    data: Sequence[TrainingData] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    code: str = f"facestream {VERSION}"

    def as_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, allow_nan=False)


def read_card(path: str | Path) -> Card | None:
    """The card in an .onnx, .safetensors or .pt2 file; None without one, and for all else.

    Raises:
        CardError: a card that is damaged or of a newer version, or such a file itself.
        PathError: there is no such file.
    """
    path = Path(path)
    if path.suffix not in (*KINDS, pt2_file.SUFFIX):
        return None
    check_path(path, called=str(path), expected="an .onnx, .safetensors or .pt2 file")
    text = _metadata(path).get(KEY)
    return None if text is None else _from_json(text, path)


def space_of(source: str | Path, digest: str) -> str:
    """Of a model's embeddings: as the card of these very weights says, or their own digest.

    Args:
        source: as the model was named; weights without a card are a space themselves.
        digest: of the model that was opened.

    Raises CardError.
    """
    card = read_card(source) if str(source).endswith(KINDS) else None
    return card.space if card and card.space and card.digest == digest else digest


def write_card(path: str | Path, card: Card) -> None:
    """Put a card into a file in place of the one that it has; nothing else of the file changes.

    Raises:
        CardError: no .onnx or .safetensors file, or a damaged one.
        PathError: there is no such file.
        OSError: the disk is full, or the file's folder cannot be written; the file is as it was.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise CardError(f"{path} can have no card: expected {' or '.join(KINDS)}")
    check_path(path, called=str(path), expected="an .onnx or .safetensors file")
    content = path.read_bytes()
    if path.suffix == ".onnx":
        try:
            written = onnx_file.with_metadata(content, KEY, card.as_json())
        except onnx_file.OnnxError as error:
            raise CardError(f"{path}: {error}") from error
        write_whole(path, written)
        return
    header, tensors = _split(content, path)
    header["__metadata__"] = {**header.get("__metadata__", {}), KEY: card.as_json()}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    write_whole(path, struct.pack("<Q", len(text)) + text + tensors)


def _metadata(path: Path) -> Mapping[str, str]:
    if path.suffix == pt2_file.SUFFIX:
        try:
            return pt2_file.extra_files(path)
        except pt2_file.Pt2Error as error:
            raise CardError(f"{path}: {error}") from error
    content = path.read_bytes()
    if path.suffix == ".onnx":
        return onnx_file.metadata_in(content)
    return _split(content, path)[0].get("__metadata__", {})


def _split(content: bytes, path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a .safetensors file, and the bytes of its tensors."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(len(content) - 8, _LARGEST_HEADER):
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(content[8 : 8 + length])
        if not isinstance(header.get("__metadata__", {}), dict):
            raise ValueError("its metadata is no table")
    except (struct.error, ValueError, AttributeError) as error:
        raise CardError(
            f"{path} cannot be read as safetensors ({error}): copy or export it again"
        ) from error
    return header, content[8 + length :]


def _from_json(text: str, path: Path) -> Card:
    try:
        values = json.loads(text)
        version = values.pop("format")
        if version != FORMAT:
            raise CardError(
                f"{path}: its card is of format {version}; this version of Facestream reads "
                f"format {FORMAT}: update it, or evaluate with --card again"
            )
        groups = [
            GroupRates(**one | {name: Figure(**one[name]) for name in ("fmr", "fnmr")})
            for one in values.pop("groups")
        ]
        points = [OperatingPoint(**one) for one in values.pop("points")]
        data = [TrainingData(**one) for one in values.pop("data")]
        return Card(**values, points=points, groups=groups, data=data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CardError):
            raise
        raise CardError(
            f"{path}: its card is damaged ({type(error).__name__}: {error}): take the file from "
            "its source again, or export the model again and evaluate that with --card"
        ) from error
