"""The test sets that a run scores its backbone on: opened once, each at an interval of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from evaluation.embedding import eval_mode, on_pixels
from evaluation.features import Embedder
from evaluation.protocols.protocol import TestSet
from evaluation.protocols.sets import open_set
from evaluation.scoring import Scored, score
from pipeline.dali_loader import choose_threads
from pipeline.named_path import as_text
from training.config import Config, ConfigError, EvalConfig
from training.distributed import World, together
from training.named_files import check_named_files
from training.setting_names import named_as, settings_named
from training.step.precision import Precision

DRAWS = 1000  # of the bootstrap, for the figures that a run ends with
SAMPLE = 1000  # images that TensorBoard's projector shows

# A network, and whether it is the run's last, of which all is to be found out.
Score = Callable[[nn.Module, bool], Scored]


@dataclass(frozen=True)
class ScoredSet:
    """A test set as a run scores it.

    Attributes:
        name: as shown, unique.
        score: does it, on all ranks together. Raises NonFiniteEmbeddingsError for a network that
            cannot be judged.
        every: epochs in between.
        every_steps: steps in between, beside the epochs; 0 for none.
        images: how many it has.
    """

    name: str
    score: Score
    every: int = 1
    every_steps: int = 0
    images: int = 0

    def due(self, step: int, *, steps_per_epoch: int, epochs: int) -> bool:
        """Whether it is scored after so many steps of a run of so many epochs."""
        epoch, into_epoch = divmod(step, steps_per_epoch)
        if into_epoch == 0 and (epoch % self.every == 0 or epoch == epochs):
            return True
        return self.every_steps > 0 and step % self.every_steps == 0

    def __str__(self) -> str:
        epochs = "epoch" if self.every == 1 else f"{self.every} epochs"
        steps = f" and every {self.every_steps:,} steps" if self.every_steps else ""
        return f"{self.name}: {self.images:,} images, every {epochs}{steps}"


def compared(sets: Sequence[ScoredSet]) -> tuple[str, ...]:
    """The names of the sets by which checkpoints are compared: those scored most often."""
    shortest = min((one.every for one in sets), default=0)
    return tuple(one.name for one in sets if one.every == shortest)


def open_sets(config: Config, world: World, precision: Precision) -> tuple[ScoredSet, ...]:
    """Open and check eval.sets; call it on every rank.

    Raises:
        UserError: a subclass of it, on every rank, for a set that cannot be used or an interval of
            none of them; it names the setting.
    """
    together(lambda: check_named_files(config, "eval.sets"))
    opened = together(lambda: _open(config, world))
    every = intervals(config.eval, {spec: one.name for spec, one in opened.items()})
    return tuple(
        ScoredSet(
            one.name,
            _scoring(one, config, world, precision),
            every=every.get(one.name, _usual(config.eval)),
            every_steps=0 if one.name in every else config.eval.every_steps,
            images=len(one.images),
        )
        for one in opened.values()
    )


def intervals(settings: EvalConfig, names: Mapping[str, str]) -> dict[str, int]:
    """The epochs between the scorings of the sets that have an interval of their own, by name.

    Args:
        names: of all sets, by how eval.sets has them: either stands in eval.every.

    Raises:
        ConfigError: an interval of none of them.
    """
    if not isinstance(settings.every, dict):
        return {}
    known = {**names, **{name: name for name in names.values()}}
    for given in settings.every:
        if given not in known:
            raise ConfigError(
                f"eval.every={settings.every!r}: {given} is none of the sets, expected "
                f"{', '.join(names.values()) or 'none, as eval.sets is empty'}"
            )
    return {known[given]: epochs for given, epochs in settings.every.items()}


def _usual(settings: EvalConfig) -> int:
    return 1 if isinstance(settings.every, dict) else settings.every


def _open(config: Config, world: World) -> dict[str, TestSet]:
    """By how they are named in the configuration."""
    opened: dict[str, TestSet] = {}
    shared: dict[str, TestSet] = {}
    for spec in config.eval.sets:
        called = f"eval.sets={as_text(spec)}"
        with named_as(called), settings_named(**{"as the model takes": "data.image_size"}):
            one = open_set(
                spec,
                image_size=config.data.image_size,
                batch_size=config.eval.batch_size,
                rank=world.rank,
                world_size=world.world_size,
                shared=shared,
            )
        if any(one.name == other.name for other in opened.values()):
            raise ConfigError(f"{called}: a second set named {one.name!r}; rename one of them")
        opened[spec] = one
    return opened


def _scoring(test_set: TestSet, config: Config, world: World, precision: Precision) -> Score:
    model = as_text(Path(config.run.output).resolve().name)
    threads = config.data.threads or choose_threads(world.local_world_size)

    def run(network: nn.Module, last: bool) -> Scored:
        embedder = Embedder(
            on_pixels(network, device=world.device, dtype=precision.compute_dtype),
            digest="",  # nothing is kept
            image_size=config.data.image_size,
            device=world.device,
            batch_size=config.eval.batch_size,
            threads=threads,
            rank=world.rank,
            world_size=world.world_size,
        )
        with eval_mode(network):
            return score(
                embedder,
                test_set,
                model=model,
                draws=DRAWS if last else 0,
                sample=SAMPLE if last else 0,
                pictures=last and config.log.pictures,
            )

    return run
