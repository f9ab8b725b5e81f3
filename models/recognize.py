"""Weights trained elsewhere: whose state dict it is, and which network of ours takes them.

arcface_torch's networks and ours have the same names; others put a prefix before them. MagFace
(Meng et al., 2021, arXiv:2103.06627) feeds IResNet other pixels, which is made good here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from facestream import UserError
from models.architecture import MODELS, Architecture
from models.measure import IRESNET, Kind, networks_in

# Names that tell another network apart, and what it is.
_OTHERS = {
    "input_layer.0.weight": "the IR network of AdaFace (input_layer, body, output_layer), whose "
    "first block takes every second pixel where IResNet has a convolution",
    "blocks.0.attn.qkv.weight": "a vision transformer that is not arcface_torch's",
}
MAGFACE_PREFIXES = ("features.module.", "module.features.", "features.")
_MAGFACE_EPS = 2e-5  # of its BatchNorms; ours is torch's 1e-5


@dataclass(frozen=True)
class Recognized:
    """A backbone by our names, and where it is from."""

    state: dict[str, Tensor]  # loads into `architecture` with strict=True
    architecture: Architecture
    prefix: str  # what stood before every name
    magface: bool  # then the state is not as it was: it takes our pixels instead of MagFace's
    unused: tuple[str, ...]  # names of the tensors beside it, such as a head's


def split_prefix(state: Mapping[str, Tensor]) -> tuple[Kind, str, dict[str, Tensor]]:
    """The first network of ours, the prefix before its names, and all that stands under that.

    Raises UserError where there is none, with what it was recognized as.
    """
    for kind, prefix in networks_in(state):
        return (
            kind,
            prefix,
            {k.removeprefix(prefix): state[k] for k in state if k.startswith(prefix)},
        )
    raise UserError(f"found {_other_network(state)}; expected one of {', '.join(MODELS)}")


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Raises UserError that names the tensors which make no embedding, or another one.

    Those are sparse, quantized, complex or without content, weights that are integers, values that
    are no numbers or infinite, and variances below zero.
    """
    for fault, has_it, remedy in _FAULTS:
        wrong = [name for name, tensor in state.items() if has_it(name, tensor)]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(f"found {fault} in {', '.join(wrong[:3])}{more}: expected {remedy}")


def _is_special(name: str, tensor: Tensor) -> bool:
    special = tensor.is_quantized or tensor.is_meta or tensor.is_complex()
    return special or tensor.layout != torch.strided


def _is_integer_weight(name: str, tensor: Tensor) -> bool:
    """Networks have counters and tables of integers; of these names no network has any."""
    last = name.rpartition(".")[2]
    learned = last in ("weight", "bias", "running_mean", "running_var")
    return learned and not tensor.is_floating_point()


def _is_infinite(name: str, tensor: Tensor) -> bool:
    return not tensor.float().isfinite().all()


def _is_negative_variance(name: str, tensor: Tensor) -> bool:
    return name.endswith("running_var") and bool((tensor < 0).any())


_FAULTS = (
    ("a sparse, quantized, complex or empty tensor", _is_special, "dense tensors of numbers"),
    ("integers", _is_integer_weight, "floating point, as it was before it was quantized"),
    (
        "NaN or infinity",
        _is_infinite,
        "finite values, this training had diverged. Take weights that were saved before",
    ),
    ("a variance below zero", _is_negative_variance, "0 or more. The file is damaged"),
)


def recognize(state: Mapping[str, Tensor]) -> Recognized:
    """Find a network in a state dict; its names may have any prefix, others' keys are left out.

    Known prefixes are `module.` of DistributedDataParallel, `features.module.` and
    `module.features.` of MagFace, and `model.` of Lightning modules such as AdaFace's.

    MagFace's are recognized by its names and its head beside them, (D, C) where others' are (C, D).

    Raises UserError for what is no network of ours, with what it was recognized as, and for one
    with MagFace's names but no head, of which nothing says which pixels it takes.
    """
    kind, prefix, own = split_prefix(state)
    architecture = kind.measure(own)
    own = _fit(own, architecture, kind)
    unused = tuple(key for key in state if not key.startswith(prefix))
    beside = {key: state[key] for key in unused}
    magface = may_be_magface(kind, prefix) and _is_magface(
        beside, prefix=prefix, embedding_dim=architecture.embedding_dim
    )
    if magface:
        own = _to_our_pixels(own)
    return Recognized(own, architecture, prefix, magface, unused)


