"""A plan says what a run would say of itself, and finds what fits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from facestream import UserError
from models import Architecture
from models.traffic import bytes_an_image
from tests.training import tiny
from training import assembly
from training.config import Config, DataConfig, HeadConfig, ModelConfig, override
from training.planning.cards import CARDS, Fleet
from training.planning.memory import predict
from training.planning.plan import KEPT, RunPlan
from training.step.precision import choose_precision

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("model.width=0.25", "model.embedding_dim=64", "data.image_size=32")


def planned(
    *settings: str, card: str = "a100", gpus: int = 8, batch: int = 16, classes: int = 1_000_000
) -> RunPlan:
    config = Config(
        data=DataConfig(train="data", global_batch=batch * gpus),
        model=ModelConfig(name="iresnet10"),
    )
    return RunPlan(override(config, [*SMALL, *settings]), Fleet(CARDS[card], gpus), classes)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("kept", list(KEPT))
def test_every_choice_takes_what_its_run_would_predict(place, kept):
    plan = planned()
    choice = plan.choice("rate 0.1", kept, place)
    head = HeadConfig(sample_rate=0.1, place=place, **KEPT[kept])
    config = replace(plan.config, head=head)
    expected = predict(config, plan.world, plan.precision, num_classes=plan.num_classes)
    assert choice.memory == expected
    assert (choice.host, choice.disk) == (8 * expected.host, 8 * expected.disk)


def test_a_plan_says_what_a_dry_run_of_the_same_would_print(world, data, tmp_path, monkeypatch):
    """Each part of its table, of a run that would be on a T4."""
    config = override(tiny.config(data, tmp_path / "run"), ["head.sample_rate=0.5", "eval.sets=[]"])
    there = replace(world, device=torch.device("cuda"))
    precision = choose_precision(there.device, capability=CARDS["t4"].capability)
    monkeypatch.setattr(
        assembly, "create_loader", lambda *_: (SimpleNamespace(steps_per_epoch=9), "")
    )
    run = assembly.plan(config, there, precision)
    plan = RunPlan(config, Fleet(CARDS["t4"], 1), run.num_classes)
    assert plan.memory == run.prediction


@pytest.mark.slow
def test_a_plan_says_what_the_table_of_docs_heads_says():
    """Eight GPUs of 80 GB, iresnet50 with 128 images a GPU."""
    written = (ROOT / "docs/heads.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| bfloat16, none \| host \| rate 0.1 \|(.+)\|$", written, re.MULTILINE)
    gpu, host = row.split("|")[1].strip(" *").split(" + ")
    config = Config(data=DataConfig(train="data", global_batch=8 * 128))
    plan = RunPlan(config, Fleet(CARDS["a100"], 8), 50_000_000)
    choice = plan.choice("rate 0.1", "bfloat16, none", "host")
    assert (f"{choice.memory.total / 1e9:.0f}", f"{choice.host / 1e9:.0f}") == (gpu, host)
    assert choice.fits


def test_older_cards_compute_in_float16_and_newer_ones_in_bfloat16():
    assert str(planned(card="t4").precision.compute_dtype) == "torch.float16"
    assert str(planned(card="a10").precision.compute_dtype) == "torch.bfloat16"


@pytest.mark.slow
def test_the_largest_batch_fits_and_a_larger_one_does_not():
    plan = planned("data.image_size=112", "model.width=1", card="t4", gpus=2)
    images = plan.largest_batch()
    assert images % 8 == 0
    for batch, fits in ((images, True), (images + 8, False)):
        data = replace(plan.config.data, global_batch=2 * batch)
        total = replace(plan, config=replace(plan.config, data=data)).memory.total
        assert (total <= plan.fleet.card.room) == fits


def test_where_centers_alone_do_not_fit_no_batch_does():
    assert planned(gpus=1, classes=500_000_000, card="t4").largest_batch() == 0


def test_a_smaller_state_fits_where_the_usual_one_does_not():
    plan = planned(card="t4", gpus=1, classes=50_000_000)
    fitting = {(choice.sampling, choice.kept, choice.place): choice for choice in plan.choices()}
    assert not fitting["rate 0.1", "float32, float32", "device"].fits
    assert fitting["rate 0.1", "float8, none", "device"].fits


def test_a_machines_memory_is_shared_by_its_ranks():
    """500 million classes of 512 dimensions in float32 take more than 2 TB beside eight GPUs."""
    plan = planned("model.embedding_dim=512", classes=500_000_000)
    choice = plan.choice("100,000", "float32, float32", "host")
    assert choice.memory.total < plan.fleet.card.room
    assert not choice.fits
    many = replace(plan, fleet=replace(plan.fleet, count=64))
    assert many.choice("100,000", "float32, float32", "host").fits


def test_no_sample_is_planned_that_is_as_large_as_all():
    assert {choice.sampling for choice in planned(classes=90_000).choices()} == {"all", "rate 0.1"}


def test_what_a_run_would_refuse_is_no_choice():
    """Hard negatives want a sample, and centers on the device."""
    plan = planned("head.hard_negatives=0.5", "head.sample_rate=0.1")
    found = {(choice.sampling, choice.place) for choice in plan.choices()}
    assert found == {("rate 0.1", "device"), ("100,000", "device")}


def test_a_step_has_the_work_of_its_images_and_of_its_head():
    plan = planned()
    work = plan.work(plan.config.head)
    architecture = Architecture(
        "iresnet10", embedding_dim=64, image_size=32, options={"width": 0.25}
    )
    assert work.bytes == 16 * bytes_an_image(architecture).total()
    assert work.averaged == 2 * work.updated
    assert work.head.flops == 4 * 2 * 125_000 * 128 * 64
    assert work.fetched == 0


def test_micro_batches_launch_more_and_move_the_centers_more_often():
    whole, parts = (
        plan.work(plan.config.head) for plan in (planned(), planned("step.micro_batches=2"))
    )
    assert parts.launches == 2 * whole.launches
    assert parts.head.flops == whole.head.flops
    assert parts.head.bytes > whole.head.bytes


def test_blocks_that_run_again_multiply_a_third_more():
    plain, again = (
        plan.backbone.flops for plan in (planned(), planned("model.checkpointing=true"))
    )
    assert 1.2 < again / plain < 1.4


def test_centers_elsewhere_come_and_go_over_pci_express():
    plan = planned()
    choice = plan.choice("rate 0.1", "bfloat16, none", "host")
    assert choice.seconds.fetch >= 0
    head = HeadConfig(sample_rate=0.1, place="host", centers_dtype="bfloat16", momentum=0.0)
    rows = plan.work(head).fetched
    assert rows == pytest.approx(12_500 * 64 * 2, rel=0.5)  # and which they are
    assert plan.choice("rate 0.1", "bfloat16, none", "disk").seconds is None


@pytest.mark.parametrize("setting", ["step.precision=fp32", "data.global_batch=100"])
def test_what_cannot_be_planned_is_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        planned(setting)
