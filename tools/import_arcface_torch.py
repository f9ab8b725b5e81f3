"""Take over a training from arcface_torch:  python tools/import_arcface_torch.py SOURCE... -o OUT

SOURCE is model.pt or backbone.pth, checkpoint_gpu_{r}.pt or rank_{r}_softmax_weight(_mom).pt of all
ranks, or a folder of them; MagFace's checkpoints and any IResNet under a prefix are read, too. OUT
becomes a run's folder with one checkpoint: for run.init_from, run.resume or distill.teacher. Where
the run's configuration is given, or lies in the folder, or its training.log does, OUT/config.py is
that configuration, and `python train_dist.py OUT/config.py` goes on.
Where the centers are in another file, or beside the backbone under a name of their own, --head says
where: ElasticFace's NNNheader.pth, MagFace's own file, Lightning's and CVLface's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.arcface_torch.config_text import as_file
from training.arcface_torch.reading import read_arcface_torch
from training.arcface_torch.run import TheirRun, find_config, their_run
from training.arcface_torch.settings import Translation, translate
from training.arcface_torch.weights import ArcFaceTorchError, Weights
from training.command import command, whole_number
from training.distributed import joined_world
from training.weights.imported_run import write_imported

CONFIG = "config.py"  # of the run that is written


def import_arcface_torch(
    sources: Sequence[Path],
    output: Path,
    *,
    num_classes: int | None = None,
    head: str = "",
    config: Path | None = None,
    gpus: int | None = None,
) -> Path:
    """Write what `sources` hold as a checkpoint under `output`; returns its folder.

    Where the run's configuration is known, `output` becomes a run that goes on: its config.py is
    that configuration.

    Call it in a process group of one.

    Args:
        num_classes: C, if it is to be checked.
        head: FILE or FILE:KEY of the centers, where `sources` do not have them.
        config: arcface_torch's configuration of the run, or its training.log; None: what lies in
            the folders of `sources`.
        gpus: that the run had; None: as many as there are ranks, or as its log says.

    Raises:
        ArcFaceTorchError: for files that cannot be taken over and an `output` that is in use.
        ArcFaceConfigError: for a configuration that cannot be had here.
        CheckpointError: where it cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArcFaceTorchError(f"{output} is not empty: name another folder")
    weights = read_arcface_torch(sources, num_classes=num_classes, head=head)
    source, translated = _configuration(sources, config, gpus or weights.ranks or None, weights)
    names = [source.name for source in sources]
    if translated is None:
        run, path = None, write_imported(output, weights, sources=names)
    else:
        run = their_run(weights, translated, source, output)
        path = write_imported(
            output,
            replace(weights, step=run.step),
            sources=names,
            config=run.config,
            steps_per_epoch=run.steps_per_epoch,
            beside={CONFIG: as_file(source.name, run.settings)},
        )
    _report(weights, path, run, source)
    return path


def _configuration(
    sources: Sequence[Path], given: Path | None, gpus: int | None, weights: Weights
) -> tuple[Path, Translation | None]:
    """The file that it is in, and what it means here, where there is one and a run to go on."""
    if weights.centers is None:
        if given:
            weights.notes.append(f"--config {given} is not used: without centers no run goes on")
        return Path(), None
    if given:
        translated = translate(given, gpus=gpus)
        if translated is None:
            raise ArcFaceTorchError(
                f"--config {given} is no configuration of arcface_torch: expected a Python file "
                "that sets config.network and the like, or the run's training.log"
            )
        return given, translated
    found = find_config(sources, gpus=gpus)
    if found is None:
        return Path(), None
    path, translated, why = found
    if translated is None:
        weights.notes.append(f"the configuration is not taken: {why}")
    return path, translated


def _report(weights: Weights, path: Path, run: TheirRun | None, source: Path) -> None:
    network, centers = weights.architecture, weights.centers
    print(f"backbone      {network}, {network.embedding_dim} features")
    print("head          " + ("none" if centers is None else f"{len(centers)} classes"))
    if run is None:
        print(f"step          {weights.step}")
    else:
        schedule = f", {run.steps_per_epoch} an epoch" if run.steps_per_epoch else ""
        print(f"settings      those of {source}, trained on {run.settings.gpus} GPUs")
        print(f"step          {run.step}{schedule}, {run.config.run.epochs} epochs in all")
    for note in (*weights.notes, *(run.settings.notes if run else ())):
        print(f"note          {note}")
    shown = quote(str(path))
    print(f"wrote         {path}")
    print(f"fine-tune it  run.init_from={shown}")
    if centers is not None and run:
        gpus = run.settings.gpus
        start = f"torchrun --nproc_per_node={gpus}" if gpus > 1 else "python"
        print(f"go on         {start} train_dist.py {quote(str(path.parents[1] / CONFIG))}")
    elif centers is not None:
        print(f"go on         run.resume={shown}, with the batch, set and margin that it had")


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
    parser.add_argument(
        "--config",
        type=Path,
        help="of the run, as arcface_torch has it, or its training.log (default: the source's)",
    )
    parser.add_argument(
        "--gpus", type=whole_number(1, 1 << 16), help="that it had (default: its ranks)"
    )
    arguments = parser.parse_args()
    with command("import_arcface_torch"), joined_world("cpu"):
        import_arcface_torch(
            arguments.source,
            arguments.output,
            num_classes=arguments.num_classes,
            head=arguments.head,
            config=arguments.config,
            gpus=arguments.gpus,
        )


if __name__ == "__main__":
    main()
