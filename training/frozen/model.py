"""Any model, opened to embed images: a run, a checkpoint, a file of weights, an .onnx file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evaluation.embedding import on_pixels
from evaluation.features import Embedder
from evaluation.result import Model
from models import fold_batch_norm
from models.input import Input
from pipeline.named_path import check_path
from training.distributed import together
from training.frozen.onnx_file import digest_of_file
from training.frozen.onnx_input import as_words, onnx_input
from training.frozen.onnx_network import OnnxFile, OnnxNetwork, open_onnx
from training.saving.reading import SavedCheckpoint, SavedFile, open_weights

ONNX = ".onnx"


@dataclass(frozen=True)
class OpenedModel:
    """A frozen network on a device, the same whatever it was read from.

    Attributes:
        source: as it was named.
        network: "iresnet50", or "onnx".
        embed: (B, 3, S, S) uint8 RGB to (B, D) float32, without a gradient.
        embedding_dim: D.
        input: what it makes of the pixels, with S.
        dtype: that it computes in.
        digest: of its weights: saved in another form they have the same one.
        notes: which checkpoint it is, and what was changed or guessed on the way.
        sample_rate: of the head it was trained with, where that is known.
    """

    source: str
    network: str
    embed: Callable[[Tensor], Tensor]
    embedding_dim: int
    input: Input
    dtype: torch.dtype
    digest: str
    notes: tuple[str, ...] = ()
    sample_rate: float | None = None

    def embedder(
        self,
        device: torch.device,
        *,
        batch_size: int,
        threads: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> Embedder:
        """As evaluation takes it; see there for the arguments."""
        known_by = f"{self.digest} {self.input!r} {self.dtype} {device.type} {self.network}"
        return Embedder(
            self.embed,
            digest=hashlib.blake2b(known_by.encode(), digest_size=16).hexdigest(),
            image_size=self.input.size,
            device=device,
            batch_size=batch_size,
            threads=threads,
            rank=rank,
            world_size=world_size,
        )

    def described(self, name: str) -> Model:
        """As results show it, under this name."""
        return Model(
            name=name,
            source=self.source,
            digest=self.digest,
            network=self.network,
            embedding_dim=self.embedding_dim,
            image_size=self.input.size,
            input=str(self.input),
            precision=str(self.dtype).removeprefix("torch."),
            sample_rate=self.sample_rate,
            given=as_words(self.input),
        )


def open_model(
    given: str | Path, *, device: torch.device, dtype: torch.dtype, words: str = ""
) -> OpenedModel:
    """Open a model for evaluation; where there is a process group, call it on every rank.

    A network of ours computes in `dtype`, with BatchNorm folded into the layers before it; an ONNX
    file computes in what it was exported in.

    Args:
        given: what `open_weights` takes, or an .onnx file.
        words: how an .onnx file wants its images, where it does not say so itself; see
            training/frozen/onnx_input.py.

    Raises:
        WeightsError, CheckpointError, OnnxError, InputError: what is named is missing, damaged, not
            to be run here, or does not say how it wants its images.
    """
    if str(given).endswith(ONNX):
        return _on_all(lambda: _open_onnx(Path(given), device=device, words=words))
    return open_saved(open_weights(given), str(given), device=device, dtype=dtype, folded=True)


def open_saved(
    saved: SavedCheckpoint | SavedFile,
    source: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    folded: bool,
    wanted: Input | None = None,
) -> OpenedModel:
    """The same for weights that `open_weights` has found.

    Args:
        folded: whether to fold BatchNorm and hold what convolutions multiply by in `dtype`: faster,
            and equal up to rounding.
        wanted: what to give it instead of what ours take.
    """
    network = saved.network().requires_grad_(False).eval()
    digest = digest_of_weights(network)
    architecture = saved.architecture
    if folded:
        network = _with_convolutions_in(fold_batch_norm(network, run_on=device), dtype)
    network = network.to(device)
    wanted = wanted or Input(size=architecture.image_size)
    sample_rate = None
    if isinstance(saved, SavedCheckpoint):
        num_classes = saved.about["facts"].get("number of classes")
        sample_rate = saved.config.head.sample_rate_at(0, num_classes=num_classes)
    return OpenedModel(
        source=source,
        network=architecture.name,
        embed=on_pixels(network, device=device, dtype=dtype, prepare=wanted),
        embedding_dim=architecture.embedding_dim,
        input=wanted,
        dtype=dtype,
        digest=digest,
        notes=saved.notes,
        sample_rate=sample_rate,
    )


def _open_onnx(path: Path, *, device: torch.device, words: str) -> OpenedModel:
    check_path(path, called=str(path), expected="an .onnx file")
    file = open_onnx(path, device=device)
    wanted, output, origin = onnx_input(file, words)
    opened = run_onnx(file, wanted, output=output)
    return replace(opened, notes=(f"given {wanted}, as {origin} says",))


def run_onnx(file: OnnxFile, wanted: Input, *, output: str = "") -> OpenedModel:
    """An .onnx file of which it is known how it wants its images. Raises OnnxError."""
    path, device = file.path, file.device
    network = OnnxNetwork(file, wanted, output=output)
    return OpenedModel(
        source=str(path),
        network="onnx",
        embed=on_pixels(network, device=device, prepare=wanted),
        embedding_dim=network.embedding_dim,
        input=wanted,
        dtype=torch.float32,
        digest=digest_of_file(path),
    )


def digest_of_weights(network: nn.Module) -> str:
    """Of its tensors by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _with_convolutions_in(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Their weights in the dtype that they compute in: autocast would cast them at every batch.

    Parts that a network names `in_own_dtype`, as it runs them outside of autocast, stay.
    """
    own = [network.get_submodule(name) for name in getattr(network, "in_own_dtype", ())]
    kept = {module for part in own for module in part.modules()}
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module not in kept:
            module.to(dtype)
    return network


def _on_all(work: Callable[[], OpenedModel]) -> OpenedModel:
    return together(work) if dist.is_initialized() else work()
