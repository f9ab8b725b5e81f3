"""InsightFace's verification protocol: is this pair of faces one person or two?

Each image is embedded with its mirror image, the two embeddings are added, and the cosine of a
pair's sums is compared with a threshold. Accuracy is that of ten folds, each with the threshold
that is best on the other nine, as for LFW (http://vis-www.cs.umass.edu/lfw/), so results stand
beside the tables of InsightFace digit by digit.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from evaluation.pair_set import PairSet, PairSetError, UnsafePickleError, read_bin, write_bin
from facestream import UserError
from models import normalize
from pipeline.jpeg import decode_images

__all__ = [
    "NonFiniteEmbeddingsError",
    "PairSet",
    "PairSetError",
    "UnsafePickleError",
    "Verification",
    "Verifier",
    "embed",
    "read_bin",
    "verify",
    "write_bin",
]

# InsightFace's own candidates, on the squared distance of unit vectors. Midpoints between the data
# would fit a little closer, and no longer give the accuracies that others publish.
DISTANCES = np.arange(0, 4, 0.01)
FALSE_ACCEPT_LIMIT = 1e-3
FOLDS = 10


class NonFiniteEmbeddingsError(UserError):
    """Embeddings that cannot be compared: the network overflowed or has diverged."""


@dataclass(frozen=True)
class Verification:
    """What `verify` finds, all plain floats.

    Attributes:
        accuracy: mean over the folds, in [0, 1].
        accuracy_std: standard deviation over the folds.
        threshold: mean over the folds of the cosine above which a pair counts as one person.
        auc: area under the ROC curve of all pairs.
        tar_at_far: greatest share of genuine pairs accepted by one threshold on the cosine that
            accepts at most 1e-3 of the impostor pairs.
        far: share of impostor pairs that this threshold accepts: 0 where there are under 1,000.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    auc: float
    tar_at_far: float
    far: float


def verify(embeddings: Tensor, same: np.ndarray, *, folds: int = FOLDS) -> Verification:
    """Judge embeddings by how well their cosines tell genuine pairs from impostors.

    Args:
        embeddings: (2P, D) floating, any norm; pair i is rows 2i and 2i + 1.
        same: (P,) bool, whether pair i shows one person.
        folds: contiguous parts of the pairs, in their order, for the accuracy.

    Raises:
        NonFiniteEmbeddingsError: a subclass of ValueError, for embeddings that are not finite.
        ValueError: shapes that do not fit, fewer pairs than folds, or pairs of one kind only.
    """
    # Not before it is needed: every start of a rank would take a second longer.
    from sklearn.metrics import auc, roc_curve
    from sklearn.model_selection import KFold

    _check(embeddings, same, folds)
    vectors = embeddings.detach().cpu().double().numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1.0)
    distance = np.square(vectors[0::2] - vectors[1::2]).sum(axis=1)  # (P,), 2 - 2 * cosine

    correct = (distance[:, None] < DISTANCES) == same[:, None]  # (P, thresholds)
    chosen, accuracies = [], []
    for others, fold in KFold(folds).split(correct):
        best = correct[others].sum(axis=0).argmax()
        chosen.append(1 - DISTANCES[best] / 2)
        accuracies.append(correct[fold, best].mean())

    false_accepts, true_accepts, _ = roc_curve(same, -distance, drop_intermediate=False)
    # Both rates grow together, so the last point within the limit accepts the most genuine pairs.
    strict = np.flatnonzero(false_accepts <= FALSE_ACCEPT_LIMIT)[-1]
    return Verification(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        threshold=float(np.mean(chosen)),
        auc=float(auc(false_accepts, true_accepts)),
        tar_at_far=float(true_accepts[strict]),
        far=float(false_accepts[strict]),
    )


def embed(
    model: nn.Module,
    images: Sequence[bytes],
    *,
    device: torch.device,
    batch_size: int,
    autocast_dtype: torch.dtype | None,
    image_size: int = 112,
    threads: int = 1,
) -> Tensor:
    """Embed encoded images: the sum of what `model` makes of each and of its mirror image.

    Args:
        model: maps normalized images (B, 3, image_size, image_size) to (B, D); it is put in eval
            mode meanwhile, and every submodule back in its own mode afterwards.
        images: N encoded images of image_size x image_size pixels.
        device: where `model` is.
        batch_size: images decoded and embedded at a time.
        autocast_dtype: bfloat16 or float16 to run under autocast; None or float32 for none.
        threads: that decode.

    Returns:
        (N, D) float32 on the CPU, in the order of `images`, not L2-normalized.

    Raises:
        ValueError: no images, a batch size below 1, or images that cannot be decoded.
    """
    if len(images) == 0 or batch_size < 1:
        raise ValueError(
            f"embed: found {len(images)} images and batch_size {batch_size}; both must be positive"
        )
    dtype = autocast_dtype or torch.float32
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    batches = []
    with _eval_mode(model), torch.no_grad(), autocast:
        # On the CPU whatever the device: the same pixels, hence the same numbers, on all of them.
        decoded = decode_images(
            images, batch_size=batch_size, image_size=image_size, threads=threads
        )
        for batch in decoded:
            # (b, 3, image_size, image_size) in channels_last, mirrored along the width
            pixels = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2)
            embeddings = model(normalize(pixels, dtype)) + model(normalize(pixels.flip(3), dtype))
            batches.append(embeddings.float())
    return torch.cat(batches).cpu()


