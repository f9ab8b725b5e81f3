"""PartialFC over ranks is exact: loss, gradients and update equal those of one dense softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from heads import ArcFace, PartialFC, statistics
from heads.centers import initial_centers
from tests.clock import LIMIT
from tests.heads.head_reference import scalar_head
from tests.ranks import start
from training.distributed import leave_world

DIM, BATCH = 8, 4


def global_batch(world_size: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 5 * torch.randn(world_size * BATCH, DIM, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, classes, (world_size * BATCH,), generator=generator)


def my_share(tensor: Tensor, rank: int) -> Tensor:
    return tensor[rank * BATCH : (rank + 1) * BATCH].clone()


def build(classes: int, **options) -> PartialFC:
    return PartialFC(
        classes,
        DIM,
        ArcFace(),
        **{"dtype": torch.float64, "compute_dtype": torch.float64, **options},
    )


def all_rows(head: PartialFC, tensor: Tensor) -> Tensor:
    """Every rank's rows of a centers-shaped tensor, concatenated."""
    gathered: list[Tensor | None] = [None] * head.ranks.world_size
    dist.all_gather_object(gathered, tensor)
    return torch.cat(gathered)


def check_rows_are_split_as_dtensor_splits_them(rank: int, world_size: int, classes: int) -> None:
    """Shard(0) gives rank r the r-th of torch.chunk's pieces, and nothing where they run out."""
    head = build(classes)
    whole = initial_centers(0, classes, DIM, seed=0).double()
    pieces = [*whole.chunk(world_size), *[whole[:0]] * world_size]
    assert torch.equal(head.centers, pieces[rank])
    assert head.shard.num_local == len(pieces[rank]) == rows_per_rank(head)[rank]


def check_one_step_equals_the_dense_reference(rank: int, world_size: int, classes: int) -> None:
    head = build(classes, weight_decay=0.0)
    embeddings, labels = global_batch(world_size, classes)
    before = initial_centers(0, classes, DIM, seed=0).double()
    expected = scalar_head(embeddings, before, labels, margin=ArcFace())

    mine = my_share(embeddings, rank).requires_grad_()
    loss = head(mine, my_share(labels, rank))
    loss.backward()
    head.step(0.5)
    torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
    wanted = my_share(expected.embedding_grad, rank)
    torch.testing.assert_close(mine.grad, wanted, rtol=1e-9, atol=1e-9)
    wanted = before - 0.5 * expected.center_grad
    torch.testing.assert_close(all_rows(head, head.centers), wanted, rtol=1e-9, atol=1e-9)

    # Evaluation, with the updated centers.
    expected = scalar_head(embeddings, wanted, labels, margin=ArcFace())
    found = head.eval()(mine, my_share(labels, rank))
    torch.testing.assert_close(found, expected.loss, rtol=1e-9, atol=0)


def check_five_sampled_steps_equal_the_dense_reference_over_the_sample(
    rank: int, world_size: int, classes: int
) -> None:
    classes = 100 * classes
    head = build(classes, sample_rate=0.1)
    for seed in range(5):
        centers = all_rows(head, head.centers)
        embeddings, labels = global_batch(world_size, classes, seed)
        mine = my_share(embeddings, rank).requires_grad_()
        loss = head(mine, my_share(labels, rank))
        loss.backward()
        head.step(0.5)
        moved = (all_rows(head, head.centers) != centers).any(1)
        samples = [part.nonzero().squeeze(1) for part in moved.split(rows_per_rank(head))]
        sizes = [max(BATCH * world_size, round(0.1 * count)) for count in rows_per_rank(head)]
        assert [len(sample) for sample in samples] == sizes

        rows = moved.nonzero().squeeze(1)
        positions = torch.searchsorted(rows, labels)
        expected = scalar_head(embeddings, centers[rows], positions, margin=ArcFace())
        torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
        wanted = my_share(expected.embedding_grad, rank)
        torch.testing.assert_close(mine.grad, wanted, rtol=1e-9, atol=1e-9)
        if world_size > 1:
            shared = set(samples[0].tolist()) & set(samples[1].tolist())
            assert len(shared) < sizes[0] / 2, "negatives differ from rank to rank"


def check_at_a_rate_of_zero_ranks_without_a_class_of_the_batch_stay_as_they_are(
    rank: int, world_size: int, classes: int
) -> None:
    """All labels are of the first rank's classes: the loss is the dense one over these alone."""
    head = build(classes, sample_rate=0.0)
    embeddings, labels = global_batch(world_size, min(2, rows_per_rank(head)[0]))
    before, rows = all_rows(head, head.centers), labels.unique()
    positions = torch.searchsorted(rows, labels)
    expected = scalar_head(embeddings, before[rows], positions, margin=ArcFace())
    mine = my_share(embeddings, rank).requires_grad_()
    loss = head(mine, my_share(labels, rank))
    loss.backward()
    head.step(0.5)
    torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
    wanted = my_share(expected.embedding_grad, rank)
    torch.testing.assert_close(mine.grad, wanted, rtol=1e-9, atol=1e-9)
    moved = (all_rows(head, head.centers) != before).any(1).nonzero().squeeze(1)
    assert moved.tolist() == rows.tolist()


