"""Training on images as they lie is training on the .rec of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.records.index import open_index
from tests.training import tiny
from tests.training.steps import advance, build
from training.config import Config, override
from training.distributed import World


def unpacked(data: Path, folder: Path) -> Path:
    index = open_index(data)
    for number, label in enumerate(index.records["label"].tolist()):
        (folder / f"{label:02d}").mkdir(parents=True, exist_ok=True)
        file = folder / f"{label:02d}" / f"{number:04d}.png"
        file.write_bytes(index.image(number).tobytes())
    return folder


def trained(config: Config, world: World) -> list[torch.Tensor]:
    """Seven steps, two of them in a second epoch."""
    trainer = build(override(config, ["data.augment=[flip,light]"]), world)
    advance(trainer, world, 7)
    return [*trainer.step.backbone.state_dict().values(), *trainer.step.head.state_dict().values()]


@pytest.mark.slow
def test_a_folder_trains_to_the_weights_of_its_rec(data, world, tmp_path):
    folder = unpacked(data, tmp_path / "faces")
    of_folder = trained(tiny.config(folder, tmp_path / "run"), world)
    of_rec = trained(tiny.config(data, tmp_path / "run_of_rec"), world)
    for one, other in zip(of_folder, of_rec, strict=True):
        assert torch.equal(one, other)
