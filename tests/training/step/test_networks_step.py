"""Every network goes through the training step: in parts, with blocks that run again, predicted."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import normalize
from models.checkpointing import blocks_of, checkpoint_blocks
from tests.models.small import DIM, SMALL, small
from tests.training import tiny
from training.assembly import create_step
from training.config import Config, ConfigError, ModelConfig, override
from training.distributed import World
from training.planning import memory
from training.planning.alive import Living, blocks_of_training
from training.planning.memory import predict
from training.step.compile import compile_backbone
from training.step.optim import set_learning_rate
from training.step.precision import choose_precision

CPU, CLASSES, BATCH = torch.device("cpu"), 10, 12
BF16, FP32 = (choose_precision(CPU, name) for name in ("bf16", "fp32"))

every_network = pytest.mark.parametrize("name", SMALL)


def configured(name: str, *overrides: str) -> Config:
    config = tiny.config(Path("data"), Path("run"))
    model = ModelConfig(name=name, embedding_dim=DIM, options=SMALL[name])
    optim = replace(config.optim, decay_norm_and_bias=False)
    return override(replace(config, model=model, optim=optim), overrides)


def loaded(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, tiny.SIZE, tiny.SIZE, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)


def trained(config: Config, world: World) -> tuple[dict[str, Tensor], str]:
    """All tensors of the backbone after three steps, and what is said of it."""
    step, about = create_step(config, world, num_classes=CLASSES, precision=BF16)
    for number in range(3):
        torch.manual_seed(number)
        lr = set_learning_rate(step.optimizer, 0.05)
        labels = torch.arange(BATCH) % CLASSES
        result = step(loaded(number), labels, lr, lambda _phase: None)
        assert result.loss.isfinite()
        assert not result.skipped
    return step.backbone.state_dict(), about


@pytest.mark.slow
@every_network
def test_it_trains_in_parts_and_blocks_that_run_again_change_no_bit(name, world):
    parts = ("step.micro_batches=2",)
    expected, plainly = trained(configured(name, *parts), world)
    again = configured(name, *parts, "model.checkpointing=true")
    found, about = trained(again, world)
    assert about == f"{plainly}, blocks run again in backward"
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.slow
@every_network
def test_predicted_activations_are_what_a_real_batch_keeps(name, world):
    """Counted with real memory; and what there is at most where blocks run again."""
    network, size, kept = small(name).create().train(), tiny.SIZE, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        BF16.autocast(CPU),
    ):
        network(normalize(loaded(0), torch.bfloat16))
    for tensor in (*network.parameters(), *network.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    found = sum(blocks_of_training(network, batch=BATCH, image_size=size, precision=BF16))
    assert found == pytest.approx(sum(kept.values()), rel=0.05)
    predictions = (
        predict(configured(name, f"model.checkpointing={wanted}"), world, BF16, num_classes=CLASSES)
        for wanted in ("false", "true")
    )
    plain, again = predictions
    assert plain.activations == found
    assert replace(again, activations=0, libraries=0) == replace(plain, activations=0, libraries=0)

    checkpoint_blocks(network, small(name).family.stages)
    for parameter in network.parameters():
        if parameter.requires_grad:  # gradients are another part
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with Living() as living:
        with BF16.autocast(CPU):
            embeddings = network(normalize(loaded(0), torch.bfloat16))
        embeddings.sum().backward()
    pieces = living.peak.small // memory._IN_PIECES  # what malloc cannot use again on top
    assert again.activations == pytest.approx(sum(living.peak) + pieces, rel=0.1)
    assert sum(living.peak) < found


@every_network
def test_all_blocks_of_a_network_are_in_its_stages(name):
    """Most parameters, but for what comes last, are in what may run again."""
    with torch.device("meta"):
        network = small(name).create()
    inside = {id(p) for b in blocks_of(network, small(name).family.stages) for p in b.parameters()}
    outside = [n for n, p in network.named_parameters() if id(p) not in inside]
    assert len(outside) < len(list(network.parameters())) / 2


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model.compile=true"], r"model\.checkpointing=True: .* false with model\.compile"),
        (["step.cuda_graph=full"], r"step\.cuda_graph='full': .* with model\.checkpointing"),
    ],
)
def test_what_does_not_go_with_blocks_that_run_again_is_refused(overrides, complaint):
    with pytest.raises(ConfigError, match=complaint):
        configured("mbf", "model.checkpointing=true", *overrides)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("model.compile=true", r"model\.fused=True: expected false with model\.compile"),
        ("model.sync_bn=true", r"model\.fused=True: expected false with model\.sync_bn"),
    ],
)
def test_what_does_not_go_with_fused_batch_norm_is_refused(setting, complaint):
    with pytest.raises(ConfigError, match=complaint):
        configured("iresnet10", "model.fused=true", setting)


@pytest.mark.parametrize("name", ["vit", "edgeface_xs"])
def test_fused_batch_norm_is_refused_for_networks_without_it(name):
    with pytest.raises(
        ConfigError, match=rf"model\.fused=True: .* model\.name={name}, whose family"
    ):
        configured(name, "model.fused=true")


def test_fused_batch_norm_is_refused_where_nothing_runs_it(world):
    fused = configured("iresnet10", "model.fused=true")
    with pytest.raises(ConfigError, match=r"model\.fused=True: .* NVIDIA GPUs, .* on a cpu"):
        create_step(fused, world, num_classes=CLASSES, precision=BF16)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["kept", "run again"])
def test_fused_batch_norm_is_predicted_to_keep_a_map_less_in_each_block(world, again):
    plain, fused = (
        predict(
            configured(
                "iresnet10", f"model.fused={wanted}", f"model.checkpointing={again}".lower()
            ),
            world,
            BF16,
            num_classes=CLASSES,
        ).activations
        for wanted in ("false", "true")
    )
    # What goes into each PReLU, the stem's first; where blocks run again, the stem's alone stays.
    size, channels = tiny.SIZE, (16, 16, 32, 64, 128)
    sizes = (size, size, size // 2, size // 4, size // 8)
    between = [2 * BATCH * c * s**2 for c, s in zip(channels, sizes)]
    assert plain - fused >= (between[0] if again else 0.98 * sum(between))
    assert fused > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alone", "backend"), [(True, "eager"), (False, "aot_eager")], ids=["whole", "by blocks"]
)
@every_network
def test_it_is_compiled_whole_and_block_by_block_without_a_break(name, alone, backend, monkeypatch):
    """Nor do masks and layers that are skipped at random make it seem wrong."""
    torch.compiler.reset()
    original = torch.nn.Module.compile
    eager = partialmethod(original, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    options = {"mask_ratio": 0.5, "drop_path": 0.5} if name == "vit" else {}
    architecture = replace(small(name), options={**SMALL[name], **options})
    message = compile_backbone(
        architecture.create().train(),
        stages=architecture.family.stages,
        alone=alone,
        batch=BATCH,
        image_size=tiny.SIZE,
        precision=FP32,
    )
    assert message.startswith("compiled whole" if alone else "compiled ")