def rows_per_rank(head: PartialFC) -> list[int]:
    per_rank = math.ceil(head.num_classes / head.ranks.world_size)
    return [
        max(0, min(per_rank, head.num_classes - rank * per_rank))
        for rank in range(head.ranks.world_size)
    ]


def check_a_fault_of_one_rank_stops_every_rank(rank: int, world_size: int, classes: int) -> None:
    """A label that no class has, a poisoned embedding, a poisoned center."""
    embeddings, labels = global_batch(world_size, classes)
    for fault in ("label", "embedding", "center"):
        head = build(classes)
        mine, my_labels = my_share(embeddings, rank).requires_grad_(), my_share(labels, rank)
        if fault == "label" and rank == world_size - 1:
            my_labels[0] = classes
        if fault == "embedding" and rank == world_size - 1:
            mine.data[0, 0] = math.nan
        if fault == "center" and rank == 0:
            head.centers[0, 0] = math.inf
        before = head.centers.clone()
        loss = head(mine, my_labels)
        loss.backward()
        head.step(0.1)
        assert loss.isnan(), fault
        assert mine.grad.isnan().all(), fault
        assert torch.equal(head.centers, before), fault
        assert not head.velocity.any(), fault


def check_center_gradients_that_overflow_on_one_rank_stop_every_rank(
    rank: int, world_size: int, classes: int
) -> None:
    """The loss is finite and only rank 0's center gradients are not."""
    head = PartialFC(
        classes, DIM, ArcFace(scale=1e200), dtype=torch.float64, compute_dtype=torch.float64
    )
    embeddings, labels = global_batch(world_size, classes)
    labels[0] = 0
    if rank == 0:
        head.centers[0] *= 1e-150
    before = head.centers.clone()
    mine = my_share(embeddings, rank).requires_grad_()
    loss = head(mine, my_share(labels, rank))
    loss.backward()
    head.step(0.1)
    assert torch.isfinite(loss)
    assert mine.grad.isnan().all()
    assert torch.equal(head.centers, before)


def check_the_step_makes_three_collectives(rank: int, world_size: int, classes: int) -> None:
    three = ["all_gather", "all_gather", "reduce_scatter"]
    assert collectives_of_a_step(rank, world_size, classes) == (three if world_size > 1 else [])


def check_statistics_of_many_bytes_take_two_collectives(
    rank: int, world_size: int, classes: int
) -> None:
    """The step is the dense reference's all the same, and one rank's fault stops every rank."""
    if world_size == 1:
        return
    with patch.object(statistics, "GATHERED_BYTES", 0):
        four = ["all_gather", "all_reduce", "all_reduce", "reduce_scatter"]
        assert collectives_of_a_step(rank, world_size, classes) == four
        check_one_step_equals_the_dense_reference(rank, world_size, classes)
        check_a_fault_of_one_rank_stops_every_rank(rank, world_size, classes)


def collectives_of_a_step(rank: int, world_size: int, classes: int) -> list[str]:
    head = build(classes)
    embeddings, labels = global_batch(world_size, classes)
    calls = []
    originals = {name: getattr(dist, name) for name in dir(dist) if is_collective(name)}
    for name, original in originals.items():
        setattr(dist, name, record(calls, name, original))
    try:
        head(my_share(embeddings, rank).requires_grad_(), my_share(labels, rank)).backward()
        head.step(0.1)
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    # Under either of the names that torch gave them.
    return ["all_gather" if name.startswith("all_gather") else name[:14] for name in calls]


def is_collective(name: str) -> bool:
    return name.startswith(("all_", "reduce", "broadcast", "gather", "scatter", "send", "recv"))


def record(calls: list[str], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    return call


CHECKS = [
    check_rows_are_split_as_dtensor_splits_them,
    check_one_step_equals_the_dense_reference,
    check_five_sampled_steps_equal_the_dense_reference_over_the_sample,
    check_at_a_rate_of_zero_ranks_without_a_class_of_the_batch_stay_as_they_are,
    check_a_fault_of_one_rank_stops_every_rank,
    check_center_gradients_that_overflow_on_one_rank_stop_every_rank,
    check_the_step_makes_three_collectives,
    check_statistics_of_many_bytes_take_two_collectives,
]


def worker(rank: int, world_size: int, classes: list[int], store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=LIMIT),
    )
    try:
        for count in classes:
            for check in CHECKS:
                check(rank, world_size, count)
    finally:
        leave_world()


# Ten classes over three ranks are uneven rows (4, 4, 2); four (2, 2, 0) leave the last rank none.
@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "classes"), [(1, [10]), (2, [10]), (3, [10, 4])])
def test_ranks_together_equal_the_dense_reference(world_size, classes, tmp_path: Path):
    """Every check above, in processes joined by gloo; a failure shows the rank's own traceback."""
    arguments = (world_size, classes, str(tmp_path / "store"))
    if world_size == 1:
        worker(0, *arguments)
    else:
        start(worker, arguments, nprocs=world_size)
