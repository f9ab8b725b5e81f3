"""arcface_torch's files: what it writes is read exactly, and what is written it could read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import Architecture
from training.arcface_torch.reading import read_arcface_torch
from training.arcface_torch.weights import ArcFaceTorchError, Weights, rows_of, trained
from training.arcface_torch.writing import write_arcface_torch

SMALL = Architecture("iresnet10", embedding_dim=8, image_size=16, options={"width": 0.25})
CLASSES = 11
NAN = torch.full((128,), torch.nan)
RATES = {"rate": 0.05, "peak_rate": 0.1, "momentum": 0.9}


class Run:
    """What arcface_torch's train_v2.py has in its ranks, after two steps of its optimizer."""

    def __init__(self, folder: Path, *, world_size: int, optimizer: Any = torch.optim.SGD) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.backbone = SMALL.create()
        rows = [rows_of(CLASSES, rank=r, world_size=world_size) for r in range(world_size)]
        self.parts = [nn.Parameter(torch.randn(n, 8)) for n in rows]
        options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        self.optimizers = []
        for part in self.parts:
            groups = [{"params": self.backbone.parameters()}, {"params": [part]}]
            self.optimizers.append(optimizer(groups, lr=0.1, **options))
        for _ in range(2):
            for parameter in (*trained(self.backbone).values(), *self.parts):
                parameter.grad = torch.randn_like(parameter)
            for one in self.optimizers:
                one.step()

    def save(self, *, steps: tuple[int, ...] = ()) -> Path:
        torch.save(self.backbone.state_dict(), self.folder / "model.pt")
        for rank, (part, optimizer) in enumerate(zip(self.parts, self.optimizers)):
            checkpoint = {
                "epoch": 3,
                "global_step": steps[rank] if steps else 600,
                "state_dict_backbone": self.backbone.state_dict(),
                "state_dict_softmax_fc": {"weight": part.detach()},
                "state_optimizer": optimizer.state_dict(),
                "state_lr_scheduler": {"last_epoch": 600},
            }
            torch.save(checkpoint, self.folder / f"checkpoint_gpu_{rank}.pt")
        return self.folder

    def save_old(self) -> Path:
        torch.save(self.backbone.state_dict(), self.folder / "backbone.pth")
        for rank, part in enumerate(self.parts):
            torch.save(part.detach(), self.folder / f"rank_{rank}_softmax_weight.pt")
            torch.save(self.velocity(rank), self.folder / f"rank_{rank}_softmax_weight_mom.pt")
        return self.folder

    def velocity(self, rank: int) -> Tensor:
        return self.optimizers[rank].state[self.parts[rank]]["momentum_buffer"]

    @property
    def centers(self) -> Tensor:
        return torch.cat([part.detach() for part in self.parts])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_rows_are_split_as_arcface_torch_splits_them(world_size):
    counts = [rows_of(10, rank=r, world_size=world_size) for r in range(world_size)]
    assert counts == {1: [10], 2: [5, 5], 3: [4, 3, 3], 4: [3, 3, 2, 2]}[world_size]


@pytest.mark.parametrize("world_size", [1, 3])
def test_checkpoints_of_all_ranks_are_read_with_their_momentum(tmp_path, world_size):
    run = Run(tmp_path, world_size=world_size)
    weights = read_arcface_torch([run.save()], num_classes=CLASSES)
    assert weights.architecture == SMALL
    assert same(weights.backbone, run.backbone.state_dict())
    assert torch.equal(weights.centers, run.centers)
    assert torch.equal(weights.velocity, torch.cat([run.velocity(r) for r in range(world_size)]))
    momentum = run.optimizers[0].state
    named = trained(run.backbone).items()
    assert "features.weight" not in weights.momentum  # frozen, yet numbered by their optimizer
    assert same(weights.momentum, {name: momentum[p]["momentum_buffer"] for name, p in named})
    assert (weights.step, weights.notes) == (600, [])


