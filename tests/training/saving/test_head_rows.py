"""Centers and momentum in fewer bits: saved as they are kept, read by all, converted on request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from heads import ArcFace, PartialFC
from heads.extra_terms import Classifiability, SampleToSample
from heads.passes.workspace import Workspace
from heads.rows.buffers import ROWS, VELOCITY, kept_rows, stored_rows
from heads.rows.placement import Placement
from heads.rows.rounding import FLOAT8
from heads.rows.stored import NARROW, Stored, in_float32, write_rows, zero_rows
from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.people import build, save_run, with_data, write_people
from tests.training.saved import save
from tools.grow_head import grow_head
from training.config import Config, DataConfig, override
from training.distributed import World
from training.saving import checkpoint
from training.saving.names import CENTERS, HEAD, SCALES
from training.saving.reading import open_weights
from training.saving.resume import CheckpointError, require_settings
from training.step.precision import choose_precision
from training.weights.warm_start import open_init_from, warm_start

CLASSES, DIM = 11, 8
CONFIG = Config(data=DataConfig(train="unused"))
CPU = torch.device("cpu")
ON_CPU = Placement("device", None, CPU)


def train_step(**options) -> SimpleNamespace:
    """What is saved, of a head that has made a step."""
    torch.manual_seed(0)
    backbone = torch.nn.Linear(3, 3)
    head = PartialFC(CLASSES, DIM, ArcFace(), dtype=torch.float32, **options)
    step = SimpleNamespace(
        backbone=backbone,
        optimizer=torch.optim.SGD(backbone.parameters(), lr=torch.tensor(0.1)),
        head=head,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    head(torch.randn(6, DIM), torch.arange(6))
    head.step(0.3)
    return step


def rows_of(step: SimpleNamespace) -> dict[str, torch.Tensor]:
    kept = {name: getattr(step.head, name) for name in ROWS}
    return {name: rows.clone() for name, rows in kept.items() if rows is not None}


def rounded(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    kept = zero_rows(*rows.shape, subcenters=1, dtype=dtype, placement=ON_CPU)
    write_rows(kept, slice(None), rows, None, workspace=Workspace(CPU))
    return in_float32(kept)


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory):
    """The checkpoint of a head that keeps its rows in a dtype, and that head's step."""

    def make(**options) -> tuple[Path, SimpleNamespace]:
        step = train_step(**options)
        return save(tmp_path_factory.mktemp("run"), step=1, config=CONFIG, train_step=step), step

    return make


@pytest.mark.parametrize("dtype", NARROW)
def test_it_is_saved_as_it_is_kept(dtype, saved, world):
    options = {"centers_dtype": dtype, "momentum_dtype": dtype}
    path, step = saved(**options)
    other = train_step(**options, seed=9)
    checkpoint.load(path, train_step=other)
    for name, rows in rows_of(step).items():
        found = getattr(other.head, name)
        assert torch.equal(found.view(torch.uint8), rows.view(torch.uint8)), name


@pytest.mark.parametrize("then", [torch.float32, *NARROW])
@pytest.mark.parametrize("now", [torch.float32, *NARROW])
def test_a_head_of_another_dtype_gets_the_nearest(then, now, saved, world, caplog):
    path, step = saved(centers_dtype=then, momentum_dtype=then)
    other = train_step(centers_dtype=now, momentum_dtype=now, seed=9)
    checkpoint.load(path, train_step=other)
    for names in (("centers", "center_scales"), VELOCITY):
        expected = rounded(in_float32(stored_rows(kept_rows(step.head), names)), now)
        assert torch.equal(in_float32(stored_rows(kept_rows(other.head), names)), expected)
    assert caplog.text.count("centers: from") == (0 if then == now else 2)


def test_momentum_that_is_not_there_starts_at_zero_and_what_is_not_wanted_stays(
    saved, world, caplog
):
    path, _ = saved(momentum=0.0)
    other = train_step(momentum_dtype=FLOAT8)
    assert other.head.velocity.view(torch.uint8).any()
    checkpoint.load(path, train_step=other)
    assert not in_float32(stored_rows(kept_rows(other.head), VELOCITY)).any()
    assert "momentum of the centers: none in" in caplog.text
    caplog.clear()
    path, step = saved()
    other = train_step(momentum=0.0)
    checkpoint.load(path, train_step=other)
    assert torch.equal(other.head.centers, step.head.centers)
    assert "momentum" not in caplog.text


