"""Centers kept away from the device:  python benchmarks/centers_in_host.py host:8e6 disk:20e6

The head alone, forward, backward and update, with equally many centers a step however many
identities there are; bfloat16 centers without momentum. Each case is measured in a process of its
own, and the first is always 1,000,000 identities kept on the device. Labels are announced as
training announces them. For disk a file as large as the centers is made in --path, and is gone with
the process. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_device, in_own_process, save, show
from heads import ArcFace, PartialFC

WARM_UP = 3


def measure(
    *,
    place: str,
    classes: int,
    rows: int,
    dim: int,
    batch: int,
    steps: int,
    prefetch: int,
    path: str,
    device: str,
) -> dict[str, Any]:
    """Seconds to make the centers, and of each step, in this process."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    head = PartialFC(
        classes,
        dim,
        ArcFace(),
        sample_rate=min(1.0, rows / classes),
        momentum=0.0,
        compute_dtype=torch.bfloat16,
        centers_dtype=torch.bfloat16,
        place=place,
        place_path=path if place == "disk" else None,
        prefetch=prefetch,
        device=torch.device(device),
    )
    made = time.perf_counter() - begin
    module = None if device == "cpu" else torch.get_device_module(device)
    labels = torch.randint(0, classes, (WARM_UP + steps + prefetch, batch))
    seconds = []
    for step in range(WARM_UP + steps):
        embeddings = torch.randn(batch, dim, device=device, requires_grad=True)
        begin = time.perf_counter()
        for ahead in range(1, prefetch + 1):
            head.announce(labels[step + ahead], ahead=ahead)
        head(embeddings, labels[step].to(device)).backward()
        head.step(0.01)
        if module:
            module.synchronize()
        seconds.append(time.perf_counter() - begin)
    return {
        "place": place,
        "classes": classes,
        "seconds_to_make": made,
        "seconds": statistics.median(seconds[WARM_UP:]),
        "seconds_by_step": [round(taken, 4) for taken in seconds],
    }


def cases(wanted: list[str]) -> Iterator[tuple[str, int]]:
    """Place and identities: what is compared with, and what is asked for."""
    yield "device", 1_000_000
    for one in wanted:
        place, _, classes = one.partition(":")
        yield place, int(float(classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["host:1e6", "disk:1e6"], metavar="PLACE:COUNT")
    parser.add_argument("--rows", type=int, default=100_000, help="centers in a step")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--path", default=".", help="a folder on the disk to use")
    there = torch.accelerator.is_available()
    current = torch.accelerator.current_accelerator() if there else None
    parser.add_argument("--device", default=current.type if current else "cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement's settings, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return

    names = ("rows", "dim", "batch", "steps", "prefetch")
    shared = {name: getattr(arguments, name) for name in names}
    results = []
    for place, classes in cases(arguments.cases):
        print(f"{classes:,} identities, {place}", file=sys.stderr)
        where = {"path": arguments.path, "device": arguments.device}
        settings = shared | where | {"place": place, "classes": classes}
        results.append(in_own_process(__file__, settings, {}))
    _print(results, shared)
    millions = max(one["classes"] for one in results) // 1_000_000
    about = about_device(torch.device(arguments.device)) | shared
    save(f"centers_in_host_{millions}m", about, results=results)


def _print(results: list[dict[str, Any]], shared: dict[str, int]) -> None:
    first = results[0]["seconds"]
    show(
        ("place", "identities", "s to make", "ms a step", "of the first"),
        [
            (
                one["place"],
                f"{one['classes']:,}",
                f"{one['seconds_to_make']:.0f}",
                f"{one['seconds'] * 1e3:.0f}",
                f"{one['seconds'] / first:.2f}",
            )
            for one in results
        ],
        title="{rows:,} centers a step, {dim} dimensions, batch {batch}".format(**shared),
    )


if __name__ == "__main__":
    main()