def test_the_files_of_older_versions_are_read(tmp_path):
    run = Run(tmp_path, world_size=3)
    weights = read_arcface_torch([run.save_old()])
    assert same(weights.backbone, run.backbone.state_dict())
    assert torch.equal(weights.centers, run.centers)
    assert torch.equal(weights.velocity, torch.cat([run.velocity(r) for r in range(3)]))
    assert weights.momentum is None
    assert weights.notes == ["momentum of the backbone: in none of these files, it starts at zero"]
    for rank in range(3):
        (tmp_path / f"rank_{rank}_softmax_weight_mom.pt").unlink()
    without = read_arcface_torch([tmp_path])
    assert without.velocity is None
    assert any(note.startswith("momentum of the centers: not of all") for note in without.notes)


def test_a_backbone_alone_and_under_others_prefixes_is_read(tmp_path):
    state = SMALL.create().state_dict()
    torch.save(state, tmp_path / "r10.pth", _use_new_zipfile_serialization=False)
    assert same(read_arcface_torch([tmp_path / "r10.pth"]).backbone, state)
    theirs = {f"features.module.{key}": value for key, value in state.items()}
    theirs["parallel_fc.weight"] = torch.zeros(4, 8)
    torch.save({"epoch": 1, "state_dict": theirs}, tmp_path / "00001.pth")
    weights = read_arcface_torch([tmp_path / "00001.pth"])
    assert weights.centers is None
    assert weights.notes[0] == "names: the prefix features.module. was taken off"
    assert weights.notes[1].startswith("MagFace: ")
    assert weights.notes[2] == "not used: parallel_fc.weight"


def test_other_optimizers_leave_momentum_at_zero_and_it_is_said(tmp_path):
    run = Run(tmp_path, world_size=2, optimizer=torch.optim.AdamW)
    weights = read_arcface_torch([run.save()])
    assert weights.momentum is None
    assert weights.velocity is None
    assert [note.split(":")[0] for note in weights.notes] == [
        "momentum of the centers",
        "momentum of the backbone",
    ]


def test_momentum_of_sampled_rows_alone_is_left_out_and_it_is_said(tmp_path):
    run = Run(tmp_path, world_size=2)
    for rank, part in enumerate(run.parts):
        run.optimizers[rank].state[part]["momentum_buffer"] = torch.ones(2, 8)
    weights = read_arcface_torch([run.save()])
    assert torch.equal(weights.centers, run.centers)
    assert weights.velocity is None
    assert weights.momentum is not None
    assert [note.split(":")[0] for note in weights.notes] == ["momentum of the centers"]


def test_a_head_of_another_kind_is_refused(tmp_path):
    path = Run(tmp_path, world_size=1).save() / "checkpoint_gpu_0.pt"
    content = torch.load(path, weights_only=True)
    content["state_dict_softmax_fc"] = {"kernel": torch.zeros(8, CLASSES)}
    torch.save(content, path)
    with pytest.raises(ArcFaceTorchError, match="its head has kernel: expected PartialFC's"):
        read_arcface_torch([path])


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_is_written_resumes_their_optimizer_and_is_read_back(tmp_path, world_size):
    run = Run(tmp_path / "theirs", world_size=2)
    (tmp_path / "theirs").mkdir()
    weights = read_arcface_torch([run.save()])
    written = write_arcface_torch(
        tmp_path / "ours", weights, world_size=world_size, epoch=3, **RATES, weight_decay=5e-4
    )
    assert len(written) == 1 + world_size
    again = read_arcface_torch([tmp_path / "ours"])
    assert same(again.backbone, weights.backbone)
    assert same(again.momentum, weights.momentum)
    assert torch.equal(again.centers, weights.centers)
    assert torch.equal(again.velocity, weights.velocity)
    assert again.step == weights.step

    last = torch.load(written[-1], weights_only=True)
    network, rows = SMALL.create(), rows_of(CLASSES, rank=world_size - 1, world_size=world_size)
    network.load_state_dict(last["state_dict_backbone"])
    part = nn.Parameter(torch.zeros(rows, 8))
    groups = [{"params": network.parameters()}, {"params": [part]}]
    theirs = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)
    theirs.load_state_dict(last["state_optimizer"])
    assert torch.equal(theirs.state[part]["momentum_buffer"], weights.velocity[-rows:])
    assert written[-1].stat().st_size < 2 * written[0].stat().st_size + 2 * 4 * 8 * rows + 60_000
    assert last["epoch"] == 3
    assert {(group["lr"], group["initial_lr"]) for group in theirs.param_groups} == {(0.05, 0.1)}


