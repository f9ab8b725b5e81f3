"""Files of weights that anyone has saved: what backbone they hold, read without running code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facestream import UserError
from models.measure import networks_in
from models.recognize import may_be_magface, recognize, require_finite, split_prefix
from pipeline.named_path import check_path

ONNX = ".onnx"  # read by training/weights/onnx_import
SUFFIXES = (".pth", ".pt", ".safetensors", ONNX)
_NAMED = 6  # tensors that a line names
_DEEPEST = 4  # nested dicts that are looked into
_TORCH_CODE = re.compile(r"GLOBAL ([\w.]+)")
_TORCH_REASON = re.compile(r"WeightsUnpickler error: (.*)")
_OTHER_BEGIN = re.compile(r"legacy \.tar format|mmap can only be used")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class WeightsError(UserError):
    """Weights that cannot be taken: says what was found, what was expected and how to mend it."""


@dataclass(frozen=True)
class Backbone:
    """What a file or checkpoint holds of a backbone."""

    tensors: dict[str, Tensor]  # by name, on the CPU, without a prefix
    notes: tuple[str, ...] = ()  # what was changed, and what of the file is not used
    unfolded: tuple[str, ...] = ()  # names of BatchNorms that have no statistics of images


def read_weight_file(path: Path) -> Backbone:
    """The backbone in a file of weights.

    Raises WeightsError for a file that holds none, for one of which nothing says which pixels it
    takes, and for values that are not finite.
    """
    tensors, beside = find_state_dict(load_content(path), path)
    backbone = _take_names(tensors, path)
    require_finite_weights(backbone.tensors, path)
    return Backbone(backbone.tensors, (*_not_used(beside), *backbone.notes))


def load_content(path: Path) -> Any:
    """What a file of safetensors or of torch.save holds, on the CPU; no code in it runs.

    Raises WeightsError for a file that cannot be read, or needs code to be run; PathError for a
    pipe or a device, which have no end.
    """
    if path.exists():
        check_path(path, called=str(path), expected="a file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Mapped, so that of what nobody uses, such as an optimizer's state, nothing is read.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except ImportError as error:
        raise WeightsError(f"{path} needs safetensors: pip install safetensors") from error
    except Exception as error:  # what parsers raise for damaged bytes has no bounds
        raise WeightsError(f"{path} cannot be read as weights: {_reason(error, path)}") from error


def find_state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by name, alone or under any keys of nested dicts; and what else has tensors.

    Raises WeightsError where there are no tensors, or several backbones.
    """
    there = dict(state_dicts(content))
    if not there:
        keys = some(list(map(str, content))) if isinstance(content, dict) else ""
        found = (
            f"a dict of {keys or 'nothing'}" if keys or content == {} else type(content).__name__
        )
        raise WeightsError(
            f"{path} holds {found}: expected the state dict of a backbone, tensors by name"
        )
    backbones = [
        (at, prefix) for at, tensors in there.items() for _, prefix in networks_in(tensors)
    ]
    if len(backbones) > 1:
        places = (".".join((*at, prefix)).strip(".") for at, prefix in backbones)
        keys = ", ".join(place or "the file itself" for place in places)
        raise WeightsError(
            f"{path} holds several backbones, under {keys}: expected one, save it alone"
        )
    chosen = backbones[0][0] if backbones else max(there, key=lambda at: len(there[at]))
    beside = (
        name
        for at, tensors in there.items()
        if at != chosen
        for name in ([".".join(at[:2])] if at else tensors)
    )
    return there[chosen], list(dict.fromkeys(beside))


def state_dicts(
    content: Any, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The keys that lead to every dict with tensors, and those."""
    if not isinstance(content, Mapping) or len(at) > _DEEPEST:
        return
    named = {key: t for key, t in content.items() if isinstance(key, str)}
    tensors = {key: t for key, t in named.items() if isinstance(t, Tensor)}
    if tensors:
        yield at, tensors
    for key, inner in content.items():
        yield from state_dicts(inner, (*at, str(key)))


def require_finite_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise WeightsError, with the file's name, where values are not finite."""
    try:
        require_finite(tensors)
    except UserError as error:
        raise WeightsError(f"{path}: {error}") from error


def some(names: Sequence[str], *, between: str = ", ") -> str:
    """The first names of a list, and how many more there are."""
    more = f"{between}and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more


def _reason(error: Exception, path: Path) -> str:
    """In one line, without torch's words about its own options."""
    text = _ESCAPES.sub("", str(error))
    if code := _TORCH_CODE.search(text):
        return (
            f"it holds {code[1]} beside tensors or instead of them, and to read that would run "
            "code of the file. Expected tensors, numbers and text alone: where you trust it, save "
            f"its state dict: content = torch.load({str(path)!r}, weights_only=False), then "
            "torch.save(content['state_dict'], 'weights.pth'), with the key that it has there, or "
            "content.state_dict() of a whole model"
        )
    reason = _TORCH_REASON.search(text)
    brief = (reason[1] if reason else text.strip().partition("\n")[0])[:300]
    if _OTHER_BEGIN.search(brief):  # of a file of zeros torch says that its code may be run
        brief = "it does not begin as torch.save begins a file"
    return f"{brief or type(error).__name__}. Copy or download it again, it may be damaged"


def _take_names(tensors: dict[str, Tensor], path: Path) -> Backbone:
    """The backbone of a network of ours; of another, or of a part of one, all there is."""
    try:
        kind, prefix, own = split_prefix(tensors)
    except UserError:
        return Backbone(tensors)
    try:
        found = recognize(tensors)
    except UserError as error:
        if may_be_magface(kind, prefix):  # a part of MagFace's would take other pixels
            raise WeightsError(f"{path}: {error}") from error
        unused = [name for name in tensors if not name.startswith(prefix)]
        # It is no whole network, but what there is may still fit.
        return Backbone(own, _not_used(unused))
    notes = list(_not_used(found.unused))
    if found.magface:
        notes.append(
            "recognized as MagFace's by its head: the first convolution and BatchNorms were "
            "changed to take RGB in [-1, 1]"
        )
    return Backbone(found.state, tuple(notes))


def _not_used(names: Sequence[str]) -> tuple[str, ...]:
    return (f"not used: {some(names)}",) if names else ()
