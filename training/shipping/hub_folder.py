"""A folder of a model as huggingface_hub.upload_folder takes it; nothing is sent from here.

README.md        the page, with license, tags and metrics in its header
config.json      what the network is and takes, for programs
.gitattributes   that its weights are large files (Git LFS)
the files themselves
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from facestream import UserError
from pipeline.named_path import check_path
from pipeline.whole_file import replace
from training.frozen.card import KINDS, Card, read_card
from training.provenance import strictest
from training.shipping.page import PAGE, with_results
from training.weights.model_card import exported_card


class HubFolderError(UserError):
    """A folder that cannot be made: says what was found, what was expected, how to mend it."""


def prepare(files: Sequence[Path], folder: Path, *, license: str | None = None) -> list[Path]:
    """Make a folder of one model's files; returns what is in it.

    Their page is the README.md beside the first of them, where that is a model card; or is made of
    their card.

    Args:
        files: .onnx and .safetensors, with cards, of one model.
        license: an SPDX name for a page that is made; None: the strictest of the training sets.

    Raises:
        HubFolderError: for files without a card, of two models or of one name, and a `folder` that
            is in use.
        CardError, PathError: for damaged files, and those that are not there.
    """
    require_free(folder)
    cards = [_card(path) for path in files]
    first = cards[0]
    if len({card.space or card.digest for card in cards}) > 1:
        raise HubFolderError(
            f"{', '.join(map(str, files))} are of different models: expected exports of one, make "
            "a folder for each"
        )
    if len({path.name for path in files}) < len(files):
        raise HubFolderError("two files have the same name: rename one, both go into one folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        for path in files:
            shutil.copyfile(path, Path(aside) / path.name)
        texts = {
            PAGE: _page(files, cards, license),
            "config.json": json.dumps(_config(first), indent=2, ensure_ascii=False) + "\n",
            ".gitattributes": "".join(
                f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n"
                for suffix in sorted({path.suffix for path in files})
            ),
        }
        for name, text in texts.items():
            (Path(aside) / name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        names = [path.name for path in files] + [*texts]
        for name in names:
            replace(Path(aside) / name, folder / name)
    return [folder / name for name in names]


def require_free(folder: Path) -> None:
    """Raise HubFolderError where there is anything in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubFolderError(f"{folder} is not empty: name another folder")


def _card(path: Path) -> Card:
    check_path(path, called=str(path), expected=f"{' or '.join(KINDS)} file")
    card = read_card(path) if path.suffix in KINDS else None
    if card is None:
        raise HubFolderError(
            f"{path} has no card: expected {' or '.join(KINDS)} that tools/export_weights.py or "
            "tools/export_onnx.py has written, or that was evaluated with --card"
        )
    return card


def _page(files: Sequence[Path], cards: Sequence[Card], license: str | None) -> str:
    """The one that lies there, or one that is made, with what the first file's card says."""
    beside = files[0].with_name(PAGE)
    if beside.is_file():
        text = with_results(beside.read_text(encoding="utf-8"), cards[0])
        if text is not None:
            return text
    made = exported_card(
        cards[0],
        [path.name for path in files],
        license=license or strictest(one.license for one in cards[0].data),
    )
    page = with_results(made, cards[0])
    assert page is not None, "a page of ours is a model card"
    return page


def _config(card: Card) -> dict[str, object]:
    return {
        "model_type": "face-recognition",
        "architectures": [card.network],
        "embedding_dim": card.embedding_dim,
        "input": card.input,
        "facestream": card.code,
        "training": dict(card.config),
    }
