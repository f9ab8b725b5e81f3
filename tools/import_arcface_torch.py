"""Take over a training from arcface_torch:  python tools/import_arcface_torch.py SOURCE... -o OUT

SOURCE is model.pt or backbone.pth, checkpoint_gpu_{r}.pt or rank_{r}_softmax_weight(_mom).pt of all
ranks, or a folder of them; MagFace's checkpoints and any IResNet under a prefix are read, too. OUT
becomes a run's folder with one checkpoint: for run.init_from, run.resume or distill.teacher.
Where the centers are in another file, or beside the backbone under a name of their own, --head says
where: ElasticFace's NNNheader.pth, MagFace's own file, Lightning's and CVLface's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.command import command, whole_number
from training.config import Config, DataConfig, HeadConfig, ModelConfig, RunConfig
from training.distributed import join_world, leave_world
from training.saving import checkpoint
from training.saving.names import BACKBONE, HEAD, OPTIMIZER
from training.weights.arcface_files import ArcFaceTorchError, Weights, read_arcface_torch, trained


def import_arcface_torch(
    sources: Sequence[Path], output: Path, *, num_classes: int | None = None, head: str = ""
) -> Path:
    """Write what `sources` hold as a checkpoint under `output`; returns its folder.

    Call it in a process group of one.

    Args:
        num_classes: C, if it is to be checked.
        head: FILE or FILE:KEY of the centers, where `sources` do not have them.

    Raises:
        ArcFaceTorchError: for files that cannot be taken over and an `output` that is in use.
        CheckpointError: where it cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArcFaceTorchError(f"{output} is not empty: name another folder")
    weights = read_arcface_torch(sources, num_classes=num_classes, head=head)
    config = _config(weights, output)
    path = checkpoint.write(
        output,
        _state(weights),
        step=weights.step,
        config=config,
        facts=_facts(config) | {"imported from": [source.name for source in sources]},
    )
    _report(weights, path)
    return path


def _config(weights: Weights, output: Path) -> Config:
    """What the files tell of a run, which is nothing of its data; the rest is at its defaults."""
    network, centers = weights.architecture, weights.centers
    known = network.family.options
    changed = {key: value for key, value in network.options.items() if value != known[key]}
    width = changed.pop("width", ModelConfig.width)
    return Config(
        run=RunConfig(output=str(output)),
        data=DataConfig(train="unknown", image_size=network.image_size),
        model=ModelConfig(
            name=network.name,
            embedding_dim=network.embedding_dim,
            width=width,
            options=changed,
        ),
        head=HeadConfig(num_classes=None if centers is None else len(centers)),
    )


def _facts(config: Config) -> dict[str, Any]:
    """What a run that resumes from here must have in common with it; as Trainer names it."""
    facts = {
        "image size": config.data.image_size,
        "model.name": config.model.name,
        "model.embedding_dim": config.model.embedding_dim,
        "model.width": config.model.width,
        **{f"model.options.{key}": value for key, value in config.model.options.items()},
    }
    if config.head.num_classes is not None:
        facts |= {"number of classes": config.head.num_classes, "head.subcenters": 1}
    return facts


def _state(weights: Weights) -> dict[str, Any]:
    """As training.saving.state reads it from a run."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in trained(weights.architecture.create()).items()}
    momentum = weights.momentum or {name: torch.zeros(shape) for name, shape in shapes.items()}
    state: dict[str, Any] = {
        BACKBONE: weights.backbone,
        OPTIMIZER: {"state": {name: {"momentum_buffer": m} for name, m in momentum.items()}},
    }
    if weights.centers is not None:
        velocity = weights.velocity
        state[HEAD] = {
            "centers": weights.centers,
            "velocity": torch.zeros_like(weights.centers) if velocity is None else velocity,
            "steps": torch.tensor(weights.step),
            "nonfinite_steps": torch.tensor(0),
        }
    return state


def _report(weights: Weights, path: Path) -> None:
    network, centers = weights.architecture, weights.centers
    print(f"backbone      {network}, {network.embedding_dim} features")
    print("head          " + ("none" if centers is None else f"{len(centers)} classes"))
    print(f"step          {weights.step}")
    for note in weights.notes:
        print(f"note          {note}")
    print(f"wrote         {path}")
    print(f"fine-tune it  run.init_from={path}")
    if centers is not None:
        print(f"go on         run.resume={path}, with the batch, set and margin that it had")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="+", help="a file, or a folder of them")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--num-classes", type=whole_number(1, 10**9), help="refuse files that have not so many"
    )
    parser.add_argument(
        "--head", default="", metavar="FILE[:KEY]", help="where the centers are, (C, D) or (D, C)"
    )
    arguments = parser.parse_args()
    with command("import_arcface_torch"):
        join_world("cpu")
        try:
            import_arcface_torch(
                arguments.source,
                arguments.output,
                num_classes=arguments.num_classes,
                head=arguments.head,
            )
        finally:
            leave_world()


if __name__ == "__main__":
    main()
