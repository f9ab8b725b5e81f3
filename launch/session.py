"""One session of a hosted notebook, such as Kaggle's or Colab's, from nothing to a saved run:

    python launch/session.py configs/kaggle_t4x2.py --data /kaggle/input --output OUT

It installs what is missing beside the image's own torch, finds the training set in a folder that
may be read-only, takes over the run of an earlier session (--before) where the output has none, and
trains on all GPUs until the run is finished or the session's hours are over. What follows
(section.key=value) goes to train_dist.py. The same command in the next session goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from facestream import UserError
from pipeline.dali_wheel import dali_wheel
from tools.checks import packages


class SessionError(ValueError):
    """What whoever started the session can mend."""


def missing_requirements(cuda: str | None) -> list[str]:
    """The lines of requirements-user.txt that nothing installed meets, and a wheel of DALI.

    torch is never among them.

    Args:
        cuda: torch's, such as "12.8", by which the wheel of DALI is chosen; None: torch has none.
    """
    lacking = [str(one) for one in packages.wanted() if not one.is_met()]
    return lacking if packages.installed_dali() else [*lacking, dali_wheel(cuda)]


def find_training_set(folder: Path) -> Path:
    """The one folder at or below `folder` that holds train.rec; where there is none, `folder`
    itself, if it is a set of another form (docs/data.md).

    Raises SessionError where there is no set, or more than one.
    """
    from pipeline.containers.forms import form_of  # needs numpy, which may just be installed

    found = sorted(path.parent for path in folder.rglob("train.rec"))
    if len(found) == 1:
        return found[0]
    if not found:
        try:
            form_of(folder)
        except UserError:
            raise SessionError(
                f"no train.rec in {folder} or below it: add the training set to the notebook's "
                "input, or name its folder (--data)"
            ) from None
        return folder
    raise SessionError(
        f"{len(found)} folders with a train.rec below {folder}: name one of them (--data):\n"
        + "\n".join(f"  {path}" for path in found)
    )


def verification_sets(folder: Path) -> list[Path]:
    """Those of LFW, CFP-FP and AgeDB-30 that lie beside the training set."""
    names = ("lfw*.bin", "cfp_fp.bin", "agedb_30.bin")
    return [path for name in names for path in sorted(folder.glob(name))]


def take_over(before: Path, output: Path) -> Path | None:
    """Copy the newest unfinished run found below `before` to `output`, if there is no run yet.

    Returns where it was; None where nothing was copied.
    """
    if (output / "state.json").exists():
        return None
    runs = [path.parent for path in before.rglob("state.json") if _unfinished(path)]
    runs = [run for run in runs if run.resolve() != output.resolve()]
    if not runs:
        return None
    newest = max(runs, key=lambda run: (run / "state.json").stat().st_mtime)
    copy = output.with_name(f"{output.name}.partial")
    shutil.rmtree(copy, ignore_errors=True)  # of a session that was stopped while copying
    shutil.copytree(newest, copy)
    for path in [copy, *copy.rglob("*")]:  # input is read-only, and so were its copies
        path.chmod(path.stat().st_mode | 0o200)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        output.rmdir()
    copy.rename(output)
    return newest


def _unfinished(state: Path) -> bool:
    try:
        return not json.loads(state.read_text(encoding="utf-8"))["finished"]
    except (ValueError, KeyError, TypeError):  # another program's file of that name
        return False


def training_command(
    config: Path, data: Path, output: Path, *, gpus: int, hours: float, settings: Sequence[str]
) -> list[str]:
    """The command that trains, with a rank for each GPU; `settings` come last, and win."""
    start = [sys.executable]
    if gpus > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
    sets = ",".join(map(str, verification_sets(data)))
    run = [f"data.train={data}", f"run.output={output}", f"run.max_hours={hours:g}"]
    run.append(f"eval.sets=[{sets}]")
    return [*start, str(ROOT / "train_dist.py"), str(config), *run, *settings]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("config", type=Path)
    parser.add_argument("settings", nargs="*", help="section.key=value, for train_dist.py")
    parser.add_argument("--data", type=Path, required=True, help="the set, or a folder above it")
    parser.add_argument("--output", type=Path, required=True, help="the run's folder")
    parser.add_argument("--before", type=Path, help="where an earlier session's run may be")
    parser.add_argument("--hours", type=float, default=11.5, help="then save and stop")
    arguments = parser.parse_intermixed_args()
    try:
        import torch
    except ImportError:
        parser.error(
            "torch is not installed: expected an image that has it, as Kaggle's and Colab's"
        )
    if lacking := missing_requirements(torch.version.cuda):
        print(f"installing {', '.join(lacking)}", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *lacking], check=True)
    try:
        data = find_training_set(arguments.data)
        if arguments.before and (run := take_over(arguments.before, arguments.output)):
            print(f"going on with {run}", flush=True)
    except SessionError as error:
        parser.exit(2, f"session: {error}\n")
    # The index of a set that is read-only is kept in the cache: here, where it can be written.
    cache = arguments.output.resolve().parent / "cache"
    os.environ.setdefault("XDG_CACHE_HOME", str(cache))
    command = training_command(
        arguments.config.resolve(),
        data,
        arguments.output,
        gpus=torch.cuda.device_count(),
        hours=arguments.hours,
        settings=arguments.settings,
    )
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
