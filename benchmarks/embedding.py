"""Embedding a set against the loop that people write, on CPUs:

    python benchmarks/embedding.py [SET.bin] [--keep-pages]

The loop decodes with Pillow and runs the network in float32 and NCHW, batch by batch, under
no_grad; ours is what tools/evaluate.py does: convolutions in the dtype that it chooses for this
machine, channels_last, BatchNorm folded into the layers around it, the next batches decoded
meanwhile. Both add the mirror image's embedding. Beside them onnxruntime, and two limits: the
network's convolutions and products alone, as ours runs them, and where that is in float32 the bare
matrix products that they come to. They take turns in one process, all under the C library's default
allocator, or all under one that keeps its pages, as tools/evaluate.py has it; medians count.
Results go to benchmarks/results/.
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
from evaluation.embedding import decoder, embed_batches
from evaluation.pair_set import read_bin
from models import create_model, fold_batch_norm
from pipeline.ahead import cores
from synthetic import encode_jpeg, render
from training.allocator import keep_pages
from training.frozen.model import open_model
from training.step.precision import choose_precision

CPU = torch.device("cpu")
MODELS = {"iresnet18": 64, "iresnet50": 32}  # and how many images of a set
BATCH = 32
COMPARED = 8  # images whose embeddings are compared
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


def layers_of(network: nn.Module) -> list[tuple[nn.Conv2d | nn.Linear, torch.Size, int]]:
    """Its convolutions and linear layers, with their input's shape and the pixels of their output,
    of one image."""
    found: list[tuple[nn.Conv2d | nn.Linear, torch.Size, int]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        found.append((layer, given[0].shape[1:], made.numel() // made.shape[1]))

    hooks = [
        layer.register_forward_hook(note)
        for layer in network.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 112, 112))
    for hook in hooks:
        hook.remove()
    return found


def layers_alone(network: nn.Module, count: int, dtype: torch.dtype) -> Callable[[], None]:
    """The convolutions, in `dtype`, and linear layers of a forward of `count` images and their
    mirrors, one after another."""
    folded = fold_batch_norm(network)
    maps: dict[torch.Size, Tensor] = {}
    layers = layers_of(folded)
    for layer, shape, _ in layers:
        if isinstance(layer, nn.Conv2d):
            layer.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = torch.randn(BATCH, *shape).to(dtype, memory_format=torch.channels_last)
        else:
            images = torch.randn(BATCH, *shape)
        maps[shape] = images

    @torch.no_grad()
    def run() -> None:
        for _ in range(2 * count // BATCH):
            for layer, shape, _ in layers:
                layer(maps[shape])

    return run


def bare_products(network: nn.Module, count: int) -> Callable[[], None]:
    """The matrix products of a float32 forward of `count` images and their mirrors."""
    shapes = [
        (pixels * PRODUCTS, layer.weight[0].numel(), layer.weight.shape[0])
        for layer, _, pixels in layers_of(network)
    ]
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
            "onnxruntime, float32": onnxruntime_of(plain, Path(folder)),
        }
        if chosen == torch.float32:
            del embeds["ours, float32"]
        ways: dict[str, Callable[[], object]] = {"loop": lambda: torch_loop(plain, images)}
        ways |= {way: partial(ours, embed, images) for way, embed in embeds.items()}
        expected = torch_loop(plain, images[:COMPARED])
        alike = {
            way: _least_cosine(expected, ours(embed, images[:COMPARED]))
            for way, embed in embeds.items()
        }
        ways["layers alone"] = layers_alone(network, len(images), chosen)
        if chosen == torch.float32:
            ways["bare products"] = bare_products(plain, len(images))
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
    parser.add_argument("--keep-pages", action="store_true", help="all of them, as evaluate does")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    most = max(MODELS.values())
    if arguments.set:
        images = read_bin(arguments.set).images[:most]
    else:
        images = [encode_jpeg(render(k, 0)) for k in range(most)]
    torch.set_num_threads(cores())
    kept = arguments.keep_pages and keep_pages()
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
    save("embedding", about_cpu() | {"pages_kept": kept}, results=found)


if __name__ == "__main__":
    main()
