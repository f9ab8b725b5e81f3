"""What pack_rec looks at, and changes if asked, while images pass from their source to the .rec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from facestream import UserError
from pipeline.ahead import map_ahead
from pipeline.faces.crops import Crop, CropError, Cropper, decoded
from pipeline.passed_over import Passed, PassedOver
from pipeline.photos import encode
from pipeline.records.image_kind import UNUSUAL, image_kind, to_baseline
from pipeline.records.recordio import RecordError
from pipeline.records.write_set import Sizes
from tools.sources.cropping import CropCounts
from tools.sources.reshape import ReshapeError, reshape
from tools.sources.sample import Identity

_SIZES_SHOWN = 3


class Inspection:
    """Counts the kinds of images on their way, and remembers the first place of each.

    Args:
        passed_over: gets the images that cannot be cropped, resized or re-encoded.
        normalise: re-encode unusual JPEGs.
        crop, resize: pixels, as for `reshape`; None: as they are.
        cropper: makes crops of photographs; None: they are crops.
    """

    def __init__(
        self,
        passed_over: PassedOver,
        *,
        normalise: bool = False,
        crop: int | None = None,
        resize: int | None = None,
        cropper: Cropper | None = None,
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.names: list[str] = []
        self._reshaped = 0
        self._passed_over, self._normalise = passed_over, normalise
        self._crop, self._resize = crop, resize
        self._cropper, self._cropped = cropper, CropCounts()

    def watch(self, identities: Iterable[Identity]) -> Iterator[list[bytes]]:
        """The images of each identity, reshaped and made baseline JPEGs if asked; on all cores."""
        for identity, kinds, reshaped, passed, crops in map_ahead(self._inspect, identities):
            for one in passed:
                self._passed_over.add(one)
            for place, crop in crops:
                self._cropped.add(place, crop)
            if not identity.images:
                continue
            self.names.append(identity.name)
            self.kinds.update(kinds)
            self._reshaped += reshaped
            for kind, place in zip(kinds, identity.places):
                self.first.setdefault(kind, place)
            yield identity.images
        if not self.names and self._passed_over.counts:
            raise RecordError(f"no image is left to pack: {'; '.join(self._passed_over.lines())}")

    def _inspect(
        self, identity: Identity
    ) -> tuple[Identity, list[str], int, list[Passed], list[tuple[str, Crop]]]:
        reshaped, passed, crops = 0, [], []
        if self._cropper:
            identity, crops, passed = self._crops(identity, self._cropper)
        elif self._crop or self._resize:
            identity, reshaped, passed = self._reshape(identity)
        kinds = [image_kind(image) for image in identity.images]
        if self._normalise:
            identity, kinds, damaged = self._make_baseline(identity, kinds)
            passed += damaged
        return identity, kinds, reshaped, passed, crops

    def _make_baseline(
        self, identity: Identity, kinds: list[str]
    ) -> tuple[Identity, list[str], list[Passed]]:
        """The images with unusual JPEGs re-encoded, their kinds, and what cannot be decoded."""
        left, kept, passed = Identity(identity.name, [], []), [], []
        for image, place, kind in zip(identity.images, identity.places, kinds):
            try:
                left.images.append(to_baseline(image) if kind in UNUSUAL else image)
            except UserError:
                passed.append(Passed(f"{kind} that cannot be decoded", place))
                continue
            left.places.append(place)
            kept.append(kind)
        return left, kept, passed

    def _crops(
        self, identity: Identity, cropper: Cropper
    ) -> tuple[Identity, list[tuple[str, Crop]], list[Passed]]:
        """The crops of photographs, encoded; each with its place; and what has none."""
        left, crops, passed = Identity(identity.name, [], []), [], []
        for image, place in zip(identity.images, identity.places):
            try:
                crop = cropper(decoded(image), place)
            except CropError as error:
                passed.append(Passed(str(error), place))
                continue
            left.images.append(encode(crop.pixels, jpeg=bytes(image[:2]) == b"\xff\xd8"))
            left.places.append(place)
            crops.append((place, crop))
        return left, crops, passed

    def _reshape(self, identity: Identity) -> tuple[Identity, int, list[Passed]]:
        """Of what is left; how many images are others now; and what cannot be packed."""
        left, reshaped, passed = Identity(identity.name, [], []), 0, []
        for image, place in zip(identity.images, identity.places):
            try:
                made = reshape(image, crop=self._crop, resize=self._resize)
            except ReshapeError as error:
                passed.append(Passed(str(error), place))
                continue
            left.images.append(made)
            left.places.append(place)
            reshaped += made is not image
        return left, reshaped, passed

    def lines(self, sizes: Sizes) -> list[str]:
        """What was found. sizes: of what was packed."""
        lines = [
            "images        " + ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        ]
        done = "kept as they are; they decode slower, --normalise re-encodes them"
        if self._normalise:
            done = "re-encoded as baseline"
        lines += [
            f"{kind:<18}{self.kinds[kind]}, first {self.first[kind]}: {done}"
            for kind in UNUSUAL
            if self.kinds[kind]
        ]
        if self.kinds["unknown"]:
            lines.append(
                f"unknown           {self.kinds['unknown']}, first {self.first['unknown']}: "
                "check them with `python tools/rec2idx.py --verify`"
            )
        lines += self._cropped.lines()
        if self._reshaped:
            lines.append(f"reshaped      {self._reshaped}")
        return lines + [f"sizes         {line}" for line in about_sizes(sizes)]


def about_sizes(sizes: Sizes) -> list[str]:
    """How large images are, and what is to be done where training does not take them as they are.

    Args:
        sizes: how many images are (height, width) pixels.
    """
    if not sizes:
        return []
    shown = ", ".join(f"{n} of {w} x {h}" for (h, w), n in sizes.most_common(_SIZES_SHOWN))
    more = len(sizes) - _SIZES_SHOWN
    lines = [shown + (f", and {more} other sizes" if more > 0 else "")]
    (height, width), _ = sizes.most_common(1)[0]
    if len(sizes) > 1 or height != width or height % 16:
        lines.append(
            "training takes square images of one size, a multiple of 16. Pack them again with "
            "--resize 112 (the shorter side is scaled, the middle of the longer one taken), with "
            "--crop 112 (the middle is taken, nothing scaled), or with both, which crops first"
        )
    elif height != 112:
        lines.append(f"train on them with data.image_size={height}, or pack with --resize 112")
    return lines
