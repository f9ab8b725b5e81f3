"""What PartialFC refuses, said so that it can be mended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from facestream import UserError
from heads.extra_terms import ExtraTerm
from heads.margins import WEIGHT, Margin, UniFace
from heads.neighbors.search import LARGEST_DIM
from heads.neighbors.table import HardNegatives
from heads.rows.stored import NARROW
from heads.sampling import GroupClasses


def check(fits: bool, name: str, value: object, expected: str) -> None:
    """Raises UserError naming the argument unless it `fits`."""
    if not fits:
        raise UserError(f"PartialFC: {name}={value!r}, expected {expected}")


def check_head(
    *,
    num_classes: int,
    embedding_dim: int,
    margin: Margin,
    sample_rate: float,
    group_sampling: GroupClasses | None,
    hard_negatives: HardNegatives | None,
    subcenters: int,
    extra_terms: Sequence[ExtraTerm],
    expectation_margin: float | None,
    columns: Sequence[str],
    momentum: float,
    weight_decay: float,
    seed: int,
    compute_dtype: torch.dtype,
    dtype: torch.dtype,
    kept_in: Mapping[str, torch.dtype | None],
    place: str,
    prefetch: int,
) -> None:
    """Raises UserError for what no head can be built with."""
    for name, count in (
        ("num_classes", num_classes),
        ("embedding_dim", embedding_dim),
        ("subcenters", subcenters),
    ):
        check(isinstance(count, int) and count >= 1, name, count, "an integer of at least 1")
    by_groups = group_sampling is None or isinstance(group_sampling, GroupClasses)
    check(by_groups, "group_sampling", group_sampling, "GroupClasses(...) or None")
    if hard_negatives is not None:
        alone = isinstance(hard_negatives, HardNegatives) and group_sampling is None
        expected = "HardNegatives(...) without group_sampling, or None"
        check(alone, "hard_negatives", hard_negatives, expected)
        expected = f"at most {LARGEST_DIM} with hard_negatives"
        check(embedding_dim <= LARGEST_DIM, "embedding_dim", embedding_dim, expected)
        check(place == "device", "place", place, "device with hard_negatives")
    check_sample_rate(sample_rate, group_sampling, hard_negatives=hard_negatives is not None)
    check(isinstance(margin, Margin), "margin", margin, "a Margin, such as ArcFace()")
    for term in extra_terms:
        check(isinstance(term, ExtraTerm), "extra_terms", term, "terms, such as SampleToSample()")
    if expectation_margin is not None:
        name = "expectation_margin"
        check_expectation_margin(expectation_margin, kept=True)
        check(place == "device", "place", place, f"device with {name}")
        expected = f"another margin than UniFace, or no {name}"
        check(not isinstance(margin, UniFace), "margin", margin, expected)
        check(WEIGHT not in columns, "columns", columns, f"no {WEIGHT} with {name}")
    missing = [name for name in margin.columns if name not in columns]
    expected = f"{', '.join(missing)} among them, which {type(margin).__name__} reads"
    check(not missing and not isinstance(columns, str), "columns", columns, expected)
    check(len(set(columns)) == len(columns), "columns", columns, "each name once")
    check(0 <= momentum < 1, "momentum", momentum, "in [0, 1)")
    check(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "finite and at least 0")
    check(0 <= seed < 1 << 63, "seed", seed, "in [0, 2**63)")
    check(isinstance(prefetch, int) and prefetch >= 0, "prefetch", prefetch, "an integer >= 0")
    check_dtype(dtype)
    check(
        compute_dtype in (torch.float16, torch.bfloat16, torch.float32, dtype),
        "compute_dtype",
        compute_dtype,
        f"float16, bfloat16, float32 or the arithmetic's {dtype}",
    )
    for name, kept in kept_in.items():
        check(
            kept in (None, dtype, *NARROW),
            name,
            kept,
            f"bfloat16, float8_e4m3fn or the arithmetic's {dtype}",
        )


def check_dtype(dtype: torch.dtype, fixed: torch.dtype | None = None) -> None:
    """Raises UserError unless the arithmetic can have it.

    Args:
        fixed: the one that it has, where rows stay where they are.
    """
    check(dtype in (torch.float32, torch.float64), "dtype", dtype, "float32 or float64")
    check(fixed in (None, dtype), "dtype", dtype, f"{fixed}, where rows are not moved")


def check_sample_rate(
    rate: float, group_sampling: GroupClasses | None, *, hard_negatives: bool
) -> None:
    """Raises UserError for a rate outside [0, 1], or that does not go with what else is asked."""
    check(0 <= rate <= 1, "sample_rate", rate, "in [0, 1]")
    check(group_sampling is None or rate == 1, "sample_rate", rate, "1 with group_sampling")
    check(rate > 0 or not hard_negatives, "sample_rate", rate, "above 0 with hard_negatives")


def check_expectation_margin(margin: float | None, *, kept: bool) -> None:
    """Raises UserError for what is no finite number, or where expectations are not `kept`."""
    name = "expectation_margin"
    check(margin is None or math.isfinite(margin), name, margin, "a finite number")
    expected = "None, as the head was built: build it with the margin to come, and set that to None"
    check(margin is None or kept, name, margin, expected)


def check_batch(
    embeddings: Tensor,
    labels: Tensor,
    columns: Tensor | None,
    *,
    names: Sequence[str],
    device: torch.device,
    embedding_dim: int,
) -> None:
    """Raises ValueError unless these are (B, D) floats, (B,) int64 and, where columns have names,
    (B, k) float32 on the head's device."""
    shape = tuple(embeddings.shape)
    if not embeddings.is_floating_point() or len(shape) != 2 or shape[1] != embedding_dim:
        raise ValueError(
            f"embeddings are {embeddings.dtype} of shape {shape}, expected floating point of "
            f"shape (B, {embedding_dim}); embedding_dim is set when PartialFC is built"
        )
    if labels.dtype != torch.int64 or labels.shape != (shape[0],) or shape[0] == 0:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 "
            f"of shape ({shape[0]},), one class id per embedding and at least one"
        )
    if (columns is None) == bool(names):
        raise ValueError(
            f"columns are {None if columns is None else tuple(columns.shape)}, expected values of "
            f"{list(names)}, as PartialFC was built"
        )
    if columns is not None:
        found = (columns.dtype, tuple(columns.shape), columns.device)
        if found != (torch.float32, (shape[0], len(names)), device):
            raise ValueError(
                f"columns are {found[0]} of shape {found[1]} on {found[2]}, expected torch.float32 "
                f"of shape ({shape[0]}, {len(names)}) on {device}: of {', '.join(names)}"
            )
    if embeddings.device != device or labels.device != device:
        raise ValueError(
            f"embeddings are on {embeddings.device} and labels on {labels.device}, the "
            f"head on {device}: move them to one device"
        )