def test_momentum_is_numbered_by_the_module_whatever_the_order_of_the_state_dict(tmp_path):
    run = Run(tmp_path, world_size=1)
    before = read_arcface_torch([run.save()])
    content = torch.load(tmp_path / "checkpoint_gpu_0.pt", weights_only=True)
    content["state_dict_backbone"] = dict(reversed(content["state_dict_backbone"].items()))
    path = tmp_path / "merged" / "checkpoint_gpu_0.pt"  # the first is still mapped
    path.parent.mkdir()
    torch.save(content, path)
    after = read_arcface_torch([path])
    assert same(after.momentum, before.momentum)
    assert same(after.backbone, before.backbone)


HEAD = torch.arange(CLASSES * 8.0).reshape(CLASSES, 8)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"kernel": HEAD.t()}, ""),  # ElasticFace's header
        ({"state_dict": {"head.kernel": HEAD.t(), "head.t": torch.zeros(1)}}, ""),  # AdaFace's
        ({"state_dict": {"partial_fc.weight": HEAD}}, ""),
        (HEAD, ""),
        ({"one": HEAD, "other": -HEAD}, ":one"),
        ({"head": {"one": HEAD.t(), "other": -HEAD.t()}}, ":head.one"),
        ({"head": {"weight": HEAD}, "optimizer": {"state": {"m": HEAD + 1}}}, ""),
    ],
)
def test_heads_in_files_of_their_own_are_taken_by_class(tmp_path, content, key):
    run = Run(tmp_path, world_size=1)
    torch.save(run.backbone.state_dict(), tmp_path / "295672backbone.pth")
    path = tmp_path / "295672header.pth"
    torch.save(content, path)
    for num_classes in (None, CLASSES):
        weights = read_arcface_torch(
            [tmp_path / "295672backbone.pth"], head=f"{path}{key}", num_classes=num_classes
        )
        assert torch.equal(weights.centers, HEAD)
        assert weights.centers.is_contiguous()
        assert any(note.startswith("head: ") for note in weights.notes)


def test_magfaces_head_stands_beside_its_backbone(tmp_path):
    state = {f"features.module.{k}": v for k, v in SMALL.create().state_dict().items()}
    path = tmp_path / "00025.pth"
    torch.save({"epoch": 25, "state_dict": state | {"module.fc.weight": HEAD.t()}}, path)
    weights = read_arcface_torch([path], head=str(path))
    assert torch.equal(weights.centers, HEAD)
    assert not any(note.startswith("not used") for note in weights.notes)
    assert "turned from (8, C)" in " ".join(weights.notes)


