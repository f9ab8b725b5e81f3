"""What was made of training sets: checkpoints, exports, embeddings, reports and pages.

A checkpoint knows its sets by the fingerprints of the files, whatever they are called now; a card
by their names alone; a folder of embeddings by the path that it was made of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.predicted import IDENTITIES, read_predicted
from evaluation.result import read_evaluation
from facestream import UserError
from pipeline.named_path import MALFORMED
from pipeline.record_filter import read_filter
from pipeline.records.sidecar import sidecar_folders
from tools.sources.person_in_sets import Found
from training.data import open_training_data
from training.distill.embedding_cache import CACHE_SUFFIX
from training.distributed import World
from training.frozen.card import KINDS, read_card
from training.frozen.pt2_file import SUFFIX
from training.frozen.translator_file import read_translator
from training.saving.reading import SavedCheckpoint

TRAIN_AGAIN, DELETE, LOOK = "train again", "delete", "look at"
_EXPORTS = (*KINDS, SUFFIX)
_PAGES = ("report.html", "overlap.html", "clean.html")
_KEPT = ".embeddings"


@dataclass(frozen=True)
class Trace:
    """Something that a person may be in.

    Attributes:
        what: TRAIN_AGAIN, DELETE or LOOK, where it cannot be told from here.
        why: in words.
    """

    what: str
    path: Path
    why: str


def find_traces(people: Sequence[Found], roots: Sequence[Path], world: World) -> list[Trace]:
    """Everything in some folders that was made of the sets in which these people are.

    Args:
        roots: folders that are looked through, with all inside them.
    """
    there = list(dict.fromkeys(path for root in roots for path in _files(root)))
    exports = {path: why for path in there if (why := _export(path, people))}
    trained = _checkpoints(there, people, world, exports)
    runs: dict[Path, str] = {}  # and whether it is known of one of its checkpoints
    for path, (what, _) in trained.items():
        if path.parent.name == "checkpoints" and runs.get(path.parent.parent) != DELETE:
            runs[path.parent.parent] = DELETE if what == TRAIN_AGAIN else what
    models = {path.resolve() for path in (*trained, *runs, *exports)}
    found = list(_caches(people))
    found += [Trace(TRAIN_AGAIN, path, why) for path, why in exports.items()]
    found += [Trace(what, path, why) for path, (what, why) in trained.items()]
    for run, what in runs.items():
        found += _of_run(run, what)
    for path in there:
        found += _of_file(path, people, models)
    order = (TRAIN_AGAIN, DELETE, LOOK)
    by_path = {trace.path: trace for trace in reversed(found)}  # the first says most
    traces = _kept_by_folder(by_path.values())
    return sorted(traces, key=lambda trace: (order.index(trace.what), trace.path))


def _kept_by_folder(traces: Iterable[Trace]) -> Iterator[Trace]:
    """The same, but one of a folder's kept embeddings, a file for each model and set."""
    kept: dict[tuple[str, Path, str], list[Path]] = {}
    for trace in traces:
        if trace.path.suffix == _KEPT:
            kept.setdefault((trace.what, trace.path.parent, trace.why), []).append(trace.path)
        else:
            yield trace
    for (what, folder, why), paths in kept.items():
        if len(paths) == 1:
            yield Trace(what, paths[0], why)
        else:
            yield Trace(what, folder / f"*{_KEPT}", f"{len(paths):,} files, {why}")


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _caches(people: Sequence[Found]) -> Iterator[Trace]:
    for one in people:
        if one.set.index:
            for folder in sidecar_folders(one.set.path):
                for path in sorted(folder.glob(f"{one.set.path.stem}.*{CACHE_SUFFIX}*")):
                    yield Trace(DELETE, path, "a teacher's embeddings of every image of the set")


def _checkpoints(
    there: Sequence[Path], people: Sequence[Found], world: World, exports: Iterable[Path]
) -> dict[Path, tuple[str, str]]:
    """Those that were trained on these people, or that began with or learned from such a one.

    Args:
        exports: files of networks that were.
    """
    found: dict[Path, tuple[str, str]] = {}
    others: list[SavedCheckpoint] = []
    for path in there:
        if path.name == "about.json" and "facts" in _json(path):
            saved = SavedCheckpoint(path.parent, "")
            if said := _trained_on(saved, people, world):
                found[saved.path] = said
            else:
                others.append(saved)
    more = dict(found)
    while more:
        more = {
            saved.path: (TRAIN_AGAIN, why)
            for saved in others
            if saved.path not in found and (why := _made_from(saved, [*found, *exports]))
        }
        found |= more
    return found


def _trained_on(
    saved: SavedCheckpoint, people: Sequence[Found], world: World
) -> tuple[str, str] | None:
    try:
        facts = saved.about["facts"]
        contents = str(facts.get("dataset", "")).split()
        inside = [one for one in people if one.set.index and _content(one) in contents]
        if not inside:
            return None
        if saved.config.data.leave_out and _left_out(saved, inside, world):
            return None
        return TRAIN_AGAIN, f"trained on {inside[0].set.path}; its centers are templates of people"
    except (UserError, OSError, *MALFORMED) as error:
        return LOOK, f"whether it was trained on them cannot be said: {error}"


def _content(person: Found) -> str:
    assert person.set.index
    return person.set.index.file.fingerprint


