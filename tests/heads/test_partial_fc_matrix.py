"""Every margin × sampling × precision on two ranks, and each on one and three: equal to one dense
softmax in scalar loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from heads import (
    MARGINS,
    AdaFace,
    ArcFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    GroupClasses,
    MagFace,
    Margin,
    PartialFC,
    StepContext,
    UniFace,
    create_margin,
)
from heads.head_step import margin_key
from heads.sampling import EVERYONE
from tests.heads.head_reference import Reference, scalar_head
from tests.ranks import run_ranks
from training.distributed import World, of_all_ranks

CLASSES, DIM, BATCH = 40, 6, 3
STEPS, RATE = 2, 0.05

SAMPLINGS = {
    "all": {},
    "random": {"sample_rate": 0.4},
    "the batch's own": {"sample_rate": 0.0},
    "groups, seen by the batch": {"group_sampling": GroupClasses(groups=11, random_groups=1)},
    "groups, seen by the sample": {
        "group_sampling": GroupClasses(groups=11, random_groups=1, scope="sample")
    },
    "sub-centers": {"subcenters": 2, "sample_rate": 0.4},
}
VARIANTS = [
    *(
        create_margin(name, gradient=way)
        for name in MARGINS
        for way in ("exact", "straight_through")
    ),
    ArcFace(easy_margin=True),
    MagFace(easy_margin=True),
    ElasticArcFace(plus=True),
    ElasticCosFace(plus=True),
    ArcFace(filter_above=0.3),
    CurricularFace(filter_above=0.3),
    UniFace(filter_above=0.3, negative_weight=0.5),
]
# What the products read → the centers' dtype, and the error allowed.
PRECISIONS = {
    torch.float64: (torch.float64, 1e-9),
    torch.float32: (torch.float32, 1e-4),
    torch.bfloat16: (torch.float32, 0.08),
}


class Whole(NamedTuple):
    """All ranks' centers, and the classes in a step: global ids, and what sees them."""

    centers: Tensor  # (CLASSES, K·D)
    classes: Tensor  # (S,)
    groups: Tensor  # (S,)


