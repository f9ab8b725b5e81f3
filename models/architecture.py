"""Networks by name: what builds each, from which options, and what else has to be known of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from facestream import UserError
from models import edgeface, mobilefacenet, timm_network, vit
from models.iresnet import BLOCKS, STAGES, IResNet, check_iresnet


def _accept_all(**sizes_and_options: Any) -> None:
    """The check of a family that builds whatever it is asked for."""


@dataclass(frozen=True)
class Family:
    """What networks that are built alike have in common.

    Attributes:
        build: by keyword from embedding_dim, image_size and the options: a module that maps
            normalized images (B, 3, image_size, image_size) to embeddings (B, embedding_dim)
            float32, not L2-normalized.
        check: takes the same, builds nothing, and raises UserError for what `build` cannot do; by
            default for nothing.
        options: what it takes beside the two sizes, with the defaults.
        stages: its submodules whose children are blocks of equal shapes, which are compiled one by
            one where the whole network is not, and may run again in backward.
        undecayed: last parts of the names of parameters that no weight decay belongs to, beside
            those of one axis or none: optim.decay_norm_and_bias=false leaves out both.
        fuses: whether its BatchNorms go through models.batch_norm with what follows them.
    """

    build: Callable[..., nn.Module]
    check: Callable[..., None] = _accept_all
    options: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()
    fuses: bool = False

    @property
    def builder(self) -> Callable[..., nn.Module]:
        """The class or function behind `build`."""
        return self.build.func if isinstance(self.build, partial) else self.build

    def undecayed_in(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters of a network of this family, wrapped or not, that `undecayed` names."""
        named = network.named_parameters()
        return [p for name, p in named if name.rpartition(".")[2] in self.undecayed]


_IRESNET = Family(
    build=IResNet,
    check=check_iresnet,
    options={"width": 1.0, "dropout": 0.0, "se": False, "attention": []},
    stages=STAGES,
    fuses=True,
)
MODELS: dict[str, Family] = {
    name: replace(
        _IRESNET,
        build=partial(_IRESNET.build, blocks=blocks),
        check=partial(_IRESNET.check, blocks=blocks),
    )
    for name, blocks in BLOCKS.items()
} | {"iresnet": replace(_IRESNET, options={"blocks": [3, 4, 14, 3], **_IRESNET.options})}
MODELS |= {
    name: Family(
        build=partial(mobilefacenet.MobileFaceNet, form),
        check=mobilefacenet.check_mobilefacenet,
        options={"width": 1.0},
        stages=("layers",),
        fuses=True,
    )
    for name, form in mobilefacenet.FORMS.items()
}
_VIT = Family(
    build=vit.VisionTransformer,
    check=vit.check_vit,
    options={
        "dim": 512,
        "depth": 12,
        "heads": vit.HEADS,
        "patch": 9,
        "mask_ratio": 0.1,
        "drop_path": 0.1,
    },
    stages=("blocks",),
    undecayed=vit.UNDECAYED,
)
MODELS |= {
    name: replace(
        _VIT,
        build=partial(_VIT.build, dim=form.dim, depth=form.depth, heads=vit.HEADS),
        check=partial(_VIT.check, dim=form.dim, depth=form.depth, heads=vit.HEADS),
        options={"patch": 9, "mask_ratio": form.mask_ratio, "drop_path": form.drop_path},
    )
    for name, form in vit.FORMS.items()
} | {"vit": _VIT}
MODELS |= {
    name: Family(
        build=partial(edgeface.EdgeFace, form),
        check=edgeface.check_edgeface,
        stages=edgeface.STAGES,
        undecayed=edgeface.UNDECAYED,
    )
    for name, form in edgeface.FORMS.items()
}
# Of these, what `register_network` made known: its name and the file that did.
OWN_MODELS: dict[str, str] = {}


def is_network(name: str) -> bool:
    """Whether it is the name of a network; of timm's, whether it may be one."""
    return name in MODELS or name.startswith(timm_network.PREFIX)


