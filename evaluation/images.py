"""The images of a test set, by place: what the embedding loop loads and reports show."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.embedding import Load, decoder
from facestream import UserError
from pipeline.align import LandmarkError, align
from pipeline.faces.crops import CropError, Cropper
from pipeline.named_path import mendable
from pipeline.photos import PhotoError, photo_pixels
from pipeline.records.recordio import RecordError


class ImagesError(UserError):
    """Images of a test set that cannot be used: says which, why, and how to mend it."""


@dataclass(frozen=True)
class Images:
    """N face crops of one size.

    Attributes:
        names: of each, for errors, groups and pictures; unique.
        read: a place to the encoded image as it is stored. Raises RecordError where it cannot be
            read.
        load: places to their pixels and faults; see evaluation/embedding.py. It may do more than
            decode: crop by landmarks, degrade.
        size: height and width of what `load` gives.
        fingerprint: of the images and of all that `load` does: kept embeddings are known by it.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    load: Load
    size: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, place: int) -> bytes | None:
        """The image as the network sees it, as JPEG; None where it is damaged."""
        pixels, faults = self.load(range(place, place + 1))
        if faults:
            return None
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, format="jpeg", quality=90)
        return file.getvalue()


@dataclass(frozen=True)
class Faces:
    """How the faces in photographs are found.

    Attributes:
        cropper: for the photographs of a folder.
        known_by: what finds them, such as a digest of its file.
    """

    cropper: Callable[[Path], Cropper]
    known_by: str


def encoded_images(
    encoded: Sequence[bytes] | Mapping[int, bytes], *, names: Sequence[str], size: int
) -> Images:
    """Images that are in memory; of a rank that embeds a share of them, that share is enough.

    Args:
        encoded: JPEG, PNG and the like, by place.
        names: of all images.
    """
    places = range(len(encoded)) if isinstance(encoded, Sequence) else sorted(encoded)
    digest = hashlib.sha256()
    for place in places:
        digest.update(hashlib.sha256(encoded[place]).digest())

    def read(place: int) -> bytes:
        return bytes(encoded[place])

    return Images(names, read, _decoding(read, size), size, digest.hexdigest())


def stored_images(
    read: Callable[[int], bytes], *, names: Sequence[str], size: int, known_by: str
) -> Images:
    """Images that are read one by one, such as out of an archive.

    Args:
        read: a place to the encoded image; see Images.
        known_by: what changes with any of the images.
    """
    return Images(names, read, _decoding(read, size), size, known_by)


def stored_faces(
    read: Callable[[int], bytes],
    *,
    names: Sequence[str],
    cropper: Cropper,
    found_by: str,
    known_by: str,
) -> Images:
    """Photos that are read one by one, the face in each cropped as it is loaded.

    Args:
        cropper: knows photos by these names.
        found_by: what finds the faces, such as a digest of its file.
        known_by: what changes with any of the photos.
    """

    def crop(photo: np.ndarray, place: int) -> np.ndarray:
        return cropper(photo, names[place]).pixels

    made = f"{known_by} cropped 1 {found_by} {cropper.no_face} {cropper.several}"
    digest = hashlib.sha256(made.encode()).hexdigest()
    return Images(names, read, _making(read, cropper.size, crop), cropper.size, digest)


def image_files(paths: Sequence[Path], *, names: Sequence[str], size: int) -> Images:
    """Images in files of their own, known by name, size and time of change.

    Raises:
        ImagesError: a file that is not there or may not be read.
    """
    read = _reading(paths)
    return Images(names, read, _decoding(read, size), size, _state(paths, names).hexdigest())


def aligned_files(
    paths: Sequence[Path], *, names: Sequence[str], landmarks: np.ndarray, size: int
) -> Images:
    """Photos of any size, each cropped as it is loaded so that its landmarks lie as ArcFace's do.

    Args:
        landmarks: (N, 5, 2) float32, (x, y) in pixels; see pipeline/align.py.

    Raises:
        ImagesError: a file that is not there or may not be read.
    """

    def crop(photo: np.ndarray, place: int) -> np.ndarray:
        return align(photo, landmarks[place], size=size)

    made = b"aligned 1" + np.ascontiguousarray(landmarks, np.float32).tobytes()
    return _photos(paths, names, size, crop, made=made)


