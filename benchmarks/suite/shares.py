"""How a row stands to the machine's own peaks, and to the baseline beside it."""

from __future__ import annotations

from typing import Any

# None of them does all that the others do.
PARTS = ("products", "read")
BASELINES = ("arcface_torch", "float32 NCHW", "bare libjpeg-turbo")


def beside_others(figures: list[dict[str, Any]], *, peaks: list[dict[str, Any]]) -> None:
    """Add to each row, where it can be known:

    - `flops_share`, `bytes_share`: of the peak rate of products in the row's dtype, and of copying.
      What is counted must be done at least; a way that reads more than it must has no larger share.
    - `times_as_fast`: how many times as fast as the baseline that it took turns with.
    """
    flops = {row["dtype"]: row["flops_per_s"] for row in peaks if "flops_per_s" in row}
    bytes_per_s = next((row["bytes_per_s"] for row in peaks if "bytes_per_s" in row), None)
    timed = [row for row in figures if "seconds" in row and "turn" in row]
    baselines = {row["turn"]: row["images_per_s"] for row in timed if row["way"] in BASELINES}
    for row in timed:
        if "flops" in row and row.get("dtype") in flops:
            row["flops_share"] = row["flops"] / row["seconds"] / flops[row["dtype"]]
        if "bytes" in row and bytes_per_s:
            row["bytes_share"] = row["bytes"] / row["seconds"] / bytes_per_s
        if row["turn"] in baselines and row["way"] not in (*BASELINES, *PARTS):
            row["times_as_fast"] = row["images_per_s"] / baselines[row["turn"]]
