"""What fused BatchNorm must compute, against torch's own operators in float64.

tests/models/kernels/test_batch_norm_kernels.py runs this file in a process of its own: under
Triton's interpreter on the CPU, which has to be chosen before Triton is first imported, and
compiled where there is a GPU.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.batch_norm import FusedBatchNorm2d, fuse_batch_norm, norm_add, norm_fork, norm_prelu
from models.checkpointing import checkpoint_blocks
from models.iresnet import IBasicBlock
from models.kernels import batch_norm as kernels
from models.mobilefacenet import Bottleneck
from models.prelu import PReLU
from tests.graph_safety import GraphSafety
from tests.host_reads import no_host_reads
from training.distributed import World

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HALF = [torch.float16]
if INTERPRETED or torch.cuda.get_device_capability() >= (8, 0):
    HALF.append(torch.bfloat16)
# Of the largest value; maps are rounded to their dtype, sums over all pixels are float32.
MAPS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SUMS = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}
FOLLOWS = ["alone", "prelu", "added", "fork"]

Found = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for inf and NaN


def test_available_where_the_cases_run() -> None:
    assert kernels.obstacle(DEVICE) is None


def drawn(shape: tuple[int, ...], dtype: torch.dtype, follows: str) -> Found:
    """x, added, gradients of what comes out, and parameters, of channels unlike one another."""
    generator = torch.Generator().manual_seed(sum(shape))

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels = shape[1]
    x = values(*shape) * values(1, channels, 1, 1).exp() + 3 * values(1, channels, 1, 1)
    given = {"x": x, "grad": values(*shape)}
    given |= {"added": values(*shape)} if follows == "added" else {}
    given |= {"beside": values(*shape)} if follows == "fork" else {}
    given = {
        name: value.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
        for name, value in given.items()
    }
    given |= {name: values(channels).to(DEVICE) for name in ("weight", "bias")}
    if follows == "prelu":
        given["slope"] = values(channels).to(DEVICE)
    return given


def modules(given: Found) -> tuple[nn.BatchNorm2d, PReLU | None]:
    channels = len(given["weight"])
    norm = nn.BatchNorm2d(channels).to(DEVICE, given["weight"].dtype)
    prelu = PReLU(channels).to(DEVICE, given["weight"].dtype) if "slope" in given else None
    with torch.no_grad():
        norm.weight.copy_(given["weight"])
        norm.bias.copy_(given["bias"])
        if prelu:
            prelu.weight.copy_(given["slope"])
    return norm, prelu


def result(given: Found, *, fused: bool) -> Found:
    """Output, gradients, statistics."""
    norm, prelu = modules(given)
    if fused:
        fuse_batch_norm(norm)
        assert type(norm) is FusedBatchNorm2d
    x = given["x"].detach().clone(memory_format=torch.preserve_format).requires_grad_()
    added = given["added"].detach().clone().requires_grad_() if "added" in given else None
    if "beside" in given:
        output, same = norm_fork(norm, x)
        assert same.data_ptr() == x.data_ptr()
        torch.autograd.backward((output, same), (given["grad"], given["beside"]))
    else:
        if prelu:
            output = norm_prelu(norm, prelu, x)
        else:
            output = norm(x) if added is None else norm_add(norm, x, added)
        output.backward(given["grad"])
    found = {"output": output, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= {"slope": prelu.weight.grad} if prelu else {}
    found |= {"added": added.grad} if added is not None else {}
    return found | dict(norm.named_buffers())


def exact(given: Found) -> Found:
    return result({name: value.double() for name, value in given.items()}, fused=False)


def check(found: Found, expected: Found, dtype: torch.dtype) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        map_like = value.ndim == 4
        bound = (MAPS if map_like else SUMS)[dtype]
        if map_like:
            assert found[name].dtype == dtype
            assert found[name].is_contiguous(memory_format=torch.channels_last), name
        largest = float(value.detach().abs().max().clamp_min(1e-3))
        torch.testing.assert_close(
            *(found[name].double(), value.double()), rtol=0, atol=bound * largest, msg=name
        )


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("follows", FOLLOWS)
def test_values_gradients_and_statistics_are_torchs(follows: str, dtype: torch.dtype) -> None:
    """More rows and channels than a tile has, and neither a whole number of tiles."""
    given = drawn((3, 21, 7, 5), dtype, follows)
    check(result(given, fused=True), exact(given), dtype)


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)),
    follows=st.sampled_from(FOLLOWS),
    dtype=st.sampled_from([torch.float32, *HALF]),
)
@example(shape=(2, 1, 1, 1), follows="prelu", dtype=torch.float32)
@example(shape=(1, 16, 1, 33), follows="added", dtype=torch.float16)
def test_any_shape(shape: tuple[int, ...], follows: str, dtype: torch.dtype) -> None:
    given = drawn(shape, dtype, follows)
    if given["x"].numel() == shape[1]:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            result(given, fused=True)
        return
    found, expected = result(given, fused=True), exact(given)
    # Among so few values a channel's variance may be 0, and its gradient all cancellation.
    scale = (given["x"].double().var((0, 2, 3), correction=0) + 1e-5).rsqrt().max()
    for name in expected:
        bound = 30 * MAPS[dtype] * float(1 + scale) * float(1 + expected[name].detach().abs().max())
        torch.testing.assert_close(
            found[name].double(), expected[name].double(), rtol=0, atol=bound, msg=name
        )


def test_channels_far_from_zero_keep_their_variance() -> None:
    given = drawn((4, 16, 10, 10), torch.float32, "alone")
    given["x"] = 4096 + given["x"]
    found, expected = result(given, fused=True), exact(given)
    for name in ("output", "x", "running_var"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=2e-3, atol=2e-3)


def test_the_same_bits_at_every_run() -> None:
    given = drawn((4, 19, 9, 9), torch.float16, "prelu")
    first, second = result(given, fused=True), result(given, fused=True)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_not_finite_stays_in_its_channel() -> None:
    given = drawn((2, 18, 6, 6), torch.float32, "prelu")
    given["x"][1, 2, 3, 4] = torch.inf
    found = result(given, fused=True)
    assert found["output"][:, 2].isnan().any()
    others = [c for c in range(18) if c != 2]
    assert all(found[name].isfinite()[others].all() for name in ("weight", "bias", "slope"))
    assert all(found[name][:, others].isfinite().all() for name in ("output", "x"))


def test_a_gradient_in_another_layout() -> None:
    given = drawn((2, 8, 5, 5), torch.float32, "added")
    expected = exact(given)
    given["grad"] = given["grad"].contiguous()
    check(result(given, fused=True), expected, torch.float32)


def test_nothing_is_read_on_the_host() -> None:
    given = drawn((2, 8, 4, 4), torch.float16, "prelu")
    norm, prelu = modules(given)
    fuse_batch_norm(norm)
    # The interpreter itself reads what it computes with.
    with GraphSafety() if INTERPRETED else no_host_reads():
        norm_prelu(norm, prelu, given["x"].requires_grad_()).backward(given["grad"])


def blocks() -> tuple[nn.Sequential, nn.Sequential]:
    """Of IResNet, the first with a convolution beside it, and MobileFaceNet; plain, and fused."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        IBasicBlock(6, 12, stride=2),
        IBasicBlock(12, 12, stride=1),
        Bottleneck(12, 12, hidden=14, residual=True),
    )
    plain = plain.to(DEVICE, memory_format=torch.channels_last).train()
    fused = copy.deepcopy(plain)
    fuse_batch_norm(fused)
    return plain, fused


