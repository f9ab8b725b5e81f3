"""The one loop that embeds images: read and decoded ahead on threads, shared out over the ranks.

It takes the network as a callable: whoever trains, evaluates or predicts opens it. Batches are cut
and ordered alike whatever the number of ranks, so the embeddings are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn

from models import normalize
from pipeline.ahead import map_ahead
from pipeline.jpeg import decode_batch

# The encoded images at these places, each read when it is called.
Read = Callable[[range], Sequence[Callable[[], bytes]]]

_COLUMNS = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class Embedded:
    """Some images' embeddings, in order.

    Attributes:
        places: whose they are.
        embeddings: (b, D) float32 on the device; zeros for an image that cannot be decoded.
        faults: what is wrong with which of the places; known to the rank that decoded them alone.
    """

    places: range
    embeddings: Tensor
    faults: dict[int, str]


def embed_batches(
    embed: Callable[[Tensor], Tensor],
    read: Read,
    places: range,
    *,
    device: torch.device,
    batch_size: int,
    image_size: int = 112,
    threads: int = 1,
    rank: int = 0,
    world_size: int = 1,
    progress: str = "",
) -> Iterator[Embedded]:
    """Embed images batch by batch; every rank gets all batches, and embeds every world_size-th.

    Args:
        embed: (b, 3, image_size, image_size) uint8 pixels on the device, in channels_last, to
            (b, D) float32 there; see `on_pixels`.
        read: gives the images at some places; it is called on threads.
        places: which images, in which order.
        device: where `embed` computes, and where the process group can gather tensors (all_gather).
        batch_size: images decoded and embedded at a time.
        threads: that read and decode.
        rank, world_size: of the default process group; 0 and 1 need none.
        progress: a name for a progress bar on the first rank's stderr; none without a name.
    """
    assert batch_size > 0
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]

    def decode(batch: range) -> tuple[np.ndarray, dict[int, str]]:
        # On the CPU whatever the device: the same pixels, hence the same numbers, on all of them.
        return decode_batch(read(batch), size=image_size)

    def pixels_of(images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).to(device).permute(0, 3, 1, 2)

    decoded = map_ahead(decode, batches[rank::world_size], workers=threads, depth=threads + 2)
    hidden = not progress or rank > 0
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(progress, total=places.stop, completed=places.start)
        embeddings = None
        for first in range(0, len(batches), world_size):
            turn, faults = batches[first : first + world_size], {}
            if rank < len(turn):
                images, found = next(decoded)
                embeddings = embed(pixels_of(images))
                embeddings[list(found)] = 0
                faults = {turn[rank][i]: fault for i, fault in found.items()}
            elif embeddings is None:  # it takes part in the gather all the same, and must know D
                embeddings = embed(pixels_of(np.zeros((1, image_size, image_size, 3), np.uint8)))
            everyone = _gather(embeddings, batch_size, world_size)
            for place, (batch, rows) in enumerate(zip(turn, everyone)):
                yield Embedded(batch, rows[: len(batch)], faults if place == rank else {})
                bar.update(task, completed=batch.stop)


def on_pixels(
    network: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
    prepare: Callable[[Tensor, torch.dtype], Tensor] = normalize,
) -> Callable[[Tensor], Tensor]:
    """What embeds pixels: prepares them and runs `network` without a gradient.

    Args:
        network: what `prepare` makes of images, of `dtype`, to (B, D).
        device: where the network is.
        dtype: bfloat16 or float16 to run under autocast; float32 for none.
        flip: whether to add the embedding of the image mirrored left to right.
        prepare: pixels and dtype to what the network takes, where it is none of ours.

    Returns:
        (B, 3, H, W) uint8 to (B, D) float32, not L2-normalized.
    """
    mixed = dtype != torch.float32

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype if mixed else None, enabled=mixed):
            embeddings = network(prepare(pixels, dtype))
            if flip:
                embeddings = embeddings + network(prepare(pixels.flip(3), dtype))
        return embeddings.float()

    return embed


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and afterwards every submodule back in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _gather(own: Tensor, batch_size: int, world_size: int) -> list[Tensor]:
    """Every rank's (batch_size, D) rows, filled up with zeros, by rank."""
    if world_size == 1:
        return [own]
    filled = own.new_zeros(batch_size, own.shape[1])
    filled[: len(own)] = own
    everyone = [torch.empty_like(filled) for _ in range(world_size)]
    dist.all_gather(everyone, filled)
    return everyone