def check_announced(labels: Tensor) -> None:
    """Raises ValueError unless labels are (G,) int64."""
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 of "
            "shape (G,), those of all ranks"
        )


def check_micro_batches(
    labels: Tensor, extra_terms: Sequence[ExtraTerm], expectation_margin: float | None
) -> None:
    """Raises ValueError unless labels are (k, B) int64 and the terms can be computed in k parts."""
    if labels.dtype != torch.int64 or labels.dim() != 2 or 0 in labels.shape:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 "
            "of shape (k, B), a row for each micro-batch"
        )
    whole = [type(term).__name__ for term in extra_terms if term.needs_whole_batch]
    if expectation_margin is not None:
        whole.append("expectation_margin")
    if whole and labels.shape[0] > 1:
        raise UserError(
            f"{', '.join(whole)} looks at the whole batch at once: found {labels.shape[0]} "
            "micro-batches, expected one; do without gradient accumulation or without the term"
        )


def check_step_inputs(lr: float | Tensor, skip: Tensor | None) -> None:
    """Raises UserError for a rate that is no finite number >= 0, or a skip that is no 0-d bool."""
    if isinstance(lr, Tensor):
        check(lr.dim() == 0, "lr", lr.shape, "a number or a 0-d tensor")
    else:
        check(0 <= lr < math.inf, "lr", lr, "finite and at least 0")
    if skip is not None:
        boolean = isinstance(skip, Tensor) and skip.dtype == torch.bool and skip.dim() == 0
        check(boolean, "skip", skip, "a 0-d bool tensor")
