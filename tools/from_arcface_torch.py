"""A configuration of arcface_torch as one of ours:

    python tools/from_arcface_torch.py CONFIG -o OUT.py [--gpus 8]

Nothing of CONFIG is run: what is no literal there is named, and so is what has no equivalent here.
Settings that it leaves out are those of the base.py beside it, or of arcface_torch's own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.arcface_torch.config_text import as_file
from training.arcface_torch.settings import ArcFaceConfigError, Translation, translate
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
    output.write_text(as_file(source.name, translated), encoding="utf-8")
    return translated


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