def _left_out(saved: SavedCheckpoint, people: Sequence[Found], world: World) -> bool:
    """Whether the run's list leaves them all out. Raises UserError where it is not as it was."""
    leave_out = saved.config.data.leave_out
    records = open_training_data(saved.config, world).records
    if records.digest() != saved.about["facts"].get("records and labels"):
        raise UserError(f"data.leave_out={leave_out} is not as it was when it was trained")
    for index, kept in zip(records.indexes, read_filter(leave_out, records.indexes)):
        labels = index.records["label"] if kept is None else index.records["label"][kept]
        for one in people:
            if _content(one) == index.file.fingerprint and (labels == one.label).any():
                return False
    return True


def _made_from(saved: SavedCheckpoint, found: Iterable[Path]) -> str:
    """Why a checkpoint knows what others of these do; empty where it does not."""
    try:
        config = saved.config
    except UserError:
        return ""
    known = {path.resolve() for path in found}
    known |= {path.parent.parent for path in known if path.parent.name == "checkpoints"}
    for given, why in (
        (config.run.init_from, "began with"),
        (config.distill.teacher, "learned from"),
    ):
        if given and Path(given.partition("@")[0]).resolve() in known:
            return f"{why} {given}"
    return ""


def _of_run(run: Path, what: str) -> Iterator[Trace]:
    """What a run keeps beside its checkpoints."""
    for name, why in (
        ("tensorboard", "pictures of batches and embeddings, unless log.pictures was false"),
        ("identities.json", "names of people"),
    ):
        if (run / name).exists():
            yield Trace(what, run / name, why)


def _of_file(path: Path, people: Sequence[Found], models: set[Path]) -> Iterator[Trace]:
    """What else a file shows to be made of the sets, or by models that were trained on them.

    Args:
        models: runs and checkpoints, resolved.
    """
    if path.name == "about.json" and "dimension" in _json(path):
        if why := _embeddings(path, people):
            yield Trace(DELETE, path.parent, why)
    elif path.name == "results.json":
        if why := _results(path, people, models):
            yield from _with_pages(path, why)
    elif path.name == "overlap.json":
        training = _json(path).get("training")
        content = training.get("fingerprint") if isinstance(training, dict) else ""
        if any(one.set.index and _content(one) == content for one in people):
            yield from _with_pages(path, "images of the set beside those of test sets")
    elif path.name == "clean.html":
        listed = path.with_name("leave_out.txt")
        first = listed.read_text(errors="replace").partition("\n")[0] if listed.is_file() else ""
        if any(_is_named(one, first.partition("'")[2].rpartition("'")[0]) for one in people):
            yield from _with_pages(path, "images of the set")
    elif path.suffix == _KEPT:
        yield Trace(LOOK, path, "embeddings that a command kept; of which images it does not say")


def _with_pages(path: Path, why: str) -> Iterator[Trace]:
    """A file of results, the page that is drawn of it, and the embeddings it was made from."""
    for name in (path.name, *_PAGES):
        if path.with_name(name).is_file():
            yield Trace(DELETE, path.with_name(name), why)
    for kept in sorted(path.parent.glob(f"embeddings/*{_KEPT}")):
        yield Trace(DELETE, kept, f"embeddings that {path.name} was made from")


def _export(path: Path, people: Sequence[Found]) -> str:
    """Why a network or translator was made of them; empty where nothing says so."""
    if path.suffix not in _EXPORTS:
        return ""
    try:
        card = read_card(path)
        names = {one.set.name for one in people}
        named = [one.name for one in card.data if one.name in names] if card else []
        if named:
            return f"its card names {named[0]} among its training data"
        if path.suffix == ".safetensors" and card is None and _is_translator(path, people):
            return "a translator that was fitted on the set"
    except (UserError, OSError):
        return ""
    return ""


def _is_translator(path: Path, people: Sequence[Found]) -> bool:
    try:
        return any(_is_named(one, read_translator(path).fitted_on) for one in people)
    except UserError:
        return False


def _embeddings(path: Path, people: Sequence[Found]) -> str:
    try:
        found = read_predicted(path.parent)
        source, names = found.about.source, found.names
    except UserError:  # another form, or a damaged folder: what it says may still be read
        source, names = str(_json(path).get("source", "")), ()
    if any(_is_named(one, source) for one in people):
        return f"embeddings of {source}"
    called = {one.name for one in people if one.name}
    if any(called.intersection(name.split("/")[:-1]) for name in names):
        return "embeddings of images that are named so"
    if called.intersection(_lines(path.parent / IDENTITIES)):
        return "embeddings of people, of whom one is named so"
    return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except (OSError, ValueError):  # none there, or no text
        return []


def _results(path: Path, people: Sequence[Found], models: set[Path]) -> str:
    try:
        found = read_evaluation(path)
    except UserError:
        return ""
    names, called = {one.set.name for one in people}, {one.name for one in people if one.name}
    for result in found.results:
        if result.set.partition("+")[0] in names:
            return f"results of the set {result.set}, with pictures unless --no-pictures was given"
        hardest = [pair for pairs in result.hardest.values() for pair in pairs]
        if any(name.partition("/")[0] in called for pair in hardest for name in (pair.a, pair.b)):
            return "they are in its hardest pairs"
    for model in found.models:
        if Path(model.source.partition("@")[0]).resolve() in models:
            return f"results of {model.source}, which was trained on them"
    return ""


def _is_named(person: Found, path: str) -> bool:
    """Whether a path that somebody gave is that of the person's set."""
    if not path:
        return False
    own = person.set.path.resolve()
    return Path(path).resolve() in ((own, own.parent) if own.name == "train.rec" else (own,))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *MALFORMED):
        return {}
    return found if isinstance(found, dict) else {}
