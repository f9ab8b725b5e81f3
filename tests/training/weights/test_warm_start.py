"""Starting from other weights: people keep their centers, new ones start at their own mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize as to_unit_length

from models import normalize
from pipeline.jpeg import decode_batch
from pipeline.named_path import PathError
from pipeline.records.index import open_index
from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.people import build, save_run, with_data, write_people
from tests.training.weights.onnx_graphs import write
from training.config import Config, override
from training.distributed import World
from training.loop import Trainer
from training.saving import reading
from training.saving.weight_file import Backbone, WeightsError, read_weight_file
from training.step.backbone import unwrapped
from training.step.precision import choose_precision
from training.weights.warm_start import open_init_from, warm_start

OLD, NEW = ("ann", "bob", "cyd", "dan"), ("bob", "eve", "ann", "fay", "gus")
FP32 = choose_precision(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    return write_people(tmp_path_factory.mktemp("old"), OLD)


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    return write_people(tmp_path_factory.mktemp("new"), NEW, images=40)


@pytest.fixture(scope="module")
def trained(old, world, tmp_path_factory):
    """(checkpoint, its step, its configuration) of a run on the old people."""
    config = tiny.config(old, tmp_path_factory.mktemp("runs") / "old")
    return *save_run(config, world), config


def start(config: Config, world: World, init_from: Path):
    """A step that was started from other weights, and what was said."""
    config = replace(config, run=replace(config.run, init_from=str(init_from)))
    step, data = build(config, world)
    saved = open_init_from(config)
    return step, warm_start(config, world, saved, step=step, data=data, precision=FP32)


def plain(config: Config) -> nn.Module:
    """The network of a run as exporters take it: in evaluation, not in channels_last."""
    torch.manual_seed(0)
    return config.architecture.create().to(memory_format=torch.contiguous_format).eval()


def floats(step) -> dict[str, torch.Tensor]:
    state = unwrapped(step.backbone).state_dict()
    return {name: t for name, t in state.items() if t.is_floating_point()}


def mean_center(step, rec: Path, label: int) -> torch.Tensor:
    """(D,) the direction that an identity should start in, an image at a time."""
    index, network = open_index(rec), unwrapped(step.backbone).eval()
    rows = []
    for record in np.flatnonzero(index.records["label"] == label):
        pixels, _ = decode_batch(index.sources(record[None]), size=tiny.SIZE)
        with torch.no_grad():
            row = network(normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.float32))
        rows.append(to_unit_length(row))
    taken = {32 * k // len(rows): k for k in reversed(range(len(rows)))}
    return to_unit_length(torch.cat([rows[k] for k in taken.values()]).mean(dim=0), dim=0)


@pytest.mark.slow
def test_people_keep_their_centers_and_new_ones_start_at_their_mean(trained, new, world, tmp_path):
    checkpoint, source, config = trained
    step, messages = start(with_data(config, new, output=tmp_path), world, checkpoint)
    head, theirs = step.head, source.head.centers
    assert torch.equal(head.centers[[0, 2]], theirs[[1, 0]]), "bob and ann"
    norm = theirs.norm(dim=1).mean()
    for label in (1, 3, 4):
        expected = norm * mean_center(step, new, label)
        torch.testing.assert_close(head.centers[label], expected, atol=1e-5, rtol=1e-4)
    assert not head.velocity.any()
    assert all(torch.equal(t, floats(source)[name]) for name, t in floats(step).items())
    assert messages == [
        f"backbone from {checkpoint}",
        "2 of 5 centers taken, by the label in the same file or by the name",
        "3 centers start at the mean embedding of up to 32 images",
    ]


def test_the_same_file_needs_no_names_and_may_lie_anywhere(trained, old, new, world, tmp_path):
    """Without manifests: labels of a file with the same content."""
    checkpoint, source, config = trained
    copies = []
    for number, rec in enumerate((new, old)):
        copies.append(tmp_path / f"{number}.rec")
        copies[-1].write_bytes(rec.read_bytes())
    step, messages = start(with_data(config, *copies, output=tmp_path / "run"), world, checkpoint)
    assert torch.equal(step.head.centers[5:], source.head.centers)
    assert messages[1].startswith("4 of 9 centers taken")


def start_ranks(world: World, config: Config, *sources: Path) -> torch.Tensor:
    """The centers of all ranks, one source after the other."""
    found = []
    for init_from in sources:
        step, _ = start(config, world, init_from)
        everyone: list = [None] * world.world_size
        dist.all_gather_object(everyone, step.head.centers)
        found += everyone
    return torch.cat(found)


def save_and_start_ranks(world: World, saved: Config, begun: Config, *sources) -> torch.Tensor:
    checkpoint, _ = save_run(saved, world)
    return start_ranks(world, begun, checkpoint, *sources)


@pytest.mark.slow
def test_the_number_of_ranks_changes_no_bit(trained, old, new, world, tmp_path):
    """Neither that of those who start, 7 classes on 1 to 3, nor that of those who saved."""
    checkpoint, _, config = trained
    more = write_people(tmp_path / "more", ("hal", "dan"), images=33)
    begun = with_data(config, new, more, output=tmp_path / "run")
    folded = write(tmp_path / "folded.onnx", plain(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several ranks has
    one = start_ranks(world, begun, checkpoint, folded)
    torch.set_num_threads(threads)
    by_two = with_data(config, old, output=tmp_path / "two")
    two, _ = run_ranks(save_and_start_ranks, by_two, begun, folded, world_size=2, folder=tmp_path)
    three, _, _ = run_ranks(start_ranks, begun, checkpoint, folded, world_size=3, folder=tmp_path)
    assert one.shape == (2 * 7, 16)
    assert torch.equal(one, two)
    assert torch.equal(one, three)


def open_its_own(world: World, config: Config, found: list[Path]) -> str:
    """As from the disks of two machines, where one name leads to two things."""
    config = override(config, [f"run.init_from={found[world.rank]}"])
    with pytest.raises(ValueError, match="ranks disagree") as caught:
        open_init_from(config)
    return str(caught.value)


@pytest.mark.slow
def test_ranks_that_find_different_weights_say_so(trained, tmp_path):
    """At once, where one is a file: before a rank asks something of its own that others do not."""
    checkpoint, _, config = trained
    torch.save({}, tmp_path / "other.pt")
    found = [checkpoint, tmp_path / "other.pt"]
    for message in run_ranks(open_its_own, config, found, world_size=2, folder=tmp_path):
        assert f"to read (rank 0 has '{checkpoint.name}', rank 1 has 'other.pt')" in message


def test_a_run_stands_for_its_newest_checkpoint(trained, old, world, tmp_path):
    checkpoint, source, config = trained
    again = with_data(config, old, output=tmp_path)
    step, messages = start(again, world, checkpoint.parent.parent)
    assert torch.equal(step.head.centers, source.head.centers)
    assert messages == [
        f"backbone from {checkpoint}",
        f"{checkpoint.parent.parent}: {checkpoint.name}, its newest checkpoint",
        "4 of 4 centers taken, by the label in the same file or by the name",
    ]


def test_where_all_are_new_their_centers_are_as_long_as_the_old_heads(trained, world, tmp_path):
    checkpoint, source, config = trained
    others = write_people(tmp_path / "others", ("eve", "fay", "gus"))
    step, messages = start(with_data(config, others, output=tmp_path / "run"), world, checkpoint)
    assert messages[1].startswith("0 of 3 centers taken")
    norm = source.head.centers.norm(dim=1).mean()
    torch.testing.assert_close(step.head.centers.norm(dim=1), norm.expand(3))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_backbone_alone_starts_every_center_at_its_mean(trained, old, world, tmp_path, suffix):
    _, source, config = trained
    path = tmp_path / f"backbone{suffix}"
    state = {f"module.{name}": t for name, t in source.backbone.state_dict().items()}
    if suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        state = {name: t.contiguous() for name, t in state.items()}
        safetensors.save_file(state, path)
    else:
        torch.save(state, path)
    config = with_data(config, old, output=tmp_path / "run")
    step, messages = start(config, world, path)
    assert all(torch.equal(t, floats(source)[name]) for name, t in floats(step).items())
    lengths = step.head.centers.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(4), msg="far longer than a new head's")
    expected = mean_center(step, old, 2)
    torch.testing.assert_close(step.head.centers[2], expected, atol=1e-6, rtol=1e-4)
    assert messages[1] == "0 of 4 centers taken: there is no head"


def test_subcenters_of_a_new_class_start_apart(trained, new, world, tmp_path):
    _, source, config = trained
    path = tmp_path / "backbone.pth"
    torch.save(source.backbone.state_dict(), path)
    lonely = write_people(tmp_path / "one", ("ivy",), images=1)
    config = with_data(config, new, lonely, output=tmp_path / "run")
    step, _ = start(override(config, ["head.subcenters=2"]), world, path)
    directions = to_unit_length(step.head.centers.view(6, 2, 16), dim=2)
    cosines = (directions[:, 0] * directions[:, 1]).sum(dim=1)
    assert (cosines[:5] > 0.9).all()
    assert (cosines[:5] < 1 - 1e-6).all()
    assert cosines[5] == pytest.approx(1), "of a single image"


def test_what_does_not_fit_is_named_and_the_rest_is_taken(trained, old, world, tmp_path):
    checkpoint, source, config = trained
    wider = override(with_data(config, old, output=tmp_path), ["model.embedding_dim=24"])
    fresh, _ = build(wider, world)
    step, messages = start(wider, world, checkpoint)
    conv = unwrapped(step.backbone).conv1.weight
    assert torch.equal(conv, unwrapped(source.backbone).conv1.weight)
    assert torch.equal(step.head.centers, fresh.head.centers)
    assert messages[1].startswith(
        "of other shapes: fc.weight (16, 512), here (24, 512); fc.bias (16,)"
    )
    assert messages[2:] == [
        "0 of 4 centers taken: they have model.embedding_dim=16 and head.subcenters=1, here it is "
        "24 and 1",
        "other centers start at random: the backbone was not taken whole",
    ]
    deeper = override(with_data(config, old, output=tmp_path), ["model.name=iresnet18"])
    step, messages = start(deeper, world, checkpoint)
    assert messages[1].startswith("not there: layer1.1.bn1.weight, ")
    assert messages[1].endswith("more")
    assert torch.equal(step.head.centers, source.head.centers)


def test_a_network_of_which_nothing_fits_is_refused(trained, old, world, tmp_path):
    checkpoint, _, config = trained
    settings = ["model.embedding_dim=24", "model.width=0.5"]
    with pytest.raises(WeightsError, match=r"no tensor that fits .* it has .* and 109 more"):
        start(override(with_data(config, old, output=tmp_path), settings), world, checkpoint)


def test_a_network_most_of_which_has_other_shapes_is_refused(trained, old, world, tmp_path):
    checkpoint, _, config = trained
    wider = override(with_data(config, old, output=tmp_path), ["model.width=0.5"])
    with pytest.raises(WeightsError, match=r"of another network .* conv1\.weight .*, here "):
        start(wider, world, checkpoint)


@pytest.mark.parametrize("frozen", ["optim.freeze_bn=true", "model.lora_rank=2"])
@pytest.mark.parametrize("other", ["model.name=iresnet18", "model.embedding_dim=24"])
def test_statistics_that_nothing_changes_must_be_there(
    trained, old, world, tmp_path, frozen, other
):
    """A run that starts so is not finite after some steps."""
    checkpoint, _, config = trained
    changed = override(with_data(config, old, output=tmp_path), [other, frozen])
    with pytest.raises(WeightsError, match=r"not have the statistics of .* It holds iresnet10 "):
        start(changed, world, checkpoint)


def test_weights_that_would_be_taken_by_half_are_refused(trained, old, world, tmp_path):
    _, source, config = trained
    config, path = with_data(config, old, output=tmp_path / "run"), tmp_path / "backbone.pth"
    state = source.backbone.state_dict()
    for content, complaint in [
        (
            {f"module.{name}": t for name, t in state.items()}
            | {"module.layer1.0.se.fc1.weight": torch.zeros(1, 16, 1, 1)},
            r"1 tensors that model\.name's network has not: layer1\.0\.se\.fc1\.weight",
        ),
        (state | {"conv1.weight": state["conv1.weight"] * torch.nan}, r"NaN or .* conv1\.weight"),
        ({f"features.module.{name}": t for name, t in state.items()}, "but not its head"),
    ]:
        torch.save(content, path)
        with pytest.raises(WeightsError, match=complaint):
            start(config, world, path)
    shallower = override(config, ["model.name=iresnet18"])
    torch.save(unwrapped(build(shallower, world)[0].backbone).state_dict(), path)
    with pytest.raises(WeightsError, match=r"has not: layer1\.1\.bn1\.weight, .* more"):
        start(config, world, path)


def test_a_head_beside_the_backbone_and_magfaces_pixels_are_named(trained, old, world, tmp_path):
    _, source, config = trained
    config, path = with_data(config, old, output=tmp_path / "run"), tmp_path / "backbone.pth"
    state = {f"features.module.{name}": t for name, t in source.backbone.state_dict().items()}
    conv = source.backbone.state_dict()["conv1.weight"]
    for head, magface in [(torch.zeros(4, 16), False), (torch.zeros(16, 4), True)]:
        torch.save(state | {"fc.weight": head}, path)
        step, messages = start(config, world, path)
        assert messages[1] == "not used: fc.weight"
        assert messages[2].startswith("recognized as MagFace's") is magface
        expected = conv.flip(1) / 2 if magface else conv
        assert torch.equal(unwrapped(step.backbone).conv1.weight, expected)


def test_unknown_people_are_the_first_files_labels_if_these_are_as_many(old, new, world, tmp_path):
    """As after an import, or where a checkpoint was copied without its run."""
    config = tiny.config(old, tmp_path / "run")
    checkpoint, source = save_run(config, world, known=False)
    step, messages = start(with_data(config, old, new, output=tmp_path / "a"), world, checkpoint)
    assert torch.equal(step.head.centers[:4], source.head.centers)
    assert messages[1].startswith(
        "4 of 9 centers taken, row by label: nothing says whose its 4 are"
    )
    _, messages = start(with_data(config, new, old, output=tmp_path / "b"), world, checkpoint)
    assert messages[1].startswith(
        "0 of 9 centers taken: nothing says whose its 4 are, and no files"
    )


def test_classes_without_images_stay_where_they_start(trained, new, world, tmp_path):
    checkpoint, _, config = trained
    config = override(with_data(config, new, output=tmp_path), ["head.num_classes=8"])
    fresh, _ = build(config, world)
    step, messages = start(config, world, checkpoint)
    assert torch.equal(step.head.centers[5:], fresh.head.centers[5:])
    assert messages[-1] == "3 centers start at random: no image of theirs can be embedded"


def test_damaged_and_missing_weights_are_one_line_of_error(trained, old, world, tmp_path):
    checkpoint, _, config = trained
    config = with_data(config, old, output=tmp_path / "run")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in checkpoint.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (shard,) = damaged.glob("*.distcp")
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    code = tmp_path / "code.pth"
    torch.save(SimpleNamespace(), code)
    for path, complaint in [
        (damaged, r"is damaged: .*distcp does not have its checksum"),
        (tmp_path, r"is there, but holds no checkpoint"),
        (code, r"cannot be read as weights"),
    ]:
        with pytest.raises(WeightsError, match=complaint):
            start(config, world, path)
    with pytest.raises(PathError, match=r"none does not exist: expected a checkpoint"):
        start(config, world, tmp_path / "none")


def test_a_head_that_is_not_its_peoples_is_refused(trained, old, world, tmp_path):
    config = tiny.config(old, tmp_path / "run")
    checkpoint, _ = save_run(config, world)
    listed = tmp_path / "run" / "identities.json"
    listed.write_text(listed.read_text().replace('"classes": 4', '"classes": 5'))
    begun = with_data(config, old, output=tmp_path / "begun")
    with pytest.raises(WeightsError, match=r"has 4 rows, its identities\.json names 5"):
        start(begun, world, checkpoint)
    listed.write_text("{")
    with pytest.raises(ValueError, match=r"identities\.json does not say whose"):
        start(begun, world, checkpoint)


@pytest.mark.slow
def test_a_folded_network_gets_the_statistics_of_training_images(old, world, tmp_path):
    config = tiny.config(old, tmp_path / "run")
    theirs = plain(config)
    images = torch.randn(4, 3, tiny.SIZE, tiny.SIZE)
    expected = theirs(images)
    model = write(tmp_path / "theirs.onnx", theirs)
    step, messages = start(config, world, model)
    network = unwrapped(step.backbone)
    torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)
    total = len(open_index(old))
    assert f"13 BatchNorms got the statistics of {total} training images" in messages
    assert (network.bn1.running_mean != 0).any()
    # Nothing was folded into these: they are as they were.
    assert torch.equal(network.bn2.running_mean, theirs.bn2.running_mean)


def test_a_file_is_read_once_at_a_start(trained, old, world, tmp_path, monkeypatch):
    """What is looked at before the data are read is what is taken after."""
    _, source, config = trained
    torch.save(unwrapped(source.backbone).state_dict(), tmp_path / "start.pt")
    read = []

    def counted(path: Path) -> Backbone:
        read.append(path)
        return read_weight_file(path)

    monkeypatch.setattr(reading, "read_weight_file", counted)
    config = with_data(config, old, output=tmp_path / "run")
    config = override(config, [f"run.init_from={tmp_path / 'start.pt'}"])
    trainer = Trainer(config, world, precision=FP32)
    assert all(torch.equal(t, floats(source)[name]) for name, t in floats(trainer.step).items())
    trainer.close()
    assert read == [tmp_path / "start.pt"]