def resized_files(paths: Sequence[Path], *, names: Sequence[str], size: int) -> Images:
    """Faces that were cut out, but not aligned: stretched to the size as they are loaded.

    Raises:
        ImagesError: a file that is not there or may not be read.
    """

    def stretch(photo: np.ndarray, _: int) -> np.ndarray:
        return np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.BICUBIC))

    return _photos(paths, names, size, stretch, made=b"resized 1")


def cropped_files(
    paths: Sequence[Path], *, names: Sequence[str], cropper: Cropper, known_by: str
) -> Images:
    """Photos of any size, the face in each cropped as it is loaded; one without a face is damaged.

    Args:
        known_by: what finds the faces, such as a digest of its file.

    Raises:
        ImagesError: a file that is not there or may not be read.
    """

    def crop(photo: np.ndarray, place: int) -> np.ndarray:
        return cropper(photo, paths[place]).pixels

    choices = f"cropped 1 {known_by} {cropper.no_face} {cropper.several}"
    return _photos(paths, names, cropper.size, crop, made=choices.encode())


def require_size(images: Images, places: Sequence[int], *, found_in: str | Path) -> None:
    """Raise ImagesError where the header of one of these images says another size.

    An image that has no header or cannot be read is damaged, as the one who loads it finds.
    """
    for place in places:
        try:
            fault = _size_fault(images.read(place), images.size)
        except RecordError:
            continue
        if fault:
            raise ImagesError(f"{found_in}: image {images.names[place]} {fault}")


def _reading(paths: Sequence[Path]) -> Callable[[int], bytes]:
    def read(place: int) -> bytes:
        try:
            return paths[place].read_bytes()
        except OSError as error:
            raise RecordError(f"cannot be read: {mendable(error) or error}") from error

    return read


def _state(paths: Sequence[Path], names: Sequence[str]) -> hashlib._Hash:
    """What files are known by: it changes with any of them."""
    digest = hashlib.sha256()
    refused = []
    for path, name in zip(paths, names):
        try:
            about = path.stat()
        except OSError as error:
            refused.append(f"{path}: {mendable(error) or error}")
            continue
        digest.update(
            f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    if refused:
        raise ImagesError(f"{len(refused)} of {len(paths)} images cannot be read: {refused[0]}")
    return digest


def _photos(
    paths: Sequence[Path],
    names: Sequence[str],
    size: int,
    make: Callable[[np.ndarray, int], np.ndarray],
    *,
    made: bytes,
) -> Images:
    """Images that `make` makes of a photo and its place; what it raises is the image's fault.

    Args:
        made: what `make` does, for the fingerprint.
    """
    read = _reading(paths)
    known_by = _state(paths, names)
    known_by.update(made)
    return Images(names, read, _making(read, size, make), size, known_by.hexdigest())


def _making(
    read: Callable[[int], bytes], size: int, make: Callable[[np.ndarray, int], np.ndarray]
) -> Load:
    def load(places: range) -> tuple[np.ndarray, dict[int, str]]:
        pixels = np.zeros((len(places), size, size, 3), np.uint8)
        faults = {}
        for row, place in enumerate(places):
            try:
                pixels[row] = make(photo_pixels(read(place)), place)
            except (RecordError, PhotoError, LandmarkError, CropError) as error:
                faults[row] = str(error)
        return pixels, faults

    return load


def _decoding(read: Callable[[int], bytes], size: int) -> Load:
    return decoder(lambda places: [partial(read, place) for place in places], image_size=size)


def _size_fault(encoded: bytes, size: int) -> str:
    """What is wrong with an image by its header; nothing where it has the size."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
    except (OSError, SyntaxError):
        return ""
    except Image.DecompressionBombError as error:
        return f"cannot be read ({error}): pack the set again"
    if (width, height) == (size, size):
        return ""
    return (
        f"has {width}×{height} pixels, not {size}×{size} as the model takes: crop photographs "
        "(tools/align.py), or pack the set again in that size"
    )
