"""Add the identities of a second .rec to a trained head:

    python tools/grow_head.py CHECKPOINT --rec NEW.rec -o OUT [--init mean|random]

OUT is a checkpoint with CHECKPOINT's backbone and centers, bit for bit, and after these a center
for each label of NEW.rec, without momentum. Go on from it with `run.init_from=OUT
data.train=[OLD.rec,NEW.rec]`, in a new run.output.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from heads.centers import initial_centers
from heads.expectations import EXPECTATIONS
from heads.neighbors.table import ENTRIES
from heads.passes.workspace import Workspace
from heads.rows.stored import Stored, in_float32, write_rows
from pipeline.collection import Collection
from training.command import command
from training.config import load_config
from training.data import open_shared_index
from training.distributed import World, joined_world
from training.planning.out_of_memory import OutOfMemoryError, asked_for, is_shortage
from training.saving.checkpoint import create_writer
from training.saving.files import complete, read_about
from training.saving.metadata import load_state, read_metadata
from training.saving.names import CENTERS, HEAD, SCALES
from training.saving.reading import SavedCheckpoint, open_weights
from training.saving.resume import FILES
from training.saving.weight_file import WeightsError
from training.step.precision import choose_precision
from training.weights.center_transfer import aim_centers
from training.weights.identities import FILE, Identities, read_identities
from training.weights.mean_embeddings import mean_embeddings

INITS = ("mean", "random")
# Zeros after the old rows: no momentum, and no expectation yet.
_ROWS = (*SCALES, *SCALES.values(), f"{HEAD}.{EXPECTATIONS}")
# Left out: which classes are near is another question among more of them, and a run searches again.
_NEIGHBORS = tuple(f"{HEAD}.{name}" for name in ENTRIES)


def grow_head(checkpoint: str | Path, rec: Path, output: Path, *, init: str, world: World) -> Path:
    """Write `output`, whose manifest comes last; returns it. Call it in a process group of one.

    Args:
        init: "mean" starts a class at the mean embedding of up to 32 of its images, as long as the
            old centers are on average; "random" where a new head would start it.

    Raises:
        UserError: a subclass of it, for files that cannot be read or do not fit together.
    """
    if output.exists():
        raise WeightsError(f"{output} exists: name another folder")
    saved = open_weights(checkpoint)
    source, held = saved.path, saved.shapes().get(CENTERS, (0,))[0]
    if not held or not isinstance(saved, SavedCheckpoint):
        raise WeightsError(f"{source} has no head to grow: expected a checkpoint of a run")
    architecture = saved.architecture
    print(f"checkpoint    {source}")
    records = Collection.of(open_shared_index(str(rec), world))
    people = _who(source, held, records)
    state = _read_with_room(source, records.num_classes)
    config = saved.config.as_dict()
    centers = Stored(state[CENTERS], state.get(SCALES[CENTERS]))
    width = centers.values.shape[1]
    new = initial_centers(held, records.num_classes, width, seed=config["run"]["seed"])
    if init == "mean":
        dim = architecture.embedding_dim
        norm = float(in_float32(centers.part(slice(held))).view(-1, dim).norm(dim=1).mean())
        directions = _directions(saved, config, records, world)
        new, left = aim_centers(new, directions, embedding_dim=dim, norm=norm)
        if left:
            print(f"at random     {left} identities: no image of theirs can be embedded")
    workspace = Workspace(new.device)
    write_rows(centers, slice(held, held + len(new)), new, None, workspace=workspace)
    documents = _documents(source, config, people, records, count=held + len(new))
    _write(output, state, documents)
    *before, last = config["data"]["train"]
    train = ",".join([*(before or ["OLD.rec"]), last])
    print(f"wrote         {output}: {held} centers as they were, {len(new)} new ones")
    print(f"go on         run.init_from={output} data.train=[{train}], in a new run.output")
    return output


def _who(source: Path, held: int, records: Collection) -> Identities | None:
    """Whose the rows will be; None where nothing says whose the old ones are."""
    old = read_identities(source)
    if old is None:
        return None
    new = Identities.of(records, num_classes=records.num_classes)
    if old.files.keys() & new.files.keys():
        raise WeightsError(f"{records.indexes[0].path}: {source} was trained on it, name another")
    labels = 1 + max((int(classes.max(initial=-1)) for classes in old.files.values()), default=-1)
    if labels != held:
        raise WeightsError(
            f"{source}: its head has {held} rows, and {labels} of them have labels: rows after "
            "these would not be where the labels of a second file go. Start from it as it is, "
            "run.init_from takes the centers and starts new ones at their mean embeddings"
        )
    shared = set(old.names.values()) & set(new.names.values())
    if shared:
        print(
            f"note          {len(shared)} names, such as {min(shared)}, are in both sets and stay "
            "two people each: data.identity_map would make them one"
        )
    return old.followed_by(new)


def _read_with_room(source: Path, rows: int) -> dict[str, Any]:
    """All of a checkpoint by name but its neighbors, with zeros after the rows of the head."""
    state: dict[str, Any] = {}
    whole: dict[str, Tensor] = {}
    for name, entry in read_metadata(source).state_dict_metadata.items():
        if name in _NEIGHBORS:
            continue
        if not isinstance(entry, TensorStorageMetadata):
            state[name] = None  # a plain value
        elif name in _ROWS:
            held, width = entry.size
            whole[name] = torch.zeros(held + rows, width, dtype=entry.properties.dtype)
            state[name] = whole[name][:held]
        else:
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    load_state(state, source)
    return state | whole


def _directions(
    saved: SavedCheckpoint, config: dict[str, Any], records: Collection, world: World
) -> Tensor:
    count, architecture = records.num_classes, saved.architecture
    return mean_embeddings(
        saved.network().to(world.device),
        records,
        np.arange(count),
        owned=slice(0, count),
        subcenters=config["head"]["subcenters"],
        embedding_dim=architecture.embedding_dim,
        image_size=architecture.image_size,
        world=world,
        precision=choose_precision(world.device),
    )


def _documents(
    source: Path,
    config: dict[str, Any],
    people: Identities | None,
    records: Collection,
    *,
    count: int,
) -> dict[str, Any]:
    """The old checkpoint's, by file name, with what is changed; `config` is changed in place."""
    (index,), data = records.indexes, config["data"]
    files = [data["train"]] if isinstance(data["train"], str) else data["train"]
    data["train"] = [*filter(None, files), str(index.path)]
    data["weights"] = [*data["weights"], 1.0] if data["weights"] else []
    config["head"]["num_classes"] = config["head"]["num_classes"] and count
    about = read_about(source)
    facts = about["facts"] | {"number of classes": count, "grown from": str(source)}
    if "dataset" in facts:  # an import has none
        facts["dataset"] += f" {index.file.fingerprint}"
    if FILES in facts:
        facts[FILES] += f" and {index.path}"
    documents = {"config.json": config, "about.json": about | {"facts": facts}}
    return documents if people is None else documents | {FILE: people.as_dict()}