def own_names(state: Mapping[str, Tensor]) -> set[str]:
    """Of all networks of ours in a state dict, the names of their tensors there."""
    names: set[str] = set()
    for kind, prefix in networks_in(state):
        own = {k.removeprefix(prefix): state[k] for k in state if k.startswith(prefix)}
        try:
            names |= {prefix + name for name in _expected(kind.measure(own))}
        except UserError:  # a part of one, whose reader says what is wrong
            continue
    return names


def may_be_magface(kind: Kind, prefix: str) -> bool:
    """Whether MagFace saves such a network under that prefix."""
    return kind is IRESNET and prefix in MAGFACE_PREFIXES


def _is_magface(beside: Mapping[str, Tensor], *, prefix: str, embedding_dim: int) -> bool:
    """By the head: MagLinear's weights are (D, C), or its parallel_fc's."""
    heads = {key: t for key, t in beside.items() if key.endswith("fc.weight") and t.ndim == 2}
    if not heads:
        raise UserError(
            f"found an IResNet under the prefix {prefix}, as MagFace saves it, but not its head, "
            "fc.weight: expected that beside it, or names without the prefix. MagFace takes BGR in "
            "[0, 1], others take RGB in [-1, 1], and nothing here says which. Take MagFace's own "
            "file as it is; or, if this is no MagFace, save it without the prefix"
        )
    return any("parallel_fc" in key or len(t) == embedding_dim for key, t in heads.items())


def _fit(state: Mapping[str, Tensor], architecture: Architecture, kind: Kind) -> dict[str, Tensor]:
    """The whole state dict; BatchNorm's counters, which old files have not and no embedding needs,
    are 0 where they are missing."""
    expected = _expected(architecture)
    counters = {k for k in expected if k.endswith(".num_batches_tracked")} - state.keys()
    state = {**state, **{key: torch.tensor(0) for key in counters}}
    wrong = [f"{key} is missing" for key in expected.keys() - state.keys()]
    wrong += [f"{key} is not one of its names" for key in state.keys() - expected.keys()]
    wrong += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"found something like {architecture}, but {', '.join(sorted(wrong)[:3])}{more}: "
            f"expected the state dict of {kind.name}"
        )
    return state


def _expected(architecture: Architecture) -> dict[str, Tensor]:
    """Its state dict, without memory."""
    with torch.device("meta"):
        return architecture.create().state_dict()


def _to_our_pixels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function of RGB in [-1, 1] that MagFace's network is of BGR in [0, 1].

    Exact in evaluation, but for the outermost pixels: around an image both have zeros, which are
    black there and gray here.
    """
    adapted = {
        key: value + (_MAGFACE_EPS - 1e-5) if key.endswith(".running_var") else value
        for key, value in state.items()
    }
    # W · (x + 1) / 2 = W / 2 · x + ΣW / 2, and the last is a shift of BatchNorm's mean.
    halved = state["conv1.weight"].flip(1) / 2
    adapted["conv1.weight"] = halved
    adapted["bn1.running_mean"] = state["bn1.running_mean"] - halved.sum((1, 2, 3))
    return adapted


def _other_network(state: Mapping[str, Tensor]) -> str:
    for name, what in _OTHERS.items():
        for key in state:
            if key == name or key.endswith(f".{name}"):
                before = key.removesuffix(name)
                return what + (f", under the prefix {before}" if before else "")
    names = ", ".join(list(state)[:3]) or "nothing"
    return f"no network of ours among {len(state)} names ({names}, …)"
