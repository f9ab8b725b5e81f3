"""The configuration of a run: its sections, what they ask of one another, and its plain forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from facestream import UserError
from models import MODELS, Architecture, find_family, is_network
from models.input import Input, InputError
from pipeline.named_path import as_text
from training.config.checks import ConfigError, check
from training.config.data import DataConfig
from training.config.distill import DistillConfig
from training.config.eval import EvalConfig
from training.config.head import HeadConfig
from training.config.log import LogConfig
from training.config.model import ModelConfig
from training.config.optim import OptimConfig
from training.config.renamed import by_names_of_now
from training.config.run import RunConfig
from training.config.step import StepConfig
from training.setting_value import SettingValueError, as_given, as_typed, from_plain


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
        check(
            self.optim.warmup_epochs < self.run.epochs,
            "optim.warmup_epochs",
            self.optim.warmup_epochs,
            f"less than run.epochs={self.run.epochs}",
        )
        check(
            self.head.margin_warmup_epochs <= self.run.epochs,
            "head.margin_warmup_epochs",
            self.head.margin_warmup_epochs,
            f"at most run.epochs={self.run.epochs}",
        )
        check(
            self.optim.backend == "torch" or self.step.cuda_graph != "full",
            "step.cuda_graph",
            self.step.cuda_graph,
            "off or head with optim.backend=apex, whose rate a graph would freeze",
        )
        check(
            not self.model.checkpointing or self.step.cuda_graph != "full",
            "step.cuda_graph",
            self.step.cuda_graph,
            "off or head with model.checkpointing, which looks at the state of random numbers",
        )
        check(
            self.head.place == "device" or self.step.cuda_graph != "full",
            "step.cuda_graph",
            self.step.cuda_graph,
            f"off or head with head.place={self.head.place}, whose centers come between graphs",
        )
        check(
            not self.head.hard_negatives or self.step.cuda_graph != "full",
            "step.cuda_graph",
            self.step.cuda_graph,
            "off or head with head.hard_negatives, whose table is built between graphs",
        )
        check(
            self.optim.freeze_epochs <= self.run.epochs,
            "optim.freeze_epochs",
            self.optim.freeze_epochs,
            f"at most run.epochs={self.run.epochs}",
        )
        check(
            not (self.model.sync_bn and self.optim.freeze_bn),
            "model.sync_bn",
            True,
            "false with optim.freeze_bn, where no statistics are taken",
        )
        check(
            all(epoch < self.run.epochs for epoch in self.optim.decay_epochs),
            "optim.decay_epochs",
            self.optim.decay_epochs,
            f"each less than run.epochs={self.run.epochs}",
        )
        check(
            is_network(self.model.name),
            "model.name",
            self.model.name,
            f"one of {sorted(MODELS)}, timm/NAME for one of timm's, or what register_network() "
            "made known: docs/extending.md",
        )
        alike = self.data.order == "balanced" and self.data.images_per_identity
        check(
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
        check(
            family.fuses or not self.model.fused,
            "model.fused",
            True,
            f"false with model.name={self.model.name}, whose family is not written for it",
        )
        check(
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
    def centers_momentum(self) -> float:
        return self.optim.momentum if self.head.momentum is None else self.head.momentum

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
        return cls(**sections).typed(), tuple(lines)

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

    def typed(self) -> Config:
        """The same; ConfigError for values of other types than their settings."""
        sections: dict[str, Any] = {}
        for section in fields(self):
            given = getattr(self, section.name)
            values = dict(vars(given))
            for name, kind in get_type_hints(type(given)).items():
                try:
                    values[name] = as_typed(values[name], kind)
                except SettingValueError as error:
                    raise ConfigError(f"{section.name}.{name}={values[name]!r}: {error}") from error
            sections[section.name] = type(given)(**values)
        return Config(**sections)


def check_batch(config: Config, world_size: int) -> None:
    """Raise ConfigError unless the global batch splits into parts that BatchNorm can do with."""
    batch, parts = config.data.global_batch, config.step.micro_batches
    if batch % (world_size * parts) or batch < 2 * world_size * parts:
        raise ConfigError(
            f"data.global_batch={batch}: expected a multiple of {world_size} ranks × "
            f"step.micro_batches={parts}, and at least two images for each part, whose BatchNorm "
            "cannot do with one"
        )


def _as_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_texts(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_as_texts, value))
    return as_text(value) if isinstance(value, str) else value
