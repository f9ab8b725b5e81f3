"""CR-FIQA's regression: equal to scalar loops at any world size and sampling, and it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads import ArcFace, CurricularFace, GroupClasses, Margin, PartialFC, UniFace
from heads.extra_terms import Classifiability, SampleToSample
from heads.sampling import EVERYONE
from tests.graph_safety import GraphSafety
from tests.heads.extra_terms.term_reference import scalar_classifiability
from tests.heads.test_partial_fc_matrix import gather_sample
from tests.ranks import run_ranks
from training.distributed import World

CLASSES, DIM, BATCH = 40, 6, 4
TERM = Classifiability(weight=3, beta=0.4)
GROUPS = GroupClasses(groups=11, random_groups=1, scope="sample")
SAMPLINGS = {
    "all": {},
    "random": {"sample_rate": 0.4},
    "the batch's own": {"sample_rate": 0.0},
    "groups": {"group_sampling": GROUPS},
    "sub-centers": {"subcenters": 2, "sample_rate": 0.4},
}
MARGINS = (ArcFace(filter_above=0.3), UniFace(), CurricularFace())
# What the products read: the largest cosine comes of them.
PRECISIONS = {
    torch.float64: (torch.float64, 1e-9),
    torch.float32: (torch.float32, 1e-4),
    torch.bfloat16: (torch.float32, 0.05),
}


def build(*terms, margin: Margin | None = None, compute_dtype=torch.float64, **options):
    return PartialFC(
        *(CLASSES, DIM, margin or ArcFace()),
        extra_terms=terms,
        seed=7,
        dtype=PRECISIONS[compute_dtype][0],
        compute_dtype=compute_dtype,
        **options,
    )


def batch(step: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    embeddings = 4 * torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, CLASSES, (rows,), generator=generator)


def train(head: PartialFC, embeddings: Tensor, labels: Tensor) -> list[Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = head(leaf, labels)
    loss.backward()
    found = [loss.detach(), leaf.grad]
    head.step(0.1)
    return found


def check_term(world: World) -> list[str]:
    """With the term and without it, beside the reference; what differs, in words."""
    faults = []
    mine = slice(world.rank * BATCH, (world.rank + 1) * BATCH)
    for margin in MARGINS:
        for name, options in SAMPLINGS.items():
            for compute_dtype, (dtype, tolerance) in PRECISIONS.items():
                given = {"margin": margin, "compute_dtype": compute_dtype, "momentum": 0.0}
                plain = build(**given, **options)
                head = build(TERM, **given, weight_decay=0.0, **options)
                head.learned[-DIM - 1 :] = torch.linspace(-1, 1, DIM + 1)
                for step in range(2):
                    embeddings, labels = batch(step, BATCH * world.world_size)
                    embeddings = embeddings.to(dtype)
                    head.centers.copy_(plain.centers)
                    head.learned[: -DIM - 1] = plain.learned
                    before = head.learned[-DIM - 1 :].clone()
                    leaf = embeddings[mine].clone().requires_grad_()
                    loss = head(leaf, labels[mine])
                    loss.backward()
                    whole = gather_sample(head)
                    head.step(0.1)
                    without = train(plain, embeddings[mine], labels[mine])
                    groups = labels // -(-CLASSES // 11)
                    expected = scalar_classifiability(
                        TERM,
                        embeddings,
                        whole.centers[whole.classes].reshape(-1, DIM),
                        (whole.classes == labels.unsqueeze(1)).int().argmax(1),
                        before,
                        visible=(whole.groups == EVERYONE) | (whole.groups == groups[:, None]),
                        subcenters=head.subcenters,
                        filter_above=margin.filter_above or 1.1,
                    )
                    for what, one, other in (
                        ("loss", loss.detach() - without[0], expected.loss),
                        ("gradient", leaf.grad - without[1], expected.embedding_grad[mine]),
                        ("weights", head.learned_velocity[-DIM - 1 :], expected.learned_grad),
                    ):
                        error = (one - other).abs().max()
                        if not error <= tolerance * other.abs().max().clamp_min(1):
                            faults.append(
                                f"{margin} {name} {compute_dtype} step {step}: {what} {error:.2g}"
                            )
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_term_equals_scalar_loops_on_any_number_of_ranks(world_size, tmp_path: Path):
    for faults in run_ranks(check_term, world_size=world_size, folder=tmp_path):
        assert not faults, "\n".join(faults)


def test_micro_batches_add_up_to_the_whole_batch():
    whole, parts = build(TERM, sample_rate=0.4), build(TERM, sample_rate=0.4)
    for step in range(3):
        embeddings, labels = batch(step, 12)
        expected = train(whole, embeddings, labels)
        leaf = embeddings.clone().requires_grad_()
        parts.begin_step(labels.view(3, -1))
        losses = [parts(*part) for part in zip(leaf.chunk(3), labels.chunk(3))]
        torch.stack(losses).sum().backward()
        parts.step(0.1)
        found = [torch.stack(losses).sum().detach(), leaf.grad]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(parts.learned, whole.learned, rtol=1e-9, atol=1e-12)


def test_the_step_is_graph_safe_with_another_term_before_it():
    head = build(SampleToSample(), TERM, margin=UniFace(), compute_dtype=torch.float32)
    assert len(head.learned) == 1 + 1 + DIM + 1
    embeddings, labels = batch(0)
    with GraphSafety():
        train(head, embeddings.float(), labels)


def test_a_row_that_sees_no_other_class_does_not_count():
    head = build(TERM, sample_rate=0.0)
    train(head, batch(0)[0], torch.zeros(BATCH, dtype=torch.int64))
    assert head.nonfinite_steps == 0
    assert not head.learned.any()


def test_the_quality_comes_to_be_the_images_ratio():
    """Gradient descent on embeddings, centers and weights together, from nothing."""
    head = build(Classifiability(), margin=ArcFace(scale=8))
    embeddings, labels = batch(0, 32)
    for _ in range(300):
        _, grad = train(head, embeddings, labels)
        embeddings -= grad
    unit = torch.nn.functional.normalize(embeddings)
    cosine = unit @ torch.nn.functional.normalize(head.centers).T
    own = cosine.gather(1, labels[:, None]).squeeze(1)
    others = cosine.scatter(1, labels[:, None], -1.0).amax(1)
    ratio = own / (1 + others)
    found = head.extra_terms[0].quality(embeddings, head.learned)
    assert (found - ratio).abs().mean() < 0.1 * ratio.mean()
    assert torch.corrcoef(torch.stack((found, ratio)))[0, 1] > 0.3, "image by image, too"
