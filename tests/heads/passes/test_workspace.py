"""heads.passes.workspace: one memory a name, whichever shape is taken of it."""

import torch

from heads.passes.workspace import Workspace


def test_the_same_shape_is_the_same_tensor():
    """A new view costs as much as a small operator."""
    workspace = Workspace(torch.device("cpu"))
    taken = workspace.take("rows", (4, 3), torch.float32)
    assert workspace.take("rows", [4, 3], torch.float32) is taken
    assert workspace.take("rows", (4, 3), torch.int32) is not taken
    assert workspace.take("other", (4, 3), torch.float32) is not taken


def test_a_shape_taken_before_lies_in_the_memory_that_grew():
    workspace = Workspace(torch.device("cpu"))
    before = workspace.take("rows", (4, 3), torch.float32)
    grown = workspace.take("rows", (8, 3), torch.float32)
    after = workspace.take("rows", (4, 3), torch.float32)
    assert after.data_ptr() == grown.data_ptr() != before.data_ptr()
    assert after.shape == (4, 3)
    smaller = workspace.take("rows", (3, 4), torch.float32)
    assert smaller.shape == (3, 4)
    assert smaller.data_ptr() == grown.data_ptr()


def test_a_room_is_memory_of_its_own_that_stays():
    workspace = Workspace(torch.device("cpu"))
    rows = workspace.take("rows", (4, 3), torch.float32)
    room = workspace.room("expectations")
    inner = room.take("rows", (4, 3), torch.float32)
    assert inner.data_ptr() != rows.data_ptr()
    assert workspace.room("expectations") is room
