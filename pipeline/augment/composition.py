"""Recipes by name, and what a configuration makes of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facestream import UserError
from pipeline import dali
from pipeline.augment.color import JITTER, LIGHT
from pipeline.augment.erase import ERASE
from pipeline.augment.geometry import FLIP, GEOMETRY
from pipeline.augment.occlude import OCCLUDE
from pipeline.augment.published import ADAFACE, ARCFACE
from pipeline.augment.quality import QUALITY
from pipeline.augment.recipe import Argument, Draw, Node, Recipe

RECIPES: dict[str, Recipe] = {
    "flip": FLIP,
    "occlude": OCCLUDE,
    "geometry": GEOMETRY,
    "light": LIGHT,
    "jitter": JITTER,
    "arcface": ARCFACE,
    "adaface": ADAFACE,
    "quality": QUALITY,
    "erase": ERASE,
}
# Of these, what `register_recipe` made known: its name and the file that did.
OWN_RECIPES: dict[str, str] = {}
# What an argument input may be: of DALI's types, those that its operators take as arguments.
_DALI_TYPES = {"bool": "BOOL", "int8": "INT8", "int32": "INT32", "float32": "FLOAT"}


@dataclass(frozen=True)  # of a named tuple's methods DALI would not convert the `if`s
class _Step:
    """One entry of data.augment."""

    name: str
    recipe: Recipe
    probability: float  # of an image to go through the recipe at all

    def draw(self, draw: Draw) -> dict[str, Argument]:
        arguments = dict(self.recipe.draw(draw))
        if self.probability == 1:
            return arguments
        return {"applied": draw.chance(f"{self.name}.applied", self.probability)} | arguments

    def apply(self, images: Node, arguments: dict[str, Node]) -> Node:
        applied = arguments.pop("applied", True)
        if applied:
            images = self.recipe.apply(images, **arguments)
        return images


class Augmentation:
    """Recipes in order: the arguments they draw for a batch, and the graph they make of them.

    An entry is the name of a recipe, or ``"name:0.3"`` for a recipe that 30 % of the images go
    through. With `mirrored_before`, a flip that comes first is left to who decodes: see `mirrored`.
    Raises UserError for unknown or repeated recipes, for what is no probability, and for a recipe
    that reads landmarks after one that has moved them.
    """

    def __init__(self, entries: Sequence[str], *, mirrored_before: bool = False) -> None:
        self._steps = [_parse(entry, entries) for entry in entries]
        if len({step.name for step in self._steps}) != len(self._steps):
            raise _refusal(entries, "each recipe once")
        _check_landmarks(self._steps, entries)
        first_is_flip = bool(self._steps) and self._steps[0].name == "flip"
        self._flip = self._steps.pop(0) if mirrored_before and first_is_flip else None
        probe = Draw(np.zeros(1, np.int64), seed=0, epoch=0, size=1)
        self._arguments = [step.draw(probe) for step in self._steps]

    @property
    def needs_graph(self) -> bool:
        """Whether there are recipes for DALI to apply."""
        return bool(self._steps)

    def mirrored(self, draw: Draw) -> np.ndarray | None:
        """(B,) bool: which images of a batch to mirror before the graph; None where none is."""
        if self._flip is None:
            return None
        return _mirrors(self._flip.draw(draw))

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """By recipe, the columns that it reads."""
        return {step.name: step.recipe.needs for step in self._steps if step.recipe.needs}

    def arrays(self, draw: Draw) -> list[Argument]:
        """The argument inputs of a batch, flat, each with the batch as its first dimension."""
        found: list[Argument] = []
        before = self.mirrored(draw)
        if before is not None:
            draw.mirrored = before
        for step in self._steps:
            drawn = step.draw(draw)
            found += drawn.values()
            if step.name == "flip":
                draw.mirrored = draw.mirrored ^ _mirrors(drawn)
        return found

    @property
    def argument_types(self) -> list[tuple[Any, int]]:
        """(DALI type, dimensions of a sample) of each of `arrays`."""
        samples = [value[0] for drawn in self._arguments for value in drawn.values()]
        return [
            (getattr(dali.types, _DALI_TYPES[sample.dtype.name]), sample.ndim) for sample in samples
        ]

    def __call__(self, images: Node, arguments: Sequence[Node]) -> Node:
        """Apply every recipe to the images, with the nodes that carry `arrays`."""
        rest = list(arguments)
        for step, drawn in zip(self._steps, self._arguments):
            images = step.apply(images, {name: rest.pop(0) for name in drawn})
        return images


def register_recipe(name: str, recipe: Recipe) -> None:
    """Make a recipe of your own known by name to data.augment.

    The same functions defined again, as where a configuration file runs twice, take their own
    place. They are tried out on three positions.

    Raises UserError for a name that is another recipe's or holds a colon, for draws that are no
    arrays with an entry an image, of a type that DALI takes, and for those that `apply` does not
    take.
    """
    if not (isinstance(recipe, Recipe) and all(map(inspect.isfunction, recipe[:2]))):
        raise UserError(
            f"recipe {name!r}: found {recipe!r}, expected Recipe(draw, apply) of two functions"
        )
    known = RECIPES.get(name)
    if known and _origin(known) != _origin(recipe):
        raise UserError(f"there is a recipe {name!r} already: choose another name")
    if not name or ":" in name:
        raise UserError(f"recipe {name!r}: expected a name without a colon")
    drawn = recipe.draw(Draw(np.arange(3), seed=0, epoch=0, size=112))
    if not isinstance(drawn, Mapping):
        raise UserError(
            f"recipe {name!r} draws a {type(drawn).__name__}, expected a dictionary from each "
            "argument of its apply(images, …) to what is drawn for it"
        )
    for argument, values in drawn.items():
        one_each = isinstance(values, (list, np.ndarray)) and len(values) == 3
        if not one_each or any(np.asarray(value).dtype.name not in _DALI_TYPES for value in values):
            raise UserError(
                f"recipe {name!r} draws {argument}={values!r} for three images: expected three "
                f"values or arrays of {', '.join(_DALI_TYPES)}, such as draw(...).astype('float32')"
            )
    try:
        inspect.signature(recipe.apply).bind(None, **drawn)
    except TypeError as error:
        raise UserError(
            f"recipe {name!r} draws {', '.join(drawn)}, and its apply(images, …) does not take "
            f"that: {error}"
        ) from error
    RECIPES[name] = recipe
    OWN_RECIPES[name] = sys._getframe(1).f_code.co_filename


def _origin(recipe: Recipe) -> list[tuple[str, str]]:
    return [(part.__module__, part.__qualname__) for part in recipe[:2]]


def _mirrors(drawn: Mapping[str, Any]) -> np.ndarray:
    """(B,) bool: which images a flip mirrors by its arguments."""
    return (drawn["mirror"] == 1) & drawn.get("applied", True)


def _parse(entry: str, entries: Sequence[str]) -> _Step:
    name, colon, number = entry.partition(":")
    if name not in RECIPES:
        known = f"{sorted(RECIPES)}, or what register_recipe() made known: see docs/extending.md"
        raise _refusal(entries, f"{entry!r} is none: each recipe once, of {known}")
    try:
        probability = float(number) if colon else 1.0
    except ValueError:
        probability = 0.0
    if not 0 < probability <= 1:
        raise _refusal(
            entries, f"{entry!r}: expected {name} or {name}:P with a probability P in (0, 1]"
        )
    return _Step(name, RECIPES[name], probability)


def _check_landmarks(steps: Sequence[_Step], entries: Sequence[str]) -> None:
    moved = ""
    for step in steps:
        if moved and "landmarks" in step.recipe.needs:
            raise _refusal(
                entries, f"{step.name} reads landmarks, expected before {moved}, which moves them"
            )
        moved = step.name if step.recipe.moves else moved


def _refusal(entries: Sequence[str], why: str) -> UserError:
    return UserError(f"augment={list(entries)}: {why}")
