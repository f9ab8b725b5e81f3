"""Bytes that a network's training step reads and writes for an image, counted, not measured:

    python benchmarks/traffic.py [NETWORK ...]

Every operation of forward and backward is taken for a kernel of its own (models/traffic.py), in 16
bits. Beside that stand the same with model.fused=true, and the convolutions alone. What does not
grow with the batch, such as the weights, is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import show
from models import Architecture
from models.traffic import bytes_an_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("networks", nargs="*", default=["iresnet18", "iresnet50", "iresnet100"])
    rows = []
    for name in parser.parse_args().networks:
        plain, fused = (bytes_an_image(Architecture(name), fused=f) for f in (False, True))
        alone = sum(count for kind, count in plain.items() if "convolution" in kind)
        counts = (plain.total(), fused.total(), alone)
        rows.append((name, *(f"{count / 1e6:.0f}" for count in counts)))
    show(("network", "MB an image", "model.fused", "convolutions"), rows)


if __name__ == "__main__":
    main()
