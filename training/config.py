"""The configuration: frozen dataclasses, built by a Python file, overridden by ``key=value``.

Whatever can be known to be wrong without touching data is refused here, with the key, the value and
what is allowed, before anything is allocated.
"""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from facestream import UserError
from heads import create_margin
from models import MODELS, Architecture, find_family, is_network
from models.input import Input, InputError
from pipeline.named_path import PathError, as_name, as_text, check_path
from training.arcface_torch.settings import ArcFaceConfigError, translate
from training.setting_range import (
    Amount,
    Count,
    CountOrZero,
    Decay,
    Fraction,
    Positive,
    Range,
    Remainder,
    out_of_range,
)
from training.setting_value import SettingValueError, as_given, as_typed, from_plain, parse_value

# Where a leading tilde is expanded.
PATH_SETTINGS = (
    "run.output",
    "run.init_from",
    "run.resume",
    "data.train",
    "data.identity_map",
    "data.leave_out",
    "distill.teacher",
    "eval.sets",
)

# Settings that have another name now; saved configurations may have the old one.
RENAMED = {
    "head.sample_heads": "head.sample_groups",
    "head.random_heads": "head.random_groups",
    "head.heads_scope": "head.groups_scope",
}


_HOME = re.compile(r"(?:^|(?<=:))~[^/:]*")  # which no shell has seen


class ConfigError(UserError):
    """A configuration that cannot be run: names the key, what was found and what is allowed."""


