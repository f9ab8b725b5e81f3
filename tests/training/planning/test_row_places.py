"""Centers that are kept elsewhere: each memory is predicted by itself, and room comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from heads.memory import HeadMemory
from tests.training import tiny
from training.config import Config, override
from training.distributed import World
from training.planning import out_of_memory
from training.planning.memory import predict
from training.planning.out_of_memory import OutOfMemoryError, require_memory
from training.planning.row_places import RowPlaces, place_folder, place_rows
from training.step.precision import choose_precision

HEAD = HeadMemory(centers=1000, momentum=500, step=70, rows=10)
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("place", "on_cpu", "expected"),
    [
        ("device", True, RowPlaces(1000, 500, fetched=0, copied=1500, host=0, disk=0)),
        ("device", False, RowPlaces(1000, 500, fetched=0, copied=1500, host=0, disk=0)),
        ("host", True, RowPlaces(1000, 500, fetched=50, copied=1500, host=0, disk=0)),
        ("host", False, RowPlaces(0, 0, fetched=10, copied=1500, host=3050, disk=0)),
        ("disk", True, RowPlaces(0, 0, fetched=50, copied=0, host=0, disk=1500)),
        ("disk", False, RowPlaces(0, 0, fetched=10, copied=0, host=50, disk=1500)),
    ],
)
def test_each_place_takes_what_is_kept_there(place, on_cpu, expected):
    assert place_rows(HEAD, place=place, prefetch=3, on_cpu=on_cpu) == expected


def configured(data, folder, *overrides: str) -> Config:
    large = ["head.num_classes=100000000", "model.embedding_dim=1024", "head.sample_rate=0"]
    return override(tiny.config(data, folder / "run"), [*large, *overrides])


def require(config: Config, world: World) -> None:
    precision = choose_precision(torch.device("cpu"), "fp32")
    found = predict(config, world, precision, num_classes=config.head.num_classes)
    require_memory(config, world, found)


def test_a_disk_without_room_is_refused_before_anything_is_made(data, world, tmp_path):
    """Of all ranks of the machine together."""
    config = configured(data, tmp_path, "head.place=disk")
    with pytest.raises(OutOfMemoryError, match=r"head\.place=disk: 819,200 MB .* are free: make"):
        require(config, world)
    require(override(config, ["head.num_classes=1000"]), world)
    assert not (tmp_path / "run").exists()


def test_a_host_without_room_is_refused_where_the_device_has_enough(
    data, world, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        out_of_memory, "available_memory", lambda device, **_: 10**9 * (64 - 63 * (device == GPU))
    )
    config = configured(data, tmp_path, "head.place=host", "run.device=cuda")
    beside = replace(world, device=GPU)
    with pytest.raises(OutOfMemoryError, match=r"host's memory predicted .* 64,000 MB available"):
        require(config, beside)
    require(override(config, ["head.num_classes=1000000"]), beside)


def test_what_does_not_fit_may_go_to_a_disk(data, world, tmp_path):
    with pytest.raises(OutOfMemoryError, match=r"another head\.place=host, such as disk"):
        require(configured(data, tmp_path, "head.place=host"), world)


def test_it_is_printed_beside_the_device(data, world, tmp_path):
    config = configured(data, tmp_path, "head.place=disk")
    precision = choose_precision(world.device, "fp32")
    text = str(predict(config, world, precision, num_classes=10**8))
    assert text.endswith("; 819,200 MB of the disk")
    assert "fetched" not in text  # what is nothing is left out


def test_the_file_is_on_the_disk_of_the_run(data, tmp_path):
    config = tiny.config(data, tmp_path / "not" / "yet" / "run")
    assert place_folder(config) == tmp_path
    (tmp_path / "scratch").mkdir()
    elsewhere = override(config, [f"head.place_path={tmp_path / 'scratch'}"])
    assert place_folder(elsewhere) == tmp_path / "scratch"
