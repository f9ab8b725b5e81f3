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
from dataclasses import asdict

from torch import nn

from evaluation.verification import NonFiniteEmbeddingsError, Verifier
from facestream import VERSION
from pipeline.dali_loader import choose_threads
from training.command import command
from training.config import Config, load_config
from training.distributed import World, join_world, leave_world, together
from training.faults.stops import NO_ANSWER_EXIT_CODE, Stopped, Stops, resume_command
from training.loop import Evaluate, Scores, Trainer
from training.named_files import check_named_files
from training.planning.dry_run import dry_run
from training.reporting.console import protect_console
from training.reporting.lines import ConsoleHandler
from training.reporting.run_log import keep_early_warnings
from training.setting_names import settings_named
from training.step.precision import Precision, choose_precision


def build_evaluate(config: Config, world: World, precision: Precision) -> Evaluate:
    """Load and check the verification sets once; what comes back scores a backbone on them."""
    together(lambda: check_named_files(config, "eval.sets"))
    with settings_named("data.image_size", paths="eval.sets"):
        verifier = together(
            lambda: Verifier(
                config.eval.sets,
                device=world.device,
                rank=world.rank,
                world_size=world.world_size,
                batch_size=config.eval.batch_size,
                autocast_dtype=precision.compute_dtype,
                image_size=config.data.image_size,
                threads=config.data.threads or choose_threads(world.local_world_size),
            )
        )

    def evaluate(backbone: nn.Module) -> Scores:
        try:
            return {name: asdict(result) for name, result in verifier(backbone).items()}
        except NonFiniteEmbeddingsError as error:  # an untrained deep network overflows float16
            logging.warning("verification left out: %s", error)
            return {}

    return evaluate


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
    with Stops() as stops, command("train_dist"):
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
    evaluate = build_evaluate(config, world, precision)
    if arguments.dry_run:
        status = dry_run(config, world, precision)
        leave_world()
        return status
    trainer = Trainer(config, world, precision=precision, evaluate=evaluate, stops=stops)
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
