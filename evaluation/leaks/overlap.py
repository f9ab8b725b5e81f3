"""What of the test sets is in a training set, as a file: whoever evaluates can leave it out.

The file is a JSON object: `format`; `training`, `sets` and `model`, each with its fingerprint or
digest; `settings`, the thresholds; and `found`, a list of findings: `kind`, `set` and `image` (as
results name them), `label` and, for copies, `offset` (of the record in the .rec), and `likeness`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.images import Images
from facestream import VERSION, UserError
from pipeline.named_path import MALFORMED, check_path
from pipeline.whole_file import write_whole

FORMAT = 1
SAME_IMAGE, NEAR_COPY, SAME_PERSON = KINDS = ("same image", "near copy", "same person")


class OverlapError(UserError):
    """An overlap file that cannot be used: says why, and how to make one that can."""


@dataclass(frozen=True)
class Finding:
    """A test image that the training set has, or whose person it has.

    Attributes:
        kind: one of KINDS.
        set, image: the names of the test set and of the image in it.
        label: the training identity.
        offset: of the record in the .rec; None for a person.
        likeness: of the pictures, or the cosine to the person's center.
    """

    kind: str
    set: str
    image: str
    label: int
    offset: int | None
    likeness: float


@dataclass(frozen=True)
class Overlap:
    """What a leak check found.

    Attributes:
        training: "path", "fingerprint", "images", "identities", "damaged" of the training set.
        sets: the same of test sets, by name: "fingerprint", "images", "damaged".
        settings: thresholds and what they mean, in words and numbers.
        found: in any order.
        model: whose embeddings found the people; empty where none did.
    """

    training: Mapping[str, Any]
    sets: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    found: Sequence[Finding]
    model: Mapping[str, Any] = field(default_factory=dict)

    def names_in(self, images: Images, *, kinds: Iterable[str] = KINDS) -> frozenset[str]:
        """The names of those images of a test set that were found, for `Asked.without`.

        The set is known by its fingerprint, whatever it is called here and there.

        Raises:
            OverlapError: the check was of other sets, or of another version of this one.
        """
        names = {
            name for name, about in self.sets.items() if about["fingerprint"] == images.fingerprint
        }
        if not names:
            raise OverlapError(
                f"the overlap file is about {', '.join(self.sets) or 'no set'}, and not about this "
                f"set of {len(images)} images (fingerprint {images.fingerprint[:12]}…): run "
                "tools/overlap.py on this very set, without a degradation"
            )
        wanted = set(kinds)
        return frozenset(one.image for one in self.found if one.set in names and one.kind in wanted)

    def count(self, kind: str, name: str) -> int:
        """How many images of a test set were found, of one kind."""
        return len({one.image for one in self.found if (one.kind, one.set) == (kind, name)})

    def summary(self) -> dict[str, str]:
        """What a report shows, in words."""
        shown = {"training set": f"{self.training['path']}, {self.training['images']:,} images"}
        for name, about in self.sets.items():
            counts = [f"{kind} {self.count(kind, name)}" for kind in self.kinds]
            shown[name] = f"of {about['images']:,} images: {', '.join(counts)}"
        return shown | {name: str(value) for name, value in self.settings.items()}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that were looked for."""
        return KINDS if self.model else KINDS[:2]

    def leave_out(self) -> str:
        """The text of a `data.leave_out` file: copies by record, people by identity."""
        lines: dict[str, str] = {}
        for one in self.found:
            what = f"identity {one.label}" if one.offset is None else f"record {one.offset}"
            why = f"{one.kind}: {one.set}, {one.image} ({one.likeness:.3f})"
            lines.setdefault(what, why.replace("\n", " "))
        head = f"# {len(lines)} entries of {self.training['path']!r} that the test sets hold, too"
        return "\n".join([head, *(f"{what}  # {why}" for what, why in lines.items())]) + "\n"

    def write(self, path: Path) -> None:
        """Write the file, complete or not at all."""
        about = {"format": FORMAT, "code": f"facestream {VERSION}", **asdict(self)}
        write_whole(path, json.dumps(about, ensure_ascii=False, indent=1) + "\n")


def read_overlap(path: str | Path) -> Overlap:
    """Read what tools/overlap.py has written.

    Raises:
        PathError: no such file.
        OverlapError: a file of something else, or of a newer version.
    """
    path = Path(path)
    check_path(path, called=str(path), expected="overlap.json as tools/overlap.py writes it")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise OverlapError(
                f"{path} is of format {about['format']!r}; this version of Facestream reads format "
                f"{FORMAT}: update it, or run tools/overlap.py again"
            )
        return Overlap(
            training=dict(about["training"]),
            sets={
                name: dict(one, fingerprint=str(one["fingerprint"]))
                for name, one in about["sets"].items()
            },
            settings=dict(about["settings"]),
            found=[Finding(**one) for one in about["found"]],
            model=dict(about["model"]),
        )
    except OverlapError:
        raise
    except (OSError, *MALFORMED) as error:
        raise OverlapError(
            f"{path} cannot be read as an overlap file ({type(error).__name__}: {error}): expected "
            "overlap.json as tools/overlap.py writes it. Run it again"
        ) from error
