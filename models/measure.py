"""Networks of ours in anyone's state dicts: by which name each is known, and how it is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from facestream import UserError
from models import edgeface, mobilefacenet, vit
from models.architecture import Architecture
from models.iresnet import BLOCKS

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """Networks that are built alike, as their state dicts show them.

    Attributes:
        name: for messages, with its article.
        landmark: a parameter's name that all of them have and no others; what stands before it in
            a file is the file's prefix.
        measure: finds name, sizes and options by the shapes; raises UserError where a tensor that
            it looks at is missing or of another kind.
    """

    name: str
    landmark: str
    measure: Callable[[State], Architecture]


def networks_in(names: Iterable[str]) -> list[tuple[Kind, str]]:
    """The networks that these names are of, each with the prefix before its own names."""
    return [
        (kind, name.removesuffix(kind.landmark))
        for name in names
        for kind in KINDS
        if f".{name}".endswith(f".{kind.landmark}")
    ]


def _measure_iresnet(state: State) -> Architecture:
    depths = [0, 0, 0, 0]
    for key in state:
        if block := re.match(r"layer([1-4])\.(\d+)\.", key):
            stage = int(block[1]) - 1
            depths[stage] = max(depths[stage], int(block[2]) + 1)
    if 0 in depths:
        raise UserError(
            f"found an IResNet with {depths} blocks in its stages: expected a whole state dict"
        )
    name = next((name for name, blocks in BLOCKS.items() if blocks == tuple(depths)), "iresnet")
    stem, _, _, _ = _shape(state, "conv1.weight", name, axes=4)
    embedding_dim, inputs = _shape(state, "fc.weight", name, axes=2)
    attended = [
        _shape(state, key, name, axes=4)[1]
        for key in sorted(state)
        if re.fullmatch(r"attn\d\.query_conv\.weight", key)
    ]
    options = {
        "width": stem / 64,
        "se": any(".se_block." in key for key in state),
        "attention": [1 + int(math.log2(channels / stem)) for channels in attended],
    }
    if name == "iresnet":
        options["blocks"] = depths
    return Architecture(
        name,
        embedding_dim=embedding_dim,
        image_size=16 * math.isqrt(inputs // (8 * stem)),
        options=options,
    )


def _measure_mobilefacenet(state: State) -> Architecture:
    what = "MobileFaceNet"
    channels, _, _, _ = _shape(state, "layers.0.layers.0.weight", what, axes=4)
    last, _, _, _ = _shape(state, "conv_sep.layers.0.weight", what, axes=4)
    _, _, kernel, _ = _shape(state, "features.layers.0.layers.0.weight", what, axes=4)
    embedding_dim, _ = _shape(state, "features.layers.2.weight", what, axes=2)
    width = last / 512
    for name, form in mobilefacenet.FORMS.items():
        if channels == form.channels * width:
            return Architecture(name, embedding_dim, 16 * kernel, {"width": width})
    raise UserError(
        f"found a {what} with {channels} channels at its start and {last} at its end: expected "
        + ", ".join(f"{form.channels} ({name})" for name, form in mobilefacenet.FORMS.items())
        + " and 512, or both times one width"
    )


def _measure_vit(state: State) -> Architecture:
    what = "vision transformer of arcface_torch"
    dim, _, patch, _ = _shape(state, "patch_embed.proj.weight", what, axes=4)
    _, tokens, _ = _shape(state, "pos_embed", what, axes=3)
    embedding_dim, _ = _shape(state, "feature.2.weight", what, axes=2)
    blocks = {int(found[1]) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))}
    depth, side = len(blocks), math.isqrt(tokens)
    # Some pixels may belong to no whole patch, and nothing tells how many.
    image_size = 112 if 112 // patch == side else side * patch
    for name, form in vit.FORMS.items():
        if (form.dim, form.depth) == (dim, depth):
            return Architecture(name, embedding_dim, image_size, {"patch": patch})
    options = {"dim": dim, "depth": depth, "patch": patch}
    return Architecture("vit", embedding_dim, image_size, options)


def _measure_edgeface(state: State) -> Architecture:
    what = "EdgeFace"
    channels, _, _, _ = _shape(state, "model.stem.0.weight", what, axes=4)
    full = "model.head.fc.weight"
    last = full if full in state else "model.head.fc.linear2.weight"
    embedding_dim, _ = _shape(state, last, what, axes=2)
    for name, form in edgeface.FORMS.items():
        if form.channels[0] == channels:
            return Architecture(name, embedding_dim)  # any size of images: none is to be seen
    known = ", ".join(f"{form.channels[0]} ({name})" for name, form in edgeface.FORMS.items())
    raise UserError(f"found an {what} with {channels} channels at its start: expected {known}")


def _shape(state: State, name: str, what: str, *, axes: int) -> tuple[int, ...]:
    if name not in state:
        raise UserError(f"found {_a(what)} without {name}: expected a whole state dict")
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise UserError(f"found {_a(what)} whose {name} is {shape}: expected {axes} axes")
    return shape


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIO' else 'a'} {noun}"


IRESNET = Kind("an IResNet", "layer1.0.conv1.weight", _measure_iresnet)
MOBILEFACENET = Kind("a MobileFaceNet", "conv_sep.layers.0.weight", _measure_mobilefacenet)
VIT = Kind("a vision transformer of arcface_torch", "mask_token", _measure_vit)
EDGEFACE = Kind(
    "an EdgeFace",
    "model.stages.1.blocks.2.pos_embd.token_projection.weight",
    _measure_edgeface,
)
KINDS = (IRESNET, MOBILEFACENET, VIT, EDGEFACE)
