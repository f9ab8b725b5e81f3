"""recognize: prefixes are taken off, shapes name the network, and what is not ours is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from facestream import UserError
from models import MODELS, Architecture, create_model
from models.recognize import recognize, require_finite

SMALL = Architecture("iresnet10", embedding_dim=8, image_size=32, options={"width": 0.25})


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(SMALL.create().state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_shapes_tell_which_network_it_is(name):
    options = {"width": 0.5} if "width" in MODELS[name].options else {}
    expected = Architecture(name, embedding_dim=96, image_size=112, options=options)
    with torch.device("meta"):
        state = expected.create().state_dict()
    # Those with all options begin as one of the others.
    alike = {"vit": "vit_s", "iresnet": "iresnet50"}
    expected = Architecture(alike.get(name, name), embedding_dim=96, options=options)
    found = recognize(state)
    assert found.architecture == expected
    assert found.state.keys() == state.keys()
    assert not found.magface


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_prefix_is_taken_off_and_other_keys_left_out(state, prefix):
    there = {"head.kernel": torch.zeros(8, 3)} | {prefix + k: v for k, v in state.items()}
    found = recognize(there)
    assert (found.prefix, found.architecture) == (prefix, SMALL)
    assert found.state.keys() == state.keys()
    assert all(found.state[key] is state[key] for key in state)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_files_without_batch_norms_counters_are_whole(state, prefix):
    """As those from before torch 0.4.1, and converted ones."""
    there = {prefix + k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found = recognize(there)
    found.architecture.create().load_state_dict(found.state, strict=True)
    assert found.state["bn2.num_batches_tracked"] == 0


@pytest.mark.parametrize("prefix", ["features.module.", "module.features."])
def test_magface_gives_its_own_embeddings_for_our_pixels(state, prefix):
    """Against the network as MagFace runs it; padded like ours, that is with gray, exactly so."""
    theirs = SMALL.create()
    for module in theirs.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.eps = 2e-5
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 1e-5, 0.5)
    there = {prefix + key: value.clone() for key, value in theirs.state_dict().items()}
    found = recognize(there | {"fc.weight": torch.zeros(8, 3)})
    assert found.magface
    ours = found.architecture.create()
    ours.load_state_dict(found.state)

    images = torch.rand(4, 3, 32, 32) * 2 - 1  # RGB in [-1, 1]
    seen = (images.flip(1) + 1) / 2  # BGR in [0, 1]
    first = torch.nn.functional.pad(seen, (1, 1, 1, 1), value=0.5)
    theirs.conv1.padding = (0, 0)
    theirs.conv1.register_forward_pre_hook(lambda module, inputs: (first,))
    with torch.no_grad():
        expected, embeddings = theirs.eval()(seen), ours.eval()(images)
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["backbone.features.", "features.module.", "features."])
def test_others_networks_called_features_stay_as_they_are(state, prefix):
    """Their heads are (C, D)."""
    there = {prefix + key: value for key, value in state.items()}
    found = recognize(there | {"fc.weight": torch.zeros(3, 8)})
    assert not found.magface
    assert found.unused == ("fc.weight",)
    assert all(found.state[key] is state[key] for key in state)


def test_magfaces_names_without_its_head_are_refused(state):
    with pytest.raises(ValueError, match=r"under the prefix features\.module\., .* not its head"):
        recognize({f"features.module.{key}": value for key, value in state.items()})


def test_values_that_are_not_finite_are_refused_by_name(state):
    require_finite(state)
    state["conv1.weight"][0] = float("nan")
    state["bn2.bias"][3] = -float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinity in conv1\.weight, bn2\.bias: expected"):
        require_finite(state)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda t: t.to_sparse(), "a sparse, quantized, complex or empty tensor"),
        (lambda t: t.to("meta"), "a sparse, quantized, complex or empty tensor"),
        (lambda t: t.to(torch.complex64), "a sparse, quantized, complex or empty tensor"),
        (
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
            "a sparse, quantized, complex or empty tensor",
        ),
        (lambda t: t.to(torch.int8), "integers"),
        (lambda t: -t - 1, "a variance below zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_tensors_that_make_no_embedding_or_another_are_refused_by_name(state, spoil, complaint):
    state["bn2.running_var"] = spoil(state["bn2.running_var"])
    with pytest.raises(UserError, match=rf"found {complaint} in bn2\.running_var: expected"):
        require_finite(state)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"model.input_layer.0.weight": 0}, r"AdaFace .* under the prefix model\.; expected one"),
        ({"module.blocks.0.attn.qkv.weight": 0}, "found a vision transformer that is not arcface"),
        ({"a": 0, "b": 0}, r"no network of ours among 2 names \(a, b"),
        ({}, "no network of ours among 0 names"),
    ],
)
def test_other_networks_are_refused_by_name(state, complaint):
    with pytest.raises(ValueError, match=complaint):
        recognize({key: torch.zeros(1) for key in state})


def test_an_iresnet_that_is_none_of_ours_is_refused_with_what_is_wrong(state):
    deeper = state | {"layer3.7.bn1.weight": torch.zeros(64)}
    with pytest.raises(
        ValueError, match=r"blocks=\[1, 1, 8, 1\], .* but layer3\.1\.bn1\.bias is miss"
    ):
        recognize(deeper)
    without = {key: t for key, t in state.items() if not key.startswith("layer2")}
    with pytest.raises(ValueError, match=r"with \[1, 0, 1, 1\] blocks in its stages"):
        recognize(without)
    with pytest.raises(ValueError, match=r"layer2\.0\.se\.weight is not one of its names"):
        recognize(state | {"layer2.0.se.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"bn2\.weight is \(7,\) instead of \(128,\)"):
        recognize(state | {"bn2.weight": torch.zeros(7)})
    with pytest.raises(ValueError, match=r"an iresnet10 whose conv1\.weight is \(\): expected 4"):
        recognize(state | {"conv1.weight": torch.zeros(())})
    del state["bn2.bias"]
    with pytest.raises(ValueError, match=r"iresnet10 with width=0\.25 .* bn2\.bias is missing"):
        recognize(state)
    del state["fc.weight"]
    with pytest.raises(ValueError, match=r"an iresnet10 without fc\.weight"):
        recognize(state)


def test_architecture_creates_what_it_says():
    network = SMALL.create()
    assert network.state_dict().keys() == create_model("iresnet10").state_dict().keys()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
