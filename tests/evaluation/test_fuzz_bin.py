"""Damage in a verification set is refused by name, never a trace, and nothing in it runs."""

from __future__ import annotations

import numpy as np

from evaluation.pair_set import PairSetError, read_bin, write_bin
from tests.damage import assert_refused_by_name, of_bytes


def test_a_damaged_verification_set_is_refused_by_name(tmp_path):
    path = tmp_path / "lfw.bin"
    rng = np.random.default_rng(0)
    write_bin(path, [rng.bytes(40) for _ in range(8)], [True, False, True, False])
    mutations = of_bytes(path.read_bytes(), count=600)

    def read() -> None:
        pairs = read_bin(path)
        assert len(pairs.images) == 2 * len(pairs.same)

    assert_refused_by_name(path, mutations, read, PairSetError)
