"""What every network of ours has to keep, whatever it is built from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import MODELS, Architecture, create_model, fold_batch_norm
from models.cost import multiply_adds
from models.recognize import recognize
from tests.host_reads import no_host_reads
from tests.models.small import DIM, SIZE, SMALL, as_recognized, images, small, trained

every_network = pytest.mark.parametrize("name", SMALL)

# Parameters, and 10^9 multiply-adds of convolutions and products at 112 pixels.
WHOLE = {
    "iresnet18": (24_025_600, 2.610),
    "iresnet34": (34_139_328, 4.460),
    "iresnet50": (43_590_848, 6.309),
    "iresnet100": (65_156_160, 12.090),
    "iresnet200": (118_833_920, 23.419),
    "mbf": (2_059_520, 0.438),  # with those of BatchNorm and PReLU 0.449: published is 0.45
    "mbf_large": (6_314_880, 1.816),
    "vit_t": (19_137_792, 1.505),  # published: 1.5, 5.7, 11.4, 25.3
    "vit_s": (76_023_296, 5.747),
    "vit_b": (113_833_472, 11.437),
    "vit_l": (255_684_352, 25.338),
    # Published: 1.77, 3.65 and 18.23 million; 154.00, 306.12 and 1398.83 million operations, of
    # which a multiply-add is two.
    "edgeface_xs": (1_770_492, 0.077),
    "edgeface_s": (3_652_520, 0.153),
    "edgeface_base": (18_225_812, 0.699),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_size_and_work_are_those_of_the_published_networks(name: str) -> None:
    parameters, giga_multiply_adds = WHOLE[name]
    with torch.device("meta"):
        model = create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    counted = multiply_adds(Architecture(name)) / 1e9
    assert counted == pytest.approx(giga_multiply_adds, abs=5e-4)


def test_each_network_has_a_small_one_here() -> None:
    """Or one that is built by the same class and stands for it."""
    assert {MODELS[name].builder for name in SMALL} == {f.builder for f in MODELS.values()}


@every_network
def test_autocast_gives_float32_embeddings_close_to_those_of_float32(name: str) -> None:
    model = trained(name).eval()
    with torch.no_grad():
        expected = model(images())
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = model(images())
    assert (embeddings.dtype, embeddings.shape) == (torch.float32, (4, DIM))
    assert not torch.equal(embeddings, expected), "autocast had no effect"
    assert F.cosine_similarity(embeddings, expected).min() > 0.99


@every_network
@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "bf16"])
def test_all_that_is_trained_gets_a_gradient_and_nothing_is_read(name: str, mixed: bool) -> None:
    model = trained(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), no_host_reads():
        (model(images()) * images().flatten(1)[:, :DIM]).sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.dtype == torch.float32, key
            # The one hidden channel that is left of squeeze and excitation may give nothing.
            assert parameter.grad.count_nonzero() or ".se_block." in key, key


@every_network
def test_in_float64_it_trains(name: str) -> None:
    model = trained(name).double()
    embeddings = model(images().double())
    assert embeddings.dtype == torch.float64
    embeddings.sum().backward()


@every_network
def test_eval_is_deterministic_and_each_image_stands_alone(name: str) -> None:
    model = trained(name).eval()
    with torch.no_grad():
        embeddings = model(images())
        assert torch.equal(model(images()), embeddings)
        torch.testing.assert_close(model(images()[1:2]), embeddings[1:2], rtol=1e-4, atol=1e-4)


@every_network
def test_a_folded_network_gives_the_same_embeddings(name: str) -> None:
    model = trained(name)
    folded = fold_batch_norm(model)
    with torch.no_grad():
        expected = model.eval()(images())
        found, largest = folded(images()), expected.abs().max()
    torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in folded.modules())


@every_network
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_recognized_and_loads_back(name: str, prefix: str) -> None:
    state = {prefix + key: value for key, value in trained(name).state_dict().items()}
    found = recognize(state)
    assert (found.architecture, found.prefix) == (as_recognized(name), prefix)
    again = small(name).create()
    again.load_state_dict(found.state, strict=True)
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[prefix + key])


@every_network
def test_images_the_network_cannot_take_are_refused(name: str) -> None:
    model = small(name).create()
    for wrong in (torch.zeros(2, 3, 48, 48), torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\) in a floating dtype"):
            model(wrong)


@every_network
def test_sizes_that_it_cannot_have_are_refused_by_name(name: str) -> None:
    for option, value in (("embedding_dim", 0), ("image_size", 0)):
        with pytest.raises(ValueError, match=f"{option} is {value}"):
            create_model(name, **{**SMALL[name], option: value})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's other exporter has own needs
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks of the size
@every_network
def test_it_runs_as_onnx_with_any_batch(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = trained(name).eval()
    content = io.BytesIO()
    torch.onnx.export(
        model,
        (images(2),),
        content,
        input_names=["images"],
        output_names=["embeddings"],
        dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
        dynamo=False,
    )
    session = runtime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        (found,) = session.run(None, {"images": images(batch).numpy()})
        with torch.no_grad():
            expected: Tensor = model(images(batch))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
