"""Margins of one's own: a slope that is left out, a name that is registered, what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from heads import PartialFC, margins
from heads.margins import (
    MARGINS,
    AdaFace,
    ArcFace,
    Margin,
    SphereFace,
    StepContext,
    Target,
    create_margin,
    register_margin,
)
from tests.graph_safety import GraphSafety
from tests.heads.margin_cases import context_of, every_margin, rows


@dataclass(frozen=True, kw_only=True)
class Unsloped(Margin):
    """Another margin, its slope left out."""

    of: Margin

    def initial_state(self) -> tuple[float, ...]:
        return self.of.initial_state()

    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return self.of.bend(cosine, norms, context)._replace(slope=None)


@every_margin
def test_a_slope_left_out_is_found_by_autograd(margin):
    cosine, norms = rows()
    cosine = cosine.abs() - 0.3  # apart from the borders where pieces meet
    context = context_of(margin, len(cosine))
    with torch.no_grad():
        expected = margin(cosine, norms, context)
        found = Unsloped(of=margin)(cosine, norms, context)
    torch.testing.assert_close(found.slope, expected.slope, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.cosine, expected.cosine)
    assert not found.slope.requires_grad


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
@pytest.mark.parametrize("margin", [ArcFace(), AdaFace()], ids=repr)
def test_a_head_trains_as_with_the_slope_written_out(margin, sample_rate):
    """And evaluates, in inference mode too."""
    found = []
    for one in (margin, Unsloped(of=margin)):
        head = PartialFC(40, 8, one, sample_rate, dtype=torch.float64, compute_dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            embeddings = 9 * torch.randn(6, 8, generator=generator, dtype=torch.float64)
            labels = torch.randint(0, 40, (6,), generator=generator)
            leaf = embeddings.requires_grad_()
            head(leaf, labels).backward()
            head.step(0.1)
        with torch.inference_mode():
            loss = head.eval()(embeddings.detach(), labels)
        found.append([leaf.grad, head.centers, head.margin_state, loss.clone()])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("margin", [ArcFace(), SphereFace()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slope_found_by_autograd_is_finite_at_the_ends(margin, dtype):
    ends = torch.tensor([-1.0, 1.0], dtype=dtype)
    own = Unsloped(of=margin)
    slope = own(ends, torch.ones_like(ends), context_of(own, 2, dtype)).slope
    assert slope.isfinite().all()


def test_a_slope_found_by_autograd_is_graph_safe():
    own = Unsloped(of=ArcFace())
    cosine, norms = rows()
    with GraphSafety():
        own(cosine, norms, context_of(own, len(cosine)))


@pytest.fixture
def margins_put_back():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(margins, "MARGINS", dict(MARGINS))
        patch.setattr(margins, "OWN_MARGINS", {})
        yield


@pytest.mark.usefixtures("margins_put_back")
def test_a_registered_margin_is_created_by_name():
    register_margin("unsloped", Unsloped)
    register_margin("unsloped", Unsloped)  # as a cell that runs twice
    assert create_margin("unsloped", of=ArcFace(), scale=30) == Unsloped(of=ArcFace(), scale=30)


class _NoDataclass(Margin):
    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return Target(cosine)


@pytest.mark.parametrize("wrong", [Margin, _NoDataclass, ArcFace(), nn.Linear], ids=repr)
def test_what_is_no_margin_is_not_registered(wrong):
    with pytest.raises(
        ValueError,
        match=r"found (class \w+|ArcFace\(.*\)), expected a class derived from heads\.Margin",
    ):
        register_margin("wrong", wrong)
    assert "wrong" not in MARGINS


class _BendsToATensor(Margin):
    def bend(self, cosine: Tensor, norms: Tensor, context: StepContext) -> Target:
        return cosine  # type: ignore[return-value]


def test_a_margin_that_returns_no_target_is_refused_with_the_mend():
    own = _BendsToATensor()
    with pytest.raises(
        ValueError, match=r"_BendsToATensor\.bend\(\) returns a Tensor.*return Target"
    ):
        own(*rows(), context_of(own, len(rows()[0])))


def test_a_margins_name_is_not_taken_by_another():
    with pytest.raises(ValueError, match="there is a margin 'arcface' already, ArcFace: choose"):
        register_margin("arcface", Unsloped)
    assert MARGINS["arcface"] is ArcFace
