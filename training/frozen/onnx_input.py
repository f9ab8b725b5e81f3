"""How an ONNX file wants its images: what the user says, what the file says, and never a guess.

In words: `112,rgb,-1..1` or `rgb,0..1,imagenet`, parts in any order, separated by commas:

    112                     pixels of height and width
    rgb, bgr                the order of the channels
    -1..1, 0..1, 0..255     what black and white become
    imagenet                ImageNet's mean and deviation, of 0..1
    mean=0.5, std=0.5       or three values: mean=0.485/0.456/0.406
    nchw, nhwc              the order of the axes
    output=NAME             the output that has the embeddings
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from models.input import Input, InputError
from training.frozen.onnx_file import OnnxError
from training.frozen.onnx_network import OnnxFile

METADATA = "facestream.input"  # where our own exports say it, in these words
_IMAGENET = {
    "range": (0.0, 1.0),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
# As ONNX itself defines it (docs/MetadataProps.md of onnx/onnx).
_STANDARD: dict[str, dict[str, dict[str, Any]]] = {
    "image.bitmappixelformat": {"rgb8": {"color": "rgb"}, "bgr8": {"color": "bgr"}},
    "image.nominalpixelrange": {
        "nominalrange_0_255": {"range": (0.0, 255.0)},
        "normalized_0_1": {"range": (0.0, 1.0)},
        "normalized_1_1": {"range": (-1.0, 1.0)},
    },
}
_USUAL = (
    "usual are rgb,-1..1 (InsightFace, arcface_torch), bgr,-1..1 (AdaFace) and rgb,0..1,imagenet"
)


def read_words(text: str) -> dict[str, Any]:
    """What such words say: fields of an Input, and `output`.

    Raises:
        InputError: a part that is none of these.
    """
    said: dict[str, Any] = {}
    for part in (part.strip() for part in text.split(",")):
        word, _, value = part.partition("=")
        lower = part.lower()
        if word == "output" and value:
            said["output"] = value
        elif word.lower() in ("mean", "std") and (numbers := _numbers(value)) is not None:
            said[word.lower()] = numbers
        elif lower.isascii() and lower.isdigit():
            said["size"] = int(lower)
        elif lower in ("rgb", "bgr"):
            said["color"] = lower
        elif lower in ("nchw", "nhwc"):
            said["layout"] = lower
        elif lower == "imagenet":
            said = {**_IMAGENET, **said, **{key: _IMAGENET[key] for key in ("mean", "std")}}
        elif ends := _RANGE.fullmatch(lower):
            said["range"] = (float(ends[1]), float(ends[2]))
        else:
            raise InputError(
                f"{part!r} in {text!r}: expected 112 (pixels), rgb or bgr, -1..1, 0..1 or 0..255, "
                "imagenet, mean=…, std=… (one number, or three as 0.5/0.5/0.5), nchw or nhwc, "
                "output=NAME"
            )
    if said.get("mean") == _IMAGENET["mean"] and said["range"] != _IMAGENET["range"]:
        raise InputError(f"{text!r}: ImageNet's mean is of values in 0..1; leave the range out")
    return said


def as_words(wanted: Input) -> str:
    """What `read_words` reads as this Input."""
    parts = [str(wanted.size), wanted.color, "{:.17g}..{:.17g}".format(*wanted.range)]
    for name, usual in (("mean", 0.0), ("std", 1.0)):
        value = getattr(wanted, name)
        if value != usual:
            values = value if isinstance(value, tuple) else (value,)
            parts.append(f"{name}={'/'.join(f'{one:.17g}' for one in values)}")
    return ",".join([*parts, wanted.layout])


def read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file's metadata says in the same form; nothing of what is in no known words.

    Known are `facestream.input`, ONNX's own Image.BitmapPixelFormat and Image.NominalPixelRange,
    and keys that end in size, color (color_order, channel_order), range, mean or std.
    """
    said: dict[str, Any] = {}
    for key, value in metadata.items():
        lower = key.lower()
        if lower == METADATA:
            return read_words(value)
        said |= _STANDARD.get(lower, {}).get(value.strip().lower(), {})
        if field := _field(lower):
            text = re.sub(r"[\[\]()\s]+", " ", value).strip()
            numbers = _numbers(re.sub(r"[,; ]+", "/", text))
            if field == "size" and (sizes := {*re.findall(r"\d+", text)} - {"1", "3"}):
                said |= {"size": int(min(sizes))} if len(sizes) == 1 else {}
            elif field == "color" and text.lower() in ("rgb", "bgr"):
                said["color"] = text.lower()
            elif field in ("mean", "std") and numbers is not None:
                said[field] = numbers
            elif field == "range" and (ends := _ends(text)):
                said["range"] = ends
    return said


def onnx_input(file: OnnxFile, words: str) -> tuple[Input, str, str]:
    """What to give a file: its Input, the output's name or "", and where that was said.

    Args:
        words: of the user; they go before what the file says.

    Raises:
        OnnxError: neither says the order of the channels and the range, or the size.
        InputError: words or values that make no sense.
    """
    written = read_metadata(file.metadata)
    given = read_words(words) if words else {}
    said = _described(file.images.shape) | written | given
    missing = [
        what
        for field, what in (
            ("size", "its size in pixels"),
            ("color", "the order of its channels"),
            ("range", "the range of its values"),
        )
        if field not in said
    ]
    if missing:
        raise OnnxError(
            f"{file.path} does not say {' or '.join(missing)}: give --onnx-input; {_USUAL}. "
            "With other words than it was trained on, every number comes out too low"
        )
    output = said.pop("output", "")
    origin = "--onnx-input" if given else "its metadata"
    try:
        return Input(**said), output, origin
    except InputError as error:
        raise InputError(f"{file.path}: {origin}: {error}") from error


def _described(shape: list[Any]) -> dict[str, Any]:
    """What the graph itself says: where the channels stand, and the size if it is fixed."""
    said: dict[str, Any] = {}
    if shape[1] != 3 and shape[3] == 3:
        said["layout"] = "nhwc"
    sides = shape[1:3] if "layout" in said else shape[2:4]
    if sides[0] == sides[1] and isinstance(sides[0], int) and sides[0] > 0:
        said["size"] = sides[0]
    return said


def _field(key: str) -> str:
    """Which field a key of metadata speaks of, by its last words."""
    words = re.findall(r"[a-z]+", key)
    last = words[-1] if words else ""
    if last in ("order", "format", "space") and len(words) > 1:
        last = words[-2]
    named = {"colour": "color", "channel": "color", "channels": "color", "stds": "std"}
    named |= {"means": "mean", "stdev": "std"}
    last = named.get(last, last)
    return last if last in ("size", "color", "range", "mean", "std") else ""


def _numbers(text: str) -> float | tuple[float, ...] | None:
    parts = text.split("/")
    if len(parts) not in (1, 3) or not all(re.fullmatch(_NUMBER, part) for part in parts):
        return None
    values = tuple(map(float, parts))
    return values if len(values) == 3 else values[0]


def _ends(text: str) -> tuple[float, float] | None:
    ends = re.findall(_NUMBER, text.replace("..", " "))
    return (float(ends[0]), float(ends[1])) if len(ends) == 2 else None
