"""A head computes the same bits wherever its rows are kept, whatever is fetched ahead."""

from __future__ import annotations

import copy
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facestream import UserError
from heads import AdaFace, ArcFace, CurricularFace, GroupClasses, PartialFC, graph
from heads.rows.fetcher import RowFetcher
from tests.clock import LIMIT
from tests.ranks import run_ranks
from tests.recorded_graph import RecordedGraphs
from training.distributed import World

CLASSES, DIM, BATCH, STEPS = 60, 8, 6, 30

SAMPLINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "random": {"sample_rate": 0.3},
    "batch": {"sample_rate": 0.0},
    "groups": {"group_sampling": GroupClasses(groups=20, random_groups=2)},
    "own groups": {"group_sampling": GroupClasses(groups=20, scope="sample")},
    "sub-centers": {"subcenters": 3, "sample_rate": 0.3},
}


def batch(step: int, rows: int) -> tuple[Tensor, Tensor]:
    """Its labels are of few classes, so that samples of 0 and groups meet, too."""
    generator = torch.Generator().manual_seed(step)
    embeddings = 5 * torch.randn(rows, DIM, generator=generator)
    if step % 13 == 5:
        embeddings[0] = torch.nan
    return embeddings, torch.randint(0, CLASSES, (rows,), generator=generator)


def announced(step: int, rows: int) -> Tensor | None:
    """Mostly right; some are missing and some wrong, as where a bad record was replaced."""
    if step % 7 == 3:
        return None
    labels = batch(step, rows)[1]
    if step % 5 == 4:
        labels[-1] = (labels[-1] + 1) % CLASSES
    return labels


def train(head: PartialFC, steps: range, *, rank: int = 0, world_size: int = 1, parts: int = 1):
    """Losses and gradients of steps that skip, are not finite, or come in micro-batches."""
    found = []
    for step in steps:
        everything = world_size * BATCH
        for ahead in range(1, head.prefetch + 1):
            if (labels := announced(step + ahead, everything)) is not None:
                head.announce(labels, ahead=ahead)
        mine = slice(rank * BATCH, (rank + 1) * BATCH)
        embeddings, labels = (whole[mine] for whole in batch(step, everything))
        if parts > 1 and step % 3:
            head.begin_step(labels.view(parts, -1))
            batches = list(zip(embeddings.chunk(parts), labels.chunk(parts)))
        else:
            batches = [(embeddings, labels)]
        for rows, ids in batches:
            leaf = rows.clone().requires_grad_()
            loss = head(leaf, ids)
            loss.backward()
            found += [loss.detach(), leaf.grad]
        head.step(0.1, skip=torch.tensor(step % 11 == 7))
    return [*found, *(tensor.clone() for tensor in head.state_dict().values())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(one, other, strict=True)
        if a.dim()
    )


def build(place: str = "device", folder: Path | None = None, **options) -> PartialFC:
    margin = options.pop("margin", ArcFace(margin=0.3))
    return PartialFC(CLASSES, DIM, margin, place=place, place_path=folder, **options)


@pytest.mark.parametrize("prefetch", range(5))
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_thirty_steps_are_bit_equal_at_any_depth(sampling, prefetch):
    expected = train(build(**SAMPLINGS[sampling]), range(STEPS))
    away = build("host", prefetch=prefetch, **SAMPLINGS[sampling])
    assert same(train(away, range(STEPS)), expected)
    assert away.nonfinite_steps == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("place", ["host", "disk"])
def test_rows_in_fewer_bits_round_to_the_same(place, dtype, tmp_path):
    options = {"centers_dtype": dtype, "momentum_dtype": dtype, "sample_rate": 0.3}
    expected = train(build(**options), range(20))
    assert same(train(build(place, tmp_path, **options), range(20)), expected)


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_micro_batches_are_bit_equal(place, sampling, tmp_path):
    expected = train(build(**SAMPLINGS[sampling]), range(20), parts=3)
    away = build(place, tmp_path, **SAMPLINGS[sampling])
    assert same(train(away, range(20), parts=3), expected)


@pytest.mark.parametrize("margin", [AdaFace(), CurricularFace()], ids=str)
@pytest.mark.parametrize("parts", [1, 3])
def test_recorded_steps_are_bit_equal(margin, parts, monkeypatch):
    """The fetch is outside what a graph records, and what it brings lies where the graph reads."""
    options = {"margin": margin, "sample_rate": 0.3, "centers_dtype": torch.bfloat16}
    expected = train(build(**options), range(20), parts=parts)
    graphs = RecordedGraphs()
    monkeypatch.setattr(torch, "get_device_module", lambda device: graphs)
    monkeypatch.setattr(graph, "can_record", lambda device: True)
    assert same(train(build("host", **options), range(20), parts=parts), expected)
    assert graphs.recordings == (2 if parts == 1 else 4)