def _check(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{key}={value!r}: expected {allowed}")


def _check_ranges(section: str, settings: object) -> None:
    for name, value, allowed in out_of_range(settings):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        kind = "" if number else "a number of Python's own, "
        raise ConfigError(f"{section}.{name}={value!r}: expected {kind}{allowed}")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how long it goes on."""

    output: str = "runs/default"  # folder for checkpoints, metrics and TensorBoard
    epochs: Annotated[int, Range(1, 10**6)] = 20  # how often the data is seen
    seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0  # of the first weights and of all draws
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    resume: str = "auto"  # never: refuse a folder that holds a run; PATH: where a new run begins
    init_from: str = ""  # weights a new run starts from: checkpoint, run, .pth, .safetensors, .onnx
    deterministic: bool = False  # the same losses to the bit, run after run; slower on GPUs
    save_every: Count = 1  # epochs between checkpoints; the last epoch is always saved
    save_steps: CountOrZero = 0  # steps between checkpoints inside an epoch; 0: none
    keep: Count = 2  # newest checkpoints that stay, two at least; so does the best one verified
    max_hours: Amount = 0.0  # then save and stop, leaving some for the saving; 0: no limit
    hang_minutes: Amount = 10.0  # without a step, and the run ends saying where it hangs; 0: never
    max_nonfinite: CountOrZero = 50  # skipped steps in a row, then back to a checkpoint; 0: any

    def __post_init__(self) -> None:
        _check_ranges("run", self)
        _check(bool(self.resume), "run.resume", self.resume, "auto, never or a folder")
        _check(bool(self.output), "run.output", self.output, "a folder")


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is turned into batches."""

    train: Any = ""  # a .rec file, or the folder that holds train.rec; or several of them
    weights: tuple[Amount, ...] = ()  # how often an epoch shows each of several; none: once
    identity_map: str = ""  # a .csv or .json: which labels of several files are one person
    leave_out: str = ""  # a text file: identities and records to leave out
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
        _check_ranges("data", self)
        several = isinstance(self.train, (list, tuple)) and len(self.train) > 0
        named = all(isinstance(path, str) and path for path in self.files)
        _check(
            named and (several or isinstance(self.train, str)),
            "data.train",
            self.train,
            "a .rec file or its folder, or a list of them",
        )
        _check(len(set(self.files)) == len(self.files), "data.train", self.train, "each file once")

    @property
    def files(self) -> tuple[Any, ...]:
        """What `train` names, one or several."""
        return tuple(self.train) if isinstance(self.train, (list, tuple)) else (self.train,)


@dataclass(frozen=True)
class ModelConfig:
    """The backbone; its names are those of models.MODELS, which check what they are built from."""

    name: str = "iresnet50"  # as `python -m models` lists them, or timm/NAME
    embedding_dim: Annotated[int, Range(1, 16_384)] = 512  # D, features of an embedding
    width: Annotated[float, Range(0.25, 16)] = 1.0  # factor on all channels, a multiple of 0.25
    dropout: Remainder = 0.0  # probability, before the last layer
    options: dict[str, Any] = field(default_factory=dict)  # what else this network takes
    sync_bn: bool = False  # BatchNorm statistics over all ranks; GPUs only, which wait at each
    compile: bool = False  # fuse what stands between the convolutions; a minute at the start
    checkpointing: bool = False  # less memory for a third more work: blocks run again in backward
    fused: bool = False  # BatchNorm and what follows in one kernel; some networks, NVIDIA GPUs
    lora_rank: CountOrZero = 0  # of low-rank updates, which alone learn of the backbone; 0: none
    lora_alpha: Positive = 16.0  # their products count lora_alpha / lora_rank times
    lora_layers: tuple[str, ...] = ("*",)  # by names: those layers, and no others, have updates

    def __post_init__(self) -> None:
        _check_ranges("model", self)
        # Ranks that fail to compile would leave the others waiting for their statistics.
        _check(not (self.compile and self.sync_bn), "model.compile", True, "false with sync_bn")
        _check(not (self.fused and self.sync_bn), "model.fused", True, "false with model.sync_bn")
        # Which fuses as much by itself.
        _check(not (self.fused and self.compile), "model.fused", True, "false with model.compile")
        both = self.compile and self.checkpointing
        # Compilers take no BatchNorm whose statistics change in one run of a block and not in two.
        _check(not both, "model.checkpointing", True, "false with model.compile")

    @property
    def lora_scale(self) -> float:
        """What the products of low-rank updates are multiplied by; 0 without them."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


@dataclass(frozen=True)
class HeadConfig:
    """The margin head; its losses are those of heads.create_margin."""

    loss: str = "arcface"  # a margin of docs/heads.md
    loss_args: dict[str, Any] = field(default_factory=dict)  # e.g. margin, scale, gradient
    margin_warmup_epochs: Amount = 0.0  # over which the margin grows from nothing to the whole
    sample_rate: Fraction = 1.0  # share of the centers in a step; 0: those of the batch's classes
    sample_rate_from: dict[CountOrZero, Fraction] = field(default_factory=dict)  # by first epoch
    sample_groups: CountOrZero = 0  # instead of a rate: of so many groups, those of the labels
    random_groups: CountOrZero = 0  # and so many others
    groups_scope: Literal["batch", "sample"] = "batch"  # who sees a group: all samples, or its own
    subcenters: Annotated[int, Range(1, 1000)] = 1  # centers a class, of which the nearest counts
    lr: Positive | None = None  # of the centers, for a global batch of 512; None: optim.lr
    weight_decay: Decay | None = None  # of the centers; None: optim.weight_decay
    num_classes: Count | None = None  # None: the largest label of the data + 1
    backend: Literal["auto", "torch", "triton"] = "auto"  # triton: our kernels, Ampere and later

    def __post_init__(self) -> None:
        _check_ranges("head", self)
        _check(
            not self.random_groups or self.sample_groups > 0,
            "head.random_groups",
            self.random_groups,
            "0 without head.sample_groups",
        )
        if self.sample_groups:
            rates = {self.sample_rate, *self.sample_rate_from.values()}
            _check(rates == {1.0}, "head.sample_groups", self.sample_groups, "0 with a sample rate")

    def sample_rate_at(self, epoch: int) -> float:
        """The share of the class centers that takes part in the steps of an epoch."""
        started = [first for first in self.sample_rate_from if first <= epoch]
        return self.sample_rate_from[max(started)] if started else self.sample_rate


@dataclass(frozen=True)
class OptimConfig:
    """The backbone's optimizer, and the schedule of its rate."""

    lr: Positive = 0.1  # for a global batch of 512; scaled in proportion to data.global_batch
    momentum: Remainder = 0.9  # of SGD
    weight_decay: Decay = 5e-4  # of the backbone; of the centers unless head.weight_decay is set
    decay_norm_and_bias: bool = True  # False: only weights of convolutions and products decay
    name: Literal["sgd", "adamw"] = "sgd"  # of the backbone; centers have SGD with momentum
    betas: tuple[Remainder, Remainder] = (0.9, 0.999)  # of AdamW: decay of both moving averages
    backend: Literal["torch", "apex"] = "torch"  # whose fused kernels; apex: NVIDIA's, built by you
    schedule: Literal["polynomial", "step", "cosine"] = "polynomial"  # how the rate falls
    warmup_epochs: Amount = 0.0  # over which the rate grows to its peak
    power: Positive = 2.0  # schedule=polynomial
    decay_epochs: tuple[Amount, ...] = ()  # schedule=step: when the rate falls
    decay_factor: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1  # schedule=step
    min_lr: Remainder = 0.0  # schedule=cosine: share of the peak that is left at the end
    clip: Amount = 5.0  # largest norm of the backbone's gradient; 0: any
    freeze: tuple[str, ...] = ()  # parameters of the backbone that stay as they are: [layer1.*]
    rates: dict[str, Positive] = field(default_factory=dict)  # factors on the rate: {layer1.*: 0.1}
    freeze_bn: bool = False  # BatchNorm normalizes by the statistics it starts with, which stay
    freeze_epochs: Amount = 0.0  # the first ones, in which only the centers learn

    def __post_init__(self) -> None:
        _check_ranges("optim", self)
        several = isinstance(self.betas, (tuple, list)) and len(self.betas) == 2
        _check(several, "optim.betas", self.betas, "two numbers")
        _check(
            bool(self.decay_epochs) == (self.schedule == "step"),
            "optim.decay_epochs",
            self.decay_epochs,
            f"some with optim.schedule=step, none otherwise; found optim.schedule={self.schedule}",
        )
        _check(
            all(a < b for a, b in pairwise((self.warmup_epochs, *self.decay_epochs))),
            "optim.decay_epochs",
            self.decay_epochs,
            f"each later than the one before and than optim.warmup_epochs={self.warmup_epochs}",
        )
        _check(
            self.min_lr == 0 or self.schedule == "cosine",
            "optim.min_lr",
            self.min_lr,
            f"0 unless optim.schedule=cosine; found optim.schedule={self.schedule}",
        )


@dataclass(frozen=True)
class DistillConfig:
    """A frozen teacher whose embeddings the student's are drawn to; see training/distill.

    `cached` takes them from what tools/cache_teacher.py wrote: they cost nothing then, but are
    those of the images as stored. A flip hardly changes an embedding; stronger augmentation does.
    """

    teacher: str = ""  # a run, checkpoint, .pth, .pt, .safetensors or .onnx; none: off
    model: str = ""  # the name of its network, if that is to be checked
    input: dict[str, Any] = field(default_factory=dict)  # what a file takes, see models/input.py
    loss: Literal["cosine", "l2"] = "cosine"  # between the embeddings of both
    weight: Amount = 1.0  # of this loss beside the head's, at the first step
    weight_end: Amount | None = None  # at the last step, linear in between; none: the same
    cached: bool = False  # take embeddings from what tools/cache_teacher.py wrote

    def __post_init__(self) -> None:
        named = bool(self.teacher)
        _check(named or not self.cached, "distill.cached", self.cached, "false without a teacher")
        _check_ranges("distill", self)
        allowed = f"none, or the name of distill.teacher's network, one of {sorted(MODELS)}"
        _check(not self.model or is_network(self.model), "distill.model", self.model, allowed)

    @property
    def last_weight(self) -> float:
        """The weight at the last step."""
        return self.weight if self.weight_end is None else self.weight_end


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: 16 bits where they are fast
    micro_batches: Count = 1  # parts that a rank's batch is computed in: less memory, same gradient
    cuda_graph: Literal["off", "head", "full"] = "head"  # what is recorded and replayed on GPUs
    compress_gradients: bool = True  # on GPUs, average gradients in the step's 16 bits

    def __post_init__(self) -> None:
        _check_ranges("step", self)


@dataclass(frozen=True)
class EvalConfig:
    """What is scored during training, and when."""

    sets: tuple[str, ...] = ()  # lfw.bin, lfw.bin+blur, xqlfw:DIR, …: see docs/training.md
    every: Count | dict[str, Count] = 1  # epochs; {ijbc: 5}: of some sets, 1 of the others
    every_steps: CountOrZero = 0  # of sets without an epoch of their own; 0: none
    batch_size: Annotated[int, Range(1, 1 << 20)] = 128  # images a rank

    def __post_init__(self) -> None:
        _check_ranges("eval", self)


@dataclass(frozen=True)
class LogConfig:
    """What is told on the way."""

    every: Count = 50  # steps between lines; nothing is read from the device in between
    also: tuple[str, ...] = ()  # wandb, mlflow: dashboards beside TensorBoard, where installed
    pictures: bool = True  # faces in TensorBoard and in report.html; false: none of anyone

    def __post_init__(self) -> None:
        _check_ranges("log", self)
        known = set(self.also) <= {"wandb", "mlflow"}
        _check(known, "log.also", self.also, "any of wandb and mlflow, as [wandb,mlflow]")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
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
        _check(
            self.head.margin_warmup_epochs <= self.run.epochs,
            "head.margin_warmup_epochs",
            self.head.margin_warmup_epochs,
            f"at most run.epochs={self.run.epochs}",
        )
        _check(
            self.optim.backend == "torch" or self.step.cuda_graph != "full",
            "step.cuda_graph",
            self.step.cuda_graph,
            "off or head with optim.backend=apex, whose rate a graph would freeze",
        )
        _check(
            not self.model.checkpointing or self.step.cuda_graph != "full",
            "step.cuda_graph",
            self.step.cuda_graph,
            "off or head with model.checkpointing, which looks at the state of random numbers",
        )
        _check(
            self.optim.freeze_epochs <= self.run.epochs,
            "optim.freeze_epochs",
            self.optim.freeze_epochs,
            f"at most run.epochs={self.run.epochs}",
        )
        _check(
            not (self.model.sync_bn and self.optim.freeze_bn),
            "model.sync_bn",
            True,
            "false with optim.freeze_bn, where no statistics are taken",
        )
        _check(
            all(epoch < self.run.epochs for epoch in self.optim.decay_epochs),
            "optim.decay_epochs",
            self.optim.decay_epochs,
            f"each less than run.epochs={self.run.epochs}",
        )
        _check(
            is_network(self.model.name),
            "model.name",
            self.model.name,
            f"one of {sorted(MODELS)}, timm/NAME for one of timm's, or what register_network() "
            "made known: docs/extending.md",
        )
        alike = self.data.order == "balanced" and self.data.images_per_identity
        _check(
            self.head.sample_rate > 0 or alike != self.data.global_batch,
            "data.images_per_identity",
            self.data.images_per_identity,
            "less than data.global_batch with head.sample_rate=0, where the other classes of a "
            "batch are its only negatives: without any the loss is always 0",
        )
        try:
            family = self.architecture.family
        except UserError as error:
            raise ConfigError(f"model.name={self.model.name} cannot be built: {error}") from error
        _check(
            family.fuses or not self.model.fused,
            "model.fused",
            True,
            f"false with model.name={self.model.name}, whose family is not written for it",
        )
        _check(
            bool(family.stages) or not self.model.checkpointing,
            "model.checkpointing",
            True,
            f"false with model.name={self.model.name}, whose family names no stages of blocks",
        )
        try:
            self.teacher_input  # noqa: B018
        except InputError as error:
            raise ConfigError(f"distill.input: {error}") from error

    @property
    def teacher_input(self) -> Input:
        """How the teacher, where it is a file, wants its images."""
        return Input.of(self.distill.input, size=self.data.image_size)

    @property
    def architecture(self) -> Architecture:
        """The backbone. Raises UserError for what cannot be built."""
        model = self.model
        known = find_family(model.name).options
        own = {
            name: value
            for name, value in (("width", model.width), ("dropout", model.dropout))
            if name in known or value != getattr(ModelConfig, name)
        }
        return Architecture(
            model.name, model.embedding_dim, self.data.image_size, {**own, **model.options}
        )

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, fit for JSON; paths in UTF-8, whatever the locale."""
        return _as_texts(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
        """What `as_dict` gave, perhaps through JSON, perhaps in another version; and how that
        version's settings differ, in a line or two.

        Its loss may be the user's own, which is defined where that file is run alone. Raises
        ConfigError for what is no such mapping, or out of range by now.
        """
        sections, gone, new = {}, [], []
        for name, given in values.items():
            if not isinstance(given, Mapping):
                raise ConfigError(f"{name}={given!r}: expected a mapping of settings")
        values = by_names_of_now(values)
        for section, kind in get_type_hints(cls).items():
            kinds, given = get_type_hints(kind), values.get(section, {})
            known = {key: from_plain(given[key], kinds[key]) for key in kinds if key in given}
            sections[section] = kind(**known)
            gone += [f"{section}.{key}={as_given(given[key])}" for key in given if key not in kinds]
            new += [f"{section}.{key}" for key in kinds if key not in given]
        lines = [f"settings that no longer exist: {', '.join(gone)}"] if gone else []
        lines += [f"settings newer than it, at their defaults: {', '.join(new)}"] if new else []
        return _typed(cls(**sections)), tuple(lines)

    def settings(self) -> dict[str, Any]:
        """``section.key`` to its value, as `as_dict` has it."""
        return {
            f"{section}.{key}": value
            for section, values in self.as_dict().items()
            for key, value in values.items()
        }

    def lines(self) -> list[str]:
        """``section.key=value`` for every key: what run.log has, and what would override it."""
        return [f"{key}={as_given(value)}" for key, value in self.settings().items()]

    def changes(self) -> list[str]:
        """Those of `lines` that are not at their defaults; of data.train there is none."""
        defaults = Config(data=DataConfig(train=self.data.train)).lines()
        named = f"data.train={as_given(self.data.train)}"
        return [line for line in self.lines() if line == named or line not in defaults]


def check_batch(config: Config, world_size: int) -> None:
    """Raise ConfigError unless the global batch splits into parts that BatchNorm can do with."""
    batch, parts = config.data.global_batch, config.step.micro_batches
    if batch % (world_size * parts) or batch < 2 * world_size * parts:
        raise ConfigError(
            f"data.global_batch={batch}: expected a multiple of {world_size} ranks × "
            f"step.micro_batches={parts}, and at least two images for each part, whose BatchNorm "
            "cannot do with one"
        )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Run a configuration file, which must define `config`, and apply ``key=value`` overrides.

    Raises ConfigError for a file without a Config or that raises, with its line; an unknown key; a
    value that is of the wrong type or out of range.
    """
    there = sorted(str(other) for other in Path("configs").glob("*.py"))
    expected = f"a Python file that defines `config`, here are {', '.join(there) or 'none'}"
    try:
        check_path(path, called=str(path), expected=expected)
    except PathError as error:
        raise ConfigError(str(error)) from error
    _refuse_arcface_torch(path)
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # whatever its author's code may raise
        hints = [_renamed(old) for old in RENAMED if f"'{old.partition('.')[2]}'" in str(error)]
        said = "; ".join([_in_words(error), *hints])
        raise ConfigError(f"{_place(error, str(path))}: {said}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define `config`, a training.config.Config")
    try:
        config = _typed(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return override(config, overrides)


def _place(error: Exception, path: str) -> str:
    """The file and, where it can be known, its line that an error comes from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno or 1}"
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if step.filename == path]
    return f"{path}, line {lines[-1]}" if lines else path


def _in_words(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, ConfigError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _refuse_arcface_torch(path: str | Path) -> None:
    """Raise ConfigError for a configuration of arcface_torch, with what would do the same here."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    try:
        theirs = translate(Path(path), gpus=int(ranks) if ranks.isdecimal() else 1)
    except ArcFaceConfigError as error:
        raise ConfigError(f"{error}. It is a configuration of arcface_torch") from error
    if theirs is None:
        return
    notes = "".join(f"\n  {note}" for note in theirs.notes)
    raise ConfigError(
        f"{path} is a configuration of arcface_torch, expected one of ours. `python "
        f"tools/from_arcface_torch.py {path} -o OUT.py` writes it so; or, on as many ranks as "
        "here:\n\n"
        f"{theirs.command('train_dist.py', 'configs/ms1mv2_r50.py')}\n\nnot the same:{notes}"
    )


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with ``section.key=value`` applied, and a leading tilde in paths expanded.

    Texts are taken as they are, all else is YAML; see training/setting_value.py. A new head.loss
    takes only the scale from the file's loss_args; a mapping given whole replaces the file's.
    Raises ConfigError as `load_config`.
    """
    config = _typed(config)
    changed = {
        section.name: dict(vars(getattr(config, section.name))) for section in fields(config)
    }
    _start_a_new_loss(changed["head"], overrides)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r}: expected key=value, such as optim.lr=0.1")
        if "." not in key:
            sections = ", ".join(changed)
            raise ConfigError(f"{item!r}: expected section.key=value, sections {sections}")
        if key in RENAMED:
            raise ConfigError(f"{key}={text!r}: {_renamed(key)}")
        section, name, inner = (*key.split(".", 2), "")[:3]
        if section not in changed or name not in changed[section]:
            raise ConfigError(f"{key}={text!r}: no such key{_known_keys(config, key)}")
        kind = get_type_hints(type(getattr(config, section)))[name]
        try:
            changed[section][name] = parse_value(text, kind, changed[section][name], inner=inner)
        except SettingValueError as error:
            raise ConfigError(f"{key}={text!r}: {error}") from error
    for setting in PATH_SETTINGS:
        section, _, name = setting.partition(".")
        changed[section][name] = _as_path(changed[section][name])
    built = {name: type(getattr(config, name))(**values) for name, values in changed.items()}
    overridden = Config(**built)
    try:
        create_margin(overridden.head.loss, **overridden.head.loss_args)
    except UserError as error:
        raise ConfigError(f"head.loss, head.loss_args: {error}") from error
    return overridden


def _typed(config: Config) -> Config:
    """The same; ConfigError for values of other types than their settings."""
    sections: dict[str, Any] = {}
    for section in fields(config):
        given = getattr(config, section.name)
        values = dict(vars(given))
        for name, kind in get_type_hints(type(given)).items():
            try:
                values[name] = as_typed(values[name], kind)
            except SettingValueError as error:
                raise ConfigError(f"{section.name}.{name}={values[name]!r}: {error}") from error
        sections[section.name] = type(given)(**values)
    return Config(**sections)


def by_names_of_now(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A saved configuration, with the settings that are called otherwise now."""
    return {
        section: {
            RENAMED.get(f"{section}.{key}", f"{section}.{key}").partition(".")[2]: value
            for key, value in values.items()
        }
        for section, values in saved.items()
    }


def _renamed(key: str) -> str:
    return f"{key} is called {RENAMED[key]} now"


def _start_a_new_loss(head: dict[str, Any], overrides: Sequence[str]) -> None:
    """Leave of the file's loss_args only the scale, where the command line names another loss."""
    chosen = [item.partition("=")[2] for item in overrides if item.startswith("head.loss=")]
    if not chosen or chosen[-1] == head["loss"]:
        return
    kept = {name: value for name, value in head["loss_args"].items() if name == "scale"}
    left = {name: value for name, value in head["loss_args"].items() if name not in kept}
    head["loss_args"] = kept
    if left and os.environ.get("RANK", "0") == "0":  # once, not by every rank
        logging.warning(
            "head.loss=%s starts from its own defaults: of the file's head.loss_args, made for %s, "
            "%s stays and %s does not",
            *(chosen[-1], head["loss"], json.dumps(kept), json.dumps(left)),
        )


def _as_path(value: Any) -> Any:
    """One path or several, without a ``~`` or ``~user`` that leads, as in ``ijbc:~/DIR`` too."""
    if isinstance(value, str):
        return _HOME.sub(lambda home: os.path.expanduser(home[0]), as_name(value))
    return tuple(map(_as_path, value))


def _as_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_texts(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_as_texts, value))
    return as_text(value) if isinstance(value, str) else value


def _known_keys(config: Config, key: str) -> str:
    """For a key that does not exist, the ones that do."""
    sections = config.as_dict()
    section, _, name = key.partition(".")
    if section not in sections:
        return f"; the sections are {', '.join(sections)}"
    if name.partition(".")[0] not in sections[section]:
        return f"; {section} has the keys {', '.join(sections[section])}"
    return ""
