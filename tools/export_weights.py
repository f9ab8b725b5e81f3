"""Weights for others:  python tools/export_weights.py CHECKPOINT -o OUT [--format arcface_torch]

CHECKPOINT is a checkpoint's folder, RUN for its newest, RUN@best or RUN@STEP. OUT gets
model.safetensors, the backbone, and its model card, README.md; or, as arcface_torch, model.pt and,
for --ranks GPUs, the checkpoint_gpu_{r}.pt that arcface_torch resumes from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.input import Input
from training.arcface_torch.weights import Weights
from training.arcface_torch.writing import write_arcface_torch
from training.command import command, whole_number
from training.config import load_config
from training.frozen.card import Card, write_card
from training.frozen.model import digest_of_weights
from training.frozen.onnx_input import as_words
from training.provenance import strictest
from training.saving.files import CheckpointError
from training.saving.names import BACKBONE, CENTERS, HEAD, MOMENTUM, OPTIMIZER, VELOCITY
from training.saving.reading import SavedCheckpoint, open_weights
from training.shipping.known import config_of, data_of
from training.shipping.page import with_results
from training.step.schedules import create_schedule
from training.weights.model_card import model_card

FORMATS = ("safetensors", "arcface_torch")


def export_safetensors(
    checkpoint: str | Path, output: Path, *, license: str | None = None
) -> list[Path]:
    """Write the backbone and its model card into the folder `output`; returns both files.

    Args:
        license: an SPDX name for the card, such as "mit"; None: the strictest of the training sets.

    Raises:
        WeightsError: for a checkpoint that is not there or damaged.
        CheckpointError: for an `output` in use.
    """
    _require_empty(output)
    saved = _open(checkpoint)
    weights = _weights(saved, BACKBONE)
    written = [output / "model.safetensors", output / "README.md"]
    output.mkdir(parents=True, exist_ok=True)
    # Strings are all that a safetensors file keeps beside its tensors.
    network = asdict(weights.architecture)
    metadata = {key: str(value) for key, value in (network | network.pop("options")).items()}
    content = save(weights.backbone, metadata={"format": "pt"} | metadata)
    written[0].write_bytes(content)  # safetensors' own save_file lets nobody else read the file
    data, size = data_of(saved), weights.architecture.image_size
    digest = digest_of_weights(saved.network())
    card = Card(
        network=weights.architecture.name,
        embedding_dim=weights.architecture.embedding_dim,
        input=as_words(Input(size=size)),
        precision="float32",
        digest=digest,
        space=digest,
        data=data,
        config=config_of(saved),
    )
    write_card(written[0], card)
    page = model_card(
        weights.architecture,
        config=saved.config.as_dict(),
        about=saved.about,
        license=license or strictest(one.license for one in data),
    )
    written[1].write_text(with_results(page, card) or page, encoding="utf-8")
    return written


def export_arcface_torch(
    checkpoint: str | Path, output: Path, *, world_size: int, epoch: int | None = None
) -> list[Path]:
    """Write arcface_torch's files for `world_size` GPUs into the folder `output`; returns them.

    Args:
        epoch: epochs done, from which arcface_torch would resume; None: those of the checkpoint, or
            0 where it does not say.

    Raises:
        WeightsError: for a checkpoint that is not there or damaged.
        CheckpointError: for an `output` in use.
        ArcFaceTorchError: for fewer classes than GPUs.
    """
    _require_empty(output)
    saved = _open(checkpoint)
    if saved.config.head.subcenters > 1:
        raise CheckpointError(
            f"{saved.path} has {saved.config.head.subcenters} centers a class, expected 1: "
            "arcface_torch has no place for more; --format safetensors takes the backbone"
        )
    weights = _weights(saved, BACKBONE, OPTIMIZER, HEAD)
    if weights.centers is not None and weights.momentum is None:
        print("note          no momentum of SGD in the checkpoint: the backbone's starts at zero")
    if epoch is None:
        epoch = _epochs_done(saved.about)
    has_head = weights.centers is not None  # without one there is nothing to resume
    rate, peak_rate = _rates(saved, epoch=epoch) if has_head else (0.0, 0.0)
    return write_arcface_torch(
        output,
        weights,
        world_size=world_size,
        epoch=epoch,
        rate=rate,
        peak_rate=peak_rate,
        momentum=saved.config.optim.momentum,
        weight_decay=saved.config.optim.weight_decay,
    )


def _steps_per_epoch(about: Mapping[str, Any]) -> int:
    """0 where the checkpoint does not say: an import, or one of a version that did not."""
    return about.get("counters", {}).get("steps_per_epoch", 0)


def _epochs_done(about: Mapping[str, Any]) -> int:
    """The whole ones, said where that is not all there is to say."""
    step, per_epoch = about["step"], _steps_per_epoch(about)
    if not per_epoch:
        if step:
            print(
                "note          at epoch 0, as the checkpoint does not say how many are done: give "
                "--epoch if arcface_torch is to go on where this ended"
            )
        return 0
    epoch, into_epoch = divmod(step, per_epoch)
    if into_epoch:
        print(f"note          inside an epoch: arcface_torch begins its number {epoch} again")
    return epoch


def _rates(saved: SavedCheckpoint, *, epoch: int) -> tuple[float, float]:
    """Of the step that comes next, and the highest, by the run's own schedule."""
    config, about, step = saved.config, saved.about, saved.about["step"]
    steps_per_epoch = _steps_per_epoch(about)
    if not steps_per_epoch and epoch:
        steps_per_epoch = step // epoch  # of versions that did not keep it
    schedule = create_schedule(
        config.optim,
        global_batch=config.data.global_batch,
        epochs=config.run.epochs,
        steps_per_epoch=steps_per_epoch,
    )
    if not steps_per_epoch or "imported from" in about["facts"]:
        print(
            f"note          lr is {schedule.peak:g}, the highest: the checkpoint does not say "
            "where in its schedule it was"
        )
        return schedule.peak, schedule.peak
    if step >= schedule.total_steps:
        print(
            "note          lr is 0 and stays 0: the run had ended. Start another run from model.pt"
        )
        return 0.0, schedule.peak
    return schedule(step), schedule.peak


