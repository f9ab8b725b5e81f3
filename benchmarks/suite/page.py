"""benchmarks/README.md and its charts, made of what the suite has measured:

    python -m benchmarks.suite.page

Of every machine its newest file in benchmarks/results/ counts. A test holds the page to the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.published_speeds import ARCFACE_TORCH
from benchmarks.suite.charts import draw
from training.planning.cards import CARDS

# Stage: its title, and the columns that say which case a row is of.
STAGES = {
    "stream": ("From a .rec to batches on the device", ("batch", "threads")),
    "head": ("A step of the head", ("classes", "rate", "batch", "dtype")),
    "backbone": ("Forward and backward of a network", ("model", "batch")),
    "step": ("A whole step", ("model", "batch")),
    "ranks": ("Ranks", ("ranks", "model", "batch")),
    "short_run": ("A short training", ("config", "batch")),
}
PROTOCOL = """\
# Benchmarks

```
make bench        # on the CPU: a quarter of an hour on two cores that have nothing else to do
make bench-gpu    # on all GPUs of the machine, in eight minutes: see docs/gpu.md
```

Both write this page, its charts, and one file for each run into [results](results), which holds
those of the other scripts here, too. [docs/files.md](../docs/files.md) says what each script is
for.

## How it is measured

- What is compared takes turns in one process, round by round: a machine's speed drifts. Each stage
  is a process of its own.
- Each way is made and warmed up before the first round; that time is in the file, apart. There are
  as many rounds as fit into the time of a case, three at least: the median counts, beside it stand
  the 5th and the 95th percentile. A GPU is waited for at the end of a round of some steps only.
- `of the products`, `of the copy`: what must be multiplied, or read and written, a second, as a
  share of what this very machine reached in the stage `facts`: with a large matrix product in the
  same dtype, and with a large copy. It is above 100 % where a way multiplies faster than torch does
  in that product, as convolutions in float32 do on some CPUs. FLOPs are counted from shapes, two
  for a multiply-add, forward and backward. The bytes of a network are those of its operations, each
  a kernel of its own; of the head, its centers and their momentum, read and written once.
- `× baseline`: how many times as fast as the baseline that it took turns with: arcface_torch's head
  or step as they stand in [baselines.py](baselines.py), a network in float32 and NCHW, or bare
  libjpeg-turbo.
- `MB`: the most that a way took at once while it was made and warmed up, what it keeps included:
  tensors on a GPU; on a CPU the process, without what it has of files and without processes that it
  starts.
- On a CPU the C library is told to keep its pages
  ([training/allocator.py](../training/allocator.py)) while time is measured. By default it gives
  large tensors fresh pages at every step, which makes those slow that have many of them. Memory is
  measured in another process, which does not keep them: what is free would be counted, too.
"""
PUBLISHED = """\
## What others have published

Not measured here, and not on our machines: arcface_torch's own tables, from its README and its
`benchmarks/train`, and what HSTFaceNet's log of two Kaggle GPUs says. 16 bits; images/s of all GPUs
together. [docs/planning.md](../docs/planning.md) sets them beside what is counted.
"""
PERCENT = {"flops_share": "of the products", "bytes_share": "of the copy", "waiting": "waiting"}


def write_page(results: Path) -> Path:
    """Write the page of these results and its charts; returns where it is."""
    folder = results.parent if results == RESULTS else results
    path = folder / "README.md"
    path.write_text(page(results))
    for machine, stages in measured(results):
        for name in shown_stages(stages):
            title = f"{STAGES[name][0]}: {machine_name(stages)}"
            draw(folder / chart_of(machine, name), stages[name]["figures"], name, title=title)
    return path


def page(results: Path) -> str:
    """The page: how it is measured, then each machine, then what has not been measured."""
    lines = [PROTOCOL]
    machines = list(measured(results))
    for machine, stages in machines:
        lines += [f"## {machine_name(stages)}", "", *_about(results, machine, stages)]
        for name in shown_stages(stages):
            title, case = STAGES[name]
            rows = stages[name]["figures"]
            lines += ["", f"### {title}", "", *_table(rows, case)]
            lines += ["", f"![{title}]({chart_of(machine, name)})"]
        lines.append("")
    lines += [PUBLISHED, *published(), "", "## What has not been measured", "", *missing(machines)]
    return "\n".join(lines) + "\n"


def measured(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(machine, stages) of its newest file, by the name of the machine."""
    newest: dict[str, Path] = {}
    for path in sorted(results.glob("suite_*.json")):
        newest[path.stem.removeprefix("suite_").rpartition("_")[0]] = path
    for machine, path in sorted(newest.items()):
        yield machine, json.loads(path.read_text())["stages"]


