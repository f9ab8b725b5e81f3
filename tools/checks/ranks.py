"""Whether the ranks of this machine reach one another, by one sum over all of them."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from functools import partial

from tools.checks.apart import ApartError, apart, apart_together
from tools.checks.driver import read_driver
from tools.checks.finding import Finding, fails, ok, remedy_of

_SECONDS = 120  # NCCL waits half an hour by itself
_REMEDIES = {
    "nccl": "enlarge /dev/shm (docker run --ipc=host); NCCL_DEBUG=INFO says more, and "
    "NCCL_P2P_DISABLE=1 goes around a fault between GPUs",
    "gloo": "give this machine's name an address in /etc/hosts, or set GLOO_SOCKET_IFNAME=lo",
}


def check_ranks() -> Finding:
    """A rank for each GPU, through NCCL; two through gloo where there is none."""
    gpus = apart(read_driver, seconds=_SECONDS).gpus
    backend, world = ("nccl", gpus) if gpus else ("gloo", 2)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [partial(_sum, backend, rank, world, f"{folder}/store") for rank in range(world)]
        results = apart_together(ranks, seconds=_SECONDS)
    for rank, result in enumerate(results):
        if isinstance(result, ApartError):
            remedy = remedy_of(result, _REMEDIES[backend])
            return fails("ranks", f"{backend}, rank {rank} of {world}: {result}", remedy)
    return ok("ranks", f"{results[0]} adds up over {world} rank{'s' * (world > 1)}")


def _sum(backend: str, rank: int, world: int, store: str) -> str:
    """The backend with its version, where the sum is right."""
    import torch
    import torch.distributed as dist

    from training.distributed import leave_world

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=_SECONDS),
    )
    total = torch.full((8,), rank + 1.0, device=device)
    dist.all_reduce(total)
    expected = world * (world + 1) / 2
    if total.tolist() != [expected] * 8:
        raise ValueError(f"the sum is {total.tolist()}, expected {expected}")
    leave_world()
    if backend != "nccl":
        return backend
    return "NCCL " + ".".join(map(str, torch.cuda.nccl.version()))
