"""A run with low-rank updates: they alone learn, go on to the bit, and leave merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.lora import FACTORS, merge_low_rank
from tests.ranks import run_ranks
from tests.training import tiny
from tests.training.people import build as build_step
from tests.training.people import write_people
from tools.export_weights import export_arcface_torch, export_safetensors
from tools.grow_head import grow_head
from training.config import Config, ConfigError, override
from training.distributed import World
from training.frozen.model import digest_of_weights
from training.loop import Trainer
from training.planning.memory import predict
from training.saving.files import CheckpointError
from training.saving.names import BACKBONE
from training.saving.reading import SavedCheckpoint, open_weights
from training.step.backbone import create_backbone, unwrapped
from training.step.precision import choose_precision
from training.weights.warm_start import open_init_from, warm_start

FP32 = choose_precision(torch.device("cpu"), "fp32")
LORA = ("model.lora_rank=2", "model.lora_alpha=4", "run.epochs=1", "optim.lr=0.5")


def build(config: Config, world: World) -> Trainer:
    return Trainer(config, world, precision=FP32)


def backbone_of(trainer: Trainer) -> nn.Module:
    return unwrapped(trainer.step.backbone)


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Of backbone, centers and momentum, as copies."""
    momentum = [v for s in trainer.step.optimizer.state.values() for v in s.values()]
    named = backbone_of(trainer).state_dict() | {"centers": trainer.step.head.centers}
    named |= {f"momentum {i}": tensor for i, tensor in enumerate(momentum)}
    return {name: tensor.clone() for name, tensor in named.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if not torch.equal(before[name], after[name])}


def is_factor(name: str) -> bool:
    return name.rpartition(".")[2] in FACTORS


@pytest.fixture(scope="module")
def finished(data, world, tmp_path_factory) -> tuple[Trainer, dict[str, Tensor]]:
    """A run of five steps, and its state before them."""
    config = override(tiny.config(data, tmp_path_factory.mktemp("runs") / "lora"), LORA)
    trainer = build(config, world)
    before = state(trainer)
    trainer.run()
    return trainer, before


@pytest.mark.slow
def test_only_factors_and_centers_learn_and_nothing_else_has_momentum(finished):
    trainer, before = finished
    named = dict(backbone_of(trainer).named_parameters())
    moved = changed(before, state(trainer))
    factors = {name for name in named if is_factor(name)}
    assert {name for name in moved if not name.startswith("momentum")} == factors | {"centers"}
    assert set(trainer.step.optimizer.state) == {named[name] for name in factors}
    log = (trainer.output / "run.log").read_text()
    assert "0.01 of 0.33 M parameters, low-rank updates of 14 layers alone learn" in log


@pytest.mark.slow
def test_whoever_opens_the_run_gets_the_merged_network(finished, world, tmp_path):
    trainer, before = finished
    saved = open_weights(trainer.output)
    network, architecture = saved.network(), trainer.config.architecture
    merged = merge_low_rank(build_like(trainer, world)).state_dict()
    assert [*saved.backbone().tensors] == [*merged]
    assert saved.shapes().keys() == saved.tensors("backbone", "optimizer", "head", "scaler").keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, merged[name])
    assert not torch.equal(merged["fc.weight"], before["fc.weight"])
    export_safetensors(trainer.output, tmp_path / "safe")
    written = load_file(tmp_path / "safe" / "model.safetensors")
    assert written.keys() == architecture.create().state_dict().keys()
    assert torch.equal(written["fc.weight"], merged["fc.weight"])
    [checkpoint, *_] = export_arcface_torch(trainer.output, tmp_path / "theirs", world_size=1)
    theirs = torch.load(checkpoint, weights_only=True)
    assert torch.equal(theirs["fc.weight"], merged["fc.weight"])


def build_like(trainer: Trainer, world: World) -> nn.Module:
    """A backbone with the same state, to be changed."""
    network, _ = create_backbone(trainer.config, world, FP32)
    network.load_state_dict(backbone_of(trainer).state_dict())
    return network


