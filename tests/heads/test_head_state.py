"""A head's state says of which classes its rows are: others of the same shape are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from heads import ArcFace, PartialFC, partial_fc


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    def built(classes: int, *, rank: int = 0, world_size: int = 1, **options: Any) -> PartialFC:
        """The head of one of several ranks, without the others."""
        ranks = SimpleNamespace(rank=rank, world_size=world_size)
        monkeypatch.setattr(partial_fc, "Ranks", lambda group: ranks)
        return PartialFC(classes, 4, ArcFace(), cuda_graph=False, **options)

    return built


def held(head: PartialFC) -> list[Tensor]:
    return [buffer.clone() for buffer in head.buffers()]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("saved", "into", "fault"),
    [
        # Rank 1 of 2 has the classes 3 and 4, rank 1 of 3 the classes 2 and 3.
        ((5, 1, 2), (5, 1, 3), "first_class is 3 in this state and 2 in this head"),
        ((6, 0, 2), (6, 1, 2), "first_class is 0 in this state and 3 in this head"),
        ((5, 0, 2), (6, 0, 2), "num_classes is 5 in this state and 6 in this head"),
    ],
)
def test_rows_of_other_classes_are_refused_and_change_nothing(build, saved, into, fault, strict):
    theirs, ours = (
        build(classes, rank=rank, world_size=world_size, seed=seed)
        for seed, (classes, rank, world_size) in enumerate((saved, into))
    )
    assert theirs.centers.shape == ours.centers.shape, "or their shapes alone would tell"
    before = held(ours)
    with pytest.raises(RuntimeError, match=fault):
        ours.load_state_dict(theirs.state_dict(), strict=strict)
    assert all(torch.equal(a, b) for a, b in zip(held(ours), before, strict=True))


def test_inside_another_module_too(build):
    theirs = nn.ModuleDict({"head": build(5, rank=1, world_size=2)})
    ours = nn.ModuleDict({"head": build(5, rank=1, world_size=3)})
    with pytest.raises(RuntimeError, match="first_class is 3"):
        ours.load_state_dict(theirs.state_dict())


def test_the_same_ranks_rows_load(build):
    theirs = build(5, rank=1, world_size=2, seed=1)
    ours = build(5, rank=1, world_size=2, seed=2)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.centers, theirs.centers)


def test_a_state_of_before_the_entries_loads(build):
    theirs, ours = build(5, seed=1), build(5, seed=2)
    state = theirs.state_dict()
    del state["num_classes"], state["first_class"]
    ours.load_state_dict(state)
    assert torch.equal(ours.centers, theirs.centers)


def test_the_state_that_is_loaded_stays_whole(build):
    state = build(5).state_dict()
    build(5).load_state_dict(state)
    build(5).load_state_dict(state)
    assert {"num_classes", "first_class"} <= set(state)


def test_a_model_around_it_goes_through_torchs_own_checkpoint_functions(build):
    theirs = nn.ModuleDict({"head": build(5, rank=1, world_size=2, seed=1)})
    ours = nn.ModuleDict({"head": build(5, rank=1, world_size=2, seed=2)})
    state = get_model_state_dict(theirs)
    assert state["head.first_class"] == 3
    set_model_state_dict(ours, state)
    assert torch.equal(ours["head"].centers, theirs["head"].centers)


def test_it_can_be_saved_and_loaded_without_unpickling(build, tmp_path):
    theirs, ours = build(5, seed=1), build(5, seed=2)
    torch.save(theirs.state_dict(), tmp_path / "head.pt")
    ours.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(ours.centers, theirs.centers)