class Verifier:
    """Verifies models on sets read once, every rank embedding its share of the images.

    A rank keeps a contiguous share, equal on all ranks: the last image is repeated at the end
    where they do not divide evenly, and dropped again after gathering.

    Args:
        paths: .bin files; the results are named by their stems.
        device: where the models will be, and where the process group can gather tensors.
        rank, world_size: of the default process group; 0 and 1 need none.
        batch_size: images decoded and embedded at a time.
        autocast_dtype, image_size, threads: as for `embed`.

    Raises:
        PairSetError: a file that is not a verification set, or whose images are of another size.
        ValueError: two files of one stem.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        *,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 128,
        autocast_dtype: torch.dtype | None = None,
        image_size: int = 112,
        threads: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        self._device = device
        self._rank, self._world_size = rank, world_size
        self._batch_size = batch_size
        self._autocast_dtype = autocast_dtype
        self._image_size, self._threads = image_size, threads
        self._shares: dict[str, PairSet] = {}  # this rank's images, the truth values of all
        for path in map(Path, paths):
            if path.stem in self._shares:
                raise PairSetError(f"{path}: a second set named {path.stem!r}; rename one of them")
            pairs = read_bin(path)
            try:
                _check_pairs(pairs.same, FOLDS)
            except UserError as error:
                raise PairSetError(f"{path}: {error}") from error
            size = -(-len(pairs.images) // world_size)
            last = len(pairs.images) - 1
            share = [pairs.images[min(rank * size + i, last)] for i in range(size)]
            for i, image in enumerate(share):
                if fault := _size_fault(image, image_size):
                    raise PairSetError(f"{path}: image {min(rank * size + i, last)} {fault}")
            self._shares[path.stem] = PairSet(images=share, same=pairs.same)

    def __call__(self, model: nn.Module) -> dict[str, Verification]:
        """Results by file stem, the same on every rank; all ranks must call it together.

        Raises, on every rank, PairSetError for images that cannot be decoded, and
        NonFiniteEmbeddingsError for a model that cannot be judged.
        """
        results = {}
        for name, share in self._shares.items():
            fault = ""
            try:
                embeddings = embed(
                    model,
                    share.images,
                    device=self._device,
                    batch_size=self._batch_size,
                    autocast_dtype=self._autocast_dtype,
                    image_size=self._image_size,
                    threads=self._threads,
                )
            except UserError as error:
                first = self._rank * len(share.images)
                fault = f"{name}.bin, from its image {first} on: {error}"
            self._require_all(fault)
            everyone = self._gather(embeddings)[: 2 * len(share.same)]  # (2P, D)
            results[name] = verify(everyone, share.same)
        return results

    def _require_all(self, fault: str) -> None:
        """Raise PairSetError on every rank where any has a fault, so that none waits for it."""
        faults = [fault] * self._world_size
        if self._world_size > 1:
            dist.all_gather_object(faults, fault)
        if any(faults):
            raise PairSetError("; ".join(filter(None, faults)))

    def _gather(self, embeddings: Tensor) -> Tensor:
        """All ranks' (S, D) in the order of the ranks: (world_size * S, D) on the CPU."""
        if self._world_size == 1:
            return embeddings
        own = embeddings.to(self._device)
        shares = [torch.empty_like(own) for _ in range(self._world_size)]
        dist.all_gather(shares, own)
        return torch.cat(shares).cpu()


def _size_fault(encoded: bytes, image_size: int) -> str:
    """What is wrong with an image by its header; nothing where it has the size."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be read ({error}): pack the set again"
    if (width, height) == (image_size, image_size):
        return ""
    return (
        f"has {width}×{height} pixels, not {image_size}×{image_size} as data.image_size says: pack "
        "the set again in that size, or leave it out of eval.sets"
    )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check(embeddings: Tensor, same: np.ndarray, folds: int) -> None:
    if embeddings.ndim != 2 or same.ndim != 1 or len(embeddings) != 2 * len(same):
        raise ValueError(
            f"found embeddings of shape {tuple(embeddings.shape)} and truth values of shape "
            f"{same.shape}; expected (2P, D) and (P,): two rows for each pair"
        )
    if same.dtype != np.bool_:
        raise ValueError(f"found truth values of dtype {same.dtype}; expected bool")
    broken = int((~embeddings.isfinite()).any(dim=1).sum())
    if broken:
        raise NonFiniteEmbeddingsError(
            f"{broken} of {len(embeddings)} embeddings are not finite: the model has diverged, is "
            "untrained, or overflows float16; try bfloat16 or float32, or an earlier checkpoint"
        )
    _check_pairs(same, folds)


def _check_pairs(same: np.ndarray, folds: int) -> None:
    if not 2 <= folds <= len(same):
        raise UserError(f"found {len(same)} pairs for {folds} folds; expected 2 to P folds")
    if same.all() or not same.any():
        kind = "genuine" if same.all() else "impostor"
        raise UserError(f"all {len(same)} pairs are {kind} ones; expected pairs of both kinds")
