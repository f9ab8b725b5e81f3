"""Saving while training goes on, and what happens when it cannot be saved."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from heads import CosFace, PartialFC
from tests.clock import LIMIT, wait_until
from tests.ranks import run_ranks
from tests.training.saved import save
from training.config import Config, DataConfig, RunConfig
from training.distributed import World
from training.saving import checkpoint, digests, files
from training.saving.saver import Saver

CONFIG = Config(run=RunConfig(keep=2), data=DataConfig(train="unused"))
FACTS = {"model.name": "iresnet10"}


def train_step(*, classes: int = 11, width: int = 6, seed: int = 0) -> SimpleNamespace:
    """What is saved, after an update of everything."""
    torch.manual_seed(seed)
    backbone = torch.nn.Sequential(torch.nn.Linear(width, 4), torch.nn.BatchNorm1d(4))
    step = SimpleNamespace(
        backbone=backbone,
        optimizer=torch.optim.SGD(backbone.parameters(), lr=torch.tensor(0.1), momentum=0.9),
        head=PartialFC(num_classes=classes, embedding_dim=4, margin=CosFace(), device="cpu"),
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
    )
    train(step, width)
    return step


def train(step: SimpleNamespace, width: int = 6) -> None:
    embeddings = step.backbone(torch.randn(5, width))
    loss = step.head(embeddings, torch.arange(5))
    loss.backward()
    step.optimizer.step()
    step.head.step(0.1)


def tensors(step: SimpleNamespace) -> list[torch.Tensor]:
    momentum = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    held = [*step.backbone.state_dict().values(), *step.head.state_dict().values(), *momentum]
    return [tensor.clone() for tensor in held]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def saver(output: Path, step: SimpleNamespace) -> Saver:
    return Saver(output, config=CONFIG, train_step=step, facts=FACTS, compared_by=["agedb", "lfw"])


def test_training_goes_on_while_what_was_is_written(world, tmp_path, monkeypatch):
    """The write is held up until every tensor has changed."""
    changed = threading.Event()
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a, **k: changed.wait(LIMIT) and write(*a, **k))
    step = train_step()
    saving, before = saver(tmp_path, step), tensors(step)
    saving.reserve()
    path = saving.save(3)
    train(step)
    assert not same(tensors(step), before)
    assert not files.is_complete(path)
    changed.set()
    assert saving.close() == path
    assert files.faults(path) == []
    other = train_step(seed=1)
    assert checkpoint.load(path, train_step=other) == 3
    assert same(tensors(other), before)


def test_a_checkpoint_says_where_it_comes_from_and_the_best_stays(world, tmp_path):
    saving = saver(tmp_path, train_step())
    for step, accuracy in enumerate([0.4, 0.8, 0.6, 0.7]):
        scores = {"lfw": {"accuracy": accuracy + 0.1}, "agedb": {"accuracy": accuracy - 0.1}}
        saving.save(step)
        saving.add_scores(step, scores)
    newest = saving.close()
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path)] == ["1", "2", "3"]
    assert files.best(tmp_path).name[-1] == "1"
    about = files.read_about(newest)
    assert about["accuracy"] == pytest.approx(0.7)
    assert about["scores"]["lfw"]["accuracy"] == pytest.approx(0.8)
    assert (about["step"], about["ranks"], about["facts"]) == (3, 1, FACTS)
    assert about["versions"] == checkpoint.versions()
    assert about["versions"]["torch"] == torch.__version__


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["shard", "manifest", "folder"])
def test_a_full_or_closed_disk_is_reported_once_and_the_checkpoint_before_stays(
    where, world, tmp_path, monkeypatch, caplog
):
    step = train_step()
    saving = saver(tmp_path, step)
    kept = saving.save(1)
    saving.wait()

    def fail(*args, **kwargs):
        raise FULL

    with monkeypatch.context() as patch:
        if where == "shard":
            # In the middle of torch.save's archive, which hides the error by one of its own.
            write, calls = digests.DigestedFile.write, []
            patch.setattr(
                digests.DigestedFile,
                "write",
                lambda file, data: (
                    fail() if calls.append(1) or len(calls) > 9 else write(file, data)
                ),
            )
        elif where == "manifest":
            patch.setattr(files, "_write_json", fail)
        else:
            patch.setattr(files.Path, "mkdir", fail)
        saving.save(2)
        train(step)
        assert saving.wait() == kept
    # The thread tells it just after the result is there.
    message = wait_until(lambda: [record for record in caplog.records if record.name == "root"])
    assert len(message) == 1
    assert (
        "step 2 was not saved: [Errno 28] No space left on device. Make" in message[0].getMessage()
    )
    assert saving.fault == message[0].getMessage()
    assert checkpoint.checkpoints(tmp_path) == [kept]
    rest = files.folder_of(tmp_path, 2)
    # What is all there but for its manifest is not thrown away before the next one needs the room.
    assert rest.exists() == (where == "manifest") == (f"this one is in {rest}" in saving.fault)
    after = saving.save(3)
    assert saving.close() == after
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        *(kept.name, after.name)
    ]
    assert saving.fault is None


def test_what_cannot_be_removed_costs_a_warning_not_the_save(world, tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "old")

    monkeypatch.setattr(files, "retain", refuse)
    path = save(tmp_path, step=1, config=CONFIG, train_step=train_step())
    assert files.faults(path) == []
    assert "is saved, but older checkpoints were not removed" in caplog.text
    assert "Permission denied" in caplog.text


def test_saving_at_once_raises_what_went_wrong(world, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(checkpoint.CheckpointError, match=r"step 1 was not saved: .*File exists"):
        save(tmp_path, step=1, config=CONFIG, train_step=train_step())


@pytest.mark.parametrize("other", [{"classes": 12}, {"width": 7}])
def test_other_shapes_are_refused(other, world, tmp_path):
    path = save(tmp_path, step=1, config=CONFIG, train_step=train_step())
    with pytest.raises(checkpoint.CheckpointError, match=r"does not fit this run: .*ismatch") as e:
        checkpoint.load(path, train_step=train_step(**other))
    assert "FrameSummary" not in str(e.value)


def test_other_software_is_warned_of(world, tmp_path, monkeypatch, caplog):
    path = save(tmp_path, step=1, config=CONFIG, train_step=train_step())
    now = checkpoint.versions() | {"torch": "9.9"}
    monkeypatch.setattr(checkpoint, "versions", lambda: now)
    checkpoint.load(path, train_step=train_step())
    assert f"was saved with torch {torch.__version__}, now 9.9: losses may" in caplog.text


def two_ranks(world: World, folder: Path) -> tuple[bool, list[str], str | None, bool]:
    """Saves beside training's own collectives; then rank 1's disk is full."""
    step = train_step()
    momentum = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    for tensor in (*step.backbone.state_dict().values(), *momentum):
        dist.broadcast(tensor, src=0)  # to the last bit the same on all ranks, as gradients' means
    saving = saver(folder, step)
    first = saving.save(1)
    before = tensors(step)
    for number in range(200):  # while the threads use their group, training uses its own
        value = torch.tensor([float(number + world.rank)])
        dist.all_reduce(value)
        assert value.item() == 2 * number + 1
    train(step)
    assert saving.wait() == first
    restored = train_step(seed=1)
    checkpoint.load(first, train_step=restored)
    if world.rank == 1:
        digests.DigestedFile.write = lambda *_: (_ for _ in ()).throw(FULL)
    saving.save(2)
    kept = saving.close() == first
    faults = files.faults(first, rank=world.rank, world_size=2)
    return same(tensors(restored), before), faults, saving.fault, kept


@pytest.mark.slow
def test_two_ranks_write_together_and_fail_together(tmp_path):
    for restored, faults, fault, kept in run_ranks(
        two_ranks, tmp_path / "run", world_size=2, folder=tmp_path
    ):
        assert restored
        assert faults == []
        assert "step 2 was not saved: [Errno 28] No space left on device" in fault
        assert kept
    path = files.newest(tmp_path / "run")
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in path.iterdir()}
    (path / "__1_0.distcp").unlink()
    assert files.faults(path) == ["__1_0.distcp is missing"]
