"""The head alone: images/s and memory by sample rate:  python benchmarks/sample_rates.py

Each rate is measured in a process of its own, so that one's memory does not hide another's. A
step is forward, backward and update of the centers. Transient memory is what the process grows by
beyond the centers and their momentum. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_device, in_own_process, save, show
from heads import ArcFace, PartialFC

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def measure(
    *, classes: int, dim: int, batch: int, rate: float, dtype: str, steps: int, device: str
) -> dict[str, Any]:
    """Median seconds of a step, images/s, and bytes of centers and transients, in this process."""
    torch.manual_seed(0)
    head = PartialFC(
        classes,
        dim,
        ArcFace(),
        sample_rate=rate,
        compute_dtype=_DTYPES[dtype],
        device=torch.device(device),
    )
    module = None if device == "cpu" else torch.get_device_module(device)
    before = _memory(module)
    seconds = []
    for _ in range(steps + 2):  # two to warm up
        embeddings = torch.randn(batch, dim, device=device, requires_grad=True)
        labels = torch.randint(0, classes, (batch,), device=device)
        begin = time.perf_counter()
        head(embeddings, labels).backward()
        head.step(0.01)
        if module:
            module.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    return {
        "sample_rate": rate,
        "dtype": dtype,
        "seconds": median,
        "images_per_s": batch / median,
        "centers_bytes": 2 * head.centers.nbytes,
        "transient_bytes": _memory(module) - before,
    }


def _memory(module: Any) -> int:
    """Peak bytes so far: of the device, or of this process on a CPU."""
    if module:
        return module.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.3, 0.1, 0.01])
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=["float32", "bfloat16"])
    current = torch.accelerator.current_accelerator()
    parser.add_argument("--device", default=current.type if current else "cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement's settings, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return

    shared = {key: getattr(arguments, key) for key in ("classes", "dim", "batch", "steps")}
    rows = []
    for dtype in arguments.dtypes:
        for rate in arguments.rates:
            settings = shared | {"rate": rate, "dtype": dtype, "device": arguments.device}
            rows.append(in_own_process(__file__, settings, {}))
    _print(rows, shared, arguments.device)
    about = about_device(torch.device(arguments.device))
    save("head_sample_rates", about | shared, results=rows)


def _print(rows: list[dict[str, Any]], shared: dict[str, int], device: str) -> None:
    title = "{classes:,} classes, {dim} dimensions, batch {batch}".format(**shared)
    show(
        ("dtype", "sample rate", "ms a step", "images/s", "centers MB", "transient MB"),
        [
            (
                row["dtype"],
                f"{row['sample_rate']:g}",
                f"{row['seconds'] * 1e3:.1f}",
                f"{row['images_per_s']:.0f}",
                f"{row['centers_bytes'] / 1e6:.0f}",
                f"{row['transient_bytes'] / 1e6:.0f}",
            )
            for row in rows
        ],
        title=f"{title}, {device}",
    )


if __name__ == "__main__":
    main()
