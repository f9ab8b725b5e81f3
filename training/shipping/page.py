"""The model card beside a file, README.md, as the Hugging Face Hub takes it: what was measured."""

from __future__ import annotations

import json

from pipeline.records.manifest import UNKNOWN
from training.frozen.card import Card, OperatingPoint

PAGE = "README.md"
_TAG = "- face-recognition\n"
_HEADING, _RESULTS = "## Operating points\n", "model-index:\n"


def with_results(text: str, card: Card) -> str | None:
    """The page with what the card says it reaches, in its header and in a section of its own.

    Returns:
        None where the text is no model card of a face-recognition network.
    """
    begin, *rest = text.split("---\n", 2)
    if begin or len(rest) != 2 or _TAG not in rest[0]:
        return None
    header, body = rest
    header = header.partition(_RESULTS)[0]
    before, found, after = body.partition(_HEADING)
    if found:  # up to the next heading
        after = after[at:] if (at := after.find("\n## ")) >= 0 else ""
    return f"---\n{header}{_model_index(card)}---\n{before.rstrip()}\n\n{_section(card)}{after}"


def _model_index(card: Card) -> str:
    lines = [_RESULTS, f"- name: {_quoted(card.network)}\n", "  results:\n"]
    for name, scores in card.scores.items():
        metrics = dict(scores) | {
            f"threshold@fmr={point.fmr:g}": point.threshold
            for point in card.points
            if point.set == name
        }
        lines += [
            "  - task:\n      type: face-verification\n",
            f"    dataset:\n      type: {_quoted(name)}\n      name: {_quoted(name)}\n",
            "    metrics:\n",
            *(
                f"    - type: {_quoted(key)}\n      value: {one:.6g}\n"
                for key, one in metrics.items()
            ),
        ]
    return "".join(lines) if card.scores else ""


def _section(card: Card) -> str:
    lines = [_HEADING, "No set was evaluated: `tools/evaluate.py FILE --sets … --card` does it."]
    if card.points:
        lines = [
            _HEADING,
            "At or above a threshold two faces are taken for one person's. FMR is how often that",
            "happens to two people, on the set that is named: on other faces it is another.",
            "",
            "| set | FMR | threshold (cosine) | 95 % interval | impostor pairs | mirrored too |",
            "| --- | --- | --- | --- | --- | --- |",
            *map(_row, card.points),
        ]
    if card.groups:
        lines += ["", "| set | group | FMR | FNMR | at the threshold |", "| --- " * 5 + "|"]
        lines += [
            f"| {_cell(one.set)} | {_cell(one.group)} | {_rate(one.fmr.value)} | "
            f"{_rate(one.fnmr.value)} | {_cell(one.at)} |"
            for one in card.groups
        ]
    if card.data:
        lines += ["", "| trained on | origin | license |", "| --- | --- | --- |"]
        lines += [
            f"| {_cell(one.name)} | {_cell(one.origin)} | {_cell(one.license)} |"
            for one in card.data
        ]
    lines += ["", f"Input: `{card.input}`. Weights: {card.digest}. Written by {card.code}."]
    return "\n".join(lines) + "\n"


def _row(point: OperatingPoint) -> str:
    known = point.low is not None and point.high is not None
    interval = f"{point.low:.4f} to {point.high:.4f}" if known else UNKNOWN
    return (
        f"| {_cell(point.set)} | {point.fmr:g} | {point.threshold:.4f} | {interval} | "
        f"{point.impostor:,} | {'yes' if point.flip else 'no'} |"
    )


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
