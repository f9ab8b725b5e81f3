"""What each network costs:  python -m models [NAME ...] [--json] [--speed]

The columns: parameters in millions; multiply-adds of an image in thousands of millions, those of
convolutions and products; the length of an embedding; and the memory that a training step keeps for
an image until backward, in 16 bits and channels_last, in 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from facestream import USER_ERROR_EXIT_CODE, UserError
from models import MODELS, Architecture, fold_batch_norm
from models.cost import kept_an_image, multiply_adds

# Left out of the list unless named: those whose options say what they are, alike by default to
# others; and one for tests and demos.
_UNLISTED = ("iresnet10", "iresnet", "vit")
_BATCH, _SECONDS = 16, 1.0  # of a measurement, after one batch to warm up


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as iresnet50, timm/resnet18")
    parser.add_argument("--json", action="store_true", help="the same as JSON, numbers whole")
    parser.add_argument(
        "--speed",
        action="store_true",
        help=f"images/s of embedding here, too: float32, {_BATCH} at once, BatchNorm folded",
    )
    arguments = parser.parse_args()
    names = arguments.names or [name for name in MODELS if name not in _UNLISTED]
    try:
        rows = [describe(name, speed=arguments.speed) for name in names]
    except UserError as error:
        print(f"models: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    print(json.dumps(rows, indent=1) if arguments.json else _table(rows))
    return 0


def describe(name: str, *, speed: bool = False) -> dict[str, Any]:
    """What a network of that name costs for images of 112 pixels.

    Raises UserError for a name that is none.
    """
    architecture = Architecture(name)
    with torch.device("meta"):
        network = architecture.create()
    row = {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": multiply_adds(architecture),
        "embedding_dim": architecture.embedding_dim,
        "kept_an_image": kept_an_image(architecture, torch.bfloat16),
    }
    return {**row, "images_per_second": round(_measure(architecture), 1)} if speed else row


def _measure(architecture: Architecture) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = fold_batch_norm(architecture.create(), run_on=device)
    size = architecture.image_size
    images = torch.zeros(_BATCH, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        network(images).cpu()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < _SECONDS:
            network(images).cpu()
            done += _BATCH
        return done / (time.perf_counter() - start)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        "network": [row["name"] for row in rows],
        "parameters": [f"{row['parameters'] / 1e6:.2f} M" for row in rows],
        "multiply-adds": [f"{row['multiply_adds'] / 1e9:.3f} G" for row in rows],
        "embedding": [str(row["embedding_dim"]) for row in rows],
        "kept an image": [f"{row['kept_an_image'] / 1e6:.1f} MB" for row in rows],
    }
    if "images_per_second" in rows[0]:
        columns["images/s here"] = [f"{row['images_per_second']:,.1f}" for row in rows]
    widths = [max(map(len, (title, *cells))) for title, cells in columns.items()]
    lines = [tuple(columns), *zip(*columns.values())]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if n else cell.ljust(w) for n, (cell, w) in enumerate(zip(line, widths))
        )
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
