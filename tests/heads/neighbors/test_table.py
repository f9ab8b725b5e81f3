"""The table of a head: when it is begun, when it counts, and that nothing of it is lost."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from heads import ArcFace, GroupClasses, HardNegatives, PartialFC
from heads.counter import step_key
from heads.neighbors import table as table_file
from heads.neighbors.classes import NeighborClasses
from heads.neighbors.search import NOTHING, rounded, take_nearest, write_ids
from heads.rows.step_rows import _SAMPLING
from tests.heads.head_reference import scalar_head
from tests.host_reads import HostReads
from tests.ranks import run_ranks
from training.distributed import World

CLASSES, DIM, BATCH, EVERY = 70, 8, 6, 4


def build(**options) -> PartialFC:
    settings = {"sample_rate": 0.4, "hard_negatives": HardNegatives(share=0.5, every=EVERY)}
    return PartialFC(CLASSES, DIM, ArcFace(), **{**settings, **options})


def batch(step: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    embeddings = torch.randn(rows, DIM, generator=generator)
    return embeddings, torch.randint(0, CLASSES, (rows,), generator=generator)


def train(head: PartialFC, steps: range) -> None:
    for step in steps:
        embeddings, labels = batch(step)
        head(embeddings.requires_grad_(), labels).backward()
        head.step(0.5)


def written(best: Tensor) -> Tensor:
    ids = torch.empty(best.shape, dtype=torch.int32)
    write_ids(best, out=ids)
    return ids


def searched(centers: Tensor, subcenters: int = 1, neighbors: int = 16) -> Tensor:
    """The table of these centers, made at once."""
    rows = torch.empty(centers.shape, dtype=torch.int8)
    rounded(centers, subcenters=subcenters, out=rows)
    best = torch.full((len(rows), neighbors), NOTHING)
    take_nearest(best, rows, rows, first_row=0, first_candidate=0, subcenters=subcenters)
    return written(best)


def alike(one: PartialFC, other: PartialFC) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("piece", [10, 32, 1024], ids="pieces of {}".format)
@pytest.mark.parametrize("subcenters", [1, 2])
def test_a_table_is_of_the_centers_at_its_start_and_counts_from_the_next_start_on(
    monkeypatch, piece, subcenters
):
    """Seven, three pieces or a single one over four steps."""
    monkeypatch.setattr(table_file, "PIECE", piece)
    head = build(subcenters=subcenters)
    centers = []
    for step in range(3 * EVERY + 1):
        begun = (step // EVERY - 1) * EVERY
        in_force = head.neighbors.ids.clone()
        if begun < 0:
            assert (in_force == -1).all()
        else:
            assert torch.equal(in_force, searched(centers[begun], subcenters))
        centers.append(head.centers.clone())
        train(head, range(step, step + 1))
    assert not torch.equal(centers[0], centers[-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_centers_kept_in_fewer_bits_have_the_table_of_what_they_are(dtype):
    """A float8 row's scale changes no cosine."""
    head = build(centers_dtype=dtype, momentum=0.0, subcenters=2)
    train(head, range(2 * EVERY))
    begun = head.centers.float()
    scales = getattr(head, "center_scales", None)
    if scales is not None:
        begun = (begun.view(CLASSES, 2, DIM) * scales.unsqueeze(2)).view(CLASSES, -1)
    train(head, range(2 * EVERY, 3 * EVERY))
    assert torch.equal(head.neighbors.ids, searched(begun, subcenters=2))


def test_the_sample_of_a_step_has_neighbors_of_its_classes():
    head = build(sample_rate=0.3)
    train(head, range(EVERY))
    embeddings, labels = batch(EVERY)
    head(embeddings, labels)
    near = set(head.neighbors.ids[labels, 0].tolist())
    assert near <= set(head.last_sample.rows.tolist()), "the nearest of each"
    assert len(head.last_sample.rows) == 21


def test_a_draw_follows_from_step_labels_and_the_table_in_force_alone():
    """Made ahead, it is the step's own until the table changes."""
    head = build()
    train(head, range(EVERY + 1))
    last = 2 * EVERY - 1
    ahead = {
        step: head.sampling.draw(
            batch(step)[1], head.shard, step_key(head.seed, torch.tensor(step), _SAMPLING)
        )
        for step in range(EVERY + 1, last + 2)
    }
    same = []
    for step, sample in ahead.items():
        embeddings, labels = batch(step)
        head(embeddings, labels)
        found = head.last_sample
        same.append(torch.equal(found.rows, sample.rows))
        assert same[-1] == torch.equal(found.positions, sample.positions)
        head.step(0.5)
    assert same == [True] * (last - EVERY) + [False]


@pytest.mark.parametrize("at", [1, EVERY - 1, EVERY, EVERY + 2])
def test_a_state_loaded_in_the_middle_of_a_build_goes_on_bit_for_bit(at):
    """Into a head that was at another step; and a copy goes on, too."""
    head, other = build(), build()
    train(head, range(at))
    train(other, range(20, 26))
    other.load_state_dict(head.state_dict())
    copied = copy.deepcopy(head)
    for one in (head, other, copied):
        train(one, range(at, at + 2 * EVERY + 1))
    assert alike(head, other)
    assert alike(head, copied)


