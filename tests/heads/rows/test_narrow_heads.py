"""Heads that keep centers and momentum in fewer bits: what they promise in float32 still holds."""

from __future__ import annotations

import copy
import math
import struct

import pytest
import torch
from torch import Tensor

from heads import ArcFace, GroupClasses, PartialFC
from heads.centers import initial_centers
from heads.passes.cosine_softmax import CenterGradient, ChunkedSoftmax
from heads.passes.row_update import update_rows
from heads.passes.workspace import Workspace
from heads.rows.buffers import ROWS
from heads.rows.placement import Placement
from heads.rows.rounding import FLOAT8, column_keys
from heads.rows.stored import NARROW, Noise, Stored, in_float32, write_rows, zero_rows
from heads.sampling import NOBODY, Sample
from tests.graph_safety import GraphSafety
from tests.heads.head_reference import scalar_head
from tests.ranks import run_ranks
from training.distributed import World

CPU = torch.device("cpu")
ON_CPU = Placement("device", None, CPU)
CLASSES, DIM, BATCH = 40, 8, 6
KEPT = [
    {"centers_dtype": torch.bfloat16, "momentum": 0.0},
    {"centers_dtype": torch.bfloat16, "momentum_dtype": FLOAT8},
    {"centers_dtype": FLOAT8, "momentum_dtype": torch.bfloat16},
    {"centers_dtype": FLOAT8, "momentum_dtype": FLOAT8},
    {"momentum_dtype": FLOAT8},
]
SAMPLINGS = [
    {},
    {"sample_rate": 0.3, "subcenters": 2},
    {"sample_rate": 0.0},
    {"group_sampling": GroupClasses(groups=20, random_groups=1)},
]


def short(options: dict) -> str:
    return ", ".join(str(value).removeprefix("torch.") for value in options.values()) or "all"


kept = pytest.mark.parametrize("kept", KEPT, ids=short)
dtypes = pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float8"])


def build(**options) -> PartialFC:
    options = {"dtype": torch.float64, **options}
    options = {"compute_dtype": options["dtype"], **options}
    return PartialFC(CLASSES, DIM, ArcFace(scale=16), seed=2, **options)


def batch(seed: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 5 * torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, CLASSES, (rows,), generator=generator)


def train(head: PartialFC, seed: int, **step) -> float:
    loss = head(*batch(seed))
    head.step(0.2, **step)
    return loss.item()


def state(head: PartialFC) -> list[Tensor]:
    """What is kept of rows, bit for bit."""
    rows = [getattr(head, name) for name in ROWS]
    return [tensor.view(torch.uint8).clone() for tensor in rows if tensor is not None]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


# --- what is computed from them ---


