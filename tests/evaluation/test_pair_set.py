from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.pair_set import PairSetError, UnsafePickleError, read_bin, write_bin

IMAGES = [b"\xff\xd8 first \x00\x80", b"\xff\xd8 second", b"\x89PNG third", b"\xff\xd8 fourth"]
SAME = [True, False]

Writer = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def write(content: object, protocol: int = 4) -> Path:
        path = tmp_path / "set.bin"
        path.write_bytes(
            content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
        )
        return path

    return write


def assert_is_the_set(path: Path) -> None:
    pairs = read_bin(path)
    assert pairs.images == IMAGES
    assert all(type(image) is bytes for image in pairs.images)
    assert pairs.same.dtype == np.bool_
    assert pairs.same.tolist() == SAME


def test_what_is_written_is_read_back_and_loads_as_the_plain_pickle_it_is(tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    write_bin(path, IMAGES, np.array(SAME))
    assert_is_the_set(path)
    assert pickle.loads(path.read_bytes()) == (IMAGES, SAME)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, SAME),
        [tuple(IMAGES), [1, 0]],
        ([bytearray(image) for image in IMAGES], SAME),
        ([np.frombuffer(image, np.uint8) for image in IMAGES], np.array(SAME)),
        ([np.frombuffer(image, np.uint8).reshape(-1, 1).copy() for image in IMAGES], SAME),
        (IMAGES, [np.bool_(value) for value in SAME]),
        (IMAGES, np.array(SAME, dtype=">i8")),
        (IMAGES, [np.int32(value) for value in SAME]),
    ],
    ids=["bytes", "swapped", "bytearrays", "arrays", "columns", "numpy bools", ">i8", "ints"],
)
def test_every_usual_content_reads_from_every_protocol(
    write: Writer, content: object, protocol: int
) -> None:
    assert_is_the_set(write(content, protocol))


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_numpy_1_and_2_names_are_both_known(write: Writer, module: bytes) -> None:
    content = ([np.frombuffer(image, np.uint8) for image in IMAGES], SAME)
    written = pickle.dumps(content, protocol=2)
    ours = b"numpy._core" if b"numpy._core" in written else b"numpy.core"
    assert_is_the_set(write(written.replace(ours, module)))


def python2_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text  # BINSTRING, which Python 3 never writes