def shown_stages(stages: dict[str, Any]) -> list[str]:
    """Those that have figures, in the order of the page."""
    return [name for name in STAGES if stages.get(name, {}).get("figures")]


def chart_of(machine: str, stage: str) -> str:
    """Its path, from the page."""
    return f"charts/{machine}_{stage}.png"


def machine_name(stages: dict[str, Any]) -> str:
    """The card's name, or the CPU's with its family and cores."""
    facts = _facts(stages)
    if facts["device"] != "cpu":
        count = "" if facts["ranks"] == 1 else f"{facts['ranks']} × "
        return count + facts["device"]
    cpu = facts["cpu"]
    name = cpu.get("model name", "a CPU")
    family = f", family {cpu['cpu family']}" if "cpu family" in cpu else ""
    held = ", held back" if "held_to" in facts else ""
    return f"{name}{family}, {facts['cores']} cores{held}"


def published() -> list[str]:
    """The table of others' figures."""
    columns = ("published by", "GPUs", "images a GPU", "network", "identities", "rate", "images/s")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in ARCFACE_TORCH:
        cells = (
            *(row.source, f"{row.gpus} × {CARDS[row.card].name}", str(row.batch), row.network),
            *(f"{row.classes:,}", f"{row.rate:g}", f"{row.speed:,.0f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def missing(machines: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What no file has."""
    lines = []
    found = [_facts(stages) for _, stages in machines]
    if not found:
        lines.append("- Nothing so far with this suite: the other scripts' files are in results.")
    if all(facts["device"] == "cpu" for facts in found):
        lines.append("- No GPU: nothing here says how fast this code is on one.")
    if all(facts["ranks"] == 1 or facts["device"] == "cpu" for facts in found):
        lines.append("- Several GPUs, and several machines: NCCL has not run.")
    for _, stages in machines:
        name = machine_name(stages)
        for stage, outcome in stages.items():
            if outcome["failed"]:
                lines.append(f"- {name}, stage `{stage}`: {outcome['failed']}.")
            for row in outcome["figures"]:
                reason = row.get("skipped") or row.get("failed")
                if reason:
                    case = ", ".join(
                        filter(None, _case(row, STAGES[stage][1] if stage in STAGES else ()))
                    )
                    lines.append(f"- {name}, `{stage}`, {case}: {reason}.")
    lines.append("- Training to the end of a published recipe, on any machine.")
    return lines


def _facts(stages: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in stages["facts"]["figures"] if "device" in row)


def _about(results: Path, machine: str, stages: dict[str, Any]) -> list[str]:
    facts = _facts(stages)
    peaks = [
        f"{row['dtype']} {row['flops_per_s'] / 1e12:.2f} TFLOP/s"
        for row in stages["facts"]["figures"]
        if "flops_per_s" in row
    ]
    copies = [row for row in stages["facts"]["figures"] if "bytes_per_s" in row]
    peaks += [f"{row['bytes_per_s'] / 1e9:.1f} GB/s copied, read and written" for row in copies]
    file = f"suite_{machine}_{facts['date']}.json"
    return [
        f"{facts['date']}, commit {facts['commit']}, torch {facts['torch']}, Python "
        f"{facts['python']}: [{file}](results/{file}).",
        f"Peaks: {', '.join(peaks)}.",
    ]


def _table(rows: list[dict[str, Any]], case: tuple[str, ...]) -> list[str]:
    timed = [row for row in rows if "seconds" in row or "images_per_s" in row]
    given = [key for key in case if any(key in row for row in timed)]
    columns = [*given, "way", "ms", "5 %", "95 %", "images/s"]
    shares = [key for key in PERCENT if any(key in row for row in timed)]
    columns += [PERCENT[key] for key in shares]
    others = {"times_as_fast": "× baseline", "peak_mb": "MB"}
    more = [key for key in others if any(key in row for row in timed)]
    columns += [others[key] for key in more]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in timed:
        cells = _case(row, tuple(given))
        cells.append(str(row.get("way", "")))
        for key in ("seconds", "seconds_p5", "seconds_p95"):
            cells.append(_number(row[key] * 1e3) if key in row else "")
        cells.append(_number(row["images_per_s"]) if "images_per_s" in row else "")
        cells += [f"{row[key]:.0%}".replace("%", " %") if key in row else "" for key in shares]
        cells += [_number(row[key]) if key in row else "" for key in more]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _case(row: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Their values; nothing for those that the row has not."""
    cells = (row.get(key, "") for key in keys)
    return [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]


def _number(value: float) -> str:
    """Three digits of it, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    print(f"wrote {write_page(RESULTS)}")
