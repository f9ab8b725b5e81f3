"""What the configurations beside this file share: training sets, and arcface_torch's recipes.

A configuration names a set, a network and what differs:

    from configs.published import MS1MV3, arcface_torch

    config = arcface_torch(MS1MV3, "iresnet50", output="runs/ms1mv3_r50")

arcface_torch takes its learning rate as it is, for a batch of 1,024: eight GPUs with 128 images
each. Ours is stated for 512 and follows the batch; `rate` below is the one at `batch`, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.config import (
    Config,
    DataConfig,
    EvalConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)


@dataclass(frozen=True)
class TrainingSet:
    """A set as InsightFace hands it out, and what arcface_torch trains it with.

    Attributes:
        folder: that holds train.rec; another place is `data.train=…`.
        margin: HeadConfig's loss and its margin.
        weight_decay: with an IResNet.
        sets: verification sets that come in the same folder.
    """

    folder: str
    identities: int
    images: int
    margin: tuple[str, float]
    weight_decay: float = 5e-4
    sets: tuple[str, ...] = ()


_ARC, _COS = ("arcface", 0.5), ("cosface", 0.4)
_THREE = ("lfw", "cfp_fp", "agedb_30")

CASIA = TrainingSet("data/faces_webface_112x112", 10_572, 490_623, _ARC, sets=_THREE)
MS1MV2 = TrainingSet("data/faces_emore", 85_742, 5_822_653, _ARC, sets=_THREE)
MS1MV3 = TrainingSet("data/ms1m-retinaface-t1", 93_431, 5_179_510, _ARC, sets=_THREE)
GLINT360K = TrainingSet("data/glint360k", 360_232, 17_091_657, _COS, 1e-4, sets=_THREE)
WEBFACE4M = TrainingSet("data/WebFace4M", 205_990, 4_235_242, _COS)
WEBFACE12M = TrainingSet("data/WebFace12M", 617_970, 12_720_066, _COS)
WEBFACE42M = TrainingSet("data/WebFace42M", 2_059_906, 42_474_557, _COS)


def arcface_torch(
    training_set: TrainingSet,
    network: str,
    *,
    output: str,
    epochs: int = 20,
    batch: int = 1024,
    rate: float = 0.1,
    warmup_epochs: float = 0,
    weight_decay: float | None = None,
    sample_rate: float = 1.0,
) -> Config:
    """SGD, and a rate that falls with the square of the steps that are left.

    So its published logs of 2022 were trained; since April 2023 its rate falls linearly, which is
    `optim.power=1`. The margin's gradient is arcface_torch's, too.

    Args:
        batch: of all GPUs together.
        rate: the highest, at that batch.
        weight_decay: of all weights; None: the set's.
    """
    loss, margin = training_set.margin
    gradient = {"gradient": "straight_through"} if loss == "arcface" else {}
    return Config(
        run=RunConfig(output=output, epochs=epochs),
        data=_data(training_set, batch),
        model=ModelConfig(name=network),
        head=_head(training_set, loss, sample_rate, margin=margin, **gradient),
        optim=OptimConfig(
            lr=_for_512(rate, batch),
            weight_decay=training_set.weight_decay if weight_decay is None else weight_decay,
            warmup_epochs=warmup_epochs,
        ),
        eval=_eval(training_set),
    )


def transformer(
    training_set: TrainingSet,
    network: str,
    *,
    output: str,
    options: dict[str, Any] | None = None,
    epochs: int = 40,
    batch: int = 4096,
    sample_rate: float = 1.0,
) -> Config:
    """arcface_torch's recipe for vision transformers: AdamW, a rate of 0.001, a tenth warms up.

    Two things differ. Positions, biases and the scales of normalization are not decayed here;
    arcface_torch decays everything. And its centers have AdamW too, where ours always have SGD:
    they get the rate and decay of its recipe for the same batch with SGD.
    """
    return Config(
        run=RunConfig(output=output, epochs=epochs),
        data=_data(training_set, batch),
        model=ModelConfig(name=network, options=options or {}),
        head=_head(
            training_set, "cosface", sample_rate, lr=_for_512(0.1, 4096), decay=5e-4, margin=0.4
        ),
        optim=OptimConfig(
            name="adamw",
            lr=_for_512(0.001, 4096),
            weight_decay=0.1,
            decay_norm_and_bias=False,
            warmup_epochs=epochs / 10,
        ),
        eval=_eval(training_set),
    )


def stepped(
    training_set: TrainingSet,
    network: str,
    loss: str,
    *,
    output: str,
    epochs: int,
    decay_epochs: tuple[float, ...],
    augment: tuple[str, ...] = ("flip",),
    **loss_args: Any,
) -> Config:
    """What AdaFace, MagFace and ElasticFace share: a batch of 512, and 0.1 divided by ten at times.

    Args:
        loss_args: the loss's own; its scale is 64.
    """
    return Config(
        run=RunConfig(output=output, epochs=epochs),
        data=_data(training_set, 512, augment),
        model=ModelConfig(name=network),
        head=_head(training_set, loss, 1.0, **loss_args),
        optim=OptimConfig(lr=0.1, weight_decay=5e-4, schedule="step", decay_epochs=decay_epochs),
        eval=_eval(training_set),
    )


def _data(
    training_set: TrainingSet, batch: int, augment: tuple[str, ...] = ("flip",)
) -> DataConfig:
    return DataConfig(train=training_set.folder, global_batch=batch, augment=augment)


def _head(
    training_set: TrainingSet,
    loss: str,
    sample_rate: float,
    *,
    lr: float | None = None,
    decay: float | None = None,
    **loss_args: Any,
) -> HeadConfig:
    return HeadConfig(
        loss=loss,
        loss_args={**loss_args, "scale": 64.0},
        sample_rate=sample_rate,
        num_classes=training_set.identities,
        lr=lr,
        weight_decay=decay,
    )


def _eval(training_set: TrainingSet) -> EvalConfig:
    return EvalConfig(sets=tuple(f"{training_set.folder}/{name}.bin" for name in training_set.sets))


def _for_512(rate: float, batch: int) -> float:
    return rate * 512 / batch
