"""The configuration: frozen dataclasses, built by a Python file, overridden by ``key=value``.

Whatever can be known to be wrong without touching data is refused here, with the key, the value and
what is allowed, before anything is allocated.
"""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from heads import create_margin
from models import MODELS


class ConfigError(ValueError):
    """A configuration that cannot be run: names the key, what was found and what is allowed."""


def _check(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds or value in (math.inf, -math.inf):
        raise ConfigError(f"{key}={value!r}: expected {allowed}")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how long it goes on."""

    output: str = "runs/default"  # folder for checkpoints, metrics and TensorBoard
    epochs: int = 20
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    resume: Literal["auto", "never"] = "auto"  # never: refuse a folder that holds a run
    save_every: int = 1  # epochs between checkpoints; the last epoch is always saved

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "run.epochs", self.epochs, "at least 1")
        _check(self.save_every >= 1, "run.save_every", self.save_every, "at least 1")
        _check(bool(self.output), "run.output", self.output, "a folder")


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is turned into batches."""

    train: Any = ""  # a .rec file, or the folder that holds train.rec; or several of them
    weights: tuple[float, ...] = ()  # how often an epoch shows each of several; none: once
    identity_map: str = ""  # a .csv or .json: which labels of several files are one person
    leave_out: str = ""  # a text file: identities and records to leave out
    global_batch: int = 512  # samples a step over all ranks
    image_size: int = 112  # pixels
    order: Literal["global", "block", "balanced"] = "global"
    block_records: int = 256  # order=block: consecutive records that are read together
    window_blocks: int = 1024  # order=block: blocks whose records are mixed
    images_per_identity: int = 4  # order=balanced: of each identity of a batch
    augment: tuple[str, ...] = ("flip",)  # recipes of pipeline.augment in order, or "name:0.3"
    decode: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"
    threads: int = 0  # CPU threads for DALI a rank; 0: its share of the cores
    max_bad_fraction: float = 0.001  # of the images; 1 accepts any damage, even a truncated file

    def __post_init__(self) -> None:
        several = isinstance(self.train, (list, tuple)) and len(self.train) > 0
        named = all(isinstance(path, str) and path for path in self.files)
        _check(
            named and (several or isinstance(self.train, str)),
            "data.train",
            self.train,
            "a .rec file or its folder, or a list of them",
        )
        _check(len(set(self.files)) == len(self.files), "data.train", self.train, "each file once")
        for weight in self.weights:
            _check(weight >= 0, "data.weights", weight, "0 or more: epochs' worth of a file")
        _check(self.global_batch >= 2, "data.global_batch", self.global_batch, "at least 2")
        _check(self.image_size > 0, "data.image_size", self.image_size, "a size in pixels")
        for name in ("block_records", "window_blocks", "images_per_identity"):
            value = getattr(self, name)
            _check(value >= 1, f"data.{name}", value, "at least 1")
        _check(self.threads >= 0, "data.threads", self.threads, "0 (automatic) or more")
        _check(
            0 <= self.max_bad_fraction <= 1,
            "data.max_bad_fraction",
            self.max_bad_fraction,
            "a fraction from 0 to 1",
        )

    @property
    def files(self) -> tuple[Any, ...]:
        """What `train` names, one or several."""
        return tuple(self.train) if isinstance(self.train, (list, tuple)) else (self.train,)


@dataclass(frozen=True)
class ModelConfig:
    """The backbone; its names are those of models.create_model."""

    name: str = "iresnet50"
    embedding_dim: int = 512
    width: float = 1.0
    dropout: float = 0.0
    sync_bn: bool = False  # BatchNorm statistics over all ranks; GPUs only

    def __post_init__(self) -> None:
        _check(self.embedding_dim >= 1, "model.embedding_dim", self.embedding_dim, "at least 1")
        _check(0 <= self.dropout < 1, "model.dropout", self.dropout, "a probability below 1")
        _check(self.width > 0, "model.width", self.width, "a positive factor")


@dataclass(frozen=True)
class HeadConfig:
    """The margin head; its losses are those of heads.create_margin."""

    loss: str = "arcface"
    loss_args: dict[str, Any] = field(default_factory=dict)  # e.g. margin, scale, gradient
    margin_warmup_epochs: float = 0.0  # over which the margin grows from nothing to the whole
    sample_rate: float = 1.0  # share of the class centers that take part in a step
    sample_rate_from: dict[int, float] = field(default_factory=dict)  # epoch → rate from then on
    sample_heads: int = 0  # instead of a rate: train on those of so many heads that hold the labels
    random_heads: int = 0  # and on so many others
    heads_scope: Literal["batch", "sample"] = "batch"  # who sees a head: all samples, or its own
    subcenters: int = 1  # centers a class, of which the nearest counts
    num_classes: int | None = None  # None: the largest label of the data + 1
    backend: Literal["auto", "torch", "triton"] = "auto"
    cuda_graph: bool = True  # on GPUs, record the head's step and replay it

    def __post_init__(self) -> None:
        _check(0 < self.sample_rate <= 1, "head.sample_rate", self.sample_rate, "in (0, 1]")
        for epoch, rate in self.sample_rate_from.items():
            key = f"head.sample_rate_from[{epoch}]"
            _check(epoch >= 0 and 0 < rate <= 1, key, rate, "a rate in (0, 1] from an epoch >= 0")
        warmup = self.margin_warmup_epochs
        _check(warmup >= 0, "head.margin_warmup_epochs", warmup, "0 or more")
        _check(self.subcenters >= 1, "head.subcenters", self.subcenters, "at least 1")
        _check(self.sample_heads >= 0, "head.sample_heads", self.sample_heads, "0 (off) or more")
        _check(self.random_heads >= 0, "head.random_heads", self.random_heads, "0 or more")
        if self.sample_heads:
            rates = {self.sample_rate, *self.sample_rate_from.values()}
            _check(rates == {1.0}, "head.sample_heads", self.sample_heads, "0 with a sample rate")
        _check(
            self.num_classes is None or self.num_classes >= 1,
            "head.num_classes",
            self.num_classes,
            "at least 1, or none to take it from the data",
        )

    def sample_rate_at(self, epoch: int) -> float:
        """The share of the class centers that takes part in the steps of an epoch."""
        started = [first for first in self.sample_rate_from if first <= epoch]
        return self.sample_rate_from[max(started)] if started else self.sample_rate


@dataclass(frozen=True)
class OptimConfig:
    """SGD and its schedule: linear warm-up, then polynomial decay to zero."""

    lr: float = 0.1  # for a global batch of 512; scaled in proportion to data.global_batch
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    power: float = 2.0
    clip: float = 5.0  # largest norm of the backbone's gradient

    def __post_init__(self) -> None:
        _check(self.lr > 0, "optim.lr", self.lr, "a positive rate")
        _check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _check(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        _check(self.power > 0, "optim.power", self.power, "a positive power")
        _check(self.clip > 0, "optim.clip", self.clip, "a positive norm")


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


@dataclass(frozen=True)
class EvalConfig:
    """Verification during training."""

    sets: tuple[str, ...] = ()  # InsightFace .bin files
    every: int = 1  # epochs; also before the first step and after the last
    batch_size: int = 128  # images a rank

    def __post_init__(self) -> None:
        _check(self.every >= 1, "eval.every", self.every, "at least 1")
        _check(self.batch_size >= 1, "eval.batch_size", self.batch_size, "at least 1")


@dataclass(frozen=True)
class LogConfig:
    """What is told on the way."""

    every: int = 50  # steps between lines; nothing is read from the device in between

    def __post_init__(self) -> None:
        _check(self.every >= 1, "log.every", self.every, "at least 1")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    step: StepConfig = field(default_factory=StepConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _check(
            self.optim.warmup_epochs < self.run.epochs,
            "optim.warmup_epochs",
            self.optim.warmup_epochs,
            f"less than run.epochs={self.run.epochs}",
        )
        _check(self.model.name in MODELS, "model.name", self.model.name, f"one of {sorted(MODELS)}")
        try:
            create_margin(self.head.loss, **self.head.loss_args)
        except ValueError as error:
            raise ConfigError(f"head.loss, head.loss_args: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, fit for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """``section.key=value`` for every key: what is printed, and what would override it."""
        return [
            f"{section}.{key}={json.dumps(value, ensure_ascii=False)}"
            for section, values in self.as_dict().items()
            for key, value in values.items()
        ]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Run a configuration file, which must define `config`, and apply ``key=value`` overrides.

    Raises ConfigError for a file without a Config, an unknown key, or a value that is of the wrong
    type or out of range.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(str(other) for other in Path("configs").glob("*.py"))
        raise ConfigError(f"{path} does not exist; configurations here: {', '.join(there) or '-'}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except TypeError as error:  # a keyword that no section has, or a string where a number belongs
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define `config`, a training.config.Config")
    return override(config, overrides)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with ``section.key=value`` applied; raises ConfigError as `load_config`."""
    tree = OmegaConf.structured(config)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r}: expected key=value, such as optim.lr=0.1")
        if "." not in key:
            raise ConfigError(f"{item!r}: expected section.key=value, sections {', '.join(tree)}")
        OmegaConf.set_readonly(tree, False)
        try:
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{key}={value!r}: {reason}{_known_keys(config, key)}") from error
    OmegaConf.set_readonly(tree, False)
    return OmegaConf.to_object(tree)


def _known_keys(config: Config, key: str) -> str:
    """For a key that does not exist, the ones that do."""
    sections = config.as_dict()
    section, _, name = key.partition(".")
    if section not in sections:
        return f"; the sections are {', '.join(sections)}"
    if name.partition(".")[0] not in sections[section]:
        return f"; {section} has the keys {', '.join(sections[section])}"
    return ""