def differing_on_ranks(world: World, folder: Path) -> list[str]:
    """The samplings, each at another depth, of which a rank's rows or losses differ."""
    ranks = {"rank": world.rank, "world_size": world.world_size}
    differing = []
    for depth, (name, options) in enumerate(SAMPLINGS.items()):
        away = build(("host", "disk")[depth % 2], folder, prefetch=depth % 5, **options)
        expected = train(build(**options), range(STEPS), **ranks)
        if not same(train(away, range(STEPS), **ranks), expected):
            differing.append(name)
    return differing


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_bit_equal_wherever_their_rows_are(world_size, tmp_path):
    worlds = {"world_size": world_size, "folder": tmp_path}
    assert run_ranks(differing_on_ranks, tmp_path, **worlds) == [[]] * world_size


@pytest.mark.parametrize("place", ["host", "disk"])
def test_evaluation_reads_the_same_rows(place, tmp_path):
    losses = []
    for head in (build(sample_rate=0.3), build(place, tmp_path, sample_rate=0.3)):
        train(head, range(5))
        losses.append(head.eval()(*batch(9, BATCH)))
    assert torch.equal(*losses)


@pytest.mark.parametrize("place", ["host", "disk"])
def test_evaluation_waits_for_the_rows_of_the_last_step(place, tmp_path, monkeypatch):
    evaluated, write = threading.Event(), RowFetcher._write

    def write_late(*given: Any) -> None:
        evaluated.wait(0.1)  # not set where the evaluation waits, as it has to
        write(*given)

    monkeypatch.setattr(RowFetcher, "_write", write_late)
    losses = []
    for head in (build(), build(place, tmp_path)):
        head(*batch(0, BATCH))
        head.step(0.1)
        losses.append(head.eval()(*batch(9, BATCH)))
    evaluated.set()
    assert torch.equal(*losses)


@pytest.mark.parametrize("place", ["host", "disk"])
def test_states_fit_whatever_the_place_in_the_middle_of_what_is_announced(place, tmp_path):
    """A run changes its place as it resumes; what was fetched before is fetched again."""
    options = {"sample_rate": 0.3}
    whole = build(**options)
    expected = [train(whole, range(5)), train(whole, range(5, 10)), train(whole, range(10, 15))]
    away = build(place, tmp_path, **options)
    assert same(train(away, range(5)), expected[0])
    device = build(**options)
    device.load_state_dict(away.state_dict())
    assert same(train(device, range(5, 10)), expected[1])
    train(away, range(5, 7))  # and on to where it will not be
    away.load_state_dict(device.state_dict())
    assert same(train(away, range(10, 15)), expected[2])


def test_rows_that_are_put_in_place_count(tmp_path):
    """As a warm start does; and they are seen as the steps have left them."""
    options = {"sample_rate": 0.3}
    heads = [build(**options), build("disk", tmp_path, **options)]
    for head in heads:
        train(head, range(4))
        head.centers[10:20] = head.centers[20:30] * 2
        head.velocity[3] = 0
    assert same(*(train(head, range(4, 8)) for head in heads))


def test_copies_go_their_own_way(tmp_path):
    away = build("disk", tmp_path, sample_rate=0.3)
    train(away, range(3))
    twin = copy.deepcopy(away)
    assert (away.place, twin.place) == ("disk", "host")
    expected = train(away, range(3, 6))
    assert same(train(twin, range(3, 6)), expected)


def test_a_head_that_is_let_go_ends_its_thread():
    away = build("host", sample_rate=0.3)
    train(away, range(2))
    (thread,) = away._head_step.rows._fetcher._thread._threads
    gone = weakref.ref(away)
    del away
    assert gone() is None, "nothing holds it in a circle"
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_a_head_moves_without_its_rows(tmp_path):
    away = build("host", sample_rate=0.3)
    place = away.centers.data_ptr()
    assert away.to("cpu").centers.data_ptr() == place
    with pytest.raises(UserError, match=r"dtype=torch.float64, expected torch.float32"):
        away.double()
    assert list(away.state_dict())[:2] == ["centers", "velocity"]


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64)])
def test_labels_of_another_kind_are_refused(labels):
    with pytest.raises(ValueError, match=r"expected torch.int64 of shape \(G,\)"):
        build("host").announce(labels)


@pytest.mark.parametrize("prefetch", [-1, 1.5])
def test_a_depth_that_is_none_is_refused(prefetch):
    with pytest.raises(UserError, match=r"prefetch=.*an integer >= 0"):
        build("host", prefetch=prefetch)
