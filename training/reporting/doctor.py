"""The bottleneck doctor: from a reading to the setting that may make the run faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class _Cause:
    """Something that holds a run up: a share of the time that is above its limit."""

    measure: str  # a name of training.reporting.meters
    limit: float
    finding: str  # goes before the share
    remedies: Mapping[str, tuple[str, tuple]]  # setting → advice, and where it stands already

    def share(self, reading: Mapping[str, float]) -> float:
        """Of the time; 0 where it is not measured, as the head's in a graph of the whole step."""
        return reading.get(self.measure, 0.0)


_CAUSES = {
    "data": _Cause(
        measure="data_wait_fraction",
        limit=0.05,
        finding="steps wait for images",
        remedies={
            "data.threads": ("try more, up to the cores", ()),
            "data.decode": ("try gpu where there is a JPEG engine, else hybrid", ("gpu",)),
            "data.augment": ("try fewer recipes, or smaller shares", ((), [])),
            "data.order": ("try block on a disk that is slow to seek", ("block",)),
        },
    ),
    "head": _Cause(
        measure="share_head",
        limit=0.3,
        finding="the head takes",
        remedies={
            "head.sample_rate": ("try smaller", (0,)),
            "head.sample_count": ("try smaller", (0,)),
            "head.backend": ("try triton", ("triton",)),
            "step.cuda_graph": ("try head or full", ("head", "full")),
        },
    ),
    "host": _Cause(
        measure="host_bound_fraction",
        limit=0.2,
        finding="the GPU runs out of work inside steps",
        remedies={
            "step.cuda_graph": ("try full", ("full",)),
            "data.global_batch": ("try larger", ()),
            "model.compile": ("try true", (True,)),
        },
    ),
}

_FOR_GPUS = ("data.decode", "head.backend", "step.cuda_graph")


def diagnose(reading: Mapping[str, float], settings: Mapping[str, object]) -> dict[str, str]:
    """What holds a run up: a line for each cause, "data", "head" or "host"; none if all is well.

    Args:
        reading: as named in reporting/meters.py, of which data_wait_fraction (limit 5 %),
            share_head (30 %) and host_bound_fraction (20 %) are judged.
        settings: "section.key" to the value that this run has, automatic ones resolved. Remedies
            are named with it; what is not in there, as good already, or for GPUs where
            "run.device" is "cpu", is not proposed.
    """
    beyond = _FOR_GPUS if settings.get("run.device") == "cpu" else ()
    lines = {}
    for name, cause in _CAUSES.items():
        share = cause.share(reading)
        if share > cause.limit:
            remedies = ", ".join(
                f"{key}={settings[key]} ({advice})"
                for key, (advice, done) in cause.remedies.items()
                if key in settings and key not in beyond and settings[key] not in done
            )
            lines[name] = f"bottleneck: {cause.finding} {share:.0%} of the time: {remedies}"
    return lines


class Doctor:
    """Tells a cause when it comes up, and again only after it was gone.

    Args:
        settings: as `diagnose` takes them.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = settings
        self._warm = False
        self._said: set[str] = set()

    def __call__(self, reading: Mapping[str, float]) -> list[str]:
        """What is new in this reading; the first, full of warm-up and compiling, is left out."""
        if not self._warm:
            self._warm = True
            return []
        # Only well below its limit is a cause gone: one that hovers there would be repeated.
        gone = {name for name, cause in _CAUSES.items() if cause.share(reading) < cause.limit / 2}
        found = diagnose(reading, self._settings)
        new = [line for name, line in found.items() if name not in self._said - gone]
        self._said = self._said - gone | found.keys()
        return new
