"""Which settings may differ where a run resumes from a checkpoint, and which may not.

Those of `FREE` say where, how fast and how closely watched a run is. Those of `BINDING` change the
result: if they change half-way, no configuration says how the weights were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facestream import UserError
from heads import create_margin
from training.config import Config, DataConfig, by_names_of_now

FREE = {
    "run": (
        *("output", "resume", "init_from"),  # where it begins and lies
        *("device", "deterministic"),
        *("save_every", "save_steps", "keep", "max_hours", "hang_minutes", "max_nonfinite"),
    ),
    # What the paths lead to is compared by content: see facts.agree.
    "data": (
        *("train", "identity_map", "leave_out", "columns", "labels", "stage"),
        *("decode", "threads", "max_bad_fraction"),
    ),
    "model": ("compile", "checkpointing", "fused", "winograd"),
    "head": (
        *("num_classes", "backend"),  # how many there are is one of the facts
        *("place", "place_path", "prefetch"),
    ),
    "optim": ("backend",),
    "step": ("precision", "micro_batches", "cuda_graph", "compress_gradients"),  # only to rounding
    "eval": ("sets", "every", "every_steps", "batch_size"),
    "log": ("every", "also", "pictures"),
}
BINDING = {
    "run": ("seed", "epochs"),  # epochs: see _epochs_bend
    "data": (
        *("weights", "record_weights", "global_batch", "image_size", "augment"),
        *("order", "block_records", "window_blocks", "images_per_identity"),
    ),
    "model": (
        *("name", "options", "embedding_dim", "width", "dropout", "sync_bn"),
        *("lora_rank", "lora_alpha", "lora_layers"),
    ),
    "head": (
        *(
            "loss",
            "loss_args",
            "extra_terms",
            "expectation_margin",
            "expectation_margin_from",
            "margin_warmup_epochs",
            "subcenters",
        ),
        *("lr", "weight_decay", "momentum", "centers_dtype", "momentum_dtype"),
        *("sample_rate", "sample_rate_from", "sample_count"),
        *("sample_groups", "random_groups", "groups_scope"),
        *("hard_negatives", "neighbors", "neighbors_every"),
    ),
    "optim": (
        *("name", "lr", "momentum", "betas", "weight_decay", "decay_norm_and_bias", "clip"),
        *("schedule", "warmup_epochs", "power", "decay_epochs", "decay_factor", "min_lr"),
        *("freeze", "rates", "freeze_bn", "freeze_epochs"),
    ),
    "distill": ("teacher", "model", "input", "loss", "weight", "weight_end", "cached"),
}

_UNSAID = ("run.output", "run.resume", "run.init_from")  # they differ wherever a new run begins
_COUNTS_WITH = {  # settings that do nothing unless another has this value
    "data.block_records": ("data.order", "block"),
    "data.window_blocks": ("data.order", "block"),
    "data.images_per_identity": ("data.order", "balanced"),
    "optim.betas": ("optim.name", "adamw"),
    "optim.power": ("optim.schedule", "polynomial"),
    "optim.decay_factor": ("optim.schedule", "step"),
}


@dataclass(frozen=True)
class Differences:
    """What differs between two configurations, a line each."""

    free: tuple[str, ...]
    binding: tuple[str, ...]


def compare_settings(saved: Mapping[str, Mapping[str, Any]], config: Config) -> Differences:
    """What a checkpoint was saved with against what there is now.

    Args:
        saved: its config.json. What it lacks is newer than it is and counts as the default; what is
            no setting any more is named among the free.
    """
    saved = by_names_of_now(saved)
    now = json.loads(json.dumps(config.as_dict()))
    usual = json.loads(json.dumps(Config(data=DataConfig(train=config.data.train)).as_dict()))
    then = {
        section: {key: saved.get(section, {}).get(key, usual[section][key]) for key in values}
        for section, values in now.items()
    }
    free, binding = [], []
    for section, values in now.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            if _same(name, then, now) or name in _UNSAID:
                continue
            line = f"{name} was {json.dumps(then[section][key])}, is {json.dumps(value)}"
            free_too = name == "run.epochs" and not _epochs_bend(config)
            (free if key in FREE.get(section, ()) or free_too else binding).append(line)
    gone = [
        f"{section}.{key} was {json.dumps(value)}, is no setting any more"
        for section, values in saved.items()
        for key, value in values.items()
        if key not in now.get(section, {})
    ]
    return Differences((*free, *gone), tuple(binding))


def _same(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    section, key = name.split(".")
    if name in _COUNTS_WITH:
        other, value = _COUNTS_WITH[name]
        where, which = other.split(".")
        if then[where][which] != value != now[where][which]:
            return True
    if name == "head.loss_args":  # a margin left out is the usual one
        return _margin(then["head"]) == _margin(now["head"])
    return then[section][key] == now[section][key]


def _margin(head: Mapping[str, Any]) -> Any:
    try:
        return create_margin(head["loss"], **head["loss_args"])
    except UserError:  # of an older version, with what is no argument any more
        return head["loss_args"]


def _epochs_bend(config: Config) -> bool:
    """Whether what a step does depends on how many epochs there will be."""
    fades = config.distill.teacher and config.distill.weight != config.distill.last_weight
    return config.optim.schedule != "step" or bool(fades)