def step(network: nn.Module, dtype: torch.dtype) -> Found:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 8, 8, generator=generator).to(DEVICE, memory_format=torch.channels_last)
    weights = torch.randn(3, 12, 4, 4, generator=generator).to(DEVICE)
    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
        output = network(x)
    (output * weights).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
    return {"output": output.detach(), **gradients, **network.state_dict()}


@pytest.mark.parametrize("dtype", [torch.float32, *HALF[-1:]])
def test_blocks_train_as_they_do_plainly(dtype: torch.dtype) -> None:
    """In 16 bits as far from what float32 gives, or nearer."""
    plain, fused = blocks()
    assert [type(m) for m in fused.modules()].count(FusedBatchNorm2d) == 10
    exact, expected, found = (
        step(blocks()[0], torch.float32),
        step(plain, dtype),
        step(fused, dtype),
    )
    assert list(found) == list(expected)

    def apart(of: Found, name: str) -> float:
        return float((of[name].double() - exact[name].double()).norm())

    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        size = float(exact[name].double().norm().clamp_min(0.1))  # a bias before a norm has none
        bound = 1e-4 * size if dtype == torch.float32 else 1.5 * apart(expected, name) + 1e-2 * size
        assert apart(found, name) <= bound, (name, apart(found, name), apart(expected, name), size)


def test_state_dicts_go_from_one_to_the_other() -> None:
    plain, fused = blocks()
    step(fused, torch.float32)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 6, 8, 8).to(DEVICE, memory_format=torch.channels_last)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


def test_blocks_that_run_again_change_no_bit() -> None:
    (_, fused), (_, again) = blocks(), blocks()
    network = nn.ModuleDict({"stage": again})
    checkpoint_blocks(network, ["stage"])
    expected, found = step(fused, torch.float32), step(network["stage"], torch.float32)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_no_map_between_norm_and_prelu_is_kept() -> None:
    kept = {}
    for name, network in zip(("plain", "fused"), blocks()):
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.numel() if tensor.ndim > 1 else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = torch.randn(3, 6, 8, 8, device=DEVICE)
            output = network(x.contiguous(memory_format=torch.channels_last))
            kept[name] = sum(saved.values())
            del output
    # What goes into each PReLU: one in blocks of IResNet, two in those of MobileFaceNet.
    between = 3 * (12 * (8 * 8 + 4 * 4) + 2 * 14 * 4 * 4)
    assert kept["plain"] - kept["fused"] == between


def test_evaluation_is_torchs() -> None:
    plain, fused = blocks()
    x = torch.randn(2, 6, 8, 8).to(DEVICE, memory_format=torch.channels_last)
    assert torch.equal(fused.eval()(x), plain.eval()(x))


def test_ranks_average_the_same_gradients(world: World) -> None:
    """Of one rank, where averaging changes nothing."""
    (_, alone), (_, network) = blocks(), blocks()
    together = DistributedDataParallel(network, static_graph=True, gradient_as_bucket_view=True)
    expected = step(alone, torch.float32)
    found = {
        name.replace("module.", ""): value for name, value in step(together, torch.float32).items()
    }
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


if not INTERPRETED:

    def test_a_recorded_step_gives_the_same_bits() -> None:
        given = drawn((8, 64, 20, 20), torch.float16, "prelu")
        norm, prelu = modules(given)
        fuse_batch_norm(norm)
        x = given["x"].requires_grad_()

        def train() -> list[Tensor]:
            output = norm_prelu(norm, prelu, x)
            inputs = (x, norm.weight, norm.bias, prelu.weight)
            return [output.detach(), *torch.autograd.grad(output, inputs, given["grad"])]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = train()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = train()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert norm.num_batches_tracked == 2