def find_family(name: str) -> Family:
    """What builds the network of that name. Raises UserError where there is none."""
    if name in MODELS:
        return MODELS[name]
    if name.startswith(timm_network.PREFIX):
        theirs = name.removeprefix(timm_network.PREFIX)
        return Family(
            build=partial(timm_network.TimmNetwork, theirs),
            check=partial(timm_network.check_timm, theirs),
            undecayed=timm_network.UNDECAYED,
        )
    raise UserError(
        f"unknown model {name!r}: choose one of {', '.join(MODELS)}, timm/NAME for one of timm's, "
        "or one that register_network() made known: see docs/extending.md"
    )


@dataclass(frozen=True)
class Architecture:
    """Everything that decides which tensors a network has and what it computes with them.

    Args:
        name: a key of `MODELS`, such as "iresnet50", or "timm/NAME".
        embedding_dim: D, the length of an embedding.
        image_size: height and width of the images in pixels.
        options: the family's own; those left out have its defaults.

    Raises:
        UserError: an unknown name or option, or a value that the family cannot build.
    """

    name: str
    embedding_dim: int = 512
    image_size: int = 112
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.family.options
        if unknown := sorted(self.options.keys() - known.keys()):
            raise UserError(
                f"{self.name} has no option {', '.join(unknown)}: it takes "
                f"{', '.join(known) or 'none'}"
            )
        given = {key: list(v) if isinstance(v, tuple) else v for key, v in self.options.items()}
        object.__setattr__(self, "options", {**known, **given})
        self.family.check(**self._arguments)

    @property
    def family(self) -> Family:
        """What builds it."""
        return find_family(self.name)

    def __str__(self) -> str:
        """Such as "iresnet18 with width=0.5 for 112 pixels", for messages."""
        known = self.family.options
        changed = [f"{key}={value}" for key, value in self.options.items() if value != known[key]]
        options = f" with {', '.join(changed)}" if changed else ""
        return f"{self.name}{options} for {self.image_size} pixels"

    def create(self) -> nn.Module:
        """The network, freshly initialized, its weights in channels_last."""
        model = self.family.build(**self._arguments)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def _arguments(self) -> dict[str, Any]:
        sizes = {"embedding_dim": self.embedding_dim, "image_size": self.image_size}
        return {**sizes, **self.options}


def create_model(
    name: str, *, embedding_dim: int = 512, image_size: int = 112, **options: Any
) -> nn.Module:
    """Build the network called `name`; see `Architecture`, whose errors it raises.

    Returns:
        A module that maps normalized images (B, 3, image_size, image_size), as `normalize` gives
        them, to embeddings (B, embedding_dim) float32, not L2-normalized.
    """
    return Architecture(name, embedding_dim, image_size, options).create()


def register_network(name: str, family: Family) -> None:
    """Make a network of your own known by name to `create_model` and model.name.

    The same class or function defined again, as where a configuration file runs twice, takes its
    own place.

    Raises UserError for a name that is another network's, and for what is no Family of a class or
    function, or one whose `build` does not take embedding_dim, image_size and its options.
    """
    whole = isinstance(family, Family) and isinstance(family.options, Mapping)
    if not whole or not (inspect.isclass(family.builder) or inspect.isfunction(family.builder)):
        raise UserError(
            f"network {name!r}: found {family!r}, expected models.Family(build=CLASS or FUNCTION, "
            "options={name: default})"
        )
    known = MODELS.get(name)
    if known and (name not in OWN_MODELS or _origin(known) != _origin(family)):
        raise UserError(f"there is a network {name!r} already: choose another name")
    arguments = ("embedding_dim", "image_size", *family.options)
    for function in (family.build, family.check):
        try:
            inspect.signature(function).bind(**dict.fromkeys(arguments))
        except TypeError as error:
            raise UserError(
                f"network {name!r}: {function!r} is called with {', '.join(arguments)} by keyword, "
                f"and does not take that: {error}"
            ) from error
    MODELS[name] = family
    OWN_MODELS[name] = sys._getframe(1).f_code.co_filename


def _origin(family: Family) -> tuple[str, str]:
    return family.builder.__module__, family.builder.__qualname__
