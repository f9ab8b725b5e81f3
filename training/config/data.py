"""Settings ``data.*``: the files, their order, and how images are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from training.config.checks import check, check_ranges
from training.setting_range import Amount, Count, Fraction, Range


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is turned into batches."""

    train: Any = ""  # a .rec, identity folders, zip, LMDB, parquet, tars: docs/data.md; or several
    weights: tuple[Amount, ...] = ()  # how often an epoch shows each of several; none: once
    identity_map: str = ""  # a .csv or .json: which labels of several files are one person
    leave_out: str = ""  # a text file: identities and records to leave out
    stage: str = ""  # a folder on a local disk of each node: what is read is copied there
    columns: tuple[str, ...] = ()  # for each file, a .csv or .parquet of its images' landmarks, …
    record_weights: bool = False  # multiply each image's loss by its weight of data.columns
    labels: Literal["stored", "dense"] = "stored"  # dense: numbered from 0 on, without gaps
    global_batch: Annotated[int, Range(2, 1 << 24)] = 512  # samples a step over all ranks
    image_size: Annotated[int, Range(16, 1024)] = 112  # pixels
    order: Literal["global", "block", "balanced"] = "global"  # block: nearly sequential reads
    block_records: Count = 256  # order=block: consecutive records that are read together
    window_blocks: Count = 1024  # order=block: blocks whose records are mixed
    images_per_identity: Count = 4  # order=balanced: of each identity of a batch
    augment: tuple[str, ...] = ("flip",)  # recipes of pipeline.augment in order, or "name:0.3"
    decode: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"  # hybrid: on the CPU, then the GPU
    threads: Annotated[int, Range(0, 1024)] = 0  # of a rank, for DALI; 0: its share of the cores
    max_bad_fraction: Fraction = 0.001  # of the images; 1 accepts any damage, even a truncated file

    def __post_init__(self) -> None:
        check_ranges("data", self)
        several = isinstance(self.train, (list, tuple)) and len(self.train) > 0
        named = all(isinstance(path, str) and path for path in self.files)
        check(
            named and (several or isinstance(self.train, str)),
            "data.train",
            self.train,
            "a .rec file, its folder, or a set of another form (docs/data.md), or a list of them",
        )
        check(len(set(self.files)) == len(self.files), "data.train", self.train, "each file once")
        weighted = self.record_weights and not self.columns
        expected = "false without data.columns, which has the weights"
        check(not weighted, "data.record_weights", True, expected)

    @property
    def files(self) -> tuple[Any, ...]:
        """What `train` names, one or several."""
        return tuple(self.train) if isinstance(self.train, (list, tuple)) else (self.train,)