@pytest.mark.slow
def test_results_name_the_digest_of_what_is_opened(finished):
    trainer, _ = finished
    name = trainer._verification.model(trainer.steps_done)
    assert name.digest == digest_of_weights(open_weights(trainer.output).network())


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit_with_no_other_updates(finished, world, tmp_path):
    whole, _ = finished
    config = override(whole.config, [f"run.output={tmp_path / 'parts'}"])
    first = build(config, world)
    stream = first.loader.stream(0)
    for _ in range(3):
        first.train_on(next(stream), lambda phase: None)
    first.save()
    first.close()
    second = build(config, world)
    assert second.steps_done == 3
    second.run()
    assert changed(state(whole), state(second)) == set()
    with pytest.raises(CheckpointError, match=r"its model\.lora_rank is 2, this one's is 4"):
        build(override(config, ["model.lora_rank=4"]), world)


@pytest.mark.slow
def test_other_runs_start_from_the_merged_network_with_updates_of_their_own(
    finished, data, world, tmp_path
):
    trainer, _ = finished
    expected = open_weights(trainer.output).network().state_dict()
    for number, changes in enumerate(([], ["model.lora_rank=3", "model.lora_layers=[fc]"])):
        config = override(
            tiny.config(data, tmp_path / str(number)), [f"run.init_from={trainer.output}", *changes]
        )
        step, training = build_step(config, world)
        source = open_init_from(config)
        message = warm_start(config, world, source, step=step, data=training, precision=FP32)
        assert not any("not there" in line for line in message)
        network = merge_low_rank(unwrapped(step.backbone)).state_dict()
        floating = {name: t for name, t in network.items() if t.is_floating_point()}
        assert floating.keys() <= expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in floating.items())


@pytest.mark.slow
def test_a_head_grows_beside_updates_which_stay(finished, world, tmp_path):
    trainer, _ = finished
    rec = write_people(tmp_path / "people", ("eve", "fay"))
    grown = grow_head(trainer.output, rec, tmp_path / "grown", init="mean", world=world)
    ours, theirs = open_weights(trainer.output), open_weights(grown)
    assert isinstance(theirs, SavedCheckpoint)
    assert theirs.config.model.lora_rank == 2
    assert changed(ours.tensors(BACKBONE), theirs.tensors(BACKBONE)) == set()


def test_memory_counts_factors_alone(tmp_path):
    sizes = []
    for changes in ([], LORA):
        config = override(tiny.config(tmp_path, tmp_path / "run"), changes)
        sizes.append(predict(config, World(0, 1, 0, 1, torch.device("cpu")), FP32, num_classes=10))
    whole, lora = sizes
    assert lora.backbone < whole.backbone / 2, "no gradients and momentum of the weights"
    assert lora.checkpoint < whole.checkpoint


def two_ranks(world: World, config: Config) -> tuple[dict[str, Tensor], int, int]:
    trainer = build(config, world)
    trainer.run()
    sent = trainer.step.backbone._get_ddp_logging_data()["total_parameter_size_bytes"]
    factors = [p for n, p in trainer.step.backbone.named_parameters() if is_factor(n)]
    return backbone_of(trainer).state_dict(), sent, sum(p.nbytes for p in factors)


@pytest.mark.slow
def test_ranks_send_the_factors_gradients_alone(data, tmp_path):
    changes = [*LORA, "step.micro_batches=2", "model.checkpointing=true"]
    config = override(tiny.config(data, tmp_path / "run"), changes)
    (one, sent, factors), (other, *_) = run_ranks(two_ranks, config, world_size=2, folder=tmp_path)
    assert sent == factors
    assert changed(one, other) == set()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["model.lora_layers=[layer9.*]"], r"'layer9\.\*' fits no layer.*Near are layer\d\.\*"),
        (["model.lora_layers=[bn1]"], "'bn1' fits no layer that can have one"),
    ],
)
def test_layers_that_can_have_none_are_refused(changes, complaint, tmp_path):
    config = override(tiny.config(Path("a.rec"), tmp_path), ["model.lora_rank=2", *changes])
    with pytest.raises(ConfigError, match=complaint):
        predict(config, World(0, 1, 0, 1, torch.device("cpu")), FP32, num_classes=10)
