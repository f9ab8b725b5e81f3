"""What really runs on each GPU: small work of every kind that training does, against the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tools.checks.apart import ApartError, apart, apart_together
from tools.checks.driver import Driver, read_driver
from tools.checks.finding import Finding, fails, note, ok

_SECONDS = 120  # of one kind of work: a first start of CUDA takes some


def check_gpus() -> list[Finding]:
    """One line for each GPU, and one for each kind of work that does not run on it."""
    driver = apart(read_driver, seconds=_SECONDS)
    if not driver.gpus:
        return []
    cuda = apart(_cuda_of_torch, seconds=_SECONDS)
    if fault := does_not_fit(driver, cuda):
        return [fault]
    return [finding for gpu in range(driver.gpus) for finding in check_gpu(gpu, WORK)]


def does_not_fit(driver: Driver, cuda: str | None) -> Finding | None:
    """Why torch, built for `cuda`, reaches no GPU of this driver at all."""
    if not cuda:
        return fails(
            "gpu",
            f"torch is built without CUDA, so that {driver.gpus} stay idle",
            "install a build of torch for CUDA: the package index has one under the same name",
        )
    if int(cuda.partition(".")[0]) > int(driver.cuda.partition(".")[0]):
        return fails(
            "gpu",
            f"torch is built for CUDA {cuda}, the driver runs {driver.cuda} at most",
            f"install a newer driver, or a torch built for CUDA {driver.cuda.partition('.')[0]}",
        )
    return None


def check_gpu(gpu: int, works: Mapping[str, Callable[[Any], None]]) -> list[Finding]:
    """Each kind of work in a process of its own: an error of one leaves a GPU unusable to it."""
    subject = f"gpu {gpu}"
    try:
        about, capability, has_room = apart(lambda: _describe(gpu), seconds=_SECONDS)
    except ApartError as error:
        return [fails(subject, str(error), "look at nvidia-smi; restart the machine")]
    names = [name for name in works if capability >= _SINCE.get(name, (0, 0))]
    results = apart_together([partial(_on, gpu, works[name]) for name in names], seconds=_SECONDS)
    ran = [name for name, result in zip(names, results) if result is None]
    found = [ok(subject, f"{about}; runs {', '.join(ran)}")] if ran else []
    if not has_room:
        remedy = "end other programs on it (nvidia-smi lists them)"
        found.append(note(subject, f"{about}: more than half is taken", remedy))
    for name, result in zip(names, results):
        if result is not None:
            state = fails if name in NEEDED else note
            found.append(state(subject, f"{name}: {result}", _REMEDIES[name]))
    return found


def _cuda_of_torch() -> str | None:
    import torch

    return torch.version.cuda


def _describe(gpu: int) -> tuple[str, tuple[int, int], bool]:
    """In words; compute capability; whether at least half of the memory is free."""
    import torch

    card = torch.cuda.get_device_properties(gpu)
    free, size = torch.cuda.mem_get_info(gpu)
    room = f"{free / 1e9:.1f} of {size / 1e9:.1f} GB free"
    capability = (card.major, card.minor)
    about = f"{card.name}, compute capability {card.major}.{card.minor}, {room}"
    return about, capability, 2 * free >= size


def _on(gpu: int, work: Callable[[Any], None]) -> None:
    import torch

    device = torch.device("cuda", gpu)
    torch.cuda.set_device(device)
    work(device)
    torch.cuda.synchronize(device)


def _multiply(device: Any, dtype: str) -> None:
    import torch

    torch.manual_seed(0)
    left, right = torch.randn(2, 64, 64, dtype=torch.float64)
    kind = getattr(torch, dtype)
    product = left.to(device, kind) @ right.to(device, kind)
    _compare(product, left @ right)


def _convolve(device: Any) -> None:
    import torch

    torch.manual_seed(0)
    images, weights = torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3)
    convolve = torch.nn.functional.conv2d
    on_device = images.to(device, torch.float16, memory_format=torch.channels_last)
    _compare(convolve(on_device, weights.to(device, torch.float16)), convolve(images, weights))


def _kernel(device: Any) -> None:
    """One that Triton compiles."""
    import torch

    from tools.checks.triton_kernel import double

    numbers = torch.arange(100.0)
    _compare(double(numbers.to(device)), 2 * numbers)


def _graph(device: Any) -> None:
    import torch

    numbers = torch.ones(8, device=device)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        numbers.mul_(2)
    graph.replay()
    _compare(numbers, torch.full((8,), 2.0))


def _compare(found: Any, expected: Any) -> None:
    """Raises AssertionError where they differ by more than 16 bits explain."""
    import torch

    torch.testing.assert_close(found.double().cpu(), expected.double(), rtol=0.02, atol=0.2)


WORK: dict[str, Callable[[Any], None]] = {
    "float32": lambda device: _multiply(device, "float32"),
    "float16": lambda device: _multiply(device, "float16"),
    "bfloat16": lambda device: _multiply(device, "bfloat16"),
    "convolutions": _convolve,
    "Triton": _kernel,
    "CUDA graphs": _graph,
}
NEEDED = ("float32", "convolutions")
_SINCE = {"bfloat16": (8, 0), "Triton": (7, 0)}  # compute capability
_OTHER_TORCH = (
    "install a torch that has code for this card, older ones for older cards: "
    "torch.cuda.get_arch_list() says for which it has"
)
_REMEDIES = {
    "float32": _OTHER_TORCH,
    "float16": "train with step.precision=fp32",
    "bfloat16": "train with step.precision=fp16",
    "convolutions": f"{_OTHER_TORCH}; and take no other cuDNN in through LD_LIBRARY_PATH",
    "Triton": "install g++ and Python's headers; until then train with head.backend=torch",
    "CUDA graphs": "train with step.cuda_graph=off",
}