def gather(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Every rank's rows of each, concatenated; they may differ in number."""
    return tuple(map(torch.cat, zip(*of_all_ranks(tensors))))


def gather_sample(head: PartialFC) -> Whole:
    sample = head.last_sample
    rows = torch.arange(len(head.centers)) if sample.rows is None else sample.rows
    groups = sample.column_groups
    if groups is None:
        groups = torch.full_like(rows, EVERYONE, dtype=torch.int32)
    return Whole(*gather(head.centers, rows + head.shard.first_class, groups))


def of_rank_0(work: Callable[[], Reference]) -> Reference:
    """The slow reference, which all ranks would compute alike."""
    found = [work() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]


def check_steps(
    world: World, margin: Margin, options: dict, compute_dtype: torch.dtype
) -> list[str]:
    """Two steps of a head against the reference over what it sampled; what differs, in words."""
    dtype, tolerance = PRECISIONS[compute_dtype]
    head = PartialFC(
        CLASSES,
        DIM,
        margin,
        seed=7,
        weight_decay=0.0,
        momentum=0.0,
        dtype=dtype,
        compute_dtype=compute_dtype,
        **options,
    )
    global_batch = BATCH * world.world_size
    mine = slice(world.rank * BATCH, (world.rank + 1) * BATCH)
    generator = torch.Generator().manual_seed(3)
    faults = []
    for step in range(STEPS):
        embeddings = 6 * torch.randn(global_batch, DIM, generator=generator, dtype=dtype)
        labels = torch.randint(0, CLASSES, (global_batch,), generator=generator)
        context = StepContext(
            head.margin_factor,
            head.margin_state.clone(),
            margin_key(head.seed, head.steps),
            torch.arange(global_batch),
            head.learned.clone(),
        )
        leaf = embeddings[mine].clone().requires_grad_()
        loss = head(leaf, labels[mine])
        loss.backward()
        whole = gather_sample(head)
        head.step(RATE)
        (after,) = gather(head.centers)

        row_groups = labels // -(-CLASSES // 11)
        visible = (whole.groups == EVERYONE) | (whole.groups == row_groups.unsqueeze(1))
        positions = (whole.classes == labels.unsqueeze(1)).int().argmax(1)
        assert torch.equal(whole.classes[positions], labels), "every positive is in the sample"
        expected = of_rank_0(
            partial(
                scalar_head,
                embeddings,
                whole.centers[whole.classes].reshape(-1, DIM),
                positions,
                margin=margin,
                context=context,
                subcenters=head.subcenters,
                visible=visible,
            )
        )
        moved = torch.zeros(CLASSES, head.centers.shape[1], dtype=torch.float64)
        moved[whole.classes] = expected.center_grad.view(len(whole.classes), -1)
        everything = whole.centers.double() - RATE * moved
        for name, found, wanted in [
            ("loss", loss.detach(), expected.loss),
            ("embedding gradient", leaf.grad, expected.embedding_grad[mine]),
            ("centers' step", after - whole.centers, everything - whole.centers),
            ("margin state", head.margin_state, expected.state),
            ("learned", head.learned_velocity, expected.learned_grad),
        ]:
            if not wanted.numel():
                continue
            error = (found - wanted).abs().max()
            # The learned threshold's gradient is a difference, which may be nothing but rounding.
            if not error <= tolerance * wanted.abs().max().clamp_min(1e-6):
                faults.append(f"{margin} {options} {compute_dtype} step {step}: {name} {error:.2g}")
        # Bit for bit, where nobody saw a class or it was not drawn.
        seen = torch.zeros(CLASSES, dtype=torch.bool)
        seen[whole.classes[visible.any(0) | (whole.groups >= 0)]] = True
        seen[labels] = True
        still = after == whole.centers
        if not still[~seen].all():
            faults.append(f"{margin} {options}: a class that is not in the sample has moved")
    return faults


def check_matrix(world: World) -> list[str]:
    """On another number of ranks than two, margins and samplings take turns."""
    faults, everything = [], world.world_size == 2
    for number, margin in enumerate(VARIANTS):
        for turn, options in enumerate(SAMPLINGS.values()):
            if everything or turn == number % len(SAMPLINGS):
                faults += check_steps(world, margin, options, torch.float64)
        if not everything:
            continue
        # A rounded cosine may fall on the other side of a hook's threshold.
        smooth = margin.filter_above is None and not margin.uses_target_for_negatives
        for compute_dtype in (torch.float32, torch.bfloat16) if smooth else (torch.float32,):
            for name in ("all", "random"):
                faults += check_steps(world, margin, SAMPLINGS[name], compute_dtype)
    return faults


# 40 classes over three ranks are 14, 14 and 12 rows.
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_combination_equals_the_dense_reference(world_size, tmp_path: Path):
    for rank, faults in enumerate(run_ranks(check_matrix, world_size=world_size, folder=tmp_path)):
        assert not faults, f"rank {rank}:\n" + "\n".join(faults)


def check_statistics_skip(world: World) -> bool:
    """A step that is not finite on the last rank leaves AdaFace's statistics on all."""
    head = PartialFC(CLASSES, DIM, AdaFace())
    embeddings = torch.randn(BATCH, DIM)
    if world.rank == world.world_size - 1:
        embeddings[0, 0] = torch.nan
    before = head.margin_state.clone()
    head(embeddings.requires_grad_(), torch.zeros(BATCH, dtype=torch.int64)).backward()
    head.step(0.1)
    return torch.equal(head.margin_state, before) and head.nonfinite_steps == 1


@pytest.mark.slow
def test_a_non_finite_step_leaves_the_statistics_and_is_counted_on_every_rank(tmp_path: Path):
    assert all(run_ranks(check_statistics_skip, world_size=2, folder=tmp_path))