@dtypes
@pytest.mark.parametrize("subcenters", [1, 2])
def test_loss_and_gradients_are_those_of_the_values_that_are_kept(dtype, subcenters):
    head = build(centers_dtype=dtype, momentum=0.0, subcenters=subcenters)
    embeddings, labels = batch(0)
    leaf = embeddings.clone().requires_grad_()
    loss = head(leaf, labels)
    loss.backward()
    expected = scalar_head(
        embeddings,
        in_float32(head.stored_centers).double().view(-1, DIM),
        labels,
        margin=head.margin,
        subcenters=subcenters,
    )
    torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(leaf.grad, expected.embedding_grad, rtol=1e-9, atol=1e-12)
    head.eval()
    torch.testing.assert_close(head(embeddings, labels), expected.loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_products_read_bfloat16_centers_as_they_are_kept(rate):
    """At rate 1 there is no copy of them; a sample is collected and not converted."""
    head = build(centers_dtype=torch.bfloat16, dtype=torch.float32, compute_dtype=torch.bfloat16)
    rows = None if rate == 1 else torch.arange(0, CLASSES, 2)
    sample = Sample(rows, torch.zeros(BATCH, dtype=torch.int64))
    softmax = ChunkedSoftmax(
        torch.nn.functional.normalize(batch(0)[0].float()),
        head.stored_centers,
        sample,
        head.margin.negatives(torch.zeros(BATCH), None),
        scale=16,
        subcenters=1,
        compute_dtype=torch.bfloat16,
        workspace=Workspace(CPU),
    )
    softmax.logsumexp()
    read = softmax._rows
    assert torch.equal(read, head.centers if rows is None else head.centers[rows])
    assert (read.data_ptr() == head.centers.data_ptr()) == (rows is None)


@dtypes
def test_centers_start_at_the_nearest_to_those_of_float32(dtype):
    head = build(centers_dtype=dtype, dtype=torch.float32)
    drawn = initial_centers(0, CLASSES, DIM, seed=2)
    nearest = zero_rows(CLASSES, DIM, subcenters=1, dtype=dtype, placement=ON_CPU)
    write_rows(nearest, slice(None), drawn, None, workspace=Workspace(CPU))
    assert torch.equal(in_float32(head.stored_centers), in_float32(nearest))
    assert not in_float32(Stored(head.velocity)).any()


# --- the update ---


def scalar_rounding(value: float, noise: int, dtype: torch.dtype, scale: float) -> float:
    """One float32 value by its bits, as heads.rows.rounding has it in words."""
    if dtype == torch.bfloat16:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        (found,) = struct.unpack("<f", struct.pack("<I", (bits + (noise >> 16)) >> 16 << 16))
        return found
    size = abs(value) / scale  # below: how often the distance of its neighbors goes into it
    step = 2.0 ** max(-9, math.floor(math.log2(size or 1.0)) - 3)
    return math.copysign(math.floor(size / step + (noise >> 12) / 2**20) * step * scale, value)


@dtypes
def test_the_update_is_that_of_scalar_loops(dtype):
    """With numbers of few bits, so that float32's sums are exact and every bit can be foretold."""
    torch.manual_seed(3)
    count, first, lr, momentum = 9, 70, 0.25, 0.5
    centers, velocity = (
        zero_rows(20, 2 * DIM, subcenters=2, dtype=dtype, placement=ON_CPU) for _ in range(2)
    )
    for rows in (centers, velocity):
        drawn = torch.randint(-256, 257, (20, 2 * DIM)) / 16
        write_rows(rows, slice(None), drawn, None, workspace=Workspace(CPU))
    rows = torch.randperm(20)[:count]
    before = [in_float32(rows).clone() for rows in (centers, velocity)]
    product = torch.randint(-64, 65, (2 * count, DIM)) / 16
    pull, drift = (torch.randint(-4, 5, (2 * count, 1)) / 4 for _ in range(2))
    noise = Noise(torch.tensor(12345), rows + first)
    update_rows(
        centers,
        velocity,
        Sample(rows, torch.zeros(1, dtype=torch.int64)),
        CenterGradient(product, pull, drift),
        lr=torch.tensor(lr),
        momentum=momentum,
        weight_decay=0.125,
        apply=torch.tensor(True),
        noise=noise,
        workspace=Workspace(CPU),
    )
    columns = [key % 2**32 for key in column_keys(2 * DIM, CPU).tolist()]
    found = [in_float32(rows) for rows in (centers, velocity)]
    for slot, row in enumerate(rows.tolist()):
        center_key, velocity_key = (keys[slot].item() for keys in noise.row_keys())
        for column in range(2 * DIM):
            at = 2 * slot + column // DIM
            w, v = (matrix[row, column].item() for matrix in before)
            gradient = pull[at].item() * product[at, column % DIM].item()
            v = momentum * v + gradient + (drift[at].item() + 0.125) * w
            for kept, key, matrix, new in (
                (centers, center_key, found[0], w - lr * v),
                (velocity, velocity_key, found[1], v),
            ):
                drawn = key * columns[column] % 2**32
                scale = 1.0 if kept.scales is None else kept.scales[row, column // DIM].item()
                assert matrix[row, column] == scalar_rounding(new, drawn, dtype, scale)
    rest = [row for row in range(20) if row not in rows.tolist()]
    assert all(torch.equal(new[rest], old[rest]) for new, old in zip(found, before))


@dtypes
@pytest.mark.parametrize("sampled", [False, True])
def test_an_update_has_the_same_bits_however_the_rows_are_split(dtype, sampled):
    """Over 1, 2 and 3 ranks, in places of their own: a row is rounded by what class it is of."""
    torch.manual_seed(4)
    classes = 30
    start = [torch.randn(classes, DIM), torch.randn(classes, DIM)]
    product, pull = torch.randn(classes, DIM), torch.randn(classes, 1)
    found = []
    for world_size in (1, 2, 3):
        ends = []
        for rank in range(world_size):
            own = torch.arange(classes).chunk(world_size)[rank]
            # A sample's rows may lie anywhere.
            order = torch.randperm(len(own)) if sampled else torch.arange(len(own))
            kept = []
            for rows in start:
                held = zero_rows(len(own), DIM, subcenters=1, dtype=dtype, placement=ON_CPU)
                write_rows(held, order, rows[own], None, workspace=Workspace(CPU))
                kept.append(held)
            update_rows(
                *kept,
                Sample(order if sampled else None, torch.zeros(1, dtype=torch.int64)),
                CenterGradient(product[own], pull[own], torch.zeros(len(own), 1)),
                lr=torch.tensor(0.1),
                momentum=0.9,
                weight_decay=1e-4,
                apply=torch.tensor(True),
                noise=Noise(torch.tensor(7), own),
                workspace=Workspace(CPU),
            )
            ends.append([in_float32(rows)[order] for rows in kept])
        found.append([torch.cat(parts) for parts in zip(*ends)])
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other))


@kept
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=short)
def test_skipped_steps_and_rows_that_nobody_asked_for_change_no_bit(kept, sampling):
    head = build(**kept, **sampling)
    for seed in range(3):
        before = state(head)
        train(head, seed, skip=torch.tensor(True))
        assert same(state(head), before)
        head(*batch(seed))
        sample = head.last_sample
        head.step(0.2)
        rows = torch.arange(CLASSES) if sample.rows is None else sample.rows
        if sample.column_groups is not None:
            rows = rows[sample.column_groups != NOBODY]
        moved = torch.zeros(CLASSES, dtype=torch.bool)
        for new, old in zip(state(head), before):
            moved |= (new != old).any(1)
        assert set(moved.nonzero().flatten().tolist()) <= set(rows.tolist())
        assert moved.sum() > len(rows) / 2
    before = state(head)
    head(*batch(5))
    head.step(0.0)
    centers = [part for part, old in zip(state(head)[:1], before)]
    assert torch.equal(centers[0], before[0]), "a rate of 0 moves no center"