def python2_array(image: bytes) -> bytes:
    """A uint8 array as Python 2 and numpy 1 pickle it, opcode by opcode."""
    dtype = (
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    length = b"M" + struct.pack("<H", len(image))
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return empty + b"(K\x01(" + length + b"t" + dtype + b"\x89" + python2_string(image) + b"tb"


@pytest.mark.parametrize("encode", [python2_string, python2_array])
def test_files_of_python_2_are_read(write: Writer, encode: Callable[[bytes], bytes]) -> None:
    images = b"](" + b"".join(encode(image) for image in IMAGES) + b"e"
    assert_is_the_set(write(b"\x80\x02" + images + b"](\x88\x89e\x86."))


class Call:
    """Pickles as a call of `function`, as a malicious file would."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def hidden_in_an_image(attack: Call) -> object:
    return [attack, *IMAGES[1:]], SAME


def hidden_in_an_object_array(attack: Call) -> object:
    images = np.empty(4, dtype=object)
    images[:] = [attack, *IMAGES[1:]]
    return images, SAME


@pytest.mark.parametrize(
    "hide", [lambda attack: attack, hidden_in_an_image, hidden_in_an_object_array]
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["os.system", "eval", "exec"])
def test_a_malicious_pickle_is_refused_and_does_not_run(
    write: Writer, tmp_path: Path, kind: str, protocol: int, hide: Callable[[Call], object]
) -> None:
    mark = tmp_path / "it ran"
    attack = {
        "os.system": Call(os.system, f"touch '{mark}'"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w').close()"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w').close()"),
    }[kind]
    path = write(hide(attack), protocol)
    with pytest.raises(UnsafePickleError, match=r"set\.bin: "):
        read_bin(path)
    assert not mark.exists()

    pickle.loads(path.read_bytes())
    assert mark.exists(), "the attack is no attack: this test proves nothing"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("codecs", "decode"),
        ("_codecs", "decode"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core.multiarray", "fromfile"),
        ("functools", "partial"),
        ("evaluation.pair_set", "write_bin"),
    ],
)
def test_every_other_name_is_refused_and_named(write: Writer, module: str, name: str) -> None:
    names = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    for asking in (b"\x80\x04" + b"".join(names) + b"\x93.", f"c{module}\n{name}\n.".encode()):
        with pytest.raises(UnsafePickleError, match=f"asks for {module}.{name}"):
            read_bin(write(asking))


def test_text_is_never_encoded_but_as_latin1(write: Writer) -> None:
    """Other codecs compress, import and what not."""
    with pytest.raises(UnsafePickleError, match="zlib"):
        read_bin(write(b"\x80\x02c_codecs\nencode\nU\x01aX\x04\x00\x00\x00zlib\x86R."))


@pytest.mark.parametrize("dtype", ["O", "S8", "f4", "datetime64[s]", "u1,O"])
def test_arrays_of_other_than_plain_integers_are_refused(write: Writer, dtype: str) -> None:
    content = ([np.zeros(4, dtype=dtype)] * 4, SAME)
    with pytest.raises(UnsafePickleError, match="dtype"):
        read_bin(write(content))


def test_what_a_dtype_claims_beyond_its_byte_order_is_ignored(write: Writer) -> None:
    """Given fields that hold objects, numpy's own unpickling would take bytes for pointers."""
    genuine = b"U\x01|NNN"
    objects = b"U\x01|N(U\x01at}U\x01a(cnumpy\ndtype\n(U\x02u1K\x00K\x01tRK\x00ts"
    forged = [python2_array(image).replace(genuine, objects, 1) for image in IMAGES]
    assert all(objects in array for array in forged)
    assert_is_the_set(write(b"\x80\x02](" + b"".join(forged) + b"e](\x88\x89e\x86."))


def test_a_refused_file_leaves_the_reader_as_it_was(write: Writer) -> None:
    """A pickle can set attributes of what it was handed; the next file must not notice."""
    poison = (
        b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__U\x04evilU\x04utf8\x86s\x86b."
    )
    with pytest.raises(PairSetError):
        read_bin(write(poison))
    assert_is_the_set(write(([bytearray(image) for image in IMAGES], SAME), 2))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ((IMAGES[:3], SAME), "3 images and 2 truth values"),
        ((IMAGES, [True]), "4 images and 1 truth values"),
        (([], []), "0 images"),
        ({"images": IMAGES}, r"a dict, not the expected pair \(images, same\)"),
        ((IMAGES, SAME, 1), "a tuple, not the expected pair"),
        ((b"abcd", SAME), "its images are a bytes"),
        ((IMAGES, b"\x01\x00"), "its truth values are a bytes"),
        (([*IMAGES[:3], "text"], SAME), "image 3 is of type str"),
        (([b"", *IMAGES[1:]], SAME), "image 0 is empty"),
        (([np.zeros(0, np.uint8), *IMAGES[1:]], SAME), "image 0 is empty"),
        ((IMAGES, np.array(True)), "its truth values are a bool"),
        (
            ([np.zeros((112, 112, 3), np.uint8), *IMAGES[1:]], SAME),
            r"image 0 is of type uint8 array of shape \(112,",
        ),
        (([np.zeros(9, np.int16), *IMAGES[1:]], SAME), "image 0 is of type int16 array"),
        ((IMAGES, [True, 2]), "truth value 1 is 2"),
        ((IMAGES, [True, None]), "truth value 1 is None"),
    ],
)
def test_wrong_contents_are_named(write: Writer, content: object, complaint: str) -> None:
    with pytest.raises(PairSetError, match=rf"set\.bin: .*{complaint}"):
        read_bin(write(content))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"not a pickle at all", pickle.dumps((IMAGES, SAME))[:-5], b"\x80\x04N0."],
    ids=["empty", "one byte", "text", "truncated", "pops too much"],
)
def test_a_damaged_file_is_named_with_its_size(write: Writer, content: bytes) -> None:
    with pytest.raises(PairSetError, match=rf"set\.bin: not a whole .*\({len(content)} bytes"):
        read_bin(write(content))


def test_every_truncation_of_a_file_is_an_error(write: Writer) -> None:
    whole = pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES], SAME), protocol=2)
    for length in range(len(whole)):
        with pytest.raises(PairSetError):
            read_bin(write(whole[:length]))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "lfw.bin", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(PairSetError, match=reason):
            read_bin(path)


def test_writing_checks_what_reading_would(tmp_path: Path) -> None:
    with pytest.raises(PairSetError, match="3 images and 2 truth values"):
        write_bin(tmp_path / "set.bin", IMAGES[:3], SAME)
    assert not (tmp_path / "set.bin").exists()
