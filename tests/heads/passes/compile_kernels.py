"""Compiles, without a GPU, every kernel that heads.passes.kernels would launch; prints JSON.

    python tests/heads/passes/compile_kernels.py 80:512:float16:3:hooks ...

Each argument is compute capability, dimensions, compute dtype, sub-centers, and `hooks` or `plain`:
with groups, bent negatives and accumulation, or without. The launches are recorded from the public
functions, called with meta tensors, so that what is compiled is what a step compiles.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[3]))

from heads.negatives import Negatives
from heads.passes import kernels

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel of one step. shared: bytes. stack: bytes a thread, what is spilled among them."""

    step: str
    kernel: str
    shared: int
    registers: int
    stack: int
    tensor_cores: bool


def record_step(
    capability: int, *, dim: int, dtype: torch.dtype, subcenters: int, hooks: bool, batch: int = 512
) -> list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]]:
    """The launches of a step, as (kernel, arguments, keyword arguments)."""
    launches = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append((kernel, args, options))

    JITFunction.run = record
    kernels._hardware = lambda _: (divmod(capability, 10), 100)
    # Several chunks, the last a part of one: the first stores what the others add to.
    kernels._SCRATCH_BYTES = 0
    count = 3000

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    centers = meta(2 * count, subcenters * dim)
    embeddings = meta(batch, dim, dtype=dtype)
    rows = meta(count, dtype=torch.int64)
    product = meta(count * subcenters, dim, dtype=torch.float32 if hooks else dtype)
    groups = (meta(count, dtype=torch.int32), meta(batch, dtype=torch.int32))
    common = {
        "rows": rows,
        "positions": meta(batch, dtype=torch.int64),
        "groups": groups if hooks else None,
        "negatives": Negatives(0.9, meta(batch), meta()) if hooks else Negatives(),
        "scale": 64.0,
        "subcenters": subcenters,
    }
    inverse = kernels.inverse_norms(centers, rows, subcenters=subcenters)
    kernels.negative_logsumexp(embeddings, centers, inverse, **common)
    _, along, reach = kernels.gradients(
        embeddings,
        centers,
        inverse,
        **common,
        log_partition=meta(batch),
        target=meta(batch),
        target_subcenter=meta(batch, dtype=torch.int64),
        gain=16.0,
        product=product,
        accumulate=hooks,
    )
    kernels.update_rows(
        centers,
        meta(*centers.shape),
        rows=rows,
        product=product,
        pull=along,
        drift=reach,
        lr=meta(),
        momentum=0.9,
        weight_decay=5e-4,
        apply=meta(dtype=torch.bool),
        active=meta(count, dtype=torch.bool) if hooks else None,
    )
    return launches


def compile_launch(
    kernel: JITFunction, args: tuple[Any, ...], options: dict[str, Any], capability: int
) -> Any:
    """As triton's launcher specializes it: 1 and None are constants, alignment to 16 is known."""
    options = {name: value for name, value in options.items() if name != "debug"}
    values = dict(zip(kernel.arg_names, args))
    values |= {name: options.pop(name) for name in kernel.arg_names if name in options}
    signature, constants, alignment = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
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
    source = ASTSource(kernel, signature, constants, alignment)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


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


def main(steps: list[str]) -> None:
    results, seen = [], set()
    for step in steps:
        capability, dim, dtype, subcenters, hooks = step.split(":")
        for kernel, args, options in record_step(
            int(capability),
            dim=int(dim),
            dtype=getattr(torch, dtype),
            subcenters=int(subcenters),
            hooks=hooks == "hooks",
        ):
            compiled = compile_launch(kernel, args, options, int(capability))
            if (capability, dim, compiled.hash) in seen:
                continue
            seen.add((capability, dim, compiled.hash))
            tensor_cores = re.search(r"\b(wgmma\.mma_async|mma\.sync)", compiled.asm["ptx"])
            results.append(
                Compiled(
                    step,
                    kernel.__name__,
                    compiled.metadata.shared,
                    *resources(compiled.asm["cubin"]),
                    tensor_cores is not None,
                )
            )
    print(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    main(sys.argv[1:])
