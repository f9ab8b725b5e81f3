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
# The images at these places, (b, size, size, 3) uint8 RGB, and what is wrong with which of them.
Load = Callable[[range], tuple[np.ndarray, dict[int, str]]]

_COLUMNS = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class Embedded:
    """Some images' embeddings, in order.

    Attributes:
        places: whose they are.
        embeddings: (b, D) float32 on the device; zeros for an image that cannot be decoded.
        norms: (b,) float32 on the device, of the embeddings before their mirror images' are added.
        faults: what is wrong with which of the places; known to the rank that decoded them alone.
    """

    places: range
    embeddings: Tensor
    norms: Tensor
    faults: dict[int, str]


def decoder(read: Read, *, image_size: int) -> Load:
    """What `embed_batches` takes, for encoded images that all have image_size × image_size pixels.

    They are decoded on the CPU whatever the device: the same pixels, hence the same numbers.
    """
    return lambda places: decode_batch(read(places), size=image_size)


def embed_batches(
    embed: Callable[[Tensor], Tensor],
    load: Load,
    places: range,
    *,
    device: torch.device,
    batch_size: int,
    image_size: int = 112,
    flip: bool = False,
    threads: int = 1,
    rank: int = 0,
    world_size: int = 1,
    progress: str = "",
) -> Iterator[Embedded]:
    """Embed images batch by batch; every rank gets all batches, and embeds every world_size-th.

    Args:
        embed: (b, 3, image_size, image_size) uint8 pixels on the device, in channels_last, to
            (b, D) float32 there; see `on_pixels`.
        load: gives the images at some places; it is called on threads. See `decoder`.
        places: which images, in which order.
        device: where `embed` computes, and where the process group can gather tensors (all_gather).
        batch_size: images loaded and embedded at a time.
        image_size: height and width that `load` gives.
        flip: whether to add the embedding of the image mirrored left to right.
        threads: that load.
        rank, world_size: of the default process group; 0 and 1 need none.
        progress: a name for a progress bar on the first rank's stderr; none without a name.
    """
    assert batch_size > 0
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]

    def embedded(images: np.ndarray) -> Tensor:
        """(b, D + 1): the norms stand beside the embeddings."""
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        rows = embed(pixels)
        norms = rows.norm(dim=1, keepdim=True)
        if flip:
            rows = rows + embed(pixels.flip(3))
        return torch.cat([rows, norms], dim=1)

    loaded = map_ahead(load, batches[rank::world_size], workers=threads, depth=threads + 2)
    hidden = not progress or rank > 0
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(progress, total=places.stop, completed=places.start)
        own = None
        for first in range(0, len(batches), world_size):
            turn, faults = batches[first : first + world_size], {}
            if rank < len(turn):
                images, found = next(loaded)
                own = embedded(images)
                own[list(found)] = 0
                faults = {turn[rank][i]: fault for i, fault in found.items()}
            elif own is None:  # it takes part in the gather all the same, and must know D
                own = embedded(np.zeros((1, image_size, image_size, 3), np.uint8))
            everyone = _gather(own, batch_size, world_size)
            for place, (batch, rows) in enumerate(zip(turn, everyone)):
                rows = rows[: len(batch)]
                theirs = faults if place == rank else {}
                yield Embedded(batch, rows[:, :-1], rows[:, -1], theirs)
                bar.update(task, completed=batch.stop)


def on_pixels(
    network: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[Tensor, torch.dtype], Tensor] = normalize,
) -> Callable[[Tensor], Tensor]:
    """What embeds pixels: prepares them and runs `network` without a gradient.

    Args:
        network: what `prepare` makes of images, of `dtype`, to (B, D).
        device: where the network is.
        dtype: bfloat16 or float16 to run under autocast; float32 for none.
        prepare: pixels and dtype to what the network takes, where it is none of ours.

    Returns:
        (B, 3, H, W) uint8 to (B, D) float32, not L2-normalized.
    """
    mixed = dtype != torch.float32

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype if mixed else None, enabled=mixed):
            return network(prepare(pixels, dtype)).float()

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
    """Every rank's (batch_size, D + 1) rows, filled up with zeros, by rank."""
    if world_size == 1:
        return [own]
    filled = own.new_zeros(batch_size, own.shape[1])
    filled[: len(own)] = own
    everyone = [torch.empty_like(filled) for _ in range(world_size)]
    dist.all_gather(everyone, filled)
    return everyone