@pytest.mark.parametrize(
    ("content", "key", "complaint"),
    [
        (torch.zeros(8, 8), "", "a row or a column. Save it with a class in each row"),
        (torch.zeros(5, 8), "", "is of 5 classes, expected 11"),
        (torch.zeros(11, 7), "", r"is \(11, 7\): expected \(C, 8\) or \(8, C\)"),
        ({"a": HEAD, "b": HEAD}, "", r"holds 2 heads, with a \(11, 8\), b \(11, 8\): .*:KEY"),
        ({"a": HEAD}, ":b", r"holds no b, with a \(11, 8\)"),
        ({"a": torch.zeros(3)}, "", "holds no head, with no matrix"),
        ({"w": HEAD.to(torch.int8)}, ":w", "of torch.int8: expected classes, as floats"),
        ({"w": HEAD[:0]}, ":w", r"is \(0, 8\) of torch.float32: expected classes, as floats"),
        ({"a": torch.zeros(5, 8)}, ":a", "is of 5 classes, expected 11"),
        ({"a": torch.full((CLASSES, 8), torch.nan)}, "", "NaN or infinity in the centers"),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_the_remedy(tmp_path, content, key, complaint):
    torch.save(SMALL.create().state_dict(), tmp_path / "model.pt")
    torch.save(content, tmp_path / "head.pt")
    with pytest.raises(ArcFaceTorchError, match=complaint):
        read_arcface_torch(
            [tmp_path / "model.pt"], head=f"{tmp_path / 'head.pt'}{key}", num_classes=CLASSES
        )


def test_a_head_is_named_once_and_by_its_option(tmp_path):
    folder = Run(tmp_path / "run", world_size=1)
    (tmp_path / "run").mkdir()
    torch.save({"kernel": HEAD.t()}, tmp_path / "header.pth")
    with pytest.raises(ArcFaceTorchError, match=r"in these files and in --head .*: name one"):
        read_arcface_torch([folder.save()], head=str(tmp_path / "header.pth"))
    with pytest.raises(ArcFaceTorchError, match=r"A head alone is named by --head .*header\.pth"):
        read_arcface_torch([tmp_path / "header.pth"])
    with pytest.raises(ArcFaceTorchError, match=r"none\.pth is no file: expected FILE or FILE:KEY"):
        read_arcface_torch([tmp_path / "run" / "model.pt"], head="none.pth")


class Code:
    """An object, whose class is code that a pickle would run."""


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("model.pt", b"no file of torch", "model.pt cannot be read as weights"),
        ("model.pt", b"", "model.pt cannot be read as weights"),
        ("model.pt", Code(), "holds .*Code beside tensors .*would run code"),
        ("model.pt", [1, 2], "holds a list: expected a state dict"),
        ("model.pt", {"lr": 0.1}, "holds a dict of lr: expected the state dict"),
        ("model.pt", {"input_layer.0.weight": torch.zeros(1)}, "model.pt: found the IR network"),
        ("model.pt", SMALL.create().state_dict() | {"bn2.bias": NAN}, "NaN or infinity in bn2"),
        ("weights.pt", torch.zeros(2, 8), "whose only its name tells: expected rank_RANK"),
        ("rank_0_softmax_weight.pt", torch.zeros(2, 8), "found no backbone: name model.pt"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, name, content, complaint):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ArcFaceTorchError, match=complaint):
        read_arcface_torch([path])


@pytest.mark.parametrize("name", ["checkpoint_gpu_1.pt", "rank_1_softmax_weight_mom.pt"])
def test_a_ranks_file_that_is_cut_off_or_holds_code_is_named(tmp_path, name):
    run = Run(tmp_path, world_size=2)
    path = (run.save() if name.startswith("check") else run.save_old()) / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArcFaceTorchError, match=f"{name} cannot be read as weights: .*damaged"):
        read_arcface_torch([tmp_path])
    torch.save({"epoch": Code()}, path)
    with pytest.raises(ArcFaceTorchError, match=f"{name} cannot .*Code .* run code of the file"):
        read_arcface_torch([tmp_path])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ArcFaceTorchError, match="none does not exist"):
        read_arcface_torch([tmp_path / "none"])
    with pytest.raises(ArcFaceTorchError, match="holds no file of arcface_torch"):
        read_arcface_torch([tmp_path])
    folder = Run(tmp_path, world_size=4).save()
    (folder / "checkpoint_gpu_2.pt").rename(folder / "elsewhere.pt")
    with pytest.raises(ArcFaceTorchError, match="the centers of rank 2 of 4 are missing"):
        read_arcface_torch([folder])
    with pytest.raises(ArcFaceTorchError, match=r"expected checkpoint_gpu_RANK\.pt"):
        read_arcface_torch([folder / "elsewhere.pt"])
    (folder / "checkpoint_gpu_3.pt").unlink()
    with pytest.raises(ArcFaceTorchError, match="of 2 ranks are 6, expected 11 classes"):
        read_arcface_torch([folder], num_classes=CLASSES)


