"""How many planted copies of test images the leak check finds, and how fast it is:

    python benchmarks/overlap.py ../shared/data/faces_lfw_dev

Each image of lfw_dev_val.bin is planted into the training set in twelve forms; recall is counted by
form, and pairs that were not planted are named. The rate is that of a pass over the training set,
repeated to many records, against one test image (reading, digests, sketches) and against 12,000
(with the comparison): crops of the test images in random noise, of which as many differ as of
LFW's, or all. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, medians, save, show, take_turns
from evaluation.images import Images, encoded_images
from evaluation.leaks.copies import find_copies
from evaluation.pair_set import read_bin
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.recordio import RecordWriter, pack_image

SIDE, DEEP = 112, 4  # pixels of an image, and of a crop's edge
TESTS, DIFFERENT, TRAIN = 12_000, 7_701, 5_000_000  # what the rate is stated for: LFW's images

Form = Callable[[np.ndarray, np.random.Generator], bytes]


def encode(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def crop(pixels: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    return pixels[top : SIDE - bottom, left : SIDE - right]


def scaled(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def corner(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    x, y = random.integers(0, 2, 2) * DEEP
    return crop(pixels, x, y, DEEP - x, DEEP - y)


def anywhere(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    x, y = random.integers(0, DEEP + 1, 2)
    return crop(pixels, x, y, DEEP - x, DEEP - y)


def encoded_again(quality: int) -> Form:
    return lambda pixels, _: encode(pixels, quality)


def on_all_sides(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return crop(pixels, DEEP, DEEP, DEEP, DEEP)


def turned(pixels: np.ndarray, random: np.random.Generator) -> bytes:
    image = Image.fromarray(pixels).rotate(random.uniform(-4, 4), Image.Resampling.BILINEAR)
    return encode(np.asarray(image), 90)


FORMS: dict[str, Form] = {
    **{f"encoded again, quality {q}": encoded_again(q) for q in (30, 50, 75, 95)},
    "cropped by 4 on all sides, scaled": lambda p, r: encode(scaled(on_all_sides(p, r)), 90),
    "cropped by 4 on all sides": lambda p, r: encode(on_all_sides(p, r), 90),
    "cropped by 4 at a corner, scaled": lambda p, r: encode(scaled(corner(p, r)), 90),
    "cropped by 4 at a corner": lambda p, r: encode(corner(p, r), 90),
    "cropped by 4 anywhere, scaled": lambda p, r: encode(scaled(anywhere(p, r)), 90),
    "mirrored": lambda p, _: encode(p[:, ::-1], 90),
    "mirrored, cropped, quality 50": lambda p, r: encode(scaled(corner(p[:, ::-1], r)), 50),
    "turned by up to 4 degrees": turned,
}


def write_rec(path: Path, images: Sequence[bytes], *, records: int | None = None) -> RecordIndex:
    """The images, from the start again until there are so many records."""
    count = records or len(images)
    with RecordWriter(path) as writer:
        for number, image in enumerate(itertools.islice(itertools.cycle(images), count)):
            writer.write(pack_image(image, 0.0, number))
    return open_index(path)


def as_images(encoded: Sequence[bytes]) -> Images:
    names = [f"image {place}" for place in range(len(encoded))]
    return encoded_images(encoded, names=names, size=SIDE)


def decode(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def recall(folder: Path, train: Sequence[bytes], tests: Sequence[bytes]) -> dict[str, Any]:
    """Of every form the share that was found, and the pairs that nobody planted."""
    random = np.random.default_rng(0)
    pixels = [decode(image) for image in tests]
    planted = [form(one, random) for form in FORMS.values() for one in pixels]
    index = write_rec(folder / "planted.rec", [*train, *planted])
    found = {
        (one.record - len(train), one.place)
        for one in find_copies(index, {"": as_images(tests)}).found
    }
    shares = {
        name: float(np.mean([(number * len(tests) + k, k) in found for k in range(len(tests))]))
        for number, name in enumerate(FORMS)
    }
    others = sorted(
        {
            ("training image" if place < 0 else f"copy of test image {place % len(tests)}", test)
            for place, test in found
            if place < 0 or place % len(tests) != test
        }
    )
    return {"planted": len(planted), "recall": shares, "not_planted": others}


def rate(
    folder: Path,
    train: Sequence[bytes],
    tests: Sequence[bytes],
    *,
    records: int,
    rounds: int,
    threads: int,
) -> dict[str, float]:
    """Seconds an image of the training set, by the number of test images."""
    random = np.random.default_rng(1)
    pixels = [decode(image) for image in tests]
    noise = random.normal(0, 3, (SIDE, SIDE, 3))

    def another(face: np.ndarray) -> bytes:
        noisy = np.clip(scaled(anywhere(face, random)) + noise, 0, 255).astype(np.uint8)
        return encode(noisy, int(random.integers(60, 95)))

    many = [another(pixels[k % len(pixels)]) for k in range(TESTS)]
    sets = {
        "1": many[:1],
        f"{TESTS:,}, of which {DIFFERENT:,} differ": [many[k % DIFFERENT] for k in range(TESTS)],
        f"{TESTS:,}, all of which differ": many,
    }
    # What a pass costs before its first image is the same in a short one.
    passes = [
        write_rec(folder / f"{count}.rec", train, records=count)
        for count in (records // 10, records)
    ]
    seconds = {}
    for name, tested in sets.items():
        ways = {
            str(len(index)): partial(find_copies, index, {"": as_images(tested)}, threads=threads)
            for index in passes
        }
        short, whole = medians(take_turns(ways, rounds=rounds, warm_up=0)).values()
        seconds[name] = (whole - short) / (len(passes[1]) - len(passes[0]))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("faces", type=Path, help="a folder with train.rec and lfw_dev_val.bin")
    parser.add_argument("--records", type=int, default=100_000, help="of the pass that is timed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    index = open_index(arguments.faces)
    train = [bytes(index.image(k)) for k in range(len(index))]
    tests = list(dict.fromkeys(read_bin(arguments.faces / "lfw_dev_val.bin").images))
    with tempfile.TemporaryDirectory() as folder:
        found = recall(Path(folder), train, tests)
        seconds = rate(
            Path(folder),
            train,
            tests,
            records=arguments.records,
            rounds=arguments.rounds,
            threads=arguments.threads,
        )
    show(("planted", "found"), [(name, f"{share:.1%}") for name, share in found["recall"].items()])
    print(f"not planted   {found['not_planted']}")
    show(
        ("test images", "µs an image", f"minutes for {TRAIN:,}"),
        [
            (against, f"{taken * 1e6:.0f}", f"{taken * TRAIN / 60:.1f}")
            for against, taken in seconds.items()
        ],
    )
    about = about_cpu() | {
        "records": arguments.records,
        "threads": arguments.threads,
        "train_images": len(train),
        "test_images": len(tests),
    }
    save("overlap", about, **found, seconds_an_image=seconds)


if __name__ == "__main__":
    main()
