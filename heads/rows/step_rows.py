"""The rows that a step takes, and where they lie: where they are kept, or fetched to the device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from heads import counter
from heads.ranks import Ranks
from heads.rows.buffers import CENTERS, VELOCITY, stored_rows
from heads.rows.fetcher import RowFetcher
from heads.rows.placement import Placement
from heads.rows.stored import Stored
from heads.rows.working_set import WorkingSet
from heads.sampling import Sample, Sampling, Shard

_SAMPLING = 1  # the kind of draws; heads.head_step has 2 and 4, heads.centers 3


class StepRows:
    """Draws each step's classes, and has their rows at hand while it computes.

    Args:
        kept: centers and velocity, by the names in heads.rows.buffers.
        placement: where these are.
        seed: of the draws.
        device: of the arithmetic.
        recording: whether CUDA graphs are recorded.
        prefetch: how many announced steps may be fetched ahead.
    """

    def __init__(
        self,
        kept: Mapping[str, Tensor],
        placement: Placement,
        shard: Shard,
        ranks: Ranks,
        *,
        seed: int,
        device: torch.device,
        recording: bool,
        prefetch: int,
    ) -> None:
        self._ranks = ranks
        self._draw = partial(_draw, shard=shard, seed=seed)
        self._fetcher: RowFetcher | None = None
        if placement.away:
            self._fetcher = RowFetcher(
                kept,
                self._draw,
                placement=placement,
                working_set=WorkingSet(device, fixed=recording or device.type != "cpu"),
                depth=prefetch,
            )

    def announce(self, labels: Tensor, sampling: Sampling, *, step: Tensor, ahead: int) -> None:
        """As RowFetcher.announce, of labels anywhere; without a fetcher it does nothing."""
        if self._fetcher:
            self._fetcher.announce(labels.to("cpu"), sampling, step=step, ahead=ahead)

    def fetch(self, labels: Tensor, sampling: Sampling, *, step: Tensor) -> None:
        """Bring a step's rows to the device, where they are not kept there.

        The host waits for the labels, once a step, and ranks exchange them: what was announced may
        be wrong. No graph records it.

        Args:
            labels: this rank's, (B,) or (k, B).
        """
        if self._fetcher:
            labels = self._ranks.all_gather(labels.contiguous()).flatten()
            known = torch.cat([labels, step.view(1)]).to("cpu")
            self._fetcher.fetch(known[:-1], sampling, step=int(known[-1]))

    def sample(self, labels: Tensor, sampling: Sampling, *, step: Tensor) -> Sample:
        """The classes of a step, for the labels of the global batch; those that were fetched."""
        return self._fetcher.sample if self._fetcher else self._draw(step, labels, sampling)

    def at_hand(
        self, kept: Mapping[str, Tensor], sample: Sample
    ) -> tuple[Stored, Stored | None, Sample]:
        """Centers and velocity for the arithmetic, and the sample as places among their rows.

        Args:
            kept: as they are now.
        """
        rows = kept
        if self._fetcher:
            rows, sample = self._fetcher.rows, sample._replace(rows=None)
        centers = stored_rows(rows, CENTERS)
        assert centers is not None
        return centers, stored_rows(rows, VELOCITY), sample

    def write_back(self) -> None:
        """The step is done: what was fetched for it goes back."""
        if self._fetcher:
            self._fetcher.write_back()

    def settle(self) -> None:
        """Wait until the kept rows have all that was changed."""
        if self._fetcher:
            self._fetcher.settle()


def _draw(
    step: Tensor | int, labels: Tensor, sampling: Sampling, *, shard: Shard, seed: int
) -> Sample:
    key = counter.step_key(seed, torch.as_tensor(step), _SAMPLING)
    return sampling.draw(labels, shard, key)
