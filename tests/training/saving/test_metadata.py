"""Checkpoints are read without running anything of them, to what torch itself makes of them."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from training.saving.files import CheckpointError
from training.saving.metadata import FILE, MetadataError, load_state, read_metadata


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "backbone": {
            "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
            "counter": torch.tensor(7),
        },
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "step": 600,
    }


def save(content: dict[str, Any], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        dcp.save(content, checkpoint_id=str(folder))
    return folder


def flat(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return [leaf for value in content.values() for leaf in flat(value)]
    return [content.tolist() if isinstance(content, torch.Tensor) else content]


def test_it_is_what_torch_reads(tmp_path):
    folder = save(state(), tmp_path / "one")
    theirs, ours = dcp.FileSystemReader(str(folder)).read_metadata(), read_metadata(folder)
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def test_one_that_was_not_copied_is_named_with_what_leaves_it_out(tmp_path):
    with pytest.raises(MetadataError, match=r"\.metadata is missing.*restore it.*with a dot"):
        read_metadata(tmp_path)


def test_tensors_and_plain_values_come_back(tmp_path):
    folder = save(state(), tmp_path / "one")
    found = {
        "backbone": {name: torch.zeros_like(t) for name, t in state()["backbone"].items()},
        "scaler": {"scale": 0.0, "_growth_tracker": 0},
        "step": 0,
    }
    load_state(found, folder, alone=True)
    assert flat(found) == flat(state())


class Code:
    """What a pickle would run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("place", ["instead of all", "among the entries"])
def test_a_metadata_that_would_run_code_is_refused_by_name(tmp_path, place):
    folder, trace = save(state(), tmp_path / "one"), tmp_path / "trace"
    content = pickle.loads((folder / FILE).read_bytes())
    content.state_dict_metadata["backbone.conv.weight"] = Code(trace)
    evil = Code(trace) if place == "instead of all" else content
    (folder / FILE).write_bytes(pickle.dumps(evil))
    with pytest.raises(MetadataError, match=r"asks for (_?io)\.open, .*nothing was run") as refused:
        read_metadata(folder)
    assert str(folder) in str(refused.value)
    with pytest.raises(CheckpointException, match="nothing was run"):
        load_state({"step": 0}, folder, alone=True)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\nV__globals__\ntR.",
        b"cbuiltins\ngetattr\n)R)R.",  # what it stands for here cannot be called
        b"ctorch\nSize\n.",
        b"ctorch\nload\n.",
        b"Nr\xff\xff\xff\x7f.",  # the two billionth object, and room for all before it
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n}b.",  # sets fields of the class
        b"",
    ],
)
def test_pickles_that_abuse_what_is_allowed_are_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(MetadataError, match=r"\.metadata (asks for|is no whole metadata)"):
        read_metadata(tmp_path)


def test_a_plain_value_that_would_run_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    folder = save(state() | {"step": Code(trace)}, tmp_path / "one")
    trace.unlink(missing_ok=True)
    with pytest.raises(CheckpointException, match=r"open"):
        load_state({"step": 0}, folder, alone=True)
    assert not trace.exists()


def test_a_place_outside_the_folder_is_refused(tmp_path):
    folder = save(state(), tmp_path / "one")
    content = pickle.loads((folder / FILE).read_bytes())
    next(iter(content.storage_data.values())).relative_path = "../secret"
    (folder / FILE).write_bytes(pickle.dumps(content))
    with pytest.raises(MetadataError, match=r"'\.\./secret' for a file of this folder"):
        read_metadata(folder)


def test_no_bytes_end_in_another_error(tmp_path):
    folder, draw = save(state(), tmp_path / "one"), random.Random(0)
    whole, refused = (folder / FILE).read_bytes(), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3, 20))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (folder / FILE).write_bytes(content[: draw.choice((len(content), draw.randrange(9999)))])
        try:
            read_metadata(folder)
        except CheckpointError:
            refused += 1
    assert refused > 100
