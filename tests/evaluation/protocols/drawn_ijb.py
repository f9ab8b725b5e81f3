"""IJB's lists, drawn at random and written in the official layout, and embeddings of its images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.features import Features
from evaluation.protocols.protocol import Asked
from pipeline.align import TEMPLATE

SIZE = 16
WIDTH = 24  # of embeddings
QUICK = Asked(draws=0)
OPEN = {"name": "ijbc", "image_size": SIZE}


@dataclass
class Drawn:
    """A set's lists as they are written, drawn at random.

    Attributes:
        faces: (image, template, medium) of each line.
        shapes: (landmarks, score) of each line.
        pairs: (template, template, label).
        lists: of the three lists of 1:N, template to subject.
    """

    name: str
    faces: list[tuple[str, int, int]] = field(default_factory=list)
    shapes: list[tuple[np.ndarray, float]] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    lists: list[dict[int, int]] = field(default_factory=lambda: [{}, {}, {}])

    @property
    def subject_of(self) -> dict[int, int]:
        return {t: s for part in self.lists for t, s in part.items()}


def drawn(name: str = "ijbc", *, subjects: int = 24, seed: int = 0) -> Drawn:
    """Of each subject a template in one of the galleries and two or three probes."""
    random = np.random.default_rng(seed)
    made, number = Drawn(name), 100
    for subject in range(1, subjects + 1):
        for kind in [subject % 2] + [2] * int(random.integers(2, 4)):
            number += int(random.integers(1, 5))
            made.lists[kind][number] = subject
            for _ in range(int(random.integers(1, 6))):
                medium = int(random.integers(1, 4)) + 10 * subject  # some hold several images
                landmarks = 2 + TEMPLATE * SIZE / 112 + random.normal(0, 0.3, (5, 2))
                made.faces.append((f"{len(made.faces) + 1}.png", number, medium))
                made.shapes.append((landmarks, round(float(random.uniform(0.3, 1)), 3)))
    order = random.permutation(len(made.faces))  # the images of a template need not be together
    made.faces = [(f"{i + 1}.png", *made.faces[j][1:]) for i, j in enumerate(order)]
    made.shapes = [made.shapes[j] for j in order]
    whose = made.subject_of
    templates = sorted(whose)
    for one in templates[::2]:
        for other in templates[1::2]:
            if whose[one] == whose[other] or random.random() < 0.5:
                made.pairs.append((one, other, int(whose[one] == whose[other])))
    return made


def write(made: Drawn, folder: Path, *, images: bool = True) -> Path:
    meta, crops = folder / "meta", folder / "loose_crop"
    meta.mkdir(parents=True)
    crops.mkdir()
    random = np.random.default_rng(1)
    for name, _, _ in made.faces:
        pixels = random.integers(0, 256, (SIZE + 6, SIZE + 4, 3), dtype=np.uint8)
        if images:
            Image.fromarray(pixels).save(crops / name)
        else:
            (crops / name).touch()

    def lines(name: str, rows: list[str]) -> None:
        (meta / name).write_text("\n".join(rows) + "\n")

    lines(f"{made.name}_face_tid_mid.txt", [" ".join(map(str, face)) for face in made.faces])
    lines(
        f"{made.name}_name_5pts_score.txt",
        [
            " ".join([face[0], *(f"{x:.3f}" for x in shape[0].ravel()), f"{shape[1]}"])
            for face, shape in zip(made.faces, made.shapes)
        ],
    )
    lines(f"{made.name}_template_pair_label.txt", [" ".join(map(str, pair)) for pair in made.pairs])
    letter = "S" if made.name == "ijbb" else "G"
    for part, ending in zip(
        made.lists, (f"gallery_{letter}1", f"gallery_{letter}2", "probe_mixed")
    ):
        rows = [
            f"{template},{subject},{name},0"
            for template, subject in part.items()
            for name, of, _ in made.faces
            if of == template
        ]
        lines(f"{made.name}_1N_{ending}.csv", ["TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X", *rows])
    return folder


def features_of(made: Drawn, *, noise: float = 0.55, seed: int = 3) -> Features:
    """Embeddings around a center of each subject, of uneven norms."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((100, WIDTH))
    whose = made.subject_of
    rows = np.stack([centers[whose[template]] for _, template, _ in made.faces])
    rows += noise * random.standard_normal(rows.shape) * np.sqrt(WIDTH / 4)
    rows *= random.uniform(2, 30, (len(rows), 1))
    return Features(rows.astype(np.float32), np.linalg.norm(rows, axis=1).astype(np.float32), {})
