"""Train a face-recognition network:  torchrun train_dist.py configs/demo.py [section.key=value ...]

Runs as it is on one process, under torchrun on as many as it starts: NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # What follows takes seconds: until the run hears it, Ctrl-C ends it without a trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import logging
import os
import sys

from facestream import VERSION
from pipeline.records.stalls import stalls_logged
from training.command import command
from training.config import load_config
from training.distributed import join_world, leave_world, together
from training.faults.stops import NO_ANSWER_EXIT_CODE, Stopped, Stops, resume_command
from training.loop import Trainer
from training.planning.dry_run import dry_run
from training.reporting.console import protect_console
from training.reporting.dashboards.others import require_installed
from training.reporting.lines import ConsoleHandler
from training.reporting.run_log import keep_early_warnings
from training.scored_sets import open_sets
from training.step.precision import choose_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a Python file that defines `config`, see configs/")
    # Without a default argparse calls them required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--version", action="version", version=f"facestream {VERSION}")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the run, predict its memory, time some steps of it and say what to change",
    )
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()  # overrides may stand on both sides of an option
    if arguments.local_rank is not None:  # from torch.distributed.launch
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    protect_console()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[ConsoleHandler()])
    keep_early_warnings()
    with Stops() as stops, command("train_dist"), stalls_logged():
        try:
            sys.exit(run(arguments, stops))
        except RuntimeError as error:
            loss = stops.explain(error)
            if loss is None:
                raise
            print(f"train_dist: {loss}. Checkpoints that are complete stay", file=sys.stderr)
            sys.exit(NO_ANSWER_EXIT_CODE)


def run(arguments: argparse.Namespace, stops: Stops) -> int:
    """What the command does: its exit code."""
    config = load_config(arguments.config, arguments.overrides)
    world = join_world(config.run.device)
    stops.follow(config.run, world)
    precision = choose_precision(world.device, config.step.precision)
    together(lambda: world.is_main and require_installed(config.log.also))
    sets = open_sets(config, world, precision)
    if arguments.dry_run:
        status = dry_run(config, world, precision, sets=sets)
        leave_world()
        return status
    trainer = Trainer(config, world, precision=precision, sets=sets, stops=stops)
    status = os.EX_OK
    try:
        trainer.run()
    except Stopped as stopped:
        status = stopped.reason.exit_code
        if trainer.reporter:
            steps = f"step {trainer.steps_done} of {trainer.schedule.total_steps}"
            trainer.reporter.say(
                f"stopped: {stopped}; saved {trainer.last_checkpoint}; not finished, {steps}"
            )
            trainer.reporter.say(f"go on with: {resume_command(sys.argv, os.environ)}")
    if trainer.reporter:
        trainer.reporter.sum_up(trainer.last_checkpoint)
        if status != os.EX_OK and "TORCHELASTIC_RUN_ID" in os.environ:
            trainer.reporter.say("torchrun     shows a trace of its own now; the run is saved")
    leave_world()
    return status


if __name__ == "__main__":
    main()
