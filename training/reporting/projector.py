"""Embeddings for TensorBoard's projector: where a network puts faces, with the faces as points."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig

from evaluation.scoring import Sample
from pipeline.whole_file import write_whole

SIDE = 48  # pixels of a face
_LARGEST = 8192  # pixels of a side of all of them together, for WebGL
_MISSING = (128, 128, 128)


def write_projector(folder: Path, name: str, sample: Sample, pictures: Mapping[str, bytes]) -> None:
    """Write what the projector shows, each file whole.

    Args:
        folder: that TensorBoard looks into.
        name: of the set.
        pictures: of its images by name; without any, points are shown.

    Raises:
        OSError: where it cannot be written.
    """
    inside = folder / "projector"
    inside.mkdir(parents=True, exist_ok=True)
    rows = ("\t".join(f"{value:.6g}" for value in row) for row in sample.embeddings)
    write_whole(inside / "embeddings.tsv", "".join(f"{row}\n" for row in rows))
    names = (" ".join(name.split()) for name in sample.names)
    write_whole(inside / "names.tsv", "".join(f"{name}\n" for name in names))
    config = ProjectorConfig()
    shown = config.embeddings.add(
        tensor_name=name,
        tensor_path="projector/embeddings.tsv",
        metadata_path="projector/names.tsv",
    )
    columns = math.ceil(math.sqrt(len(sample.names)))
    if pictures and columns * SIDE <= _LARGEST:
        write_whole(inside / "faces.png", _sheet(sample.names, pictures, columns))
        shown.sprite.image_path = "projector/faces.png"
        shown.sprite.single_image_dim.extend([SIDE, SIDE])
    # Last, as it names the others.
    write_whole(folder / "projector_config.pbtxt", text_format.MessageToString(config))


def _sheet(names: Sequence[str], pictures: Mapping[str, bytes], columns: int) -> bytes:
    """A square of faces, row by row, as PNG."""
    sheet = Image.new("RGB", (columns * SIDE, columns * SIDE), _MISSING)
    for place, name in enumerate(names):
        if name in pictures:
            with Image.open(io.BytesIO(pictures[name])) as face:
                small = face.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (place % columns * SIDE, place // columns * SIDE))
    file = io.BytesIO()
    sheet.save(file, format="png")
    return file.getvalue()
