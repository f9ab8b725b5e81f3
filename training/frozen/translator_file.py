"""A translator in a .safetensors file: its two spaces, how it was fitted, where it decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from evaluation.translation import TranslationError, Translator, Trial
from facestream import VERSION
from pipeline.named_path import MALFORMED, check_path
from pipeline.whole_file import write_whole
from training.frozen.card import OperatingPoint

KEY = "facestream.translator"
FORMAT = 1


@dataclass(frozen=True)
class TranslatorFile:
    """A translator, and what it is good for.

    Attributes:
        old, new: the spaces of the embeddings that it takes and gives.
        old_model, new_model: as they were named.
        flip: whether the embeddings are sums with those of the mirror images.
        fitted_on: the images, as they were named.
        images, people: how many it was fitted on.
        trials: of every kind of translator on people held out, the best first.
        points: where new embeddings beside translated ones decide, of every set that was measured.
    """

    translator: Translator
    old: str
    new: str
    old_model: str
    new_model: str
    flip: bool
    fitted_on: str
    images: int
    people: int
    trials: Sequence[Trial] = ()
    points: Sequence[OperatingPoint] = ()


def write_translator(path: Path, file: TranslatorFile) -> None:
    """Raises OSError where it cannot be written; a file that was there stays."""
    about = {key: value for key, value in vars(file).items() if key != "translator"}
    about["trials"] = [asdict(one) for one in file.trials]
    about["points"] = [asdict(one) for one in file.points]
    said = {
        "format": FORMAT,
        "code": f"facestream {VERSION}",
        "kind": file.translator.kind,
        **about,
    }
    tensors = {"matrix": file.translator.matrix, "offset": file.translator.offset}
    write_whole(path, save(tensors, metadata={KEY: json.dumps(said, ensure_ascii=False)}))


def read_translator(path: Path) -> TranslatorFile:
    """Raises TranslationError, PathError: no such file, a damaged one, or one of another kind."""
    check_path(path, called=str(path), expected="a translator that tools/compat.py has written")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise ValueError("it says nothing of a translator")
            matrix, offset = file.get_tensor("matrix"), file.get_tensor("offset")
        said = json.loads(text)
        if said.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}: update Facestream, or fit it again")
        if matrix.ndim != 2 or offset.shape != matrix.shape[1:] or matrix.dtype != np.float32:
            raise ValueError(
                f"its matrix is {matrix.dtype} {matrix.shape}, its offset {offset.shape}"
            )
        if not (np.isfinite(matrix).all() and np.isfinite(offset).all()):
            raise ValueError("it has values that are not finite")
        del said["code"]
        translator = Translator(said.pop("kind"), matrix, offset)
        trials = [Trial(**one) for one in said.pop("trials")]
        points = [OperatingPoint(**one) for one in said.pop("points")]
        return TranslatorFile(translator, **said, trials=trials, points=points)
    except (SafetensorError, OSError, *MALFORMED) as error:
        raise TranslationError(
            f"{path} cannot be read as a translator ({error}): expected a file that "
            "tools/compat.py --fit has written. Copy it again, or fit it again"
        ) from error
