"""A configuration of arcface_torch as one of ours:

    python tools/from_arcface_torch.py CONFIG -o OUT.py [--gpus 8]

Nothing of CONFIG is run: what is no literal there is named, and so is what has no equivalent here.
Settings that it leaves out are those of the base.py beside it, or of arcface_torch's own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.arcface_config import ArcFaceConfigError, Translation, translate
from training.command import command
from training.config import Config, DataConfig, override


def from_arcface_torch(source: Path, output: Path, *, gpus: int) -> Translation:
    """Write `output`, which must not be there; returns what it was made of.

    Raises ArcFaceConfigError for a file that is no configuration of arcface_torch, or that wants
    what is not there here, and ConfigError for a value that is out of range here.
    """
    if gpus < 1:
        raise ArcFaceConfigError(f"--gpus {gpus}: expected at least 1")
    if output.exists():
        raise ArcFaceConfigError(f"{output} is there already: name another file")
    translated = translate(source, gpus=gpus)
    if translated is None:
        raise ArcFaceConfigError(
            f"{source} is no configuration of arcface_torch: expected a Python file that sets "
            "config.network, config.margin_list and the like"
        )
    override(Config(data=DataConfig(train="unknown")), translated.overrides())  # or it is refused
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_file(source, translated), encoding="utf-8")
    return translated


def _file(source: Path, translated: Translation) -> str:
    ranks = f"{translated.gpus} GPU{'s' if translated.gpus > 1 else ''}"
    lines = [f'"""{source.name} of arcface_torch, as it trains on {ranks}.']
    if translated.notes:
        lines += ["", "Not the same:", *(f"- {_plain(note)}" for note in translated.notes)]
    kinds = get_type_hints(Config)
    sections = {section.name: kinds[section.name] for section in fields(Config)}
    used = [name for name in sections if any(_in(name, key) for key in translated.settings)]
    lines += ['"""', "", "from training.config import (", "    Config,"]
    lines += [f"    {name}," for name in sorted(sections[name].__name__ for name in used)]
    lines += [")", "", "config = Config("]
    for name in used:
        values = {k: v for k, v in translated.settings.items() if _in(name, k)}
        lines.append(f"    {name}={sections[name].__name__}(")
        lines += [f"        {key.partition('.')[2]}={value!r}," for key, value in values.items()]
        lines.append("    ),")
    return "\n".join([*lines, ")", ""])


def _in(section: str, key: str) -> bool:
    return key.startswith(f"{section}.")


def _plain(text: str) -> str:
    """Fit for a docstring, whatever the file says."""
    return text.replace("\\", "\\\\").replace('"""', "'''")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("config", type=Path, help="a configuration file of arcface_torch")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--gpus", type=int, default=8, help="that it is trained on there (default 8)"
    )
    arguments = parser.parse_args()
    with command("from_arcface_torch"):
        done = from_arcface_torch(arguments.config, arguments.output, gpus=arguments.gpus)
    batch, rate = done.settings["data.global_batch"], done.settings["optim.lr"]
    print(f"wrote {arguments.output}, for {done.gpus} GPUs (--gpus)")
    print(
        f"batch {batch}, and optim.lr={rate:g}, which is for 512 images: at {batch} that makes "
        f"{rate * batch / 512:g}, the rate there"
    )
    for note in done.notes:
        print(f"note  {note}")


if __name__ == "__main__":
    main()
