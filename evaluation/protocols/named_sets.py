"""The test sets of one evaluation: checked before any is embedded, asked for their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from evaluation.images import Faces
from evaluation.leaks.overlap import Overlap
from evaluation.protocols.protocol import Asked, TestSet
from evaluation.protocols.sets import SetError, open_set, split_degradations
from facestream import UserError

CLEAN = " without leaks"  # after the name of a set that images are left out of


class NamedSets:
    """Test sets by name, opened when they are needed: they may be large.

    Args:
        specs: as open_set takes them.
        sizes: of the models' images: each set is opened once in each, so that an error comes before
            anything is embedded.
        seed: of all that is drawn.
        asked: what results are to hold: known to fit before anything is embedded.
        faces: what finds the faces in photographs.

    Raises:
        UserError: a set that cannot be opened, or two of one name, or what a set cannot show.
    """

    def __init__(
        self,
        specs: Sequence[str],
        *,
        sizes: Iterable[int],
        seed: int,
        asked: Asked,
        faces: Faces | None = None,
    ) -> None:
        self._seed, self._faces, self._sizes = seed, faces, sorted(set(sizes))
        self._opened: dict[str, TestSet] = {}
        self._opened_in = 0  # pixels
        self._shown: tuple[TestSet, dict[str, int]] | None = None
        self._specs: dict[str, str] = {}
        for spec in dict.fromkeys(specs):
            for size in self._sizes:
                name = self._name(spec, size, asked)
                if self._specs.setdefault(name, spec) != spec:
                    raise SetError(
                        f"{spec} and {self._specs[name]} are both called {name}: rename one"
                    )

    @property
    def openers(self) -> list[Callable[[int], TestSet]]:
        """Of each set: a size of images to the set in it."""
        return [partial(self._open, spec) for spec in self._specs.values()]

    def leaked(self, overlap: Overlap) -> dict[str, frozenset[str]]:
        """By the name of a set, degraded or not, the names of its images that were found.

        Raises:
            OverlapError: a set that the leak check was not of.
        """
        size = self._sizes[0]
        return {
            name: overlap.names_in(self._open(split_degradations(spec)[0], size).images)
            for name, spec in self._specs.items()
        }

    def picture(self, name: str, image: str) -> bytes | None:
        """An image of a set, by names, as a network sees it."""
        test_set, places = self._largest(name.removesuffix(CLEAN))
        return test_set.images.picture(places[image]) if image in places else None

    def _name(self, spec: str, size: int, asked: Asked) -> str:
        """Of a set that can show what is asked."""
        found = self._open(spec, size)
        try:
            found.check(asked)
        except UserError as error:
            raise UserError(f"{found.name}: {error}") from error
        return found.name

    def _open(self, spec: str, size: int) -> TestSet:
        """The last one is kept, for degraded ones of it, too: where one is, it is read once."""
        if split_degradations(spec)[0] not in self._opened or size != self._opened_in:
            self._opened, self._opened_in = {}, size  # two large ones need not fit into memory
        return open_set(
            spec, image_size=size, seed=self._seed, faces=self._faces, shared=self._opened
        )

    def _largest(self, name: str) -> tuple[TestSet, dict[str, int]]:
        """The set as the model of the largest images sees it, the last one kept open."""
        if self._shown is None or self._shown[0].name != name:
            test_set = self._open(self._specs[name], self._sizes[-1])
            places = {image: place for place, image in enumerate(test_set.images.names)}
            self._shown = test_set, places
        return self._shown