def _write(output: Path, state: dict[str, Any], documents: dict[str, Any]) -> None:
    writer, digests = create_writer(output)
    try:
        dcp.save(state, storage_writer=writer)
    except CheckpointException as error:
        shutil.rmtree(output, ignore_errors=True)
        causes = "; ".join(str(cause) for cause, _ in error.failures.values())
        raise WeightsError(
            f"{output} was not written: {causes}. Make room there, or allow writing"
        ) from error
    complete(output, documents=documents, digests=digests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("checkpoint", help="a checkpoint's folder, RUN, RUN@best or RUN@STEP")
    parser.add_argument("--rec", type=Path, required=True, help="the .rec of the new identities")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--config", type=Path, help="a configuration file that registers the run's own network"
    )
    parser.add_argument("--init", choices=INITS, default="mean", help="where new centers start")
    arguments = parser.parse_args()
    with command("grow_head"):
        if arguments.config:
            load_config(arguments.config)
        try:
            with joined_world() as world:
                grow_head(
                    arguments.checkpoint,
                    arguments.rec,
                    arguments.output,
                    init=arguments.init,
                    world=world,
                )
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            raise OutOfMemoryError(
                f"memory has run out: asked for {asked_for(error)}. It takes the whole head, and "
                "with --init mean a batch of 128 images beside it: try --init random"
            ) from error


if __name__ == "__main__":
    main()
