"""Is a run healthy? What its metrics show, and its figures beside those to expect:

    python tools/health.py RUN

RUN is a run's folder, its run.output; it may still be running. docs/healthy.md says what each
finding means. Exits with 3 where something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.command import command
from training.health.causes import diagnose
from training.health.saved import read_run
from training.health.verdict import verdict

ILL_EXIT_CODE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    arguments = parser.parse_args()
    with command("health"):
        course, facts = read_run(arguments.run)
        print(*verdict(course, facts), sep="\n")
        ill = bool(diagnose(course, facts))
    sys.exit(ILL_EXIT_CODE if ill else 0)


if __name__ == "__main__":
    main()