@pytest.mark.parametrize("then", [(), (Classifiability(),)])
def test_other_extra_terms_start_to_learn_over(then, saved, world, caplog):
    path, step = saved(extra_terms=then)
    torch.manual_seed(0)
    backbone = torch.nn.Linear(3, 3)
    head = PartialFC(CLASSES, DIM, ArcFace(), seed=9, extra_terms=(SampleToSample(),))
    other = SimpleNamespace(
        backbone=backbone,
        optimizer=torch.optim.SGD(backbone.parameters(), lr=torch.tensor(0.1)),
        head=head,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    checkpoint.load(path, train_step=other)
    assert torch.equal(head.centers, step.head.centers)
    assert head.learned.tolist() == [0.0]
    assert "what margin and extra terms learn: not as this run's settings" in caplog.text


def test_another_dtype_is_refused_with_both_and_what_to_do(saved, world):
    path, _ = saved()
    now = override(CONFIG, ["head.centers_dtype=bfloat16", "head.momentum=0"])
    with pytest.raises(CheckpointError) as caught:
        require_settings(path, path.parents[1], now)
    message = str(caught.value)
    assert 'head.centers_dtype was "float32", is "bfloat16"' in message
    assert "another run.output and run.resume=" in message
    require_settings(path, path.parents[2] / "elsewhere", now)


def load_elsewhere(world: World, path: Path, options: dict) -> dict[str, torch.Tensor]:
    step = train_step(**options, seed=9)
    checkpoint.load(path, train_step=step)
    return {name: rows.view(torch.uint8) for name, rows in rows_of(step).items()}


@pytest.mark.slow
@pytest.mark.parametrize("now", NARROW)
def test_other_numbers_of_ranks_share_it_out(now, saved, world, tmp_path):
    """Three ranks read what one has written, as it is kept and converted; one reads theirs."""
    for then in NARROW:
        path, _ = saved(centers_dtype=then, momentum_dtype=then)
        options = {"centers_dtype": now, "momentum_dtype": now}
        alone = load_elsewhere(world, path, options)
        ranks = run_ranks(load_elsewhere, path, options, world_size=3, folder=tmp_path)
        for name, rows in alone.items():
            assert torch.equal(torch.cat([one[name] for one in ranks]), rows), name


@pytest.mark.parametrize("dtype", NARROW)
def test_every_reader_gets_float32(dtype, saved, world):
    path, step = saved(centers_dtype=dtype, momentum_dtype=dtype)
    found = open_weights(path)
    tensors = found.tensors(HEAD)
    assert torch.equal(tensors[CENTERS], in_float32(step.head.stored_centers))
    assert tensors[CENTERS].dtype == torch.float32
    assert not {*SCALES.values()} & {*tensors, *found.shapes()}


@pytest.mark.slow
@pytest.mark.parametrize("then", ["bfloat16", "float8_e4m3"])
def test_a_warm_start_and_a_grown_head_take_them(then, world, tmp_path):
    old = write_people(tmp_path / "old", ["ann", "bob", "cyd"])
    new = write_people(tmp_path / "new", ["eve", "fay"])
    kept = [f"head.centers_dtype={then}", f"head.momentum_dtype={then}"]
    config = override(tiny.config(old, tmp_path / "run"), kept)
    path, source = save_run(config, world)
    theirs = in_float32(source.head.stored_centers)

    grown = grow_head(path.parents[1], new, tmp_path / "grown", init="random", world=world)
    centers = open_weights(grown).tensors(HEAD)[CENTERS]
    assert torch.equal(centers[:3], theirs)
    assert (centers[3:].norm(dim=1) > 0.01).all()

    for now in ("float32", then):
        begun = override(config, [f"head.centers_dtype={now}"])
        begun = with_data(begun, old, new, output=tmp_path / now)
        step, data = build(begun, world)
        begun = replace(begun, run=replace(begun.run, init_from=str(path)))
        precision = choose_precision(world.device, "fp32")
        warm_start(begun, world, open_init_from(begun), step=step, data=data, precision=precision)
        found = in_float32(Stored(step.head.centers, step.head.center_scales))
        assert torch.equal(found[:3], theirs)
        norms = found[3:].norm(dim=1)
        torch.testing.assert_close(norms, theirs.norm(dim=1).mean().expand(2), rtol=0.05, atol=0)
