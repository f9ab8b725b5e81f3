"""InsightFace's verification protocol: is this pair of faces one person or two?

Each image is embedded with its mirror image, the two embeddings are added, and the cosine of a
pair's sums is compared with a threshold. Accuracy is that of ten folds, each with the threshold
that is best on the other nine, as for LFW (http://vis-www.cs.umass.edu/lfw/), so results stand
beside the tables of InsightFace digit by digit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from evaluation.embedding import decoder, embed_batches, eval_mode, on_pixels
from evaluation.metrics.folds import FoldAccuracy, Folds
from evaluation.metrics.roc import Roc
from evaluation.pair_set import PairSet, PairSetError, UnsafePickleError, read_bin, write_bin
from facestream import UserError
from pipeline.named_path import as_text

__all__ = [
    "NonFiniteEmbeddingsError",
    "PairSet",
    "PairSetError",
    "UnsafePickleError",
    "Verification",
    "Verifier",
    "read_bin",
    "verify",
    "write_bin",
]

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
        NonFiniteEmbeddingsError: a subclass of UserError, for embeddings that are not finite.
        UserError: fewer than 2 folds, fewer pairs than folds, or pairs of one kind only.
        ValueError: shapes that do not fit, or truth values that are not bool.
    """
    _check(embeddings, same, folds)
    vectors = embeddings.detach().cpu().double().numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1.0)
    distance = np.square(vectors[0::2] - vectors[1::2]).sum(axis=1)  # (P,), 2 - 2 * cosine

    accuracy, accuracy_std, threshold = FoldAccuracy(
        distance, same, Folds.contiguous(len(same), folds)
    )()
    roc = Roc.of(-distance, same)
    strict = roc.last_within(FALSE_ACCEPT_LIMIT)
    return Verification(
        accuracy=accuracy,
        accuracy_std=accuracy_std,
        threshold=threshold,
        auc=float(roc.auc),
        tar_at_far=float(roc.tar[strict]),
        far=float(roc.far[strict]),
    )


class Verifier:
    """Verifies models on sets read once, every rank embedding its share of the images.

    Args:
        paths: .bin files; the results are named by their stems.
        device: where the models will be, and where the process group can gather tensors.
        rank, world_size: of the default process group; 0 and 1 need none.
        batch_size: images decoded and embedded at a time.
        autocast_dtype: bfloat16 or float16 to run under autocast; None or float32 for none.
        threads: that decode.

    Raises:
        PairSetError: a file that is not a verification set, or whose images are of another size;
            two files of one stem.
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
        self._dtype = autocast_dtype or torch.float32
        self._image_size, self._threads = image_size, threads
        self._sets: dict[str, _Share] = {}
        for path in map(Path, paths):
            name = as_text(path.stem)
            if name in self._sets:
                raise PairSetError(f"{path}: a second set named {name!r}; rename one of them")
            pairs = read_bin(path)
            try:
                _check_pairs(pairs.same, FOLDS)
            except UserError as error:
                raise PairSetError(f"{path}: {error}") from error
            share = _Share(pairs, batch_size=batch_size, rank=rank, world_size=world_size)
            for i, image in share.images.items():
                if fault := _size_fault(image, image_size):
                    raise PairSetError(f"{path}: image {i} {fault}")
            self._sets[name] = share

    def __call__(self, model: nn.Module) -> dict[str, Verification]:
        """Results by file stem, the same on every rank; all ranks must call it together.

        Args:
            model: maps normalized images (B, 3, image_size, image_size) to (B, D); it is in eval
                mode meanwhile, and every submodule back in its own mode afterwards.

        Raises:
            PairSetError: images that cannot be decoded; on every rank.
            NonFiniteEmbeddingsError: a model that cannot be judged; on every rank.
        """
        embed = on_pixels(model, device=self._device, dtype=self._dtype)
        results = {}
        for name, share in self._sets.items():
            with eval_mode(model):
                batches = list(
                    embed_batches(
                        embed,
                        decoder(share.read, image_size=self._image_size),
                        range(2 * len(share.same)),
                        device=self._device,
                        batch_size=self._batch_size,
                        image_size=self._image_size,
                        flip=True,
                        threads=self._threads,
                        rank=self._rank,
                        world_size=self._world_size,
                    )
                )
            faults = {place: fault for batch in batches for place, fault in batch.faults.items()}
            self._require_all(name, faults)
            results[name] = verify(torch.cat([batch.embeddings for batch in batches]), share.same)
        return results

    def _require_all(self, name: str, faults: dict[int, str]) -> None:
        """Raise PairSetError on every rank where any met an image that cannot be decoded."""
        everyone = [faults] * self._world_size
        if self._world_size > 1:
            dist.all_gather_object(everyone, faults)
        found = sorted(item for theirs in everyone for item in theirs.items())
        if found:
            listed = "; ".join(f"image {place} {fault}" for place, fault in found[:5])
            raise PairSetError(f"{name}.bin: {len(found)} images are bad: {listed}")


class _Share:
    """What a rank keeps of a set: the images of its own batches, and all truth values."""

    def __init__(self, pairs: PairSet, *, batch_size: int, rank: int, world_size: int) -> None:
        self.same = pairs.same
        self.images = {
            i: image for i, image in enumerate(pairs.images) if i // batch_size % world_size == rank
        }

    def read(self, places: range) -> list[Callable[[], bytes]]:
        return [partial(bytes, self.images[i]) for i in places]


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
        f"has {width}×{height} pixels, not {image_size}×{image_size} (image_size): pack the set "
        "again in that size, or leave it out of the paths"
    )


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
