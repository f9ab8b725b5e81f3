"""Embedding a set against the loop that people write, on CPUs:

    python benchmarks/embedding.py [SET.bin]

The loop decodes with Pillow and runs the network in float32 and NCHW, batch by batch, under
no_grad; ours is what tools/evaluate.py does: convolutions in the dtype that it chooses for this
machine, channels_last, BatchNorm folded into the layers before it, the next batches decoded
meanwhile. Both add the mirror image's embedding. Beside them what was tried instead, and the bare
matrix products that the network's convolutions come to, in float32, which are the limit there. They
take turns in one process, whose allocator keeps its pages for all of them; medians count. Results
go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, medians, save, show, take_turns
from evaluation.embedding import decoder, embed_batches, on_pixels
from evaluation.pair_set import read_bin
from models import create_model
from pipeline.ahead import cores
from synthetic import encode_jpeg, render
from training.allocator import keep_pages
from training.frozen.model import open_model
from training.step.precision import choose_precision

CPU = torch.device("cpu")
MODELS = {"iresnet18": 64, "iresnet50": 32}  # and how many images of a set
BATCH = 32
PRODUCTS = 4  # images whose products are taken at a time: more would not fit into memory


def torch_loop(network: nn.Module, images: Sequence[bytes]) -> Tensor:
    """As in most scripts that evaluate."""
    found = []
    for first in range(0, len(images), BATCH):
        decoded = [
            np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
            for image in images[first : first + BATCH]
        ]
        pixels = torch.from_numpy(np.stack(decoded).transpose(0, 3, 1, 2).copy())
        pixels = pixels.float().div_(127.5).sub_(1)
        with torch.no_grad():
            found.append(network(pixels) + network(pixels.flip(3)))
    return torch.cat(found)


def ours(embed: Callable[[Tensor], Tensor], images: Sequence[bytes]) -> Tensor:
    """As tools/evaluate.py embeds."""
    load = decoder(lambda places: [partial(bytes, images[i]) for i in places], image_size=112)
    batches = embed_batches(
        embed,
        load,
        range(len(images)),
        device=CPU,
        batch_size=BATCH,
        flip=True,
        threads=cores(),
    )
    return torch.cat([batch.embeddings for batch in batches])


def bare_products(network: nn.Module, count: int) -> Callable[[], None]:
    """The products of a float32 forward of `count` images and their mirrors."""
    shapes: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        rows, weight = made.numel() // made.shape[1], layer.weight
        shapes.append((rows * PRODUCTS, weight[0].numel(), weight.shape[0]))

    hooks = [
        layer.register_forward_hook(note)
        for layer in network.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 112, 112))
    for hook in hooks:
        hook.remove()
    left = {shape: torch.randn(shape[0], shape[1]) for shape in set(shapes)}
    right = {shape: torch.randn(shape[1], shape[2]) for shape in set(shapes)}
    made = {shape: torch.empty(shape[0], shape[2]) for shape in set(shapes)}

    def multiply() -> None:
        for _ in range(2 * count // PRODUCTS):
            for shape in shapes:
                torch.mm(left[shape], right[shape], out=made[shape])

    return multiply


def onnxruntime_of(network: nn.Module, folder: Path) -> Callable[[Tensor], Tensor]:
    """The same network as an .onnx file."""
    path = folder / "network.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, 112, 112),),
        str(path),
        input_names=["images"],
        dynamic_axes={"images": {0: "batch"}},
        dynamo=False,
    )
    return open_model(path, device=CPU, dtype=torch.float32, words="rgb,-1..1").embed


def measure(name: str, images: Sequence[bytes], *, rounds: int) -> dict[str, Any]:
    """Images a second of each way, and how like its embeddings are to the loop's."""
    torch.manual_seed(0)
    network = create_model(name).eval().requires_grad_(False)
    _settle(network)
    chosen = choose_precision(CPU).compute_dtype
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "network.pth"
        torch.save(network.state_dict(), saved)
        plain = copy.deepcopy(network)
        for weight in plain.parameters():
            weight.data = weight.data.contiguous()
        embeds = {
            "ours": open_model(saved, device=CPU, dtype=chosen).embed,
            "ours, float32": open_model(saved, device=CPU, dtype=torch.float32).embed,
            "autocast, not folded": on_pixels(network, device=CPU, dtype=chosen),
            "onnxruntime, float32": onnxruntime_of(plain, Path(folder)),
        }
        if chosen == torch.float32:
            del embeds["ours, float32"], embeds["autocast, not folded"]
        ways: dict[str, Callable[[], object]] = {"loop": lambda: torch_loop(plain, images)}
        ways |= {way: partial(ours, embed, images) for way, embed in embeds.items()}
        expected = torch_loop(plain, images[:BATCH])
        alike = {
            way: _least_cosine(expected, ours(embed, images[:BATCH]))
            for way, embed in embeds.items()
        }
        ways["bare products, float32"] = bare_products(plain, len(images))
        typical = medians(take_turns(ways, rounds=rounds, warm_up=0))
    return {
        "model": name,
        "images": len(images),
        "batch": BATCH,
        "dtype": str(chosen).removeprefix("torch."),
        "images_per_second": {way: len(images) / taken for way, taken in typical.items()},
        "times_the_loop": {way: typical["loop"] / taken for way, taken in typical.items()},
        "least_cosine_to_the_loop": alike,
    }


def _settle(network: nn.Module) -> None:
    """Statistics of BatchNorm as after training: of a network that was only drawn they explode."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 3, 112, 112, generator=generator) * 2 - 1
    network.train()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    with torch.no_grad():
        network(noise)
    network.eval()


def _least_cosine(expected: Tensor, found: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(expected, found).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("set", nargs="?", type=Path, help="a .bin file; drawn faces without one")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    most = max(MODELS.values())
    if arguments.set:
        images = read_bin(arguments.set).images[:most]
    else:
        images = [encode_jpeg(render(k, 0)) for k in range(most)]
    torch.set_num_threads(cores())
    keep_pages()
    found = [measure(name, images[:n], rounds=arguments.rounds) for name, n in MODELS.items()]
    for row in found:
        show(
            ("way", "images/s", "× the loop", "cosine to it"),
            [
                (
                    way,
                    f"{rate:.1f}",
                    f"{row['times_the_loop'][way]:.2f}",
                    f"{row['least_cosine_to_the_loop'].get(way, 1):.5f}",
                )
                for way, rate in row["images_per_second"].items()
            ],
            title=f"{row['model']}, {row['dtype']}",
        )
    save("embedding", about_cpu(), results=found)


if __name__ == "__main__":
    main()