@kept
def test_without_momentum_there_is_no_velocity(kept):
    head = build(**kept)
    names = {"centers", "steps", "nonfinite_steps", "num_classes", "first_class"}
    if head.centers.dtype == FLOAT8:
        names.add("center_scales")
    if head.momentum:
        names |= {"velocity"} | ({"velocity_scales"} if head.velocity.dtype == FLOAT8 else set())
    assert set(head.state_dict()) == names


@pytest.mark.parametrize("kept", KEPT[:4], ids=short)
@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=short)
def test_micro_batches_and_one_batch_leave_the_same_bits(kept, sampling):
    whole, parts = build(**kept, **sampling), build(**kept, **sampling)
    for seed in range(3):
        embeddings, labels = batch(seed)
        train(whole, seed)
        parts.begin_step(labels.view(3, -1))
        for rows, ids in zip(embeddings.chunk(3), labels.chunk(3)):
            parts(rows, ids)
        parts.step(0.2)
    assert same(state(parts), state(whole))


@kept
def test_a_head_restored_from_its_state_repeats_the_run_bit_for_bit(kept):
    head = build(**kept, sample_rate=0.3)
    losses = []
    for seed in range(6):
        if seed == 3:
            saved = copy.deepcopy(head.state_dict())
        losses.append(train(head, seed))
    resumed = build(**kept, sample_rate=0.3)
    resumed.load_state_dict(saved)
    assert [train(resumed, seed) for seed in range(3, 6)] == losses[3:]
    assert same(state(resumed), state(head))


def check_ranks(world: World) -> list[list[Tensor]]:
    """This rank's rows after three steps, for each way to keep them."""
    found = []
    for options in KEPT[:4]:
        head = build(**options)
        for seed in range(3):
            embeddings, labels = batch(seed)
            mine = slice(
                world.rank * BATCH // world.world_size, (world.rank + 1) * BATCH // world.world_size
            )
            head(embeddings[mine], labels[mine])
            head.step(0.2)
        found.append(state(head))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_has_the_same_bits(world_size, tmp_path):
    ranks = run_ranks(check_ranks, world_size=world_size, folder=tmp_path)
    for options, *parts in zip(KEPT[:4], *ranks):
        head = build(**options)
        for seed in range(3):
            train(head, seed)
        assert same([torch.cat(rows) for rows in zip(*parts)], state(head)), options


@kept
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_learns_as_in_float32(kept, compute_dtype):
    """Twenty steps on one batch: the loss falls as far, but for the rounding."""
    losses = {}
    for name, options in {"wide": {"momentum": kept.get("momentum", 0.9)}, "narrow": kept}.items():
        head = build(dtype=torch.float32, compute_dtype=compute_dtype, **options)
        losses[name] = [train(head, 0) for _ in range(20)]
    fallen = losses["wide"][0] - losses["wide"][-1]
    assert fallen > 1
    assert abs(losses["narrow"][-1] - losses["wide"][-1]) < 0.1 * fallen


@kept
def test_a_step_is_graph_safe(kept):
    head = build(**kept, sample_rate=0.3, dtype=torch.float32)
    embeddings, labels = batch(0)
    with GraphSafety():
        head(embeddings.float(), labels)
        head.step(0.1)


@kept
def test_another_arithmetic_leaves_what_is_kept_as_it_is(kept):
    head = build(**kept, dtype=torch.float32)
    train(head, 0)
    narrow = [name for name in ROWS if getattr(head, name) is not None]
    narrow = [name for name in narrow if getattr(head, name).dtype != torch.float32]
    before = [getattr(head, name).view(torch.uint8).clone() for name in narrow]
    head.double()
    assert head.dtype == torch.float64
    assert same([getattr(head, name).view(torch.uint8) for name in narrow], before)
    train(head, 1)


@pytest.mark.parametrize("other", [*NARROW, torch.float32], ids=str)
@dtypes
def test_a_state_of_another_dtype_is_refused(dtype, other):
    if dtype == other:
        pytest.skip("the same")
    saved = build(centers_dtype=other, dtype=torch.float32).state_dict()
    head = build(centers_dtype=dtype, dtype=torch.float32)
    before = state(head)
    with pytest.raises(RuntimeError, match=r"centers is .* in this state and .* in this head"):
        head.load_state_dict(saved)
    assert same(state(head), before)


def test_what_no_rows_can_be_kept_in_is_refused():
    for name in ("centers_dtype", "momentum_dtype"):
        with pytest.raises(ValueError, match=f"{name}=torch.float16, expected bfloat16"):
            build(**{name: torch.float16})
