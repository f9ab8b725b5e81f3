"""InsightFace's verification sets (lfw.bin, cfp_fp.bin, agedb_30.bin, ...), read safely.

A .bin file is a pickle of ``(images, same)``: 2P encoded images, pair after pair, and P truth
values. Such files pass from hand to hand and a pickle can run any program when it is loaded, so
the reader knows the handful of names those files need, answers them with its own stand-ins, and
refuses every other. numpy's own unpickling never runs: a forged dtype can make it take bytes for
pointers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facestream import UserError
from pipeline.named_path import PathError, check_path, mendable
from pipeline.whole_file import write_whole


class PairSetError(UserError):
    """A .bin file that cannot be read as a verification set: says which, why, and how to mend."""


class UnsafePickleError(PairSetError):
    """A .bin file whose pickle asks for something that no verification set needs."""


@dataclass(frozen=True)
class PairSet:
    """P pairs of faces.

    Attributes:
        images: 2P encoded images (JPEG or PNG); pair i is images[2i] and images[2i + 1].
        same: (P,) bool, whether pair i shows one person.
    """

    images: list[bytes]
    same: np.ndarray


def read_bin(path: str | Path) -> PairSet:
    """Read a verification set in InsightFace's .bin format, pickled by Python 2 or 3.

    Images may be bytes or uint8 arrays; the truth values a list or an array of bools or 0 and 1.

    Raises:
        UnsafePickleError: the pickle names anything else than bytes and plain numpy arrays.
        PairSetError: no such file, or not a whole and consistent verification set.
    """
    path = Path(path)
    try:
        check_path(path, called=str(path), expected="a verification set such as lfw.bin")
    except PathError as error:
        raise PairSetError(str(error)) from error
    try:
        return _pair_set(_load(path))
    except PairSetError as error:
        raise type(error)(f"{path}: {error}") from error


def write_bin(path: str | Path, images: Sequence[bytes], same: Iterable[bool]) -> None:
    """Write 2P encoded images and P truth values so that `read_bin` and InsightFace read them.

    Raises:
        PairSetError: the numbers of images and truth values do not fit, or one is malformed.
    """
    pairs = _pair_set((list(images), list(same)))
    write_whole(Path(path), pickle.dumps((pairs.images, pairs.same.tolist()), protocol=4))


class _Dtype:
    """Stands in for numpy.dtype in a pickle: plain truth values and integers only."""

    def __init__(self, code: str | bytes, *_align_and_copy: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if text not in ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
            raise UnsafePickleError(
                f"it holds a numpy array of dtype {text!r}; only plain bools and integers are "
                "read. Pack the set again with its images as bytes"
            )
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        # (version, byte order, ...): the rest describes structured types, which are not read.
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray in a pickle; `value` is the real one, once its state is set."""

    value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran_order, data = state
        self.value = _frombuffer(data, dtype, shape, fortran_order).value


def _reconstruct(_kind: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple, _order: object) -> _Array:
    array = _Array()
    # The order is of no account: only arrays of a single row or column are taken in the end.
    array.value = np.frombuffer(data, dtype.dtype).reshape(shape)
    return array


def _scalar(dtype: _Dtype, data: bytes) -> int:
    return int(np.frombuffer(data, dtype.dtype)[0])


def _as_bytes(text: str | bytes = b"", encoding: str | bytes = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise UnsafePickleError(f"it asks for the text encoding {encoding!r}, not latin1")
    return text.encode("latin1") if isinstance(text, str) else bytes(memoryview(text))


# All that pickles of bytes, bytearrays and numpy arrays name, under Python 2 and 3, numpy 1 and 2.
_STAND_INS: dict[tuple[str, str], Callable[..., object]] = {
    ("_codecs", "encode"): _as_bytes,
    ("builtins", "bytes"): _as_bytes,
    ("builtins", "bytearray"): _as_bytes,
    ("__builtin__", "bytes"): _as_bytes,
    ("__builtin__", "bytearray"): _as_bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _STAND_INS:
            raise UnsafePickleError(
                f"its pickle asks for {module}.{name}, which no verification set needs and which "
                "could run anything; nothing was run. Do not load this file with pickle: get it "
                "from its source again, or pack it again with its images as bytes"
            )
        stand_in = _STAND_INS[module, name]
        # A pickle can set attributes of what it is handed: let that be gone with this closure.
        return lambda *arguments: stand_in(*arguments)


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            # Python 2's strings are the encoded images: they must come through as bytes.
            return _Unpickler(file, encoding="bytes").load()
    except PairSetError:
        raise
    except OSError as error:
        raise PairSetError(f"cannot be read: {mendable(error) or error}") from error
    except Exception as error:  # garbled bytes make the unpickler fail in any way it can
        raise PairSetError(
            f"not a whole verification set ({path.stat().st_size:,} bytes; "
            f"{type(error).__name__}: {error}). Expected a pickle of (images, same): download or "
            "pack the file again"
        ) from error


def _pair_set(content: object) -> PairSet:
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise PairSetError(
            f"it holds a {type(content).__name__}, not the expected pair (images, same)"
        )
    images, same = (part.value.tolist() if isinstance(part, _Array) else part for part in content)
    for name, part in (("images", images), ("truth values", same)):
        if not isinstance(part, (list, tuple)):
            raise PairSetError(f"its {name} are a {type(part).__name__}, not the expected list")
    if len(images) != 2 * len(same) or len(same) == 0:
        raise PairSetError(
            f"it holds {len(images)} images and {len(same)} truth values; expected two images for "
            "each truth value, and at least one pair"
        )
    return PairSet(
        images=[_encoded_image(image, i) for i, image in enumerate(images)],
        same=np.array([_truth(value, i) for i, value in enumerate(same)], dtype=bool),
    )


def _encoded_image(image: object, position: int) -> bytes:
    if isinstance(image, _Array):
        image = image.value
    found = type(image).__name__
    if isinstance(image, np.ndarray):
        found = f"{image.dtype} array of shape {image.shape}"
        if image.dtype == np.uint8 and image.size == max(image.shape, default=0):
            image = image.tobytes()  # (L,), or (L, 1) as OpenCV encodes
    if not isinstance(image, (bytes, bytearray)):
        raise PairSetError(
            f"image {position} is of type {found}; expected the bytes of an encoded image (JPEG "
            "or PNG), or a one-dimensional uint8 array of them"
        )
    if len(image) == 0:
        raise PairSetError(f"image {position} is empty; expected an encoded image (JPEG or PNG)")
    return bytes(image)


def _truth(value: object, position: int) -> bool:
    if not isinstance(value, (bool, int, np.bool_, np.integer)) or value not in (0, 1):
        raise PairSetError(f"truth value {position} is {value!r}; expected True or False, 1 or 0")
    return bool(value)
