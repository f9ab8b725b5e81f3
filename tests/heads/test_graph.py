"""The head's step, recorded and replayed: bit-equal to calling it, whatever changes in between."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from heads import (
    AdaFace,
    ArcFace,
    Classifiability,
    CurricularFace,
    ElasticArcFace,
    GroupClasses,
    HardNegatives,
    PartialFC,
    UniFace,
    graph,
)
from tests.recorded_graph import RecordedGraphs

CLASSES, DIM, BATCH = 40, 8, 6

OPTIONS = [
    {},
    {"sample_rate": 0.3},
    {"sample_rate": 0.3, "compute_dtype": torch.bfloat16},
    {"sample_rate": 0.0},
    {"sample_rate": 0.3, "hard_negatives": HardNegatives(share=0.5, every=3)},
    {"group_sampling": GroupClasses(groups=20, scope="sample")},
    {"subcenters": 2},
    {"sample_rate": 0.3, "extra_terms": (Classifiability(),)},
]


def build(margin, monkeypatch, graphs: RecordedGraphs | None = None, **options) -> PartialFC:
    if graphs:
        monkeypatch.setattr(torch, "get_device_module", lambda device: graphs)
        monkeypatch.setattr(graph, "can_record", lambda device: True)
    return PartialFC(CLASSES, DIM, margin, cuda_graph=graphs is not None, **options)


def batch(seed: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 5 * torch.randn(rows, DIM, generator=generator)
    return embeddings, torch.randint(0, CLASSES, (rows,), generator=generator)


def train(head: PartialFC, step: int) -> list[Tensor]:
    """One step, everything about it another than at the step before."""
    embeddings, labels = batch(step)
    if step == 5:
        embeddings[0] = torch.nan
    leaf = embeddings.requires_grad_()
    head.margin_factor.fill_(min(1.0, step / 10))
    loss = head(leaf, labels)
    (2.0**step * loss).backward()
    skip = torch.tensor(step == 7)
    head.step(0.01 * (step + 1), skip=skip if step % 2 else None)
    return [loss.detach(), leaf.grad]


def train_in_parts(head: PartialFC, step: int) -> list[Tensor]:
    embeddings, labels = batch(step, 3 * BATCH)
    leaf = embeddings.requires_grad_()
    head.begin_step(labels.view(3, -1))
    losses = []
    for rows, ids in zip(leaf.chunk(3), labels.chunk(3)):
        losses.append(head(rows, ids))
        losses[-1].backward()
    head.step(torch.tensor(0.02 * (step + 1)))
    return [torch.stack(losses).detach(), leaf.grad]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if not a.isnan().any())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "margin", [ArcFace(), AdaFace(), ElasticArcFace(plus=True), CurricularFace(), UniFace()]
)
def test_twenty_replayed_steps_are_bit_equal(margin, options, monkeypatch):
    """Rate, margin, loss scale, sample and skipping change; nothing is recorded again."""
    graphs = RecordedGraphs()
    plain = build(margin, monkeypatch, **options)
    replayed = build(margin, monkeypatch, graphs, **options)
    for step in range(20):
        assert same(train(plain, step), train(replayed, step)), f"step {step}"
        assert same(list(plain.buffers()), list(replayed.buffers())), f"step {step}"
    assert plain.nonfinite_steps == 1
    assert graphs.recordings == 2, "the forward and the update"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("margin", [AdaFace(), UniFace()], ids=str)
def test_replayed_micro_batches_are_bit_equal(margin, options, monkeypatch):
    """Also between steps of one forward, which have a recording of their own."""
    graphs = RecordedGraphs()
    plain = build(margin, monkeypatch, **options)
    replayed = build(margin, monkeypatch, graphs, **options)
    for step in range(8):
        one_step = train if step in (2, 5) else train_in_parts
        assert same(one_step(plain, step), one_step(replayed, step)), f"step {step}"
        assert same(list(plain.buffers()), list(replayed.buffers())), f"step {step}"
    assert graphs.recordings == 4


def test_losses_of_earlier_steps_keep_their_values(monkeypatch):
    head = build(ArcFace(), monkeypatch, RecordedGraphs())
    losses = []
    for step in range(3):
        losses.append(head(*batch(step)))
        head.step(0.1)
    assert len({loss.item() for loss in losses}) == 3


def test_another_sample_rate_is_recorded_again(monkeypatch):
    graphs = RecordedGraphs()
    plain = build(ArcFace(), monkeypatch)
    replayed = build(ArcFace(), monkeypatch, graphs)
    for step in range(6):
        plain.sample_rate = replayed.sample_rate = 0.3 if step < 3 else 0.8
        assert same(train(plain, step), train(replayed, step))
    assert graphs.recordings == 4


@pytest.mark.parametrize("options", [{}, {"sample_rate": 0.3}])
def test_where_recording_fails_the_reason_is_logged_and_training_goes_on(options, monkeypatch):
    """An update of what a forward without a graph returns is not recorded either."""
    graphs = RecordedGraphs("operation not permitted\nlong trace", last=1)
    plain = build(AdaFace(), monkeypatch, **options)
    head = build(AdaFace(), monkeypatch, graphs, **options)
    for step in range(4):
        if step == 0:
            with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted$"):
                found = train(head, step)
        else:
            found = train(head, step)
        assert same(train(plain, step), found)
        assert same(list(plain.buffers()), list(head.buffers()))
    assert graphs.recordings == 1


def test_the_rehearsal_before_a_recording_may_fail_as_any_step(monkeypatch):
    """Lack of memory is no obstacle to a graph: other ranks have gone on, so it is raised."""
    head = build(ArcFace(), monkeypatch, RecordedGraphs())
    monkeypatch.setattr(head._head_step, "_whole_forward", lambda *inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        head(*batch(0))


def test_a_failure_on_another_rank_counts_as_ones_own(monkeypatch):
    graphs = RecordedGraphs()
    plain = build(ArcFace(), monkeypatch)
    head = build(ArcFace(), monkeypatch, graphs)
    monkeypatch.setattr(head.ranks, "all_agree", lambda held, device: False)
    with pytest.warns(UserWarning, match="recording failed on another rank"):
        found = train(head, 0)
    assert same(train(plain, 0), found)
    assert same(train(plain, 1), train(head, 1))


def test_a_larger_batch_elsewhere_leaves_the_recorded_memory(monkeypatch):
    """Steps of one forward, recorded after those of several, need more: they have their own."""
    plain = build(ArcFace(), monkeypatch)
    head = build(ArcFace(), monkeypatch, RecordedGraphs())
    for step in range(4):
        assert same(train_in_parts(plain, step), train_in_parts(head, step))
        pointers = {
            name: held.data_ptr() for name, held in head._head_step.workspaces[True]._held.items()
        }
        large = batch(step, rows=5 * BATCH)
        for one in (plain, head):
            one(*large)
            one.step(0.1)
        after = {
            name: held.data_ptr() for name, held in head._head_step.workspaces[True]._held.items()
        }
        assert after == pointers
        assert same(list(plain.buffers()), list(head.buffers()))


def test_graphs_do_not_keep_a_dropped_head_alive(monkeypatch):
    head = build(ArcFace(), monkeypatch, RecordedGraphs())
    train(head, 0)
    held = weakref.ref(head)
    gc.disable()
    try:
        del head
        assert held() is None
    finally:
        gc.enable()


def test_nothing_is_forgotten_that_graphs_of_a_group_would_hold(monkeypatch):
    """forget_graphs() is what a trainer calls before it leaves the process group."""
    graphs = RecordedGraphs()
    plain = build(ArcFace(), monkeypatch)
    head = build(ArcFace(), monkeypatch, graphs)
    for step in range(4):
        assert same(train(plain, step), train(head, step))
        if step == 1:
            head.forget_graphs()
    assert graphs.recordings == 4


def test_a_batch_of_another_shape_is_refused_by_name(monkeypatch):
    head = build(ArcFace(), monkeypatch, RecordedGraphs())
    train(head, 0)
    with pytest.raises(
        ValueError, match=r"shape \(6, 8\).*now got shape \(7, 8\).*cuda_graph=False"
    ):
        head(*batch(1, rows=7))
    with pytest.raises(ValueError, match=r"float32.*now got.*bfloat16"):
        head(batch(1)[0].bfloat16(), batch(1)[1])
    assert head.eval()(*batch(1, rows=7)).isfinite(), "evaluation is not recorded"


def test_a_cpu_head_has_no_graph():
    head = PartialFC(CLASSES, DIM, ArcFace(), cuda_graph=True)
    assert not head._head_step.graphs.recording


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_cuda_graph_equals_plain_calls(options):
    device = torch.device("cuda")
    heads = [
        PartialFC(CLASSES, DIM, AdaFace(), cuda_graph=graph, device=device, **options)
        for graph in (False, True)
    ]
    for step in range(20):
        results = []
        for head in heads:
            embeddings, labels = (tensor.to(device) for tensor in batch(step))
            leaf = embeddings.requires_grad_()
            loss = head(leaf, labels)
            loss.backward()
            head.step(0.01 * (step + 1))
            results.append([loss.detach(), leaf.grad, head.centers])
        for plain, replayed in zip(*results):
            torch.testing.assert_close(plain, replayed, rtol=1e-4, atol=1e-6)
    assert not heads[1]._head_step.graphs[False].obstacles


# Seen with 2.6, and no more with 2.13.
@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="this torch compiles no _replace of a named tuple"
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("margin", "options"),
    [*((AdaFace(), options) for options in OPTIONS), (CurricularFace(filter_above=0.5), {})],
    ids=str,
)
def test_the_whole_step_compiles_without_a_break(margin, options):
    """And computes the same, bit for bit."""
    torch._dynamo.reset()
    plain = PartialFC(CLASSES, DIM, margin, **options)
    compiled = PartialFC(CLASSES, DIM, margin, **options)

    def step(head: PartialFC, embeddings: Tensor, labels: Tensor, lr: Tensor) -> Tensor:
        loss = head(embeddings, labels)
        head.step(lr)
        return loss

    whole = torch.compile(lambda *inputs: step(compiled, *inputs), fullgraph=True, backend="eager")
    for seed in range(2):
        embeddings, labels = batch(seed)
        inputs = embeddings.requires_grad_(), labels, torch.tensor(0.1)
        losses = step(plain, *inputs), whole(*inputs)
        grads = [torch.autograd.grad(loss, embeddings)[0] for loss in losses]
        assert torch.equal(*losses)
        assert torch.equal(*grads)
        assert same(list(plain.buffers()), list(compiled.buffers()))