def _require_empty(output: Path) -> None:
    """Files of another export would be taken for parts of this one."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} is not empty: name another folder")


def _open(given: str | Path) -> SavedCheckpoint:
    saved = open_weights(given)
    if not isinstance(saved, SavedCheckpoint):
        raise CheckpointError(
            f"{given} is a file: expected a checkpoint's folder, a run, RUN@best or RUN@STEP. "
            "tools/import_arcface_torch.py makes a checkpoint of it; of an .onnx, "
            "tools/import_onnx.py"
        )
    step, per_epoch = saved.about["step"], _steps_per_epoch(saved.about)
    epoch = f", epoch {step / per_epoch:.2f}" if per_epoch else ""
    print(f"checkpoint    {saved.path}: step {step:,}{epoch}")
    for note in saved.notes:
        print(f"note          {note}")
    return saved


def _weights(saved: SavedCheckpoint, *sections: str) -> Weights:
    tensors, architecture = saved.tensors(*sections), saved.architecture
    with torch.device("meta"):
        names = architecture.create().state_dict()
    before, after = MOMENTUM
    momentum = {
        key.removeprefix(before).removesuffix(after): tensor
        for key, tensor in tensors.items()
        if key.startswith(before) and key.endswith(after)
    }
    return Weights(
        architecture,
        # In the module's order, by which others number them: files of several ranks have another.
        {name: tensors[f"{BACKBONE}.{name}"] for name in names},
        momentum=momentum or None,
        centers=tensors.get(CENTERS),
        velocity=tensors.get(VELOCITY),
        step=saved.about["step"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a checkpoint's folder, RUN, RUN@best or RUN@STEP")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--config", type=Path, help="a configuration file that registers the run's own network"
    )
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument(
        "--license",
        help="for the model card, such as mit (default: the strictest of the training sets)",
    )
    ranks, epochs = whole_number(1, 1 << 16), whole_number(0, 10**6)
    parser.add_argument("--ranks", type=ranks, default=1, help="GPUs of arcface_torch (default 1)")
    parser.add_argument(
        "--epoch",
        type=epochs,
        help="epochs done, where arcface_torch is to go on (default: the checkpoint's)",
    )
    arguments = parser.parse_args()
    source, output = arguments.checkpoint, arguments.output
    with command("export_weights"):
        if arguments.config:
            load_config(arguments.config)
        if arguments.format == "safetensors":
            written = export_safetensors(source, output, license=arguments.license)
        else:
            written = export_arcface_torch(
                source, output, world_size=arguments.ranks, epoch=arguments.epoch
            )
    for path in written:
        print(f"wrote         {path}")
    if arguments.format == "safetensors" and "\nlicense: unknown\n" in written[1].read_text(
        "utf-8"
    ):
        print("license       the model card says unknown: set it with --license")


if __name__ == "__main__":
    main()
