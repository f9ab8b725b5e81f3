"""Damage of every kind: a .rec either is refused with a reason, or loses what was touched only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.records.index import RecordIndex
from pipeline.records.recordio import MAGIC, RecordError, RecordWriter, pack_image
from pipeline.records.scan import scan_rec
from tests.damage import mutate

RECORDS, MUTATIONS = 24, 2000


def write_small(path: Path) -> list[tuple[int, int]]:
    """Images that name their label, one with the magic word; returns each record's (begin, end)."""
    rng = np.random.default_rng(0)
    begins = []
    with RecordWriter(path) as writer:
        begins.append(writer.write(pack_image(b"", [float(RECORDS + 1), RECORDS + 2.0], 0)))
        for number in range(RECORDS):
            name = f"<{number:04}>".encode() * 3
            image = name + rng.bytes(int(rng.integers(20, 90))) + name
            if number == 7:
                image = image.ljust(len(image) + 7 & ~3) + MAGIC.to_bytes(4, "little") + name
            begins.append(writer.write(pack_image(image, float(number), number + 1)))
    ends = [*begins[1:], path.stat().st_size]
    return list(zip(begins, ends))[1:]


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path):
    """No crash, no endless loop, and no intact image with another one's label."""
    path = tmp_path / "train.rec"
    spans = write_small(path)
    whole = scan_rec(path)
    original = {
        bytes(RecordIndex(path, whole.images, whole.summary).image(i)): i for i in range(RECORDS)
    }
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = lost = unnamed = 0
    for _ in range(MUTATIONS):
        damaged, (begin, end) = mutate(data, rng)
        path.write_bytes(damaged)
        try:
            found = scan_rec(path)
        except RecordError as error:
            unnamed += str(path) not in str(error)
            refused += 1
            continue
        index = RecordIndex(path, found.images, found.summary)
        seen = set()
        for i in range(len(index)):
            number = original.get(bytes(index.image(i)))
            if number is None:
                continue  # its own bytes were touched: a decoder's business
            seen.add(number)
            first, last = spans[number]
            # RecordIO has no checksum: a label that was itself overwritten cannot be told.
            if not first <= begin < last and not first < end <= last:
                assert index.records["label"][i] == number
        untouched = {
            number
            for number, (first, last) in enumerate(spans)
            # What stands next to a cut may be joined to it.
            if last <= begin - 8 or first >= end + 8
        }
        if begin >= len(damaged):
            untouched = {number for number in untouched if spans[number][1] <= begin}
        if (end - begin) % 4 and len(damaged) != len(data):
            # Everything behind lies off the multiples of four now.
            untouched = {number for number in untouched if spans[number][1] <= begin}
        missing = untouched - seen
        assert not missing, f"{missing} lost to damage at {begin} to {end}"
        lost += RECORDS - len(seen)
    assert unnamed == 0, "every refusal names the file"
    assert lost > 0
    assert refused < MUTATIONS / 2
