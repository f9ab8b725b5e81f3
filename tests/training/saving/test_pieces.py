"""Centers are written in pieces, which any number of ranks reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from heads import CosFace, PartialFC
from tests.ranks import run_ranks
from training.distributed import World
from training.saving import checkpoint, pieces
from training.saving.metadata import load_state, read_metadata
from training.saving.state import rank_mesh, share_rows

CLASSES, DIM, ROWS = 23, 4, 3


def head_of(seed: int) -> PartialFC:
    return PartialFC(CLASSES, DIM, CosFace(), centers_dtype=torch.float8_e4m3fn, seed=seed)


def rows_of(head: PartialFC) -> dict[str, Tensor]:
    names = ("centers", "center_scales", "velocity")
    mesh = rank_mesh("cpu")
    return {name: share_rows(getattr(head, name), CLASSES, mesh) for name in names}


def write(folder: Path) -> None:
    pieces.PIECE_BYTES = ROWS * DIM  # bytes of float8
    writer, _ = checkpoint.create_writer(folder)
    state = {"head": rows_of(head_of(5)), "step": 7}
    checkpoint.dcp.save(state, storage_writer=writer, planner=pieces.PiecewisePlanner())


def save_on(world: World, folder: Path) -> None:
    write(folder)


def load_on(world: World, folder: Path) -> bool:
    head, expected = head_of(0), head_of(5)
    assert not torch.equal(head.centers.float(), expected.centers.float())
    load_state({"head": rows_of(head), "step": 0}, folder)
    return all(
        torch.equal(one.float(), other.float())
        for one, other in zip(head.state_dict().values(), expected.state_dict().values())
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 3), (3, 1)])
def test_other_ranks_find_their_rows_among_the_pieces(ranks, tmp_path):
    first, second = ranks
    run_ranks(save_on, tmp_path / "saved", world_size=first, folder=tmp_path)
    found = run_ranks(load_on, tmp_path / "saved", world_size=second, folder=tmp_path)
    assert found == [True] * second


def test_no_piece_is_copied(world, tmp_path, monkeypatch):
    """torch copies what is part of a storage before it writes it, and holds the copy."""
    seen = []

    class Planner(pieces.PiecewisePlanner):
        def resolve_data(self, write_item):
            found = super().resolve_data(write_item)
            seen.append(found)
            return found

    monkeypatch.setattr(pieces, "PIECE_BYTES", ROWS * DIM)
    rows = rows_of(head_of(5))
    writer, _ = checkpoint.create_writer(tmp_path / "saved")
    checkpoint.dcp.save({"head": rows}, storage_writer=writer, planner=Planner())
    assert len(seen) > CLASSES // ROWS
    memory = [tensor.to_local().untyped_storage() for tensor in rows.values()]
    for piece in seen:
        assert piece.untyped_storage().nbytes() == piece.nbytes
        begin = piece.data_ptr()
        assert any(m.data_ptr() <= begin < m.data_ptr() + m.nbytes() for m in memory)


def test_no_piece_is_larger_than_it_may_be(world, tmp_path, monkeypatch):
    """And what is small is written as ever."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", ROWS * DIM)
    write(tmp_path / "saved")
    saved = read_metadata(tmp_path / "saved").state_dict_metadata
    sizes = [chunk.sizes[0] for chunk in saved["head.centers"].chunks]
    assert sum(sizes) == CLASSES
    assert max(sizes) == ROWS
    assert dist.get_world_size() == 1
    assert load_on(world, tmp_path / "saved")
    monkeypatch.setattr(pieces, "PIECE_BYTES", 256 << 20)
    state = {"head": rows_of(head_of(5))}
    writer, _ = checkpoint.create_writer(tmp_path / "whole")
    checkpoint.dcp.save(state, storage_writer=writer, planner=pieces.PiecewisePlanner())
    whole = read_metadata(tmp_path / "whole").state_dict_metadata
    assert len(whole["head.centers"].chunks) == 1
