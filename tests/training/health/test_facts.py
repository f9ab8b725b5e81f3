"""The loss of a network that knows nobody is what the head returns for it."""

from __future__ import annotations

import math

import pytest
import torch

from heads import MARGINS, PartialFC, create_margin
from training.config import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig
from training.health.facts import Facts

CLASSES, DIM = 2_000, 128


def facts_of(head: HeadConfig, *, classes: int = CLASSES) -> Facts:
    config = Config(
        data=DataConfig(train="a.rec", global_batch=64),
        head=head,
        model=ModelConfig(embedding_dim=DIM),
    )
    return Facts.of(config, classes=classes, steps_per_epoch=10)


def test_without_a_margin_it_is_the_logarithm_of_the_number_of_classes():
    facts = facts_of(HeadConfig(loss="softmax", loss_args={"scale": 16.0}))
    assert facts.blind_loss == pytest.approx(math.log(CLASSES))


def test_a_margin_adds_what_the_target_loses_by_it():
    facts = facts_of(HeadConfig(loss="cosface", loss_args={"margin": 0.4, "scale": 64.0}))
    assert facts.blind_loss == pytest.approx(math.log(CLASSES - 1) + 0.4 * 64, rel=1e-6)


@pytest.mark.parametrize("name", sorted({*MARGINS} - {"uniface"}))
def test_random_embeddings_have_the_loss_that_is_predicted(name: str):
    """Of every margin, within a tenth: AdaFace and MagFace go by norms, ElasticFace draws."""
    head = PartialFC(CLASSES, DIM, margin=create_margin(name, scale=16.0))
    embeddings = torch.randn(512, DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = head(embeddings, torch.arange(512)).item()
    facts = facts_of(HeadConfig(loss=name, loss_args={"scale": 16.0}))
    assert facts.start_loss == pytest.approx(found, rel=0.1)
    assert facts.blind_loss < facts.start_loss


def test_a_sampled_step_has_fewer_classes():
    whole, tenth = facts_of(HeadConfig()), facts_of(HeadConfig(sample_rate=0.1))
    assert tenth.blind_loss == pytest.approx(whole.blind_loss - math.log(10), abs=0.01)


def test_one_class_has_no_loss():
    assert facts_of(HeadConfig(), classes=1).start_loss == 0


@pytest.mark.parametrize(
    "head",
    [
        HeadConfig(loss="uniface"),
        HeadConfig(extra_terms={"sample_to_sample": {}}),
        HeadConfig(expectation_margin=0.2),
        HeadConfig(expectation_margin_from={3: 0.2}),
        HeadConfig(sample_groups=10),
        HeadConfig(sample_rate=0.001),  # fewer than a batch has
        HeadConfig(loss="somebody's own"),
    ],
    ids=[
        "another form",
        "extra term",
        "expectations",
        "expectations later",
        "groups",
        "few",
        "unknown",
    ],
)
def test_where_it_cannot_be_known_there_is_none(head: HeadConfig):
    assert facts_of(head).blind_loss is None
    assert facts_of(head).start_loss is None


def test_what_grows_at_the_beginning_is_warm_up():
    config = Config(
        data=DataConfig(train="a.rec"),
        optim=OptimConfig(warmup_epochs=1.0, freeze_epochs=2.0),
        head=HeadConfig(margin_warmup_epochs=0.5),
    )
    assert Facts.of(config, classes=10, steps_per_epoch=1).warmup_epochs == 2.0
