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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.command import command, whole_number
from training.distributed import join_world, leave_world
from training.weights.arcface_files import ArcFaceTorchError, Weights, read_arcface_torch
from training.weights.imported_run import write_imported


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
    path = write_imported(output, weights, sources=[source.name for source in sources])
    _report(weights, path)
    return path


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
