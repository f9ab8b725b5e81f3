"""What identifies a run, and what its ranks must have in common before it starts."""

from __future__ import annotations

from typing import Any

from pipeline.named_path import as_text
from training.config import Config
from training.data import TrainingData
from training.distributed import World, require_agreement
from training.saving.checkpoint import versions
from training.saving.resume import FILES, OF_FILES
from training.step.precision import Precision


def agree(
    config: Config, world: World, precision: Precision, data: TrainingData, *, num_classes: int
) -> dict[str, Any]:
    """Make sure that all ranks mean the same run; returns what identifies it.

    Raises UserError, on every rank, naming what is not the same on all.
    """
    model, files = config.as_dict()["model"], _files(config)
    options = model.pop("options")
    for how in ("compile", "checkpointing", "fused", "winograd"):
        del model[how]  # the same network, however it runs
    facts = {
        "dataset": data.fingerprint,
        "records and labels": data.records.digest(),
        "side columns": data.columns.digest() if data.columns else "none",
        "number of classes": num_classes,
        "image size": config.data.image_size,
        "global batch": config.data.global_batch,
        "seed": config.run.seed,
        "head.loss": config.head.loss,
        "head.subcenters": config.head.subcenters,
        **{f"model.{key}": value for key, value in model.items()},
        **{f"model.options.{key}": value for key, value in options.items()},
    }
    settings = dict(line.split("=", 1) for line in config.lines())
    require_agreement(settings)  # first: much of what follows depends on them
    everyone = {
        **{f"the version of {name}": version for name, version in versions().items()},
        "precision": (world.device.type, str(precision.compute_dtype)),
    }
    # Digests alone would not say which files they are of.
    named = {f"{key} of {files}" if key in OF_FILES else key: facts[key] for key in facts}
    require_agreement(everyone | named)
    return facts | {FILES: files}


def _files(config: Config) -> str:
    """The settings that say which images are trained on, and as whose."""
    chosen = {
        "data.train": ",".join(map(str, config.data.files)),
        "data.identity_map": config.data.identity_map,
        "data.leave_out": config.data.leave_out,
        "data.labels": config.data.labels if config.data.labels == "dense" else "",
    }
    return as_text(" ".join(f"{key}={value}" for key, value in chosen.items() if value))
