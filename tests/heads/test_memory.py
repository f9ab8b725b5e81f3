"""The head's memory is what was predicted, up to two million classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heads.centers import shard_of
from heads.extra_terms import SampleToSample
from heads.memory import predict_memory
from heads.sampling import AllClasses, RandomClasses

ROOT = Path(__file__).parents[2]
BATCH = 128
FLOAT32 = ("float32", "float32")  # centers and momentum

# A head of its own process: what it holds once built, and at its peak in three steps.
MEASURE = """
import json, sys, torch
from pathlib import Path
from heads import ArcFace, HardNegatives, PartialFC

classes, dim, rate, compute_dtype, centers_dtype, momentum_dtype, place, every = json.loads(
    sys.argv[1]
)
torch.set_num_threads(1)

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def train(head, classes):
    embeddings = torch.randn(128, dim, requires_grad=True)
    labels = torch.randint(0, classes, (128,), generator=torch.Generator().manual_seed(0))
    for ahead in (1, 2):
        head.announce(labels, ahead=ahead)
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.1)
    return loss

def build(classes):
    head = PartialFC(
        classes,
        dim,
        ArcFace(),
        sample_rate=rate,
        hard_negatives=HardNegatives(share=0.5, every=every) if every else None,
        compute_dtype=getattr(torch, compute_dtype),
        centers_dtype=getattr(torch, centers_dtype),
        momentum_dtype=getattr(torch, momentum_dtype or "float32"),
        momentum=0.9 if momentum_dtype else 0.0,
        place=place,
        place_path=".",
    )
    if head.velocity is not None:
        head.velocity.fill_(0)  # zeros take no memory before they are written
    if every:
        head.neighbors.kept.fill_(0)
    return head

train(build(1000), 1000)  # the libraries' own memory
empty = status("VmRSS")
head = build(classes)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
built = status("VmRSS")
for _ in range(3):
    assert torch.isfinite(train(head, classes))
print(json.dumps([built - empty, status("VmHWM") - built]))
"""


def measure(settings: list, *, every: int = 0) -> list[int]:
    """Bytes that a head takes when it is built, and that its steps take beyond them."""
    command = [sys.executable, "-c", MEASURE, json.dumps([*settings, every])]
    return json.loads(subprocess.check_output(command, text=True, cwd=ROOT))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kept_in", [FLOAT32, ("float8_e4m3fn", None)])
def test_rows_kept_elsewhere_take_their_place_for_some_steps(kept_in):
    """Those of the step, of the two that are fetched ahead, and of the one that is written back."""
    held, grown = measure([400_000, 64, 0.3, "float32", *kept_in, "host"])
    predicted = predict_memory(
        shard_of(400_000, rank=0, world_size=1),
        64,
        RandomClasses(0.3),
        global_batch=BATCH,
        centers_dtype=getattr(torch, kept_in[0]),
        momentum=kept_in[1] is not None,
    )
    mebi = 1 << 20
    assert abs(held - predicted.centers - predicted.momentum) < 16 * mebi
    assert grown <= predicted.step + 4 * predicted.rows + 8 * mebi
    assert predicted.step + 4 * predicted.rows <= grown + 96 * mebi


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("classes", "dim", "rate", "compute_dtype", "kept_in"),
    [
        (2_000_000, 16, 1.0, "float32", FLOAT32),
        (2_000_000, 16, 0.1, "bfloat16", FLOAT32),
        (2_000_000, 16, 0.001, "float32", FLOAT32),
        (50_000, 512, 1.0, "bfloat16", FLOAT32),
        (50_000, 512, 1.0, "float32", FLOAT32),
        (100_000, 512, 0.1, "float32", FLOAT32),
        (100_000, 512, 0.3, "bfloat16", ("bfloat16", "bfloat16")),
        (100_000, 512, 0.1, "float32", ("float8_e4m3fn", "bfloat16")),
        (50_000, 512, 1.0, "bfloat16", ("float8_e4m3fn", None)),
    ],
)
def test_a_step_stays_within_the_memory_predicted(classes, dim, rate, compute_dtype, kept_in):
    held, grown = measure([classes, dim, rate, compute_dtype, *kept_in, "device"])
    centers_dtype, momentum_dtype = kept_in
    predicted = predict_memory(
        shard_of(classes, rank=0, world_size=1),
        dim,
        AllClasses() if rate == 1 else RandomClasses(rate),
        global_batch=BATCH,
        compute_dtype=getattr(torch, compute_dtype),
        centers_dtype=getattr(torch, centers_dtype),
        momentum_dtype=getattr(torch, momentum_dtype or "float32"),
        momentum=momentum_dtype is not None,
    )
    mebi = 1 << 20
    assert abs(held - predicted.centers - predicted.momentum) < 16 * mebi
    assert grown <= predicted.step + 8 * mebi
    assert predicted.step <= grown + 64 * mebi, "nor is it a bound that says nothing"
    # The promise of the issue of this head, in its own words.
    assert grown <= 64 * mebi + max(BATCH, round(classes * rate)) * dim * 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tables_of_neighbors_take_what_was_predicted():
    """One piece of 49 at every step."""
    held, grown = measure([50_000, 256, 0.03, "float32", *FLOAT32, "device"], every=49)
    shard = shard_of(50_000, rank=0, world_size=1)
    predicted = predict_memory(*(shard, 256, RandomClasses(0.03)), global_batch=BATCH, neighbors=16)
    mebi = 1 << 20
    assert abs(held - predicted.centers - predicted.momentum - predicted.neighbors) < 8 * mebi
    assert grown <= predicted.step + 8 * mebi
    assert predicted.step <= grown + 64 * mebi


def test_parts_grow_with_what_they_are_for():
    shard = shard_of(1_000_000, rank=3, world_size=4)
    whole = predict_memory(shard, 512, AllClasses(), global_batch=512)
    assert whole.centers == whole.momentum == 250_000 * 512 * 4
    assert whole.total == whole.centers + whole.momentum + whole.step
    tenth = predict_memory(shard, 512, RandomClasses(0.1), global_batch=512)
    half = predict_memory(shard, 512, AllClasses(), global_batch=512, compute_dtype=torch.bfloat16)
    adding = predict_memory(shard, 512, AllClasses(), global_batch=512, adding=True)
    assert tenth.step < half.step < whole.step < adding.step
    pairs = predict_memory(
        *(shard, 512, AllClasses()),
        global_batch=512,
        extra_terms=(SampleToSample(),),
        world_size=4,
    )
    assert pairs.step - whole.step == 6 * 4 * 128 * 512
    assert predict_memory(shard, 512, AllClasses(), global_batch=512, subcenters=3).total > 2 * (
        whole.total
    )
