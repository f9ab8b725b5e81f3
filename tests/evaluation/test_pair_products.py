"""Products of pairs, block by block, are those of the pairs all at once."""

import numpy as np
import pytest

from evaluation.pair_products import pair_products


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [0, 1, 1024, 5000])
def test_blocks_change_no_bit(dtype, count):
    random = np.random.default_rng(0)
    ours, theirs = (random.standard_normal((n, 33)).astype(dtype) for n in (40, 60))
    left, right = random.integers(0, 40, count), random.integers(0, 60, count)
    found = pair_products((ours, left), (theirs, right), threads=3)
    rows = ours[left].astype(np.float32), theirs[right].astype(np.float32)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.einsum("pd,pd->p", *rows))
