"""Compiles Triton kernels without a GPU, as they would be launched, and reads what they need.

For processes in which Triton does not interpret its kernels.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """One launch of a kernel: its arguments by name, block sizes among them; warps and the like."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Compiled:
    """One kernel of one step. shared: bytes. stack: bytes a thread, what is spilled among them."""

    step: str
    kernel: str
    shared: int
    registers: int
    stack: int
    tensor_cores: bool


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """What is launched here is listed and does not run: for functions called with meta tensors."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        options.pop("debug", None)
        named = {name: options.pop(name) for name in kernel.arg_names if name in options}
        launches.append(Launch(kernel, dict(zip(kernel.arg_names, args)) | named, options, grid))

    with patch.object(JITFunction, "run", record):
        yield launches


def compile_launch(launch: Launch, capability: int) -> Any:
    """As triton's launcher specializes it: 1 and None are constants, alignment to 16 is known."""
    signature, constants, alignment = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            alignment[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                alignment[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, alignment)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread; ptxas puts spills on the stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


def needs(step: str, launch: Launch, compiled: Any) -> Compiled:
    """What a kernel from `compile_launch` takes."""
    return Compiled(
        step,
        launch.kernel.__name__,
        compiled.metadata.shared,
        *resources(compiled.asm["cubin"]),
        re.search(r"\b(wgmma\.mma_async|mma\.sync)", compiled.asm["ptx"]) is not None,
    )


def compile_steps(steps: list[str], record: Callable[..., list[Launch]]) -> None:
    """Print, as JSON, a `Compiled` for each kernel of each step: once for a size of one GPU.

    Args:
        steps: compute capability, size and whatever else, with colons between.
        record: from the capability, an int, and the other words, the launches of such a step.
    """
    results, seen = [], set()
    for step in steps:
        capability, *words = step.split(":")
        for launch in record(int(capability), *words):
            compiled = compile_launch(launch, int(capability))
            if (capability, words[0], compiled.hash) not in seen:
                seen.add((capability, words[0], compiled.hash))
                results.append(needs(step, launch, compiled))
    print(json.dumps([asdict(result) for result in results]))