def test_a_state_that_is_replaced_in_place_goes_on_once_that_is_said():
    """As torch.distributed.checkpoint loads: into the tensors themselves."""
    head, other = build(), build()
    train(head, range(6))
    train(other, range(20, 23))
    for mine, theirs in zip(other.buffers(), head.buffers(), strict=True):
        mine.copy_(theirs)
    other.forget_step()
    for one in (head, other):
        train(one, range(6, 11))
    assert alike(head, other)


def test_several_forwards_and_repeated_ones_count_as_one_step():
    plain, parted = build(), build()
    for step in range(2 * EVERY):
        embeddings, labels = batch(step)
        plain(embeddings, labels)
        plain(embeddings, labels)
        plain.step(0.5)
        parted.begin_step(labels.view(2, -1))
        for part, names in zip(embeddings.view(2, -1, DIM), labels.view(2, -1), strict=True):
            parted(part, names)
        parted.step(0.5)
    assert (plain.neighbors.ids >= 0).all()
    close = (plain.neighbors.ids == parted.neighbors.ids).float().mean()
    assert close > 0.9, "the centers agree to rounding"


def test_the_whole_step_reads_nothing_on_the_host():
    """But the number of the first one."""
    head = build()
    train(head, range(1))
    with HostReads():
        train(head, range(1, 2 * EVERY))
    assert (head.neighbors.ids >= 0).all()


def test_they_are_kept_from_groups_and_from_a_rate_of_zero():
    with pytest.raises(ValueError, match="hard_negatives=HardNegatives"):
        build(sample_rate=1.0, group_sampling=GroupClasses(3))
    with pytest.raises(ValueError, match=r"sample_rate=0, expected above 0 with hard_negatives"):
        build(sample_rate=0)
    with pytest.raises(ValueError, match="place='host', expected device with hard_negatives"):
        build(place="host")
    with pytest.raises(ValueError, match="embedding_dim=4000, expected at most 1980 with hard_neg"):
        PartialFC(3, 4000, ArcFace(), 0.5, hard_negatives=HardNegatives(share=0.5))
    head = build(sample_rate=1.0)
    assert not isinstance(head.sampling, NeighborClasses), "all classes are in"
    head.sample_rate = 0.5
    assert isinstance(head.sampling, NeighborClasses)
    with pytest.raises(ValueError, match=r"sample_rate=0, expected above 0 with hard_negatives"):
        head.sample_rate = 0
    assert head.sample_rate == 0.5
    assert head(*batch(0)).isfinite(), "the head goes on as it was"


# --- over ranks ---


def all_rows(head: PartialFC, rows: Tensor) -> Tensor:
    gathered: list[Tensor | None] = [None] * head.ranks.world_size
    dist.all_gather_object(gathered, rows)
    return torch.cat(gathered)


def check_the_table_is_that_of_one_process() -> None:
    head = build()
    centers = all_rows(head, head.centers)
    for step in range(EVERY):
        head.neighbors.advance(torch.tensor(step), head.centers)
    assert torch.equal(all_rows(head, head.neighbors.ids), searched(centers))


def check_loss_and_gradients_are_those_of_the_sample(rank: int, world_size: int) -> None:
    """With neighbors from other ranks in it, for every step of a table's life."""
    head = build(dtype=torch.float64, compute_dtype=torch.float64, sample_rate=0.2)
    for step in range(2 * EVERY):
        centers = all_rows(head, head.centers)
        table = all_rows(head, head.neighbors.ids)
        embeddings, labels = batch(step, BATCH * world_size)
        embeddings = 5 * embeddings.double()
        mine = slice(rank * BATCH, (rank + 1) * BATCH)
        own = embeddings[mine].clone().requires_grad_()
        loss = head(own, labels[mine].clone())
        loss.backward()
        rows = all_rows(head, head.last_sample.rows + head.first_class).sort().values
        if step >= EVERY:
            near = set(table[labels, 0].tolist())
            assert len(near & set(rows.tolist())) > len(near) / 2
        positions = torch.searchsorted(rows, labels)
        expected = scalar_head(embeddings, centers[rows], positions, margin=ArcFace())
        torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(own.grad, expected.embedding_grad[mine], rtol=1e-9, atol=1e-9)
        head.step(0.5)


def check_ranks(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_file, "PIECE", 16)
        check_the_table_is_that_of_one_process()
        check_loss_and_gradients_are_those_of_the_sample(world.rank, world.world_size)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_have_the_same_table_and_the_exact_loss(world_size, tmp_path: Path):
    run_ranks(check_ranks, world_size=world_size, folder=tmp_path)


@pytest.mark.parametrize("every", [3, 7])
def test_a_table_that_was_begun_with_another_n_is_not_finished_with_this_one(every):
    """Half of it would be of no centers, or of those of two steps. The old one stays in force."""
    head = build()
    train(head, range(2 * EVERY + 2))
    other = build(hard_negatives=HardNegatives(share=0.5, every=every))
    other.load_state_dict(head.state_dict())
    at, in_force = 2 * EVERY + 2, head.neighbors.ids.clone()
    start = -(-at // every) * every
    train(other, range(at, start))
    assert torch.equal(other.neighbors.ids, in_force)
    begun = other.centers.clone()
    train(other, range(start, start + every - 1))
    assert torch.equal(other.neighbors.ids, in_force)
    train(other, range(start + every - 1, start + every))
    assert torch.equal(other.neighbors.ids, searched(begun))