def test_files_of_different_runs_are_refused(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    a, b, c = folders
    run = Run(a, world_size=2)
    run.save()
    with pytest.raises(ArcFaceTorchError, match="rank 0 is there twice"):
        read_arcface_torch([a, a])
    run.save_old()
    with pytest.raises(ArcFaceTorchError, match="they are of different versions"):
        read_arcface_torch([a])

    Run(b, world_size=2).save(steps=(600, 500))
    with pytest.raises(ArcFaceTorchError, match="rank 1 is at epoch 3, step 500, rank 0 at"):
        read_arcface_torch([b])

    old = Run(c, world_size=2).save_old()
    torch.save(torch.zeros(9, 8), old / "rank_1_softmax_weight.pt")
    with pytest.raises(ArcFaceTorchError, match="rank 0 have 6 rows, where 15 classes on 2"):
        read_arcface_torch([old])
    torch.save(torch.zeros(5, 4), old / "rank_1_softmax_weight.pt")
    with pytest.raises(ArcFaceTorchError, match=r"expected \(rows, D\) with the same D"):
        read_arcface_torch([old])
    for rank, rows in enumerate((6, 5)):
        torch.save(torch.zeros(rows, 4), old / f"rank_{rank}_softmax_weight.pt")
    with pytest.raises(ArcFaceTorchError, match="have 4 features, the backbone's embeddings 8"):
        read_arcface_torch([old])


def test_ranks_of_two_runs_at_the_same_step_are_refused(tmp_path):
    """Nothing but their backbones tells, which all ranks of one run have in common."""
    folders = [tmp_path / name for name in ("run", "other")]
    for folder in folders:
        folder.mkdir()
    run, other = (Run(folder, world_size=2) for folder in folders)
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter += 1
    run.save()
    (other.save() / "checkpoint_gpu_1.pt").replace(tmp_path / "run" / "checkpoint_gpu_1.pt")
    with pytest.raises(ArcFaceTorchError, match="backbones of rank 0 and rank 1 are different"):
        read_arcface_torch([tmp_path / "run"])


def test_backbones_that_float16_let_drift_apart_are_one_run(tmp_path):
    run = Run(tmp_path, world_size=2)
    run.save()
    path = tmp_path / "checkpoint_gpu_1.pt"
    content = torch.load(path, weights_only=True)
    for name, tensor in content["state_dict_backbone"].items():
        if "running_" in name:
            tensor += 100  # each rank's own
        elif tensor.is_floating_point():
            tensor *= 1.01
    torch.save(content, path)
    notes = read_arcface_torch([tmp_path]).notes
    assert notes == ["backbone: that of rank 0; other ranks' differ from it by up to 0.01"]


@pytest.mark.parametrize("old", [False, True])
def test_ranks_in_the_wrong_order_are_refused(tmp_path, old):
    run = Run(tmp_path, world_size=3)
    names = "rank_{}_softmax_weight.pt" if old else "checkpoint_gpu_{}.pt"
    (run.save_old if old else run.save)()
    for source, target in ((1, "x"), (2, 1), ("x", 2)):
        (tmp_path / names.format(source)).rename(tmp_path / names.format(target))
    expected = names.format(1) + " was saved as " + names.format(2)
    with pytest.raises(ArcFaceTorchError, match=f"{expected}: .*Rename it back"):
        read_arcface_torch([tmp_path])


def test_optimizer_and_schedule_are_read(tmp_path):
    """Of both schedulers that arcface_torch has had."""
    run = Run(tmp_path, world_size=1)
    path = run.save() / "checkpoint_gpu_0.pt"
    content = torch.load(path, weights_only=True)
    for names in ("warmup_iters total_iters", "warmup_steps max_steps"):
        warmup, total = names.split()
        steps = {warmup: 20, total: 900, "power": 2, "base_lrs": [0.3, 0.3]}
        torch.save(content | {"state_lr_scheduler": steps}, path)
        found = read_arcface_torch([path]).optimization
        assert (found.rate, found.momentum, found.weight_decay) == (0.3, 0.9, 0)
        assert (found.power, found.warmup_steps, found.total_steps) == (2, 20, 900)
    torch.save(content | {"state_lr_scheduler": {"base_lrs": [0.3]}}, path)
    assert read_arcface_torch([path]).optimization.total_steps is None


def test_another_runs_model_beside_the_ranks_is_refused(tmp_path):
    folder = Run(tmp_path, world_size=1).save()
    torch.save(SMALL.create().state_dict(), folder / "model.pt")
    with pytest.raises(ArcFaceTorchError, match="are different backbones"):
        read_arcface_torch([folder])


def test_fewer_classes_than_ranks_are_refused(tmp_path):
    weights = Weights(SMALL, dict(SMALL.create().state_dict()), centers=torch.zeros(2, 8))
    with pytest.raises(ArcFaceTorchError, match="2 classes for 3 ranks"):
        write_arcface_torch(tmp_path, weights, world_size=3, epoch=0, **RATES, weight_decay=0.0)
